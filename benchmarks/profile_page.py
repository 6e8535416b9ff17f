"""
Measure how much time the profile page spends in each library. The app runs in this process, without a server.

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

from processes import USER_IDS, Bench, Server, environment, new_bench, write_users
from run import table
from werkzeug.test import EnvironBuilder
from zendesk_stand_in import NAME, ROLE

from zendesk_oauth import Response

# The groups of the report: each pattern matches file names in the profile.
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
    with new_bench() as bench, (bench.folder / 'app' / 'log.txt').open('w', buffering=1) as log:
        write_users(bench.folder / 'app', 10)
        with contextlib.redirect_stderr(log):  # the app's logger keeps the stderr that it finds on import
            get_page, send_request = load_app(bench)
        for _ in range(pages // 10):
            get_page()
        medians = [
            ['page', f'{microseconds(get_page, pages):.0f}'],
            ['request to Zendesk', f'{microseconds(send_request, pages):.0f}'],
        ]
        body = json.dumps({'user': {'id': 1, 'name': NAME, 'role': ROLE}}).encode()
        with mock.patch.object(oauth(), 'api_request', return_value=Response(200, {}, body)):
            medians.append(['page without the request to Zendesk', f'{microseconds(get_page, pages):.0f}'])
        print(table([f'median of {pages:,} runs', 'µs'], medians), end='\n\n')

        profiler = cProfile.Profile()
        with profiler:
            for _ in range(pages):
                get_page()
        shares = time_by_group(pstats.Stats(profiler), str(bench.folder))
        total = sum(shares.values())
        rows = [
            [group, f'{seconds / total:.0%}']
            for group, seconds in sorted(shares.items(), key=itemgetter(1), reverse=True)
        ]
        print(table(['time in the profiler, by group', 'share'], rows))


def load_app(bench: Bench) -> tuple[Callable[[], None], Callable[[], None]]:
    """Import the copied app. Return two functions: get the profile page, and send only the request to Zendesk."""
    port = 3000  # unused: no server runs
    folder = bench.folder / 'app'
    variables = environment(folder, LOGURU_LEVEL='INFO', **bench.settings(port))  # as in gunicorn.conf.py
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    app = importlib.import_module('app').app
    environ = EnvironBuilder('/profile', f'http://localhost:{port}').get_environ()
    server = Server('', port, bench.stand_in.process, 0, f'zendesk_oauth_{port}_session')
    environ['HTTP_COOKIE'] = server.cookie(USER_IDS[0])

    def get_page() -> None:
        chunks = app.wsgi_app({**environ, 'wsgi.input': io.BytesIO()}, lambda *_: None)
        page = b''.join(chunks)
        chunks.close()
        if NAME.encode() not in page:
            raise RuntimeError(f'This page is not the profile: {page.decode()}')

    def send_request() -> None:
        oauth().api_request('GET', '/api/v2/users/me', headers={'Authorization': f'Bearer {"a" * 64}'})

    return get_page, send_request


def oauth() -> Any:
    return importlib.import_module('backend_code').oauth


def microseconds(run: Callable[[], None], times: int) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return 1e6 * median(seconds)


def time_by_group(stats: pstats.Stats, folder: str) -> dict[str, float]:
    """Return the seconds per group. The time of other modules, such as `re`, is attributed to their callers."""
    entries: dict[Function, Any] = stats.stats  # type: ignore[attr-defined]

    def group_of(path: str) -> str:
        if path.startswith(folder) and '/templates/' not in path:
            return "the app's own files"
        return next((group for group, pattern in GROUPS.items() if re.search(pattern, path)), '')

    def add_time(function: Function, seconds: float, visited: tuple[Function, ...]) -> None:
        group, callers = group_of(function[0]), entries[function][4]
        total = sum(caller[3] for caller in callers.values())
        if group or not total or function in visited or seconds < 1e-6:
            shares[group or 'other'] += seconds
            return
        for caller, (*_, cumulative) in callers.items():
            add_time(caller, seconds * cumulative / total, (*visited, function))

    shares: dict[str, float] = defaultdict(float)
    for function, (_, _, internal, _, _) in entries.items():
        add_time(function, internal, ())
    return shares


if __name__ == '__main__':
    main(300 if '--quick' in sys.argv else 3000)
