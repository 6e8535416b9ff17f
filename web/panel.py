"""
Practice mode's panel: the log lines of this request and of the redirects before it.

The panel keeps the lines of each request. After a redirect they stay in memory until the next page, which works because
practice mode has only one process.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from flask import Flask, Response, g, has_request_context, request
from loguru import logger

COOKIE = 'zendesk_oauth_panel'
MAX_REQUESTS = 10  # in one panel; the oldest are dropped first
MAX_WAITING = 100  # redirects that a browser has not followed yet; the oldest are dropped first


@dataclass
class RequestLog:
    """One request: its method and path (`title`), its `lines` (time of day, text), and its redirect, if any."""

    title: str
    lines: list[tuple[str, str]] = field(default_factory=list)
    redirected_to: str = ''


_waiting: OrderedDict[str, list[RequestLog]] = OrderedDict()
_lock = threading.Lock()


def init_app(app: Flask, controls: str) -> None:
    """
    Keep the log lines of each request, and pass them to all templates as `request_logs`.

    `controls` is the URL of the practice Zendesk's control page.
    """
    logger.add(_keep, level='DEBUG', format='{message}')
    logging.getLogger('zendesk_oauth').setLevel(logging.DEBUG)

    @app.before_request
    def begin() -> None:
        if request.endpoint != 'static':
            g.request_logs = [*_from_redirects(), RequestLog(f'{request.method} {request.path}')]

    @app.context_processor
    def variables() -> dict[str, Any]:
        return {'request_logs': g.get('request_logs', []), 'practice_controls': controls}

    @app.after_request
    def pass_on(response: Response) -> Response:
        if 'request_logs' in g:
            if COOKIE in request.cookies:
                response.delete_cookie(COOKIE)
            if response.location:
                _wait_for_redirect(response)
        return response


def _keep(message: object) -> None:
    """Keep a log line with its request. The threads of the practice Zendesk have no request of the app."""
    if has_request_context() and 'request_logs' in g:
        record = message.record  # type: ignore[attr-defined]
        g.request_logs[-1].lines.append((record['time'].strftime('%H:%M:%S'), record['message']))


def _wait_for_redirect(response: Response) -> None:
    """
    Keep the lines until the browser has followed the redirect.

    After a redirect to Zendesk the state identifies them, so two tabs do not mix. Within the app a cookie does.
    """
    address = urlsplit(str(response.location))
    g.request_logs[-1].redirected_to = address._replace(query='', fragment='').geturl()
    key = parse_qs(address.query).get('state', [secrets.token_urlsafe(16)])[0]
    if not address.netloc:
        response.set_cookie(COOKIE, key, httponly=True, samesite='Lax')
    with _lock:
        _waiting[key] = g.request_logs[-MAX_REQUESTS:]
        while len(_waiting) > MAX_WAITING:
            _waiting.popitem(last=False)


def _from_redirects() -> list[RequestLog]:
    """Return the lines of the preceding redirects."""
    keys = (request.cookies.get(COOKIE, ''), request.args.get('state', ''))
    with _lock:
        return [request_log for key in keys for request_log in _waiting.pop(key, [])]
