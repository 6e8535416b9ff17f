"""The control page at /practice: the list of experiments, the tokens, and the request log."""

from __future__ import annotations

import math
import time
from datetime import datetime
from typing import Any

import requests
from flask import Flask, abort, redirect, render_template, request
from flask.typing import ResponseReturnValue
from loguru import logger

from practice_zendesk import clients, experiments, faults
from practice_zendesk.attacks import app_origin
from practice_zendesk.database import database, users
from practice_zendesk.experiments import CALLS, FAULTS

SHOWN = 20  # the newest tokens and log entries; older ones are left out


def add_control_page(app: Flask) -> None:
    """Serve the control page, and a page for each experiment."""

    @app.get('/')
    def redirect_to_controls() -> ResponseReturnValue:
        return redirect('/practice')

    @app.get('/practice')
    def show_controls() -> ResponseReturnValue:
        with database() as db:
            ended = db.execute('SELECT * FROM ended ORDER BY id DESC LIMIT ?', (SHOWN,)).fetchall()
            tokens = db.execute('SELECT * FROM tokens ORDER BY rowid DESC LIMIT ?', (SHOWN,)).fetchall()
        return render_template(
            'controls.html',
            **_variables(),
            tokens=tokens,
            ended=ended,
            waiting=[(CALLS[fault['call']], _label(fault)) for fault in faults.pending_faults()],
            request_log=faults.request_log()[: -SHOWN - 1 : -1],
        )

    @app.get('/practice/experiments/<name>')
    def show_experiment(name: str) -> ResponseReturnValue:
        names = list(experiments.available())
        if name not in names:
            abort(404)
        return render_template('experiment.html', **_variables(), name=name, names=names)

    @app.get('/practice/next')
    def show_next() -> ResponseReturnValue:
        """Continue the tour."""
        name = experiments.next_experiment()
        return redirect(f'/practice/experiments/{name}' if name else '/practice')

    @app.post('/practice')
    def perform_action() -> ResponseReturnValue:
        # Accept forms from this site only. Older browsers send Origin but not Sec-Fetch-Site.
        origin = request.headers.get('Origin', request.host_url.rstrip('/'))
        if request.headers.get('Sec-Fetch-Site', 'same-origin') != 'same-origin' or origin != request.host_url[:-1]:
            return {'error': 'cross-site request'}, 403
        name = request.form.get('action', '')
        if name == 'cancel_fault':
            faults.set_faults([])
            return redirect('/practice', 303)
        if name not in experiments.available():
            return {'error': 'unknown action'}, 400
        try:
            target = experiments.run(name)
        except experiments.GrantMissing:
            return redirect(f'/practice/experiments/{name}?needs_grant', 303)
        except requests.RequestException:
            title = 'The app does not respond'
            reason = f'Start the tutorial app at {app_origin()} with this practice Zendesk, then try again.'
            return render_template('invalid.html', title=title, reason=reason), 502
        if target is None:
            return {'error': 'invalid form'}, 400
        logger.info('Experiment: {}', experiments.EXPERIMENTS[name].title)
        return redirect(target, 303)

    app.jinja_env.globals['app_origin'] = app_origin
    app.add_template_filter(faults.fingerprint)
    app.add_template_filter(_time_left, 'time_left')
    app.add_template_filter(_time_of_day, 'time_of_day')


def _variables() -> dict[str, Any]:
    """Return the template variables of the control page and of the experiment pages."""
    with database() as db:
        people, tried = users(db), experiments.tried(db)
    return {
        'experiments': experiments.available(),
        'is_tutorial': experiments.is_tutorial(),
        'tried': tried,
        'people': people,
        'held': {faults.fingerprint(token) for token in experiments.tokens_of_app()},
        'has_users_json': experiments.USERS_JSON.exists(),
        'kinds': clients.KINDS,
        'current_kind': clients.current_kind(),
        'faults': {name: label for name, (label, _) in FAULTS.items()},
        'calls': CALLS,
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
