"""
The panel "What just happened" of practice mode: the steps that led to a page, in the words of the log.

What is logged while a request is handled is also noted with the request. A page shows the notes of its own request and,
before them, those of the redirects that led to it. On the way to the next page the notes wait here, in memory: practice
mode is one process, and nothing in it is worth keeping.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from flask import Flask, Response, g, has_request_context, request
from loguru import logger

COOKIE = 'zendesk_oauth_what_happened'
MAX_VISITS = 10  # in one story; the oldest go first
MAX_WAITING = 100  # redirects that nobody has followed yet; the oldest go first


@dataclass
class Visit:
    """One request: `what` was asked for, the `steps` as (time of day, text), and where it was `redirected_to`."""

    what: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    redirected_to: str = ''


_waiting: OrderedDict[str, list[Visit]] = OrderedDict()
_lock = threading.Lock()


def tell(app: Flask, controls: str) -> None:
    """
    Note the steps of each request to the app; its pages find them in the variable `visits`.

    `controls` is the address of the practice Zendesk's control page.
    """
    logger.add(_note, level='DEBUG', format='{message}')

    @app.before_request
    def begin() -> None:
        if request.endpoint != 'static':
            g.visits = [*_come_in(), Visit(f'{request.method} {request.path}')]

    @app.context_processor
    def lend_to_the_page() -> dict[str, Any]:
        return {'visits': g.get('visits', []), 'practice_controls': controls}

    @app.after_request
    def pass_on(response: Response) -> Response:
        if 'visits' in g:
            if COOKIE in request.cookies:
                response.delete_cookie(COOKIE)
            if response.location:
                _send_on(response)
        return response


def _note(message: object) -> None:
    """Take a line that goes to the log; those of the practice Zendesk's threads have no notes to go to."""
    if has_request_context() and 'visits' in g:
        record = message.record  # type: ignore[attr-defined]
        g.visits[-1].steps.append((record['time'].strftime('%H:%M:%S'), record['message']))


def _send_on(response: Response) -> None:
    """
    Let the notes wait for the page that the browser is redirected to.

    On the way over Zendesk it is the state that comes back, so that two tabs keep their stories apart; within the app
    a cookie does.
    """
    address = urlsplit(str(response.location))
    g.visits[-1].redirected_to = address._replace(query='', fragment='').geturl()
    key = parse_qs(address.query).get('state', [secrets.token_urlsafe(16)])[0]
    if not address.netloc:
        response.set_cookie(COOKIE, key, httponly=True, samesite='Lax')
    with _lock:
        _waiting[key] = g.visits[-MAX_VISITS:]
        while len(_waiting) > MAX_WAITING:
            _waiting.popitem(last=False)


def _come_in() -> list[Visit]:
    """Return the notes of the redirects that led here."""
    keys = (request.cookies.get(COOKIE, ''), request.args.get('state', ''))
    with _lock:
        return [visit for key in keys for visit in _waiting.pop(key, [])]
