"""
The practice Zendesk's control page, http://localhost:3001/practice: let things happen by clicking, and see the calls.

What it shows of tokens and codes are their fingerprints.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from flask import Flask, flash, redirect, render_template, request
from flask.typing import ResponseReturnValue
from loguru import logger

from practice_zendesk import faults as simulator_script
from practice_zendesk.database import database, users
from zendesk_oauth.fingerprints import fingerprint

SHOWN = 20  # tokens, and calls; the oldest go first
MAX_NAME = 200  # characters

# What the next call can get instead of an answer: in words, and as a step of simulator_script.
FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    '500': ('500, an error of Zendesk’s own', {'status': 500, 'body': '<h1>Internal Server Error</h1>'}),
    '429': (
        '429, too many requests',
        {'status': 429, 'body': 'Number of allowed API requests per minute exceeded', 'headers': {'Retry-After': '5'}},
    ),
    'silence': ('no answer at all', {'status': 500, 'delay': 30, 'cut': 0}),
    'lost': ('its answer lost on the way, after all is done', {'cut': 0}),
}
CALLS = {
    'any': 'call, of any kind',
    'profile': 'request for the profile',
    'refresh': 'refresh',
    'exchange': 'exchange of a code',
    'revoke': 'revocation',
}


def add_control_page(app: Flask) -> None:
    """Let the practice Zendesk serve its control page."""
    # A button's answer is a redirect; what was done waits for the next page in a cookie of this process.
    app.secret_key = secrets.token_bytes()
    app.config.update(SESSION_COOKIE_NAME='practice_zendesk', SESSION_COOKIE_SAMESITE='Lax')

    @app.get('/')
    def go_to_the_controls() -> ResponseReturnValue:
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
            waiting=[(CALLS[step['call']], _in_words(step)) for step in simulator_script.script()],
            journal=simulator_script.journal()[: -SHOWN - 1 : -1],
            faults={name: words for name, (words, _) in FAULTS.items()},
            calls=CALLS,
        )

    @app.post('/practice')
    def act() -> ResponseReturnValue:
        # Browsers say where a form was sent from, older ones by the origin only; no other site's page has a say here.
        came_from = request.headers.get('Origin', request.host_url.rstrip('/'))
        if request.headers.get('Sec-Fetch-Site', 'same-origin') != 'same-origin' or came_from != request.host_url[:-1]:
            return {'error': 'not from another page'}, 403
        action = request.form.get('action', '')
        if action not in ACTIONS:
            return {'error': 'there is no such action'}, 400
        if not ACTIONS[action][1]():
            return {'error': 'nothing was done: the form was not filled in'}, 400
        logger.info('Practice Zendesk: {}', ACTIONS[action][0])
        flash(ACTIONS[action][0])
        return redirect('/practice', 303)

    app.add_template_filter(fingerprint)
    app.add_template_filter(_left, 'left')
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
    simulator_script.set_script([{'call': call, **FAULTS[fault][1]}])
    return True


def _forget_script() -> bool:
    simulator_script.set_script([])
    return True


def _rename() -> bool:
    name = re.sub(r'[\x00-\x1f\x7f-\x9f\u2028\u2029]', '', request.form.get('name', '')).strip()[:MAX_NAME]
    with database() as db:
        user_id = next((user_id for user_id in users(db) if str(user_id) == request.form.get('user_id')), None)
        if not name or user_id is None:
            return False
        db.execute('INSERT OR REPLACE INTO names VALUES (?, ?)', (user_id, name))
    return True


# What a form can ask for: what is said of it once it is done, and what does it, or returns False if it can't.
ACTIONS: dict[str, tuple[str, Callable[[], bool]]] = {
    'expire_access': ('All access tokens have expired.', _expire_access),
    'end_grants': ('All refresh tokens are dead, and their access tokens with them.', _end_grants),
    'fail_next': ('The next call will go wrong, as you wish.', _fail_next),
    'forget_script': ('The next call will be answered as usual.', _forget_script),
    'rename': ('The user has a new name.', _rename),
}


def _in_words(step: dict[str, Any]) -> str:
    """Say what the call that a step waits for gets."""
    fault = {key: value for key, value in step.items() if key not in ('call', 'times')}
    return next((words for words, known in FAULTS.values() if known == fault), 'what the script says')


def _left(expires_at: float) -> str:
    """Say how long something will be good for."""
    seconds = expires_at - time.time()
    if seconds <= 0:
        return 'expired'
    for unit, name in ((86400, 'days'), (60, 'min')):
        if seconds >= 2 * unit:
            return f'for {round(seconds / unit)} {name}'
    return f'for {round(seconds)} s'


def _time_of_day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime('%H:%M:%S')
