"""A client of the practice Zendesk."""

from __future__ import annotations

import base64
import hashlib
from urllib.parse import parse_qsl, urlsplit

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from practice_zendesk import attacks, clients, faults, server
from practice_zendesk.clients import USERS

AGENT = next(iter(USERS))
CLIENT_ID, CLIENT = clients.main_client()
[REDIRECT_URI] = CLIENT.redirect_uris
VERIFIER = 'v' * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode().rstrip('=')


class PracticeClient(FlaskClient):
    """Flask's test client with the requests of the app and its user. Parameters set to None are left out."""

    def authorize(self, method: str = 'GET', form: dict | None = None, **changes) -> TestResponse:
        """Open the consent page or submit its form."""
        query = {
            'response_type': 'code',
            'client_id': CLIENT_ID,
            'redirect_uri': REDIRECT_URI,
            'scope': 'users:read',
            'state': 'the-state',
            'code_challenge': CHALLENGE,
            'code_challenge_method': 'S256',
            **changes,
        }
        return self.open('/oauth/authorizations/new', method=method, query_string=without_none(query), data=form)

    def decide(self, decision: str = 'allow', user_id: int | str = AGENT, **changes) -> TestResponse:
        return self.authorize('POST', {'decision': decision, 'user_id': str(user_id)}, **changes)

    def parameters(self, response: TestResponse) -> dict[str, str]:
        """Return the query of a redirect to the client."""
        assert response.location.startswith(f'{REDIRECT_URI}?')
        return dict(parse_qsl(urlsplit(response.location).query))

    def code(self, **kwargs) -> str:
        """Allow access and return the code."""
        return self.parameters(self.decide(**kwargs))['code']

    def exchange(self, code: str, encoding: str = 'data', **changes) -> TestResponse:
        """Exchange the code, with the parameters encoded as a form ("data") or as "json"."""
        parameters = {
            'grant_type': 'authorization_code',
            'code': code,
            'client_id': CLIENT_ID,
            'client_secret': CLIENT.secret,
            'redirect_uri': REDIRECT_URI,
            'scope': 'users:read',
            'code_verifier': VERIFIER,
            'expires_in': 360,
            'refresh_token_expires_in': 604800,
            **changes,
        }
        return self.post('/oauth/tokens', **{encoding: without_none(parameters)})

    def grant(self, **kwargs) -> dict:
        """Allow access and return the tokens."""
        return self.exchange(self.code(**kwargs)).json

    def refresh(self, tokens: dict, **changes) -> TestResponse:
        form = {
            'grant_type': 'refresh_token',
            'refresh_token': tokens.get('refresh_token'),
            'client_id': CLIENT_ID,
            'client_secret': CLIENT.secret,
            'scope': 'users:read',
            'expires_in': 360,
            'refresh_token_expires_in': 604800,
            **changes,
        }
        return self.post('/oauth/tokens', data=without_none(form))

    def show_self(self, tokens: dict, path: str = '/api/v2/users/me') -> TestResponse:
        return self.get(path, headers={'Authorization': f'Bearer {tokens["access_token"]}'})

    def tickets(self, tokens: dict, path: str = '/api/v2/tickets', **query) -> TestResponse:
        headers = {'Authorization': f'Bearer {tokens["access_token"]}'}
        return self.get(path, query_string=query or None, headers=headers)

    def revoke(self, tokens: dict, path: str = '/api/v2/oauth/tokens/current') -> TestResponse:
        return self.delete(path, headers={'Authorization': f'Bearer {tokens["access_token"]}'})


def without_none(parameters: dict) -> dict:
    return {name: value for name, value in parameters.items() if value is not None}


@pytest.fixture
def client(tmp_path, monkeypatch) -> PracticeClient:
    """Return a client of a practice Zendesk without tokens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(server.app, 'testing', True)
    monkeypatch.setattr(server.app, 'test_client_class', PracticeClient)
    faults.reset()
    monkeypatch.setattr(attacks, '_armed', None)
    monkeypatch.setattr(clients, '_current', 'new')
    return server.app.test_client()
