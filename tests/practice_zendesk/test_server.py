"""The practice Zendesk behaves as Zendesk is known to."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from servers import PROJECT

from practice_zendesk import database as simulator_store
from practice_zendesk import server as zendesk_simulator
from practice_zendesk.server import CLIENT_ID, CLIENT_SECRET, REDIRECT_URI

AUTHORIZE = '/oauth/authorizations/new'
VERIFIER = 'v' * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode().rstrip('=')
REQUEST = {
    'response_type': 'code',
    'client_id': CLIENT_ID,
    'redirect_uri': REDIRECT_URI,
    'scope': 'users:read',
    'state': 'the-state',
    'code_challenge': CHALLENGE,
    'code_challenge_method': 'S256',
}
EXCHANGE = {
    'grant_type': 'authorization_code',
    'client_id': CLIENT_ID,
    'client_secret': CLIENT_SECRET,
    'redirect_uri': REDIRECT_URI,
    'scope': 'users:read',
    'code_verifier': VERIFIER,
    'expires_in': 360,
    'refresh_token_expires_in': 604800,
}
REFRESH = {
    'grant_type': 'refresh_token',
    'client_id': CLIENT_ID,
    'client_secret': CLIENT_SECRET,
    'scope': 'users:read',
    'expires_in': 360,
    'refresh_token_expires_in': 604800,
}
AGENT, ADMIN, END_USER = simulator_store.USERS


def without(request: dict, *names: str) -> dict:
    return {name: value for name, value in request.items() if name not in names}


def answer(response) -> dict[str, str]:
    """Return the query of a redirect to the app."""
    assert response.location.startswith(REDIRECT_URI + '?')
    return {name: values[0] for name, values in parse_qs(urlsplit(response.location).query).items()}


def allow(http, user_id: int = AGENT, **request) -> str:
    form = {'decision': 'allow', 'user_id': str(user_id)}
    return answer(http.post(AUTHORIZE, query_string={**REQUEST, **request}, data=form))['code']


def grant(http, **kwargs) -> dict:
    return http.post('/oauth/tokens', data={**EXCHANGE, 'code': allow(http, **kwargs)}).json


def refresh(http, pair: dict, **changes):
    return http.post('/oauth/tokens', data={**REFRESH, 'refresh_token': pair['refresh_token'], **changes})


def show_self(http, pair: dict):
    return http.get('/api/v2/users/me', headers={'Authorization': f'Bearer {pair["access_token"]}'})


def refused(response, error: str, status: int = 400) -> bool:
    assert response.json['error_description'] == zendesk_simulator.ERRORS[error]
    return (response.status_code, response.json['error']) == (status, error)


# --- Consent --- #


def test_the_consent_page_offers_the_users_and_both_answers(http):
    page = http.get(AUTHORIZE, query_string=REQUEST)
    assert page.status_code == 200
    for user in simulator_store.USERS.values():
        assert user['name'] in page.text
    assert re.findall(r'<button name="decision" value="(\w+)">(\w+)', page.text) == [
        ('allow', 'Allow'),
        ('deny', 'Deny'),
    ]
    assert {user['role'] for user in simulator_store.USERS.values()} == {'agent', 'admin', 'end-user'}
    assert any(not user['name'].isascii() for user in simulator_store.USERS.values() if user['role'] == 'end-user')


def test_allow_leads_back_with_a_code_and_the_state(http):
    response = http.post(AUTHORIZE, query_string=REQUEST, data={'decision': 'allow', 'user_id': str(AGENT)})
    assert set(answer(response)) == {'code', 'state'}
    assert answer(response)['state'] == 'the-state'


def test_deny_leads_back_with_access_denied_and_the_state(http):
    response = http.post(AUTHORIZE, query_string=REQUEST, data={'decision': 'deny', 'user_id': str(AGENT)})
    assert answer(response) == {
        'error': 'access_denied',
        'error_description': 'The end-user or authorization server denied the request.',
        'state': 'the-state',
    }


@pytest.mark.parametrize('change', [{'client_id': 'other'}, {'redirect_uri': 'https://evil.example/'}])
@pytest.mark.parametrize('method', ['GET', 'POST'])
def test_a_wrong_client_or_redirect_uri_is_never_redirected(http, change, method):
    page = http.open(AUTHORIZE, method=method, query_string={**REQUEST, **change}, data={'decision': 'allow'})
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
def test_other_mistakes_are_told_to_the_app(http, change, error):
    assert answer(http.get(AUTHORIZE, query_string={**REQUEST, **change}))['error'] == error


def test_a_missing_scope_is_a_403(http):
    assert http.get(AUTHORIZE, query_string=without(REQUEST, 'scope')).status_code == 403


@pytest.mark.parametrize('user_id', ['', '5', 'x', '٣', '9' * 5000])
def test_an_unknown_user_gets_no_code(http, user_id):
    response = http.post(AUTHORIZE, query_string=REQUEST, data={'decision': 'allow', 'user_id': user_id})
    assert response.status_code == 400


# --- Exchange --- #


@pytest.mark.parametrize('kind', ['data', 'json'])
def test_a_code_becomes_a_pair_sent_as_a_form_or_as_json(http, kind):
    response = http.post('/oauth/tokens', **{kind: {**EXCHANGE, 'code': allow(http)}})
    assert response.status_code == 201
    pair = response.json
    assert pair['access_token'] != pair['refresh_token']
    assert re.search('[0-9]', pair['access_token'])
    assert re.search('[0-9]', pair['refresh_token'])
    assert without(pair, 'access_token', 'refresh_token') == {
        'token_type': 'bearer',
        'scope': 'users:read',
        'expires_in': 360,
        'refresh_token_expires_in': 604800,
    }


def test_a_code_works_once(http):
    form = {**EXCHANGE, 'code': allow(http)}
    assert http.post('/oauth/tokens', data=form).status_code == 201
    assert refused(http.post('/oauth/tokens', data=form), 'invalid_grant')


def test_a_code_works_once_even_ten_times_at_once(http):
    form = {**EXCHANGE, 'code': allow(http)}
    with ThreadPoolExecutor(10) as pool:
        answers = pool.map(lambda _: zendesk_simulator.app.test_client().post('/oauth/tokens', data=form), range(10))
        assert sorted(answer.status_code for answer in answers) == [201] + [400] * 9


def test_a_code_lives_120_seconds(http, clock):
    in_time, late = allow(http), allow(http)
    clock.advance(119)
    assert http.post('/oauth/tokens', data={**EXCHANGE, 'code': in_time}).status_code == 201
    clock.advance(2)
    assert refused(http.post('/oauth/tokens', data={**EXCHANGE, 'code': late}), 'invalid_grant')


@pytest.mark.parametrize(
    'change', [{'code': 'other'}, {'redirect_uri': 'http://localhost:3000/'}, {'code_verifier': 'w' * 43}]
)
def test_what_does_not_belong_to_the_code_is_refused_and_the_code_kept(http, change):
    form = {**EXCHANGE, 'code': allow(http)}
    assert refused(http.post('/oauth/tokens', data={**form, **change}), 'invalid_grant')
    assert http.post('/oauth/tokens', data=form).status_code == 201


def test_a_challenge_obliges_to_a_verifier(http):
    form = without({**EXCHANGE, 'code': allow(http)}, 'code_verifier')
    assert refused(http.post('/oauth/tokens', data=form), 'invalid_grant')


def test_without_a_challenge_there_is_no_verifier(http):
    request = without(REQUEST, 'code_challenge', 'code_challenge_method')
    allowed = {'decision': 'allow', 'user_id': str(AGENT)}
    code = answer(http.post(AUTHORIZE, query_string=request, data=allowed))['code']
    assert refused(http.post('/oauth/tokens', data={**EXCHANGE, 'code': code}), 'invalid_grant')
    assert http.post('/oauth/tokens', data=without({**EXCHANGE, 'code': code}, 'code_verifier')).status_code == 201


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
        ({'scope': ''}, 'invalid_request', 400),
        ({'expires_in': 299}, 'invalid_request', 400),
        ({'expires_in': 172801}, 'invalid_request', 400),
        ({'expires_in': 'soon'}, 'invalid_request', 400),
        ({'expires_in': '-300'}, 'invalid_request', 400),
        ({'refresh_token_expires_in': 604799}, 'invalid_request', 400),
        ({'refresh_token_expires_in': 7776001}, 'invalid_request', 400),
        ({'expires_in': ['300', '300']}, 'invalid_request', 400),
    ],
)
def test_a_wrong_token_request_is_refused_in_zendesks_words(http, change, error, status):
    form = {**EXCHANGE, 'code': allow(http)}
    response = http.post('/oauth/tokens', data={**form, **change})
    assert refused(response, error, status)
    assert ('WWW-Authenticate' in response.headers) == (error == 'invalid_client')
    assert http.post('/oauth/tokens', data=form).status_code == 201


@pytest.mark.parametrize('body', ['', '[]', 'null', '{"grant_type":'])
def test_json_that_is_none_is_an_invalid_request(http, body):
    assert refused(http.post('/oauth/tokens', data=body, content_type='application/json'), 'invalid_request')


@pytest.mark.parametrize('lifetimes', [(300, 604800), (172800, 7776000)])
def test_the_bounds_themselves_are_allowed(http, lifetimes):
    form = {**EXCHANGE, 'code': allow(http), 'expires_in': lifetimes[0], 'refresh_token_expires_in': lifetimes[1]}
    pair = http.post('/oauth/tokens', data=form).json
    assert (pair['expires_in'], pair['refresh_token_expires_in']) == lifetimes


def test_unasked_lifetimes_are_the_defaults(http):
    form = without({**EXCHANGE, 'code': allow(http)}, 'expires_in', 'refresh_token_expires_in')
    pair = http.post('/oauth/tokens', data=form).json
    assert (pair['expires_in'], pair['refresh_token_expires_in']) == (1800, 2592000)


# --- Refresh --- #


def test_a_refresh_gives_a_new_pair_and_kills_both_old_tokens(http):
    old = grant(http)
    new = refresh(http, old).json
    assert show_self(http, new).status_code == 200
    assert show_self(http, old).status_code == 401
    assert refused(refresh(http, old), 'invalid_grant')
    assert refresh(http, new).status_code == 201


def test_a_refresh_token_works_once_even_ten_times_at_once(http):
    pair = grant(http)
    with ThreadPoolExecutor(10) as pool:
        answers = pool.map(lambda _: refresh(zendesk_simulator.app.test_client(), pair), range(10))
        assert sorted(answer.status_code for answer in answers) == [201] + [400] * 9


def test_tokens_expire(http, clock):
    pair = grant(http)
    clock.advance(359)
    assert show_self(http, pair).status_code == 200
    clock.advance(2)
    assert show_self(http, pair).status_code == 401
    clock.advance(604800)
    assert refused(refresh(http, pair), 'invalid_grant')


def test_a_refresh_does_not_widen_the_scope(http):
    pair = grant(http)
    assert refused(refresh(http, pair, scope='users:read write'), 'invalid_scope')
    assert refresh(http, pair).status_code == 201


def test_a_refresh_needs_the_secret(http):
    assert refused(refresh(http, grant(http), client_secret='wrong'), 'invalid_client', 401)


def test_two_users_have_two_grants(http):
    agent, admin = grant(http), grant(http, user_id=ADMIN)
    refresh(http, agent)
    assert show_self(http, admin).json['user']['role'] == 'admin'


# --- Revoking --- #


@pytest.mark.parametrize('path', ['/api/v2/oauth/tokens/current', '/api/v2/oauth/tokens/current.json'])
def test_a_revoked_token_is_dead_and_its_refresh_token_too(http, path):
    gone, other = grant(http), grant(http)
    response = http.delete(path, headers={'Authorization': f'Bearer {gone["access_token"]}'})
    assert (response.status_code, response.data) == (204, b'')
    assert show_self(http, gone).status_code == 401
    assert refused(refresh(http, gone), 'invalid_grant')
    assert show_self(http, other).status_code == 200


def test_a_401_says_what_would_do_instead(http):
    for path in ('/api/v2/users/me', '/api/v2/oauth/tokens/current'):
        method = http.get if path.endswith('me') else http.delete
        answers = [method(path, headers={'Authorization': f'{kind} x'}) for kind in ('Bearer', 'bearer', 'Basic')]
        assert [answer.headers['WWW-Authenticate'] for answer in answers] == [
            'Bearer realm="Zendesk", error="invalid_token"',
            'Bearer realm="Zendesk", error="invalid_token"',
            'Basic realm="Web Password"',
        ]


def test_only_a_living_access_token_can_revoke(http, clock):
    pair = grant(http)
    for headers in ({}, {'Authorization': 'Bearer unknown'}, {'Authorization': f'Basic {pair["access_token"]}'}):
        assert http.delete('/api/v2/oauth/tokens/current', headers=headers).status_code == 401
    clock.advance(361)
    headers = {'Authorization': f'Bearer {pair["access_token"]}'}
    assert http.delete('/api/v2/oauth/tokens/current', headers=headers).json['error'] == 'invalid_token'
    assert refresh(http, pair).status_code == 201


# --- Show self --- #


@pytest.mark.parametrize('user_id', simulator_store.USERS)
@pytest.mark.parametrize('path', ['/api/v2/users/me', '/api/v2/users/me.json'])
def test_each_user_is_shown_to_themselves(http, user_id, path):
    token = grant(http, user_id=user_id)['access_token']
    user = http.get(path, headers={'Authorization': f'Bearer {token}'}).json['user']
    assert {name: user[name] for name in ('id', 'name', 'role')} == {
        name: simulator_store.USERS[user_id][name] for name in ('id', 'name', 'role')
    }
    assert user['authenticity_token']


def test_without_credentials_the_user_is_anonymous(http):
    response = http.get('/api/v2/users/me')
    assert response.status_code == 200
    assert response.json['user']['name'] == 'Anonymous user'
    assert response.json['user']['id'] is None


def test_an_unknown_token_is_a_401_in_zendesks_words(http):
    assert refused(show_self(http, {'access_token': 'x'}), 'invalid_token', 401)


def test_other_credentials_are_a_401(http):
    response = http.get('/api/v2/users/me', auth=('me', 'password'))
    assert response.status_code == 401
    assert response.json == {'error': "Couldn't authenticate you"}


@pytest.mark.parametrize('scope', ['tickets:read', 'user:read', 'users'])
def test_a_token_of_another_scope_opens_nothing(http, scope):
    response = show_self(http, grant(http, scope=scope))
    assert response.status_code == 403
    assert response.json['error'] == 'Forbidden'


# --- What was issued --- #


def test_what_was_issued_is_kept_private_in_a_file(http):
    pair = grant(http)
    assert pair['access_token'].encode() in Path('practice_zendesk.server.db').read_bytes()
    if os.name == 'posix':
        assert stat.S_IMODE(Path('practice_zendesk.server.db').stat().st_mode) == 0o600


def test_what_has_expired_is_deleted(http, clock):
    grant(http)
    allow(http)
    clock.advance(604801)
    grant(http)
    with simulator_store.database() as db:
        assert db.execute('SELECT count(*) FROM tokens').fetchone()[0] == 1
        assert db.execute('SELECT count(*) FROM codes').fetchone()[0] == 0


def test_it_imports_nothing_from_the_app():
    own = {'zendesk_simulator', 'simulator_script', 'simulator_controls', 'simulator_store'}
    tools = {'fingerprints', 'ports'}  # these know neither of the two
    source = ''.join((PROJECT / f'{module}.py').read_text() for module in own | tools)
    modules = {path.stem for path in PROJECT.glob('*.py')} - own - tools
    assert not modules & set(re.findall(r'^\s*(?:import|from) (\w+)', source, re.MULTILINE))


def test_its_pages_reach_no_other_host_but_the_apps(http):
    page = http.get(AUTHORIZE, query_string=REQUEST)
    assert "default-src 'none'" in page.headers['Content-Security-Policy']
    assert page.headers['Content-Security-Policy'].endswith("form-action 'self' http://localhost:3000")
    assert not re.search(r'<script|<style|style=|(src|href)="(https?:)?//', page.text)
