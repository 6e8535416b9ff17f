"""Connect a user of a product: begin_authorization, complete_authorization, and the two calls for any framework."""

from __future__ import annotations

import re
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import flask
import pytest
import requests
from helpers import INVALID_GRANT, NEW_TOKENS, REVOKE, TOKEN_ENDPOINT, ZENDESK, bearer, form, requests_to
from product import TOKENS, client

from zendesk_oauth import Connection, MemoryStore, ZendeskOAuth, signals
from zendesk_oauth.errors import (
    AccessDenied,
    AuthorizationError,
    AuthorizationExpired,
    NotConnected,
    SetupError,
    StateCookieMissing,
    StoreError,
    ZendeskError,
)

ALICE = Connection('alice', ZENDESK, 'users:read tickets:read', (), '/')


@pytest.fixture
def oauth() -> ZendeskOAuth:
    return client()


@pytest.fixture
def product(oauth):
    """A product in Flask whose signed-in user is in the session. It returns the connection as JSON."""
    app = flask.Flask(__name__)
    app.secret_key = 'canary-secret-key'

    @app.post('/connect')
    def connect():
        return oauth.begin_authorization(flask.session['user_id'], next_url=flask.request.form.get('next', '/'))

    @app.get('/zendesk/callback')
    def callback():
        try:
            return vars(oauth.complete_authorization(flask.session.get('user_id')))
        except AuthorizationError as error:
            return {'error': error.title, 'next_url': error.next_url}, error.status

    return app


@pytest.fixture
def alice(product):
    return sign_in(product.test_client(), 'alice')


def sign_in(browser, user_id):
    with browser.session_transaction() as session:
        session['user_id'] = user_id
    return browser


def begin(browser, **data) -> str:
    """Click "Connect Zendesk" and return the state of the authorization request."""
    return state_of(browser.post('/connect', data=data).location)


def state_of(url: str) -> str:
    return parse_qs(urlsplit(url).query)['state'][0]


def come_back(browser, **query):
    return browser.get('/zendesk/callback', query_string=query)


def callback_of(pending, **query) -> tuple[dict[str, str], dict[str, str]]:
    """Return the query and the cookies of the callback of this request."""
    return {'state': pending.state, 'code': 'the-code', **query}, {pending.cookie_name: pending.cookie_value}


def exchange(oauth, user_id, pending, **query) -> Connection:
    return oauth.exchange(user_id, *callback_of(pending, **query))


# --- The authorization request --- #


def test_the_url_has_every_parameter_of_the_authorization_request(oauth):
    pending = oauth.authorization_request('alice')
    address, _, query = pending.url.partition('?')
    assert address == f'{ZENDESK}/oauth/authorizations/new'
    assert {name: values[0] for name, values in parse_qs(query).items()} == {
        'response_type': 'code',
        'client_id': 'test_client',
        'redirect_uri': 'https://app.example.com/zendesk/callback',
        'scope': 'users:read tickets:read',
        'state': pending.state,
        'code_challenge': pending.code_challenge,
        'code_challenge_method': 'S256',
    }


def test_begin_authorization_redirects_and_sets_the_cookie(alice):
    response = alice.post('/connect')
    assert response.status_code == 302
    assert response.location.startswith(f'{ZENDESK}/oauth/authorizations/new?')
    [cookie] = [value for name, value in response.headers if name == 'Set-Cookie']
    assert cookie.startswith('__Host-zendesk_oauth_request_')
    for attribute in ('Secure', 'HttpOnly', 'Path=/', 'SameSite=Lax'):
        assert attribute in cookie


@pytest.mark.parametrize('user_id', [None, 5, '', 'x' * 256, b'alice', 'a\ud800'])
def test_a_user_id_must_be_a_str_of_1_to_255_characters(oauth, user_id):
    calls = [
        lambda: oauth.begin_authorization(user_id),
        lambda: oauth.connection(user_id),
        lambda: oauth.session(user_id),
        lambda: oauth.disconnect(user_id),
        lambda: oauth.import_tokens(user_id, TOKENS),
    ]
    if user_id is not None:
        calls += [lambda: oauth.authorization_request(user_id), lambda: oauth.exchange(user_id, {}, {})]
    for call in calls:
        with pytest.raises(TypeError, match='user_id'):
            call()
    assert oauth.connection('x' * 255) is None


@pytest.mark.parametrize(
    'next_url',
    [
        *('https://evil.example/', '//evil.example', '/\\evil.example', '/\t/evil.example', '/\n/evil.example'),
        *('\\/evil.example', 'evil', '', 'javascript:alert(1)', None, '/' + 'x' * 1000, ' /x', '/x y', '/x\x00'),
    ],
)
def test_a_next_url_that_leaves_the_product_is_rejected(oauth, next_url):
    with pytest.raises(ValueError, match='next_url'):
        oauth.authorization_request('alice', next_url=next_url)


@pytest.mark.parametrize(
    'next_url', ['/', '/tickets?status=open&q=%20#first', '/Größe', '/' + 'x' * 999, '/' + 'é' * 499]
)
def test_the_connection_has_the_next_url(oauth, zendesk, next_url):
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    pending = oauth.authorization_request('alice', next_url=next_url)
    assert exchange(oauth, 'alice', pending).next_url == next_url
    assert len(pending.cookie_name + pending.cookie_value) < 4000  # browsers drop cookies of more than 4096 bytes


def test_the_cookie_and_the_url_reveal_no_user_id_or_secret(oauth):
    pending = oauth.authorization_request('canary-user')
    for secret in ('canary-user', pending.state, 'canary-client-secret', oauth._authorization.code_verifier('x')):
        assert secret not in str((pending.cookie_name, pending.cookie_value, pending.cookie_options))
    assert 'canary-user' not in pending.url


def test_the_cookies_of_twenty_abandoned_requests_stay_under_4_kb(alice):
    for number in range(20):
        begin(alice, next=f'/{number}' + 'x' * 300)
    assert 0 < sum(len(f'{cookie.key}={cookie.value}; ') for cookie in alice._cookies.values()) < 4096


# --- The callback --- #


def test_a_callback_stores_the_tokens_and_returns_the_connection(oauth, alice, zendesk):
    state = begin(alice, next='/tickets')
    zendesk.post(
        TOKEN_ENDPOINT,
        json=TOKENS,
        match=[
            form(
                grant_type='authorization_code',
                code='the-code',
                client_id='test_client',
                client_secret='canary-client-secret',
                redirect_uri='https://app.example.com/zendesk/callback',
                scope='users:read tickets:read',
                code_verifier=oauth._authorization.code_verifier(state),
                expires_in='1800',
                refresh_token_expires_in='2592000',
            )
        ],
    )
    page = come_back(alice, code='the-code', state=state)
    assert page.json == {**vars(ALICE), 'missing_scopes': [], 'next_url': '/tickets'}
    assert oauth.connection('alice') == ALICE
    record = oauth.store.find('alice')
    assert (record['access_token'], record['refresh_token']) == ('new-access', 'new-refresh')
    assert 'canary' not in str(page.headers)


def test_the_lifetimes_are_requested(zendesk):
    oauth = client(access_token_lifetime=300, refresh_token_lifetime=7_776_000)
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    exchange(oauth, 'alice', oauth.authorization_request('alice'))
    body = parse_qs(zendesk.calls[0].request.body)
    assert (body['expires_in'], body['refresh_token_expires_in']) == (['300'], ['7776000'])


def test_the_two_calls_for_any_framework_take_plain_dicts(oauth, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    assert exchange(oauth, 'alice', oauth.authorization_request('alice')) == ALICE


def test_the_same_callback_again_returns_the_same_connection(oauth, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    pending = oauth.authorization_request('alice', next_url='/tickets')
    first = exchange(oauth, 'alice', pending)
    assert exchange(oauth, 'alice', pending) == first
    assert exchange(oauth, 'alice', pending, code='another') == first
    assert len(zendesk.calls) == 1


def test_the_same_callback_ten_times_at_once_sends_one_exchange(oauth, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    pending = oauth.authorization_request('alice')
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda _: exchange(oauth, 'alice', pending), range(10)))
    assert found == [ALICE] * 10
    assert len(zendesk.calls) == 1


def test_the_same_callback_after_a_refresh_returns_the_connection(oauth, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    pending = oauth.authorization_request('alice')
    exchange(oauth, 'alice', pending)
    oauth._refresh('alice', oauth.store.find('alice'), False)
    assert exchange(oauth, 'alice', pending) == ALICE
    assert requests_to(zendesk, TOKEN_ENDPOINT) == 2


def test_the_store_never_contains_a_state(oauth, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    pending = oauth.authorization_request('alice')
    exchange(oauth, 'alice', pending)
    assert pending.state not in str(oauth.store.find('alice'))


def test_a_change_of_the_secret_key_does_not_affect_a_pending_request(product, alice, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    state = begin(alice)
    product.secret_key = secrets.token_hex()
    sign_in(alice, 'alice')
    assert come_back(alice, code='the-code', state=state).json['user_id'] == 'alice'


def test_the_settings_of_the_session_cookie_do_not_affect_the_cookie(product, alice):
    def cookie() -> str:
        [header] = [value for name, value in alice.post('/connect').headers if name == 'Set-Cookie']
        return re.sub('=[^;]*', '', header, count=1)

    before = re.sub('_request_[^;]*', '', cookie())
    product.config |= {f'SESSION_COOKIE_{name}': True for name in ('PARTITIONED', 'SECURE')}
    product.config |= {'SESSION_COOKIE_DOMAIN': 'evil.example', 'SESSION_COOKIE_PATH': '/x'}
    product.config |= {'SESSION_COOKIE_SAMESITE': 'Strict', 'SESSION_COOKIE_HTTPONLY': False}
    assert re.sub('_request_[^;]*', '', cookie()) == before


def test_a_user_who_has_signed_out_cannot_complete(alice, zendesk):
    state = begin(alice, next='/tickets')
    with alice.session_transaction() as session:
        session.clear()
    page = come_back(alice, code='the-code', state=state)
    assert (page.status_code, page.json) == (400, {'error': 'You are not signed in', 'next_url': '/tickets'})
    assert not zendesk.calls


def test_another_user_of_the_browser_cannot_complete(oauth, alice, zendesk):
    state = begin(alice, next='/tickets')
    page = come_back(sign_in(alice, 'bob'), code='the-code', state=state)
    assert (page.status_code, page.json['error'], page.json['next_url']) == (
        400,
        'Another account started this',
        '/tickets',
    )
    assert not zendesk.calls


def test_another_browser_cannot_complete(product, alice, zendesk):
    state = begin(alice)
    page = come_back(sign_in(product.test_client(), 'alice'), code='the-code', state=state)
    assert (page.status_code, page.json['next_url']) == (400, None)
    assert not zendesk.calls


@pytest.mark.parametrize('user_id', ['bob', 'alice ', 'Alice', None])
def test_a_request_is_bound_to_its_user(oauth, zendesk, user_id):
    pending = oauth.authorization_request('alice')
    with pytest.raises(AuthorizationError):
        exchange(oauth, user_id, pending)
    assert not zendesk.calls


def test_a_request_without_a_user_is_bound_to_the_browser_only(oauth, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    pending = oauth.authorization_request(None, next_url='/tickets')
    with pytest.raises(AuthorizationError) as raised:
        exchange(oauth, None, pending)
    assert raised.value.next_url == '/tickets'
    with pytest.raises(StateCookieMissing):
        oauth.exchange('alice', callback_of(pending)[0], {})
    assert exchange(oauth, 'alice', pending).next_url == '/tickets'


@pytest.mark.parametrize(('seconds', 'valid'), [(-61, False), (-60, True), (600, True), (601, False)])
def test_a_request_is_valid_for_ten_minutes_despite_clock_skew(oauth, zendesk, clock, seconds, valid):
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    clock.now = 1_800_000_000
    pending = oauth.authorization_request('alice', next_url='/tickets')
    clock.advance(seconds)
    if valid:
        assert exchange(oauth, 'alice', pending)
    else:
        with pytest.raises(AuthorizationExpired) as raised:
            exchange(oauth, 'alice', pending)
        assert raised.value.next_url == '/tickets'
        assert not zendesk.calls


@pytest.mark.parametrize('part', range(3))
def test_a_tampered_cookie_is_rejected(oauth, zendesk, part):
    """The parts: the content with the user and next_url, the dot, the signature."""
    pending = oauth.authorization_request('alice')
    other = oauth.authorization_request('bob', next_url='/evil')
    parts = list(pending.cookie_value.partition('.'))
    parts[part] = '' if part == 1 else other.cookie_value.partition('.')[part]
    with pytest.raises(AuthorizationError):
        oauth.exchange('alice', callback_of(pending)[0], {pending.cookie_name: ''.join(parts)})
    assert not zendesk.calls


def test_a_denial_keeps_the_old_grant(oauth, zendesk):
    oauth.import_tokens('alice', TOKENS)
    before = oauth.store.find('alice')
    pending = oauth.authorization_request('alice', next_url='/settings')
    with pytest.raises(AccessDenied) as raised:
        oauth.exchange('alice', {'state': pending.state, 'error': 'access_denied'}, callback_of(pending)[1])
    assert raised.value.next_url == '/settings'
    assert oauth.store.find('alice') == before


@pytest.mark.parametrize(
    ('response', 'error'),
    [
        (INVALID_GRANT, AuthorizationError),
        ({'status': 500}, ZendeskError),
        ({'status': 401, 'json': {'error': 'invalid_client'}}, SetupError),
        ({'json': {'access_token': 5}}, ZendeskError),
        ({'body': requests.Timeout()}, ZendeskError),
    ],
)
def test_a_failed_exchange_keeps_the_old_grant_and_the_next_url(oauth, zendesk, response, error):
    oauth.import_tokens('alice', TOKENS)
    before = oauth.store.find('alice')
    zendesk.post(TOKEN_ENDPOINT, **response)
    with pytest.raises(error) as raised:
        exchange(oauth, 'alice', oauth.authorization_request('alice', next_url='/settings'))
    assert raised.value.next_url == '/settings'
    assert oauth.store.find('alice') == before
    assert len(zendesk.calls) == 1


def test_tokens_that_cannot_be_stored_are_revoked(oauth, zendesk, monkeypatch):
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])

    def fail(*args):
        raise StoreError('No space left on device')

    monkeypatch.setattr(oauth.store, 'save', fail)
    with pytest.raises(StoreError) as raised:
        exchange(oauth, 'alice', oauth.authorization_request('alice', next_url='/settings'))
    assert (raised.value.next_url, raised.value.retry_after) == ('/settings', None)
    assert requests_to(zendesk, REVOKE) == 1


# --- The old grant --- #


@pytest.mark.parametrize('response', [{'status': 204}, {'status': 401}, {'status': 500}, {'body': requests.Timeout()}])
def test_a_new_grant_revokes_the_old_one_after_storing(oauth, zendesk, response):
    oauth.import_tokens('alice', {**TOKENS, 'access_token': 'old-access', 'refresh_token': 'old-refresh'})
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    zendesk.delete(REVOKE, match=[bearer('old-access')], **response)
    pending = oauth.authorization_request('alice')
    assert exchange(oauth, 'alice', pending) == ALICE
    assert [call.request.method for call in zendesk.calls] == ['POST', 'DELETE']  # no refresh
    assert oauth.store.find('alice')['access_token'] == 'new-access'


def test_the_old_grant_is_revoked_without_the_lock_and_in_three_seconds(oauth, zendesk, monkeypatch):
    oauth.import_tokens('alice', {**TOKENS, 'access_token': 'old-access'})
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    seen = []

    def revoke(zendesk_url, access_token, timeout):
        with oauth.refresh_lock('alice') as stored:
            seen.append((access_token, timeout, stored['access_token']))
        return 204

    monkeypatch.setattr(oauth, '_revoke', revoke)
    exchange(oauth, 'alice', oauth.authorization_request('alice'))
    assert seen == [('old-access', 3, 'new-access')]


def test_a_new_grant_waits_for_a_running_refresh(oauth, zendesk):
    oauth.import_tokens('alice', {**TOKENS, 'access_token': 'old-access'})
    zendesk.delete(REVOKE, status=204)
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    pending = oauth.authorization_request('alice')
    with oauth.refresh_lock('alice'):
        thread = threading.Thread(target=exchange, args=(oauth, 'alice', pending))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        assert not zendesk.calls
    thread.join()
    assert oauth.store.find('alice')['access_token'] == 'new-access'


# --- Scopes --- #


@pytest.mark.parametrize(
    ('granted', 'missing'),
    [
        ('users:read tickets:read', ()),
        ('tickets:read users:read extra:read', ()),
        ('read', ()),
        ('users:read', ('tickets:read',)),
        ('write', ('users:read', 'tickets:read')),
        ('', ('users:read', 'tickets:read')),
    ],
)
def test_a_narrower_scope_is_stored_and_reported(oauth, zendesk, package_log, granted, missing):
    zendesk.post(TOKEN_ENDPOINT, json={**TOKENS, 'scope': granted})
    connection = exchange(oauth, 'alice', oauth.authorization_request('alice'))
    assert (connection.scope, connection.missing_scopes) == (granted, missing)
    assert oauth.connection('alice') == connection
    warned = any('a scope other than users:read tickets:read' in record.getMessage() for record in package_log)
    assert warned or not missing


def test_without_a_scope_in_the_response_the_requested_scope_was_granted(oauth, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json={name: value for name, value in TOKENS.items() if name != 'scope'})
    connection = exchange(oauth, 'alice', oauth.authorization_request('alice'))
    assert (connection.scope, connection.missing_scopes) == ('users:read tickets:read', ())


@pytest.mark.parametrize('scope', [None, 5, ['users:read']])
def test_a_malformed_scope_is_unknown(oauth, zendesk, scope):
    zendesk.post(TOKEN_ENDPOINT, json={**TOKENS, 'scope': scope})
    connection = exchange(oauth, 'alice', oauth.authorization_request('alice'))
    assert (connection.scope, connection.missing_scopes) == ('', ())


def test_missing_scopes_compares_the_grant_with_the_current_settings(oauth):
    oauth.import_tokens('alice', TOKENS)
    later = client(store=oauth.store, scope='users:read tickets:read tickets:write')
    assert later.connection('alice').missing_scopes == ('tickets:write',)


# --- One account per user --- #

PER_USER = {'zendesk_url': None}


@pytest.mark.parametrize(
    'subdomain',
    [
        *('acme', 'ACME', ' acme ', 'acme.zendesk.com', 'https://acme.zendesk.com', 'http://acme.zendesk.com/'),
        *('https://acme.zendesk.com/agent/dashboard?x=1', 'HTTPS://ACME.ZENDESK.COM'),
    ],
)
def test_a_pasted_subdomain_is_accepted(subdomain):
    url = client(**PER_USER).authorization_request('alice', subdomain=subdomain).url
    assert url.startswith('https://acme.zendesk.com/oauth/authorizations/new?')


@pytest.mark.parametrize(
    'subdomain',
    [
        *(None, '', ' ', 'evil.example', 'https://evil.example', 'https://acme.zendesk.com.evil.example'),
        *('https://acme.zendesk.com@evil.example', 'acme@evil', 'evil.example/.zendesk.com', 'a.b', '-acme', 'acme-'),
        *(
            5,
            ['acme'],
            'a_b',
            'x' * 64,
            'acme:443',
            'https://evil.example#.zendesk.com',
            'evil.example?.zendesk.com',
            'acme\n.evil',
        ),
        *(
            'https://a.b.zendesk.com',
            'ac\u212ame',
            'https://acme.zendesk.com:443/',
            '127.0.0.1',
            'ftp://acme.zendesk.com',
        ),
    ],
)
def test_a_subdomain_that_does_not_belong_to_zendesk_is_rejected(subdomain):
    with pytest.raises(AuthorizationError) as raised:
        client(**PER_USER).authorization_request('alice', subdomain=subdomain)
    assert raised.value.title == 'This is not a Zendesk subdomain'
    assert len(str(subdomain)) < 6 or str(subdomain) not in str(raised.value) + raised.value.advice


def test_each_user_can_have_their_own_account(zendesk):
    oauth = client(**PER_USER)
    for name in ('acme', 'globex'):
        zendesk.post(f'https://{name}.zendesk.com/oauth/tokens', json={**TOKENS, 'access_token': f'{name}-access'})
        pending = oauth.authorization_request(f'user of {name}', subdomain=name)
        connection = exchange(oauth, f'user of {name}', pending, iss=f'https://{name}.zendesk.com')
        assert connection.zendesk_url == f'https://{name}.zendesk.com'
        zendesk.get(f'https://{name}.zendesk.com/api/v2/users/me.json', json={}, match=[bearer(f'{name}-access')])
        assert oauth.session(f'user of {name}').get('/api/v2/users/me.json').ok
        assert oauth.session(f'user of {name}').get(f'https://{name}.zendesk.com/api/v2/users/me.json').ok


def test_the_account_in_the_cookie_cannot_be_changed(zendesk):
    """A code of one account must not be sent to another."""
    oauth = client(**PER_USER)
    acme, globex = (oauth.authorization_request('alice', subdomain=name) for name in ('acme', 'globex'))
    with pytest.raises(AuthorizationError):
        oauth.exchange('alice', callback_of(acme)[0], {acme.cookie_name: globex.cookie_value})
    with pytest.raises(AuthorizationError, match='another issuer'):
        exchange(oauth, 'alice', acme, iss='https://globex.zendesk.com')
    assert not zendesk.calls


def test_a_change_of_the_account_in_the_settings_ends_pending_requests(zendesk):
    pending = client(subdomain='acme', **PER_USER).authorization_request('alice', next_url='/settings')
    with pytest.raises(AuthorizationError, match='has changed since the request') as raised:
        exchange(client(subdomain='globex', **PER_USER), 'alice', pending)
    assert raised.value.next_url == '/settings'


def test_the_account_in_the_settings_takes_precedence(zendesk):
    store = MemoryStore()
    client(store=store, **PER_USER).import_tokens('alice', TOKENS, subdomain='acme')
    oauth = client(store=store)
    assert oauth.connection('alice').zendesk_url == ZENDESK
    assert oauth.authorization_request('alice', subdomain='acme').url.startswith(f'{ZENDESK}/')
    zendesk.get(f'{ZENDESK}/api/v2/users/me.json', json={})
    assert oauth.session('alice').get('/api/v2/users/me.json').ok


def test_a_new_grant_for_another_account_revokes_the_old_one_there(zendesk):
    oauth = client(**PER_USER)
    oauth.import_tokens('alice', {**TOKENS, 'access_token': 'old-access'}, subdomain='acme')
    zendesk.post('https://globex.zendesk.com/oauth/tokens', json=TOKENS)
    zendesk.delete('https://acme.zendesk.com/api/v2/oauth/tokens/current', status=204, match=[bearer('old-access')])
    exchange(oauth, 'alice', oauth.authorization_request('alice', subdomain='globex'))
    assert len(zendesk.calls) == 2


@pytest.mark.parametrize(
    'zendesk_url',
    [None, 5, ['x'], 'https://evil.example', 'https://acme.zendesk.com@evil.example', 'http://acme.zendesk.com'],
)
def test_a_record_without_a_zendesk_account_is_not_used(zendesk, zendesk_url):
    """Whoever can write to the store must not receive the client secret."""
    oauth = client(**PER_USER)
    record = {'access_token': 'a', 'refresh_token': 'r', 'zendesk_url': zendesk_url}
    oauth.store.save('alice', record)
    assert oauth.connection('alice') is None
    with pytest.raises(NotConnected):
        oauth.session('alice').get('/api/v2/users/me.json')
    zendesk.post('https://acme.zendesk.com/oauth/tokens', json=TOKENS)
    assert exchange(oauth, 'alice', oauth.authorization_request('alice', subdomain='acme'))
    assert len(zendesk.calls) == 1
    oauth.store.save('alice', record)
    assert oauth.disconnect('alice') is False
    assert oauth.store.find('alice') is None
    assert len(zendesk.calls) == 1


# --- Cookies on other frameworks' responses --- #


def test_set_cookies_uses_the_keywords_of_django_and_starlette(oauth):
    calls = []
    response = SimpleNamespace(set_cookie=lambda key, value='', **options: calls.append((key, value, options)))
    pending = oauth.authorization_request('alice')
    pending.set_cookies(response, {'other': 'x'})
    assert calls == [(pending.cookie_name, pending.cookie_value, pending.cookie_options)]
    assert set(pending.cookie_options) == {'max_age', 'path', 'secure', 'httponly', 'samesite'}


def test_no_signal_is_sent_for_a_new_grant(oauth, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    seen = []
    with (
        signals.grant_ended.connected_to(seen.append, oauth),
        signals.tokens_refreshed.connected_to(seen.append, oauth),
    ):
        exchange(oauth, 'alice', oauth.authorization_request('alice'))
    assert seen == []
