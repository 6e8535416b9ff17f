"""Constants and functions that the tests share."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import responses
from flask.testing import FlaskClient
from responses.matchers import header_matcher, urlencoded_params_matcher

PROJECT = Path(__file__).parents[1]

ZENDESK = 'https://mondocam.zendesk.com'
TOKEN_ENDPOINT = f'{ZENDESK}/oauth/tokens'
SHOW_SELF = f'{ZENDESK}/api/v2/users/me'
REVOKE = f'{ZENDESK}/api/v2/oauth/tokens/current'

USER = {'user': {'id': 6130907993114, 'name': 'Jane Doe', 'role': 'agent'}}
# The response of the token endpoint.
NEW_TOKENS = {
    'access_token': 'new-access',
    'refresh_token': 'new-refresh',
    'token_type': 'bearer',
    'scope': 'users:read',
    'expires_in': 360,
    'refresh_token_expires_in': 604800,
}
# Stored records: before a refresh, after a refresh, and another user's.
OLD = {'access_token': 'old-access', 'refresh_token': 'old-refresh'}
NEW = {'access_token': 'new-access', 'refresh_token': 'new-refresh'}
OTHER = {'access_token': 'other-access', 'refresh_token': 'other-refresh'}

LATER = 4_000_000_000  # a time in the far future
KEY = 'Y2FuYXJ5LWVuY3J5cHRpb24ta2V5LTAxMjM0NTY3ODk='  # for tokens in a database
INVALID_GRANT = {'status': 400, 'json': {'error': 'invalid_grant'}}


class Browser(FlaskClient):
    """Flask's test client as a user's browser, with the steps of a grant as methods."""

    def start(self, **kwargs) -> dict[str, str]:
        """Click "Grant access" and return the parameters of the authorization request."""
        response = self.get('/zendesk/auth', **kwargs)
        assert response.location.startswith(f'{ZENDESK}/oauth/authorizations/new?'), response.location
        return {name: values[0] for name, values in parse_qs(urlsplit(response.location).query).items()}

    def come_back(self, **query):
        """Return from Zendesk to the callback."""
        return self.get('/zendesk/oauth/callback', query_string=query)

    def grant(self, code: str = 'the-code'):
        return self.come_back(code=code, state=self.start()['state'])

    def sign_in(self, user_id) -> None:
        with self.session_transaction() as session:
            session['user_id'] = user_id

    @property
    def user_id(self) -> str | None:
        with self.session_transaction() as session:
            return session.get('user_id')


def records() -> dict:
    """Return the records in users.json of the working directory."""
    return json.loads(Path('users.json').read_text()) if Path('users.json').exists() else {}


def stored() -> dict[str, dict[str, str]]:
    """Return each user's tokens in users.json, without the other fields."""
    return {user_id: tokens(record) for user_id, record in records().items()}


def tokens(record: dict) -> dict[str, str]:
    return {name: value for name, value in record.items() if name in OLD}


def store(**records) -> None:
    """Replace the content of users.json with these records, as a text editor does."""
    Path('users.json').write_text(json.dumps(records))


def bearer(token: str):
    """Match a request with this access token."""
    return header_matcher({'Authorization': f'Bearer {token}'})


def form(**fields: str):
    """Match a request with exactly these form fields."""
    return urlencoded_params_matcher(fields)


def requests_to(zendesk: responses.RequestsMock, url: str) -> int:
    return sum(call.request.url == url for call in zendesk.calls)
