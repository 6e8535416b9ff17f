"""
The requests of other users and of attackers: real HTTP requests to the app and to this server.

The logger `practice_zendesk.exchange` records the requests of thieves (in the form of the app's own records), replaced
codes, and notices for the next page of the app.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import requests
from flask import request
from loguru import logger

from practice_zendesk import clients, faults
from practice_zendesk.database import database, users
from practice_zendesk.faults import fingerprint

CONSENT = '/oauth/authorizations/new'
TIMEOUT = 60  # seconds

exchange_log = logging.getLogger('practice_zendesk.exchange')


def show_notice(text: str) -> None:
    """Show this text on the next page of the app."""
    exchange_log.info('%s', text, extra={'notice': text})


def app_origin() -> str:
    return clients.app_origins()[0]


def own_url() -> str:
    """Return the URL of this server. It does not depend on the Host header, which a client can forge."""
    return f'http://localhost:{request.environ["SERVER_PORT"]}'


def send(method: str, url: str, **options: Any) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False  # no proxy: all addresses are on this machine
        return session.request(method, url, timeout=TIMEOUT, allow_redirects=False, **options)


class OtherBrowser:
    """A browser of another user of the app."""

    def __init__(self) -> None:
        self._cookies: dict[str, str] = {}
        self.get('/')

    def get(self, path: str) -> requests.Response:
        return self._send('GET', f'{app_origin()}{path}')

    def post(self, path: str) -> requests.Response:
        return self._send('POST', f'{app_origin()}{path}')

    def callback_link(self) -> str:
        """Start a grant, allow access, and return the link that leads back to the app."""
        consent_page = urlsplit(self.get('/zendesk/auth').headers.get('Location', ''))
        with database() as db:
            user_id = list(users(db))[-1]
        form = {'decision': 'allow', 'user_id': str(user_id)}
        # Send this only to this server, because the app could use another Zendesk.
        response = send('POST', f'{own_url()}{CONSENT}?{consent_page.query}', data=form)
        link: str = response.headers.get('Location', '')
        if consent_page.path != CONSENT or not link:
            raise requests.RequestException('The app does not use this practice Zendesk')
        return link

    def grant(self) -> None:
        """Grant access. Raise requests.RequestException if the app does not accept the callback."""
        if self._send('GET', self.callback_link()).status_code != 302:
            raise requests.RequestException('The app has refused the callback')

    def _send(self, method: str, url: str) -> requests.Response:
        response = send(method, url, cookies=self._cookies)
        self._cookies |= response.cookies.get_dict()
        return response


_armed: Callable[[str], str] | None = None
_lock = threading.Lock()


def arm(attack: Callable[[str], str] | None) -> None:
    """Set the attack on the next grant. It replaces a pending attack. None cancels it."""
    global _armed
    with _lock:
        _armed = attack


def code_for_client(code: str) -> str:
    """Apply a pending attack to this code, and return the code for the browser's redirect."""
    global _armed
    from_consent_page = request.headers.get('Sec-Fetch-Site', 'same-origin') == 'same-origin'
    if request.args['client_id'] != clients.main_client()[0] or not from_consent_page:
        return code
    with _lock:
        attack, _armed = _armed, None
    try:
        return attack(code) if attack else code
    except Exception as error:  # an attack must not break the grant
        logger.warning('The attack failed ({}). The grant continues without it', type(error).__name__)
        return code


def log_replaced_code(code: str, new_code: str) -> None:
    replaced = (fingerprint(code), fingerprint(new_code))
    exchange_log.info('An attacker replaced code %s with code %s', *replaced, extra={'replaced_code': replaced})


def send_as_thief(form: dict[str, str]) -> None:
    """Send a token request with stolen secrets, and log it."""
    logger.info('A thief sends {} to the token endpoint', faults.fingerprints(form))
    response = send('POST', f'{own_url()}/oauth/tokens', data=form)
    sent = {
        'method': 'POST',
        'path': '/oauth/tokens',
        'headers': {'Host': urlsplit(own_url()).netloc, 'Content-Type': 'application/x-www-form-urlencoded'},
        'form': _redacted(form),
    }
    received = {
        'status': response.status_code,
        'headers': {'Content-Type': response.headers['Content-Type']},
        'body': _redacted(response.json()),
    }
    exchange_log.info('A thief sent a token request', extra={'request': sent, 'response': received})


def _redacted(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: fingerprint(value) if name in (*faults.SECRETS, 'client_secret') else value
        for name, value in fields.items()
    }
