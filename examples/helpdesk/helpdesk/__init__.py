"""A small helpdesk whose accounts connect their Zendesk."""

from __future__ import annotations

import logging
from pathlib import Path

from flask import Flask, Response, render_template
from flask_login import current_user, login_required
from flask_wtf import CSRFProtect

from helpdesk import accounts, zendesk

SETTINGS = (
    'SECRET_KEY',
    'TOKEN_KEYS',
    'ZENDESK_URL',
    'ZENDESK_CLIENT_ID',
    'ZENDESK_CLIENT_SECRET',
    'ZENDESK_REDIRECT_URI',
)


def create_app() -> Flask:
    """Create the app. Its settings are environment variables: HELPDESK_SECRET_KEY, HELPDESK_ZENDESK_URL and so on."""
    app = Flask(__name__, instance_path=str(Path(__file__).parents[1] / 'instance'))
    app.config.from_prefixed_env('HELPDESK', loads=str)
    if missing := [f'HELPDESK_{name}' for name in SETTINGS if not app.config.get(name)]:
        raise SystemExit(f'Set the environment variables {", ".join(missing)}')
    app.config.update(
        # With Strict, the browser would not send the session cookie when Zendesk redirects it back.
        SESSION_COOKIE_SAMESITE='Lax',
        SESSION_COOKIE_NAME='helpdesk_session',  # the ports of localhost share their cookies
        SESSION_COOKIE_SECURE=app.config['ZENDESK_REDIRECT_URI'].startswith('https:'),
        SQLALCHEMY_DATABASE_URI='sqlite:///helpdesk.db',
    )
    Path(app.instance_path).mkdir(mode=0o700, exist_ok=True)  # the databases
    logging.getLogger('werkzeug').setLevel(logging.WARNING)  # its access log would contain the authorization codes
    CSRFProtect(app)
    accounts.init_app(app)
    zendesk.init_app(app)

    @app.get('/')
    @login_required
    def home() -> str:
        return render_template('home.html', connection=zendesk.oauth().connection(current_user.get_id()))

    @app.after_request
    def add_headers(response: Response) -> Response:
        # "Connect Zendesk" is a form that redirects to Zendesk. Browsers apply form-action to the redirect.
        response.headers['Content-Security-Policy'] = (
            f"default-src 'none'; style-src 'self'; form-action 'self' {app.config['ZENDESK_URL']}; "
            "base-uri 'none'; frame-ancestors 'none'"
        )
        response.headers['Referrer-Policy'] = 'same-origin'  # Flask-WTF needs the Referer header under https
        response.headers['X-Content-Type-Options'] = 'nosniff'
        response.headers.setdefault('Cache-Control', 'no-store')
        return response

    return app
