"""
A script for the practice Zendesk: how it shall answer the next calls; and a journal of the calls it got.

    curl -H 'Content-Type: application/json' -d '[{"call": "refresh", "status": 500}]' localhost:3001/practice/script
    curl localhost:3001/practice/journal

A script is a list of steps. Each has a `call` ("exchange", "refresh", "profile" or "revoke", or "any"), waits for the
next call of that kind, and then says what becomes of it:

    times      how many calls the step is good for; 1 without it
    delay      seconds before anything happens
    status     the call is not handled: the answer is this status, with `body` (a text) and `headers` (an object)
    cut        only so many bytes of the answer are sent, headers included, before the connection is closed;
               below zero: all but so many. With 0 the answer is lost, although the call was handled
    hold       seconds for which the connection stays open and silent before a cut closes it
    trickle    seconds between one byte of the answer and the next

A new script takes the place of the old one: `[]` ends it. A GET shows what is left of it. In the journal, a call that
has not been answered yet has no `status` and no `ended`; one that a step leaves without an answer (by a `status` with a
`cut` of 0) has no `status`.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask, Response, g, jsonify, request
from flask.typing import ResponseReturnValue
from loguru import logger

from zendesk_oauth.fingerprints import fingerprints

CALLS = ('any', 'exchange', 'refresh', 'profile', 'revoke')
PATHS = {'/api/v2/users/me': 'profile', '/api/v2/oauth/tokens/current': 'revoke'}
# What each key of a step may be: in words, and as a test.
KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    'call': (f'one of {", ".join(CALLS)}', lambda value: value in CALLS),
    'times': ('a whole number above 0', lambda value: type(value) is int and value > 0),
    'status': ('a whole number from 200 to 599', lambda value: type(value) is int and 200 <= value <= 599),
    'body': ('a text', lambda value: isinstance(value, str)),
    'headers': (
        'an object with texts in ASCII',
        lambda value: (
            isinstance(value, dict)
            and all(isinstance(text, str) and re.fullmatch('[ -~]*', text) for pair in value.items() for text in pair)
        ),
    ),
    'cut': ('a whole number', lambda value: type(value) is int),
    **dict.fromkeys(
        ('delay', 'hold', 'trickle'),
        ('a number of seconds, 3600 at most', lambda value: type(value) in (int, float) and 0 <= value <= 3600),
    ),
}

_lock = threading.Lock()
_script: list[dict[str, Any]] = []
_journal: deque[dict[str, Any]] = deque(maxlen=10_000)


def follow_scripts(app: Flask) -> None:
    """Let the app answer by the script, and write its journal."""

    @app.post('/practice/script')
    def take_script() -> ResponseReturnValue:
        # Only as JSON: a page of another site can't make a browser send that.
        steps = request.get_json()
        problem = _problem_of(steps)
        if problem is not None:
            return {'error': problem}, 400
        set_script(steps)
        return '', 204

    @app.get('/practice/script')
    def show_script() -> ResponseReturnValue:
        return jsonify(script())

    @app.get('/practice/journal')
    def show_journal() -> ResponseReturnValue:
        return jsonify(journal())

    @app.before_request
    def refuse_strangers() -> ResponseReturnValue | None:
        """Let no page of another site in that has its own name lead to this machine (DNS rebinding)."""
        known = re.sub(r':\d*$', '', request.host) in ('localhost', '127.0.0.1')
        return None if known or not request.path.startswith('/practice') else ({'error': 'not by that name'}, 400)

    @app.before_request
    def answer_by_the_script() -> ResponseReturnValue | None:
        call = _kind_of_call()
        if call is None:
            return None
        g.step = step = _next_step(call)
        g.noted = {'call': call, 'what': _what_came(), 'began': time.time(), 'status': None, 'ended': None}
        with _lock:
            _journal.append(g.noted)
        if step:
            logger.info('Practice Zendesk: this {} goes by the script', call)
        time.sleep(step.get('delay', 0))
        if 'status' in step:
            return step.get('body', ''), step['status'], step.get('headers', {})
        return None

    @app.after_request
    def note_and_mutilate(response: Response) -> Response:
        if 'noted' not in g:
            return response
        data = response.get_json(silent=True) if response.is_json else None
        issued = fingerprints(data) if isinstance(data, dict) else ''
        never_was = 'status' in g.step and g.step.get('cut') == 0
        status = None if never_was else response.status_code
        with _lock:
            g.noted.update(status=status, issued=issued, cut='cut' in g.step, ended=time.time())
        if {'cut', 'trickle'} & g.step.keys():
            # The built-in server lends its socket to whoever asks.
            response.response = _send_by_hand(request.environ['werkzeug.socket'], _as_bytes(response), g.step)
            response.status_code = 200  # the body of a 204 would not be asked for, and so nothing be sent by hand
        return response


def script() -> list[dict[str, Any]]:
    """Return the steps that are still to come."""
    with _lock:
        return [dict(step) for step in _script]


def set_script(steps: list[dict[str, Any]]) -> None:
    """Take these steps in place of those that are still to come."""
    with _lock:
        _script[:] = steps


def journal() -> list[dict[str, Any]]:
    """Return the calls, in the order in which they came."""
    with _lock:
        return [dict(noted) for noted in _journal]


def _problem_of(steps: Any) -> str | None:
    """Say what is wrong with a script."""
    if not isinstance(steps, list) or not all(isinstance(step, dict) and 'call' in step for step in steps):
        return 'a script is a list of steps, and a step is an object with a call'
    for step in steps:
        for key, value in step.items():
            if key not in KEYS:
                return f'a step has no {key}; it can have {", ".join(KEYS)}'
            words, fits = KEYS[key]
            if not fits(value):
                return f'{key} must be {words}'
    return None


def _kind_of_call() -> str | None:
    """Return which of CALLS the request is, or None."""
    if 'Sec-Fetch-Site' in request.headers:  # a browser: the app's calls come from its server
        return None
    if request.path == '/oauth/tokens':
        return 'refresh' if _form().get('grant_type') == 'refresh_token' else 'exchange'
    return PATHS.get(request.path.removesuffix('.json'))


def _form() -> dict[str, Any]:
    data = request.get_json(silent=True) if request.is_json else request.form.to_dict()
    return data if isinstance(data, dict) else {}


def _what_came() -> str:
    token = request.headers.get('Authorization', '').partition(' ')[2]
    came_with = fingerprints({**_form(), 'access_token': token})
    return f'{request.method} {request.path}' + (f' with {came_with}' if came_with else '')


def _next_step(call: str) -> dict[str, Any]:
    """Return the first step for this kind of call, and take it off the script if that was its last time."""
    with _lock:
        for step in _script:
            if step['call'] in (call, 'any'):
                step['times'] = step.get('times', 1) - 1
                if step['times'] < 1:
                    _script.remove(step)
                return step
    return {}


def _as_bytes(response: Response) -> bytes:
    body = response.get_data()
    lines = [f'HTTP/1.1 {response.status}', *(f'{name}: {value}' for name, value in response.headers.items())]
    return '\r\n'.join([*lines, 'Connection: close', '', '']).encode('latin-1') + body


def _send_by_hand(connection: socket.socket, answer: bytes, step: dict[str, Any]) -> Iterator[bytes]:
    """Send the answer, or what the step leaves of it, past the server; then end the connection."""
    answer = answer[: step.get('cut', len(answer))]
    if 'trickle' in step:
        for position in range(len(answer)):
            connection.sendall(answer[position : position + 1])
            time.sleep(step['trickle'])
    else:
        connection.sendall(answer)
    time.sleep(step.get('hold', 0))
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError('that was all, by the script')
    yield b''
