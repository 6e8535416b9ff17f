"""
Tell where the time of a profile page goes, within one process: no server, and no client but the stand-in's.

    .venv/bin/python benchmarks/profile_page.py [--quick]
"""

from __future__ import annotations

import contextlib
import cProfile
import importlib
import io
import json
import os
import pstats
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from operator import itemgetter
from statistics import median
from typing import Any
from unittest import mock

from processes import VISITORS, Bench, Server, bench, environment, write_users
from run import table
from werkzeug.test import EnvironBuilder
from zendesk_stand_in import NAME, ROLE

from zendesk_oauth import Response

# Where a function stands, in the file names that the profiler notes; a group is what the time is spent on.
GROUPS = {
    'requests, urllib3, ssl': r'/(requests|urllib3|http|email|idna|charset_normalizer)/|/(ssl|socket)\.py$',
    'flask, werkzeug': r'/(flask|werkzeug|blinker)/',
    'jinja2': r'/(jinja2|markupsafe)/|^<template>$',
    'itsdangerous': r'/itsdangerous/',
    'loguru': r'/loguru/',
    'json': r'/json/',
}

Function = tuple[str, int, str]  # file, line, name


def main(pages: int) -> None:
    with bench() as made, (made.folder / 'app' / 'log.txt').open('w', buffering=1) as log:
        write_users(made.folder / 'app', 10)
        with contextlib.redirect_stderr(log):  # the app logs to where stderr is as it starts
            ask, call = load_app(made)
        for _ in range(pages // 10):
            ask()
        figures = [
            ['the whole page', f'{microseconds(ask, pages):.0f}'],
            ['the call to Zendesk alone', f'{microseconds(call, pages):.0f}'],
        ]
        body = json.dumps({'user': {'id': 1, 'name': NAME, 'role': ROLE}}).encode()
        with mock.patch.object(oauth(), 'api_request', return_value=Response(200, {}, body)):
            figures.append(['the page without the call', f'{microseconds(ask, pages):.0f}'])
        print(table([f'median of {pages:,}', 'µs'], figures), end='\n\n')

        profiler = cProfile.Profile()
        with profiler:
            for _ in range(pages):
                ask()
        shares = time_by_group(pstats.Stats(profiler), str(made.folder))
        total = sum(shares.values())
        rows = [
            [group, f'{seconds / total:.0%}']
            for group, seconds in sorted(shares.items(), key=itemgetter(1), reverse=True)
        ]
        print(table(['where the time goes, by the profiler', 'share'], rows))


def load_app(made: Bench) -> tuple[Callable[[], None], Callable[[], None]]:
    """Import the app from its copy; return what asks it for a profile, and what calls Zendesk as it does."""
    port = 3000  # nobody listens there
    folder = made.folder / 'app'
    variables = environment(folder, LOGURU_LEVEL='INFO', **made.settings(port))  # as gunicorn.conf.py has it
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    app = importlib.import_module('app').app
    environ = EnvironBuilder('/profile', f'http://localhost:{port}').get_environ()
    environ['HTTP_COOKIE'] = Server('', port, made.stand_in.process, 0, 'zendesk_oauth_session').cookie(VISITORS[0])

    def ask() -> None:
        chunks = app.wsgi_app({**environ, 'wsgi.input': io.BytesIO()}, lambda *_: None)
        page = b''.join(chunks)
        chunks.close()
        if NAME.encode() not in page:
            raise RuntimeError(f'That is not the profile: {page.decode()}')

    def call() -> None:
        oauth().api_request('GET', '/api/v2/users/me', headers={'Authorization': f'Bearer {"a" * 64}'})

    return ask, call


def oauth() -> Any:
    return importlib.import_module('backend_code').oauth


def microseconds(act: Callable[[], None], times: int) -> float:
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        act()
        taken.append(time.perf_counter() - begin)
    return 1e6 * median(taken)


def time_by_group(stats: pstats.Stats, folder: str) -> dict[str, float]:
    """Return the seconds of each group. What belongs to none, such as `re`, counts for those who have called it."""
    noted: dict[Function, Any] = stats.stats  # type: ignore[attr-defined]

    def group_of(path: str) -> str:
        if path.startswith(folder) and '/templates/' not in path:
            return "the app's own files"
        return next((group for group, pattern in GROUPS.items() if re.search(pattern, path)), '')

    def share_out(function: Function, seconds: float, passed: tuple[Function, ...]) -> None:
        group, callers = group_of(function[0]), noted[function][4]
        total = sum(caller[3] for caller in callers.values())
        if group or not total or function in passed or seconds < 1e-6:
            shares[group or 'other'] += seconds
            return
        for caller, (*_, cumulative) in callers.items():
            share_out(caller, seconds * cumulative / total, (*passed, function))

    shares: dict[str, float] = defaultdict(float)
    for function, (_, _, internal, _, _) in noted.items():
        share_out(function, internal, ())
    return shares


if __name__ == '__main__':
    main(300 if '--quick' in sys.argv else 3000)
