"""
A script for the practice Zendesk: how it shall answer the next calls; and a journal of the calls it got.

    curl -H 'Content-Type: application/json' -d '[{"call": "refresh", "status": 500}]' localhost:3001/practice/script
    curl localhost:3001/practice/journal

A script is a list of steps. Each has a `call` ("exchange", "refresh" or "profile"), waits for the next call of that
kind, and then says what becomes of it:

    times      how many calls the step is good for; 1 without it
    delay      seconds before anything happens
    status     the call is not handled: the answer is this status, with `body` (a text) and `headers` (an object)
    cut        only so many bytes of the answer are sent, headers included, before the connection is closed;
               below zero: all but so many. With 0 the answer is lost, although the call was handled
    hold       seconds for which the connection stays open and silent before a cut closes it
    trickle    seconds between one byte of the answer and the next

A new script takes the place of the old one: `[]` ends it. A GET shows what is left of it. The journal has the calls
that have been answered, or would have been.
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

CALLS = ('exchange', 'refresh', 'profile')
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
    def set_script() -> ResponseReturnValue:
        # Only as JSON: a page of another site can't make a browser send that.
        steps = request.get_json()
        problem = _problem_of(steps)
        if problem is not None:
            return {'error': problem}, 400
        with _lock:
            _script[:] = steps
        return '', 204

    @app.get('/practice/script')
    def show_script() -> ResponseReturnValue:
        with _lock:
            return jsonify(_script)

    @app.get('/practice/journal')
    def show_journal() -> ResponseReturnValue:
        with _lock:
            return jsonify(list(_journal))

    @app.before_request
    def refuse_strangers() -> ResponseReturnValue | None:
        """Let no page of another site in that has its own name lead to this machine (DNS rebinding)."""
        known = request.host.rpartition(':')[0] in ('localhost', '127.0.0.1')
        return None if known or not request.path.startswith('/practice/') else ({'error': 'not by that name'}, 400)

    @app.before_request
    def answer_by_the_script() -> ResponseReturnValue | None:
        g.call, g.began = _kind_of_call(), time.time()
        g.step = step = _next_step(g.call)
        if step:
            logger.info('Practice Zendesk: this {} goes by the script', g.call)
        time.sleep(step.get('delay', 0))
        if 'status' in step:
            return step.get('body', ''), step['status'], step.get('headers', {})
        return None

    @app.after_request
    def note_and_mutilate(response: Response) -> Response:
        if g.get('call') is None:
            return response
        with _lock:
            _journal.append({'call': g.call, 'status': response.status_code, 'began': g.began, 'ended': time.time()})
        if {'cut', 'trickle'} & g.step.keys():
            # The built-in server lends its socket to whoever asks.
            response.response = _send_by_hand(request.environ['werkzeug.socket'], _as_bytes(response), g.step)
        return response


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
    if request.path == '/oauth/tokens':
        data = request.get_json(silent=True) if request.is_json else request.form
        return 'refresh' if isinstance(data, dict) and data.get('grant_type') == 'refresh_token' else 'exchange'
    return 'profile' if request.path.startswith('/api/v2/users/me') else None


def _next_step(call: str | None) -> dict[str, Any]:
    """Return the first step for this kind of call, and take it off the script if that was its last time."""
    with _lock:
        for step in _script:
            if step['call'] == call:
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
