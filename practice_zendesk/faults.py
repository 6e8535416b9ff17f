"""
Fault injection for the practice Zendesk, and a log of the API requests it received.

    curl -H 'Content-Type: application/json' -d '[{"call": "refresh", "status": 500}]' localhost:3001/practice/faults
    curl localhost:3001/practice/request_log
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask, Response, g, jsonify, request
from flask.typing import ResponseReturnValue
from loguru import logger

CALLS = ('any', 'exchange', 'refresh', 'profile', 'tickets', 'revoke')
PATHS = {
    '/api/v2/users/me': 'profile',
    '/api/v2/tickets': 'tickets',
    '/api/v2/search': 'tickets',
    '/api/v2/oauth/tokens/current': 'revoke',
}
SECRETS = ('code', 'access_token', 'refresh_token')

# The keys of a fault: a description of the valid values, for error messages, and a function that checks a value.
KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    # The kind of request that fails.
    'call': (f'one of {", ".join(CALLS)}', lambda value: value in CALLS),
    # The number of requests that fail. The default is 1.
    'times': ('an integer above 0', lambda value: type(value) is int and value > 0),
    # Seconds before the request is handled.
    'delay': (
        'a number of seconds from 0 to 3600',
        lambda value: type(value) in (int, float) and 0 <= value <= 3600,
    ),
    # The server does not handle the request. It responds with this status, `body` and `headers`.
    'status': ('an integer from 200 to 599', lambda value: type(value) is int and 200 <= value <= 599),
    'body': ('a string', lambda value: isinstance(value, str)),
    'headers': (
        'an object of ASCII strings',
        lambda value: (
            isinstance(value, dict)
            and all(isinstance(text, str) and re.fullmatch('[ -~]*', text) for pair in value.items() for text in pair)
        ),
    ),
    # The server closes the connection without a response. Without `status`, the request still takes effect.
    'lost': ('true or false', lambda value: isinstance(value, bool)),
}

_lock = threading.Lock()
_faults: list[dict[str, Any]] = []
_request_log: deque[dict[str, Any]] = deque(maxlen=10_000)


def add_fault_injection(app: Flask) -> None:
    """Apply faults to the app's API requests, and serve /practice/faults and /practice/request_log."""

    @app.post('/practice/faults')
    def replace_faults() -> ResponseReturnValue:
        # Require JSON: browsers do not send JSON across sites without a preflight request.
        faults = request.get_json()
        error = _validation_error(faults)
        if error is not None:
            return {'error': error}, 400
        set_faults(faults)
        return '', 204

    @app.get('/practice/faults')
    def show_faults() -> ResponseReturnValue:
        return jsonify(pending_faults())

    @app.get('/practice/request_log')
    def show_request_log() -> ResponseReturnValue:
        return jsonify(request_log())

    @app.before_request
    def apply_fault() -> ResponseReturnValue | None:
        call = _kind_of_request()
        if call is None:
            return None
        g.fault = fault = _take_fault(call)
        g.entry = {'call': call, 'request': _description(), 'began': time.time(), 'status': None, 'ended': None}
        with _lock:
            _request_log.append(g.entry)
        time.sleep(fault.get('delay', 0))
        if 'status' in fault:
            return fault.get('body', ''), fault['status'], fault.get('headers', {})
        return None

    @app.after_request
    def finish_request(response: Response) -> Response:
        if 'entry' not in g:
            return response
        lost = g.fault.get('lost', False)
        # With `lost`, the fault's status is never sent, so the log has no status.
        status = None if lost and 'status' in g.fault else response.status_code
        data = response.get_json(silent=True) if response.is_json else None
        issued = fingerprints(data) if isinstance(data, dict) else ''
        with _lock:
            g.entry.update(status=status, issued=issued, lost=lost, ended=time.time())
        words = [
            str(status or 'no response'),
            issued and f'issued {issued}',
            'response lost' if status and lost else '',
        ]
        logger.info('{}: {}', g.entry['request'], ', '.join(filter(None, words)))
        return Response(_drop_connection()) if lost else response


def pending_faults() -> list[dict[str, Any]]:
    """Return the faults that are still waiting for a request."""
    with _lock:
        return [dict(fault) for fault in _faults]


def set_faults(faults: list[dict[str, Any]]) -> None:
    """Replace all pending faults."""
    with _lock:
        _faults[:] = faults


def reset() -> None:
    """Remove all faults, and clear the request log."""
    with _lock:
        _faults.clear()
        _request_log.clear()


def request_log() -> list[dict[str, Any]]:
    """Return the API requests received, oldest first. A request in progress has no `status` and no `ended`."""
    with _lock:
        return [dict(entry) for entry in _request_log]


def fingerprint(secret: str) -> str:
    """Return `#` and eight digits of the secret's SHA-256, which identify it without revealing it."""
    return '#' + hashlib.sha256(secret.encode('utf-8', 'replace')).hexdigest()[:8]


def fingerprints(data: dict[str, Any]) -> str:
    """Return the fingerprints of the code and tokens in `data`, for example "access token #0c6a5db0"."""
    found = {name: data[name] for name in SECRETS if isinstance(data.get(name), str) and data[name]}
    return ', '.join(f'{name.replace("_", " ")} {fingerprint(secret)}' for name, secret in found.items())


def _validation_error(faults: Any) -> str | None:
    if not isinstance(faults, list) or not all(isinstance(fault, dict) and 'call' in fault for fault in faults):
        return 'send a JSON list of objects, each with the key "call"'
    for fault in faults:
        for key, value in fault.items():
            if key not in KEYS:
                return f'unknown key {key}: use {", ".join(KEYS)}'
            expected, valid = KEYS[key]
            if not valid(value):
                return f'{key} must be {expected}'
    return None


def _kind_of_request() -> str | None:
    """Return the kind of API request, or None for any other request."""
    if 'Sec-Fetch-Site' in request.headers:  # from a browser: the app calls the API from its server
        return None
    if request.path == '/oauth/tokens':
        return 'refresh' if _parameters().get('grant_type') == 'refresh_token' else 'exchange'
    return PATHS.get(request.path.removesuffix('.json'))


def _parameters() -> dict[str, Any]:
    data = request.get_json(silent=True) if request.is_json else request.form.to_dict()
    return data if isinstance(data, dict) else {}


def _description() -> str:
    """Return the method, the path and the fingerprints of the request, for the log."""
    token = request.headers.get('Authorization', '').partition(' ')[2]
    received = fingerprints({**_parameters(), 'access_token': token})
    return f'{request.method} {request.path}' + (f' with {received}' if received else '')


def _take_fault(call: str) -> dict[str, Any]:
    """Return the first pending fault for this kind of request, or `{}`. Remove it after its last use."""
    with _lock:
        for fault in _faults:
            if fault['call'] in (call, 'any'):
                fault['times'] = fault.get('times', 1) - 1
                if fault['times'] < 1:
                    _faults.remove(fault)
                return fault
    return {}


def _drop_connection() -> Iterator[bytes]:
    """Raise the error that makes Werkzeug close the connection without a response."""
    raise ConnectionAbortedError('the response is lost')
    yield b''  # makes this function a generator
