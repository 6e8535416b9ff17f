"""The control page at /practice: expire tokens, make a request fail, rename a user, and read the request log."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from flask import Flask, flash, redirect, render_template, request
from flask.typing import ResponseReturnValue
from loguru import logger

from practice_zendesk import clients, faults
from practice_zendesk.database import database, users

SHOWN = 20  # the newest tokens and log entries; older ones are left out
MAX_NAME = 200  # characters

# The faults to choose from: a label, and the keys of the fault (see faults.KEYS).
FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    '500': ('500 (internal server error)', {'status': 500, 'body': '<h1>Internal Server Error</h1>'}),
    '429': (
        '429 (too many requests)',
        {'status': 429, 'body': 'Number of allowed API requests per minute exceeded', 'headers': {'Retry-After': '5'}},
    ),
    # The app gives up before the delay ends.
    'silence': ('no response', {'status': 500, 'delay': 30, 'lost': True}),
    'lost': ('no response, although Zendesk processes the request', {'lost': True}),
}
CALLS = {
    'any': 'request',
    'profile': 'profile request',
    'tickets': 'ticket request',
    'refresh': 'refresh',
    'exchange': 'code exchange',
    'revoke': 'revocation',
}


def add_control_page(app: Flask) -> None:
    """Serve the control page."""
    # The session only carries a message to the next page, so a key per process is enough.
    app.secret_key = secrets.token_bytes()
    app.config.update(SESSION_COOKIE_NAME='practice_zendesk', SESSION_COOKIE_SAMESITE='Lax')

    @app.get('/')
    def redirect_to_controls() -> ResponseReturnValue:
        return redirect('/practice')

    @app.get('/practice')
    def show_controls() -> ResponseReturnValue:
        with database() as db:
            people = users(db)
            tokens = db.execute('SELECT * FROM tokens ORDER BY rowid DESC LIMIT ?', (SHOWN,)).fetchall()
        return render_template(
            'controls.html',
            people=people,
            tokens=tokens,
            waiting=[(CALLS[fault['call']], _label(fault)) for fault in faults.pending_faults()],
            request_log=faults.request_log()[: -SHOWN - 1 : -1],
            kinds=clients.KINDS,
            current_kind=clients.current_kind(),
            faults={name: label for name, (label, _) in FAULTS.items()},
            calls=CALLS,
        )

    @app.post('/practice')
    def perform_action() -> ResponseReturnValue:
        # Accept forms from this page only. Older browsers send Origin but not Sec-Fetch-Site.
        origin = request.headers.get('Origin', request.host_url.rstrip('/'))
        if request.headers.get('Sec-Fetch-Site', 'same-origin') != 'same-origin' or origin != request.host_url[:-1]:
            return {'error': 'cross-site request'}, 403
        name = request.form.get('action', '')
        if name not in ACTIONS:
            return {'error': 'unknown action'}, 400
        message, action = ACTIONS[name]
        if not action():
            return {'error': 'invalid form'}, 400
        logger.info('Control page: {}', message.rstrip('.'))
        flash(message)
        return redirect('/practice', 303)

    app.add_template_filter(faults.fingerprint)
    app.add_template_filter(_time_left, 'time_left')
    app.add_template_filter(_time_of_day, 'time_of_day')


def _expire_access() -> bool:
    with database() as db:
        db.execute('UPDATE tokens SET access_expires_at = 0')
    return True


def _end_grants() -> bool:
    with database() as db:
        db.execute('DELETE FROM tokens')
    return True


def _fail_next() -> bool:
    call, fault = request.form.get('call'), request.form.get('fault')
    if call not in CALLS or fault not in FAULTS:
        return False
    faults.set_faults([{'call': call, **FAULTS[fault][1]}])
    return True


def _cancel_fault() -> bool:
    faults.set_faults([])
    return True


def _use_kind() -> bool:
    name = request.form.get('kind', '')
    if name not in clients.KINDS:
        return False
    clients.use_kind(name)
    return True


def _rename() -> bool:
    # Control characters could forge lines of the log.
    name = re.sub(r'[\x00-\x1f\x7f-\x9f\u2028\u2029]', '', request.form.get('name', '')).strip()[:MAX_NAME]
    with database() as db:
        user_id = next((user_id for user_id in users(db) if str(user_id) == request.form.get('user_id')), None)
        if not name or user_id is None:
            return False
        db.execute('INSERT OR REPLACE INTO names VALUES (?, ?)', (user_id, name))
    return True


# The actions of the page's forms: a message for the page and the log, and a function that returns False on failure.
ACTIONS: dict[str, tuple[str, Callable[[], bool]]] = {
    'expire_access': ('All access tokens have expired.', _expire_access),
    'end_grants': ('All access and refresh tokens have expired.', _end_grants),
    'fail_next': ('The next request will fail.', _fail_next),
    'cancel_fault': ('The pending failure was canceled.', _cancel_fault),
    'use_kind': ('The kind of OAuth client was changed.', _use_kind),
    'rename': ('The user was renamed.', _rename),
}


def _label(fault: dict[str, Any]) -> str:
    """Return the label of a fault that this page has set."""
    keys = {key: value for key, value in fault.items() if key not in ('call', 'times')}
    return next((label for label, known in FAULTS.values() if known == keys), 'a custom failure')


def _time_left(expires_at: float) -> str:
    """Return the remaining time in words, for example "valid for 6 min", or "expired"."""
    seconds = expires_at - time.time()
    if seconds == math.inf:
        return 'does not expire'
    if seconds <= 0:
        return 'expired'
    for unit, name in ((86400, 'days'), (60, 'min')):
        if seconds >= 2 * unit:
            return f'valid for {round(seconds / unit)} {name}'
    return f'valid for {round(seconds)} s'


def _time_of_day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime('%H:%M:%S')
