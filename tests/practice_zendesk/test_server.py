"""The OAuth endpoints and "show self" behave like Zendesk's."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import sqlite3
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from practice_zendesk import clients, server
from practice_zendesk.clients import USERS
from practice_zendesk.database import database
from practice_zendesk.faults import fingerprint

AGENT, ADMIN, END_USER = USERS
CLIENT_ID, CLIENT = clients.main_client()
[REDIRECT_URI] = CLIENT.redirect_uris


def is_error(response, error: str, status: int = 400) -> bool:
    assert response.json['error_description'] == server.ERRORS[error]
    return (response.status_code, response.json['error']) == (status, error)


# --- Consent --- #


def test_the_consent_page_offers_each_user_and_both_decisions(client):
    page = client.authorize()
    assert page.status_code == 200
    assert all(user['name'] in page.text for user in USERS.values())
    buttons = re.findall(r'<button name="decision" value="(\w+)">(\w+)', page.text)
    assert buttons == [('allow', 'Allow'), ('deny', 'Deny')]


def test_the_consent_page_loads_nothing_from_other_hosts(client):
    page = client.authorize()
    assert "default-src 'none'" in page.headers['Content-Security-Policy']
    assert page.headers['Content-Security-Policy'].endswith("form-action 'self' http://localhost:3000")
    assert not re.search(r'<script|<style|style=|(src|href)="(https?:)?//', page.text)


def test_the_consent_page_explains_each_scope_as_text(client):
    page = client.authorize(scope='users:read <b>x</b>').text
    assert 'Allow Zendesk OAuth in a web app to access your account?' in page
    assert 'Read users, including your name, role and email address (<code>users:read</code>)' in page
    assert 'Nothing: this scope is unknown (<code>&lt;b&gt;x&lt;/b&gt;</code>)' in page


def test_the_log_shows_the_fingerprint_of_a_code(client, log):
    code = client.code()
    assert log == [f'Amara Okafor allowed access: issued code {fingerprint(code)}\n']


def test_allow_redirects_with_a_code_and_the_state(client):
    parameters = client.parameters(client.decide('allow'))
    assert set(parameters) == {'code', 'state'}
    assert parameters['state'] == 'the-state'


def test_deny_redirects_with_access_denied_and_the_state(client):
    assert client.parameters(client.decide('deny')) == {
        'error': 'access_denied',
        'error_description': 'The end-user or authorization server denied the request.',
        'state': 'the-state',
    }


@pytest.mark.parametrize('change', [{'client_id': 'other'}, {'redirect_uri': 'https://evil.example/'}])
def test_a_wrong_client_or_redirect_uri_causes_no_redirect(client, change):
    for page in (client.authorize(**change), client.decide('allow', **change)):
        assert page.status_code == 400
        assert 'Invalid Authorization Request' in page.text


@pytest.mark.parametrize(
    ('change', 'error'),
    [
        ({'response_type': 'token'}, 'unsupported_response_type'),
        ({'code_challenge_method': 'plain'}, 'invalid_request'),
        ({'code_challenge': 'short'}, 'invalid_request'),
    ],
)
def test_other_invalid_authorization_requests_redirect_with_an_error(client, change, error):
    assert client.parameters(client.authorize(**change))['error'] == error


def test_a_missing_scope_is_forbidden(client):
    assert client.authorize(scope=None).status_code == 403


@pytest.mark.parametrize('user_id', ['', '5', 'x', '٣', '9' * 5000])
def test_an_unknown_user_gets_no_code(client, user_id):
    assert client.decide('allow', user_id).status_code == 400


# --- Exchange of a code --- #


@pytest.mark.parametrize('encoding', ['data', 'json'])
def test_a_code_is_exchanged_for_tokens(client, encoding):
    response = client.exchange(client.code(), encoding)
    assert response.status_code == 200
    tokens = response.json
    assert tokens.pop('access_token') != tokens.pop('refresh_token')
    assert tokens == {
        'token_type': 'bearer',
        'scope': 'users:read',
        'expires_in': 360,
        'refresh_token_expires_in': 604800,
    }


def test_tokens_contain_a_digit_to_edit(client):
    """Provide the digit that readers of the tutorial change in each token."""
    tokens = client.grant()
    assert re.search('[0-9]', tokens['access_token'])
    assert re.search('[0-9]', tokens['refresh_token'])


@pytest.mark.parametrize('grant_type', ['authorization_code', 'refresh_token'])
def test_a_code_or_refresh_token_works_once_if_used_concurrently(client, grant_type):
    code, tokens = client.code(), client.grant()

    def send(_):
        other_client = server.app.test_client()
        return other_client.exchange(code) if grant_type == 'authorization_code' else other_client.refresh(tokens)

    with ThreadPoolExecutor(10) as pool:
        responses = sorted(pool.map(send, range(10)), key=lambda response: response.status_code)
    assert responses[0].status_code == 200
    assert all(is_error(response, 'invalid_grant') for response in responses[1:])


def test_a_code_expires_after_120_seconds(client, clock):
    in_time, late = client.code(), client.code()
    clock.advance(119)
    assert client.exchange(in_time).status_code == 200
    clock.advance(2)
    assert is_error(client.exchange(late), 'invalid_grant')


@pytest.mark.parametrize(
    'change',
    [
        {'code': 'other'},
        {'redirect_uri': 'http://localhost:3000/'},
        {'code_verifier': 'w' * 43},
        {'code_verifier': None},
    ],
)
def test_a_mismatch_is_refused_and_the_code_stays_valid(client, change):
    code = client.code()
    assert is_error(client.exchange(**{'code': code, **change}), 'invalid_grant')
    assert client.exchange(code).status_code == 200


def test_a_verifier_is_refused_if_the_code_has_no_challenge(client):
    code = client.code(code_challenge=None, code_challenge_method=None)
    assert is_error(client.exchange(code), 'invalid_grant')
    assert client.exchange(code, code_verifier=None).status_code == 200


def test_a_verifier_replaces_the_client_secret(client):
    assert client.exchange(client.code(), client_secret=None).status_code == 200


@pytest.mark.parametrize(
    ('change', 'error', 'status'),
    [
        ({'client_secret': 'wrong'}, 'invalid_client', 401),
        ({'client_secret': ''}, 'invalid_client', 401),
        ({'client_secret': 'ä'}, 'invalid_client', 401),
        ({'client_id': '12345'}, 'invalid_client', 401),
        ({'grant_type': 'password'}, 'unsupported_grant_type', 400),
        ({'grant_type': 'refresh token'}, 'unsupported_grant_type', 400),
        ({'grant_type': ''}, 'invalid_request', 400),
        ({'grant_type': 'client_credentials'}, 'unauthorized_client', 400),
        ({'grant_type': 'client_credentials', 'client_secret': 'wrong'}, 'invalid_client', 401),
        ({'expires_in': 299}, 'invalid_request', 400),
        ({'expires_in': 172801}, 'invalid_request', 400),
        ({'expires_in': 'soon'}, 'invalid_request', 400),
        ({'expires_in': '-300'}, 'invalid_request', 400),
        ({'refresh_token_expires_in': 604799}, 'invalid_request', 400),
        ({'refresh_token_expires_in': 7776001}, 'invalid_request', 400),
        ({'expires_in': ['300', '300']}, 'invalid_request', 400),
    ],
)
def test_an_invalid_token_request_gets_zendesks_error(client, change, error, status):
    code = client.code()
    response = client.exchange(code, **change)
    assert is_error(response, error, status)
    assert ('WWW-Authenticate' in response.headers) == (error == 'invalid_client')
    assert client.exchange(code).status_code == 200


@pytest.mark.parametrize('body', ['', '[]', 'null', '{"grant_type":'])
def test_a_json_body_without_an_object_is_an_invalid_request(client, body):
    assert is_error(client.post('/oauth/tokens', data=body, content_type='application/json'), 'invalid_request')


@pytest.mark.parametrize(
    ('requested', 'granted'),
    [
        ((300, 604800), (300, 604800)),
        ((172800, 7776000), (172800, 7776000)),
        ((None, None), (1800, 2592000)),
    ],
)
def test_lifetimes_have_limits_and_defaults(client, requested, granted):
    lifetimes = dict(zip(('expires_in', 'refresh_token_expires_in'), requested, strict=True))
    tokens = client.exchange(client.code(), **lifetimes).json
    assert (tokens['expires_in'], tokens['refresh_token_expires_in']) == granted


# --- Refresh --- #


def test_a_refresh_replaces_both_tokens(client):
    old = client.grant()
    new = client.refresh(old).json
    assert client.show_self(new).status_code == 200
    assert client.show_self(old).status_code == 401
    assert is_error(client.refresh(old), 'invalid_grant')
    assert client.refresh(new).status_code == 200


def test_tokens_expire_after_their_lifetimes(client, clock):
    tokens = client.grant()
    clock.advance(359)
    assert client.show_self(tokens).status_code == 200
    clock.advance(2)
    assert client.show_self(tokens).status_code == 401
    clock.advance(604800)
    assert is_error(client.refresh(tokens), 'invalid_grant')


@pytest.mark.parametrize(
    ('change', 'error', 'status'),
    [({'scope': 'users:read write'}, 'invalid_scope', 400), ({'client_secret': 'wrong'}, 'invalid_client', 401)],
)
def test_an_invalid_refresh_keeps_the_tokens(client, change, error, status):
    tokens = client.grant()
    assert is_error(client.refresh(tokens, **change), error, status)
    assert client.refresh(tokens).status_code == 200


def test_a_refresh_keeps_the_tokens_of_other_users(client):
    agent, admin = client.grant(), client.grant(user_id=ADMIN)
    client.refresh(agent)
    assert client.show_self(admin).json['user']['role'] == 'admin'


# --- Clients --- #

NARROW = {'client_id': 'narrow_client'}


@pytest.mark.parametrize('scope', ['users:read', 'users:read tickets:read', 'read write', 'tickets:read', 'unknown'])
def test_a_grant_of_the_narrow_client_has_only_users_read(client, scope):
    tokens = client.exchange(client.code(scope=scope, **NARROW), **NARROW).json
    assert tokens['scope'] == 'users:read'
    assert client.show_self(tokens).status_code == 200
    assert client.tickets(tokens).status_code == 403


def test_a_refresh_of_the_narrow_client_keeps_the_scope(client):
    tokens = client.exchange(client.code(scope='read', **NARROW), **NARROW).json
    assert is_error(client.refresh(tokens, scope='read', **NARROW), 'invalid_scope')
    new = client.refresh(tokens, scope=None, **NARROW).json
    assert new['scope'] == 'users:read'
    assert client.refresh(new, **NARROW).status_code == 200


def test_the_narrow_client_needs_its_redirect_uri_and_secret(client):
    assert client.authorize(redirect_uri='https://evil.example/', **NARROW).status_code == 400
    code = client.code(**NARROW)
    assert is_error(client.exchange(code, client_secret='wrong', **NARROW), 'invalid_client', 401)
    assert client.exchange(code, client_secret=None, **NARROW).status_code == 200  # the verifier replaces the secret


@pytest.mark.parametrize(('issued_to', 'other'), [(CLIENT_ID, 'narrow_client'), ('narrow_client', CLIENT_ID)])
def test_codes_and_refresh_tokens_are_bound_to_their_client(client, issued_to, other):
    code = client.code(client_id=issued_to)
    assert is_error(client.exchange(code, client_id=other), 'invalid_grant')
    tokens = client.exchange(code, client_id=issued_to).json
    assert is_error(client.refresh(tokens, client_id=other), 'invalid_grant')
    assert client.show_self(tokens).status_code == 200
    tokens = client.refresh(tokens, client_id=issued_to).json
    assert is_error(client.refresh(tokens, client_id=other), 'invalid_grant')
    assert client.refresh(tokens, client_id=issued_to).status_code == 200


# --- Kinds of OAuth client --- #


def test_the_scope_is_optional_at_the_exchange(client):
    assert client.exchange(client.code(scope='users:read tickets:read'), scope=None).json['scope'] == (
        'users:read tickets:read'
    )


@pytest.mark.parametrize('requested', [None, 300, 360, 172_800, 604_800])
def test_access_tokens_of_a_fixed_client_are_valid_for_30_minutes(client, clock, requested):
    clients.use_kind('fixed')
    tokens = client.exchange(client.code(), expires_in=requested).json
    assert (tokens['expires_in'], tokens['refresh_token_expires_in']) == (1800, 604_800)
    tokens = client.refresh(tokens, expires_in=requested).json
    assert tokens['expires_in'] == 1800
    clock.advance(1799)
    assert client.show_self(tokens).status_code == 200
    clock.advance(2)
    assert client.show_self(tokens).status_code == 401


def test_an_old_client_gets_a_token_without_expiry_and_no_refresh_token(client, clock):
    clients.use_kind('old')
    tokens = client.grant()
    assert set(tokens) == {'access_token', 'token_type', 'scope'}
    clock.advance(10 * 365 * 86_400)
    assert client.show_self(tokens).status_code == 200
    assert client.revoke(tokens).status_code == 204
    assert client.show_self(tokens).status_code == 401


def test_an_old_client_cannot_refresh(client):
    tokens = client.grant()
    clients.use_kind('old')
    assert is_error(client.refresh(tokens), 'unauthorized_client')
    clients.use_kind('new')
    assert client.refresh(tokens).status_code == 200


@pytest.mark.parametrize('requested', [None, 360])
def test_access_tokens_can_be_json_web_tokens(client, clock, requested):
    clients.use_kind('jwt')
    tokens = client.exchange(client.code(), expires_in=requested).json
    assert tokens.get('expires_in') == requested  # Zendesk omits it if the request does
    header, claims, signature = tokens['access_token'].split('.')
    assert decoded(header) == {'typ': 'at+jwt', 'alg': 'EdDSA'}
    assert decoded(claims) == {'exp': int(clock.now) + (requested or 1800)}
    assert len(signature) == 86
    assert client.show_self(tokens).status_code == 200
    assert client.grant()['access_token'] != tokens['access_token']


def decoded(part: str) -> dict:
    return json.loads(base64.urlsafe_b64decode(part + '=='))


# --- Rate limit --- #


def test_api_responses_have_the_headers_of_the_rate_limit(client, clock, monkeypatch):
    monkeypatch.setattr(server, '_api_requests', {})
    tokens = client.grant()
    clock.now = 1_800_000_000  # the start of a minute
    for remaining in (699, 698):
        headers = client.show_self(tokens).headers
        assert (headers['X-Rate-Limit'], headers['X-Rate-Limit-Remaining']) == ('700', str(remaining))
        assert (headers['ratelimit-limit'], headers['ratelimit-remaining']) == ('700', str(remaining))
        assert headers['ratelimit-reset'] == '60'
    clock.advance(59)
    assert client.get('/api/v2/users/me').headers['ratelimit-reset'] == '1'
    clock.advance(1)
    assert client.get('/api/v2/users/me').headers['ratelimit-remaining'] == '699'
    assert 'ratelimit-limit' not in client.get('/practice').headers
    for _ in range(700):
        headers = client.get('/api/v2/tickets').headers
    assert headers['ratelimit-remaining'] == '0'


# --- Revocation --- #


@pytest.mark.parametrize('path', ['/api/v2/oauth/tokens/current', '/api/v2/oauth/tokens/current.json'])
def test_a_revocation_invalidates_both_tokens_of_this_grant(client, path):
    revoked, other = client.grant(), client.grant()
    response = client.revoke(revoked, path)
    assert (response.status_code, response.data) == (204, b'')
    assert client.show_self(revoked).status_code == 401
    assert is_error(client.refresh(revoked), 'invalid_grant')
    assert client.show_self(other).status_code == 200


def test_only_a_valid_access_token_can_revoke(client, clock):
    tokens = client.grant()
    for headers in ({}, {'Authorization': f'Basic {tokens["access_token"]}'}, {'Authorization': 'Bearer unknown'}):
        assert client.delete('/api/v2/oauth/tokens/current', headers=headers).status_code == 401
    clock.advance(361)
    assert is_error(client.revoke(tokens), 'invalid_token', 401)
    assert client.refresh(tokens).status_code == 200


# --- Show self --- #


@pytest.mark.parametrize('path', ['/api/v2/users/me', '/api/v2/users/me.json'])
@pytest.mark.parametrize('user_id', USERS)
def test_each_user_sees_their_own_profile(client, user_id, path):
    user = client.show_self(client.grant(user_id=user_id), path).json['user']
    assert user['authenticity_token']
    assert user.items() >= USERS[user_id].items()


def test_a_request_without_credentials_gets_an_anonymous_user(client):
    response = client.get('/api/v2/users/me')
    assert response.status_code == 200
    assert response.json['user'] == {'id': None, 'name': 'Anonymous user', 'role': 'end-user'}


@pytest.mark.parametrize('scope', ['tickets:read', 'user:read', 'users'])
def test_a_token_without_the_scope_is_forbidden(client, scope):
    response = client.show_self(client.grant(scope=scope))
    assert response.status_code == 403
    assert response.json['error'] == 'Forbidden'


def test_unknown_scopes_are_left_out_of_the_token(client):
    assert client.grant(scope='users:read unknown')['scope'] == 'users:read'


@pytest.mark.parametrize('method', ['show_self', 'revoke'])
def test_an_unknown_token_is_challenged_with_invalid_token(client, method):
    response = getattr(client, method)({'access_token': 'unknown'})
    assert is_error(response, 'invalid_token', 401)
    assert response.headers['WWW-Authenticate'] == (
        'Bearer realm="Zendesk::OAuth Bearer Token Authentication", error="invalid_token", error_description="The '
        'access token provided is expired, revoked, malformed or invalid for other reasons."'
    )


def test_the_bearer_scheme_is_case_insensitive(client):
    token = client.grant()['access_token']
    assert client.get('/api/v2/users/me', headers={'Authorization': f'bearer {token}'}).status_code == 200


def test_other_credentials_are_challenged_with_basic(client):
    response = client.get('/api/v2/users/me', auth=('me', 'password'))
    assert response.status_code == 401
    assert response.json == {'error': "Couldn't authenticate you"}
    assert response.headers['WWW-Authenticate'] == 'Basic realm="Web Password"'


# --- The database --- #


def test_the_database_is_private_to_its_owner(client):
    tokens = client.grant()
    path = Path('practice_zendesk.db')
    assert tokens['access_token'].encode() in path.read_bytes()
    if os.name == 'posix':
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.fixture
def earlier_database(client) -> None:
    """Create a database of the version without `client_id`, with a code and tokens."""
    with contextlib.closing(sqlite3.connect('practice_zendesk.db')) as db, db:
        db.execute(
            'CREATE TABLE codes (code TEXT PRIMARY KEY, user_id INTEGER, redirect_uri TEXT, scope TEXT, '
            'code_challenge TEXT, expires_at REAL)'
        )
        db.execute(
            'CREATE TABLE tokens (access_token TEXT PRIMARY KEY, refresh_token TEXT UNIQUE, user_id INTEGER, '
            'scope TEXT, access_expires_at REAL, refresh_expires_at REAL)'
        )
        later = time.time() + 100
        db.execute(
            'INSERT INTO codes VALUES (?, ?, ?, ?, ?, ?)',
            ('old-code', AGENT, REDIRECT_URI, 'users:read', None, later),
        )
        db.execute(
            'INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?)',
            ('old-access', 'old-refresh', AGENT, 'users:read', later, later),
        )


@pytest.mark.usefixtures('earlier_database')
def test_codes_and_tokens_of_an_earlier_version_belong_to_the_main_client(client):
    tokens = {'access_token': 'old-access', 'refresh_token': 'old-refresh'}
    assert is_error(client.exchange('old-code', code_verifier=None, **NARROW), 'invalid_grant')
    assert is_error(client.refresh(tokens, **NARROW), 'invalid_grant')
    assert client.exchange('old-code', code_verifier=None).status_code == 200
    assert client.show_self(tokens).status_code == 200
    assert client.show_self(client.refresh(tokens).json).status_code == 200


@pytest.mark.usefixtures('earlier_database')
def test_several_threads_can_open_a_database_of_an_earlier_version(client):
    tokens = {'access_token': 'old-access'}
    with ThreadPoolExecutor(10) as pool:
        responses = list(pool.map(lambda _: server.app.test_client().show_self(tokens), range(10)))
    assert {response.status_code for response in responses} == {200}


def test_expired_codes_and_tokens_are_deleted(client, clock):
    client.grant()
    client.code()
    clock.advance(604801)
    client.grant()
    with database() as db:
        assert db.execute('SELECT count(*) FROM tokens').fetchone()[0] == 1
        assert db.execute('SELECT count(*) FROM codes').fetchone()[0] == 0


# --- Serving --- #


def test_an_unknown_page_links_to_the_app(client):
    page = client.get('/nothing')
    assert page.status_code == 404
    assert '<h1>Not Found</h1>' in page.text
    assert 'href="http://localhost:3000"' in page.text
    assert 'POST' in client.get('/oauth/tokens').headers['Allow']


def test_the_server_listens_on_the_loopback_interface_only():
    listening = server.server(0)
    listening.server_close()
    assert listening.server_address[0] == '127.0.0.1'
