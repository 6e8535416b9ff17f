"""Session: API requests with tokens that are refreshed when needed, once, and pages of a list."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from helpers import INVALID_GRANT, LATER, REVOKE, TOKEN_ENDPOINT, ZENDESK, bearer, form, requests_to
from product import OLD, TOKENS, client, connected_client

from zendesk_oauth import MemoryStore, ZendeskOAuth, endpoints, signals
from zendesk_oauth.errors import (
    InvalidGrant,
    LockTimeout,
    NewTokenRejected,
    NotConnected,
    ResponseError,
    StoreError,
    ZendeskError,
    ZendeskTimeout,
)

TICKETS = f'{ZENDESK}/api/v2/tickets.json'
DAY = 24 * 3600


@pytest.fixture
def oauth() -> ZendeskOAuth:
    return connected_client()


@pytest.fixture
def alice(oauth):
    return oauth.session('alice')


@pytest.fixture
def sent(oauth):
    """The signals that were sent, in order."""
    names = []

    def refreshed(sender, user_id):
        names.append(('tokens_refreshed', sender is oauth, user_id))

    def ended(sender, user_id):
        names.append(('grant_ended', sender is oauth, user_id))

    with signals.tokens_refreshed.connected_to(refreshed), signals.grant_ended.connected_to(ended):
        yield names


@pytest.fixture
def sleeps(monkeypatch, oauth):
    """Do not sleep, and return the times. The lock must be free."""
    sleeps = []

    def sleep(seconds):
        with oauth.refresh_lock('alice'):
            sleeps.append(seconds)

    monkeypatch.setattr(time, 'sleep', sleep)
    return sleeps


def methods(zendesk) -> list[str]:
    return [f'{call.request.method} {urlsplit(call.request.url).path}' for call in zendesk.calls]


# --- The request --- #


@pytest.mark.parametrize('method', ['get', 'post', 'put', 'patch', 'delete'])
@pytest.mark.parametrize('status', [200, 204, 302, 403, 404, 422, 500])
def test_each_method_returns_the_response_with_any_other_status(alice, zendesk, method, status):
    zendesk.add(method.upper(), TICKETS, status=status, headers={'Location': 'https://evil.example/'})
    response = getattr(alice, method)('/api/v2/tickets.json')
    assert (response.status_code, response.headers['location']) == (status, 'https://evil.example/')
    assert zendesk.calls[0].request.headers['Authorization'] == 'Bearer old-access'
    assert len(zendesk.calls) == 1


@pytest.mark.parametrize(
    ('options', 'content_type', 'body'),
    [
        ({}, None, None),
        ({'json': {'ticket': {'subject': 'Zoë'}}}, 'application/json', b'{"ticket": {"subject": "Zo\\u00eb"}}'),
        ({'json': []}, 'application/json', b'[]'),
        ({'data': b'\x00\xff'}, None, b'\x00\xff'),
        ({'data': 'Zoë', 'headers': {'Content-Type': 'text/plain'}}, 'text/plain', 'Zoë'.encode()),
        ({'data': {'a': 'Zoë', 'b': 2}}, 'application/x-www-form-urlencoded', 'a=Zo%C3%AB&b=2'),
    ],
)
def test_the_body_is_json_bytes_text_or_a_form(alice, zendesk, options, content_type, body):
    zendesk.post(TICKETS)
    alice.post('/api/v2/tickets.json', **options)
    request = zendesk.calls[0].request
    assert (request.headers.get('Content-Type'), request.body) == (content_type, body)


def test_a_body_that_cannot_be_sent_twice_is_rejected(alice, zendesk):
    with pytest.raises(TypeError, match='data'):
        alice.post('/api/v2/tickets.json', data=iter([b'x']))
    with pytest.raises(ValueError, match='json or data'):
        alice.post('/api/v2/tickets.json', data=b'', json={})
    assert not zendesk.calls


def test_params_and_headers_are_sent(alice, zendesk):
    zendesk.get(TICKETS)
    alice.get('/api/v2/tickets.json?a=1', params={'b': 'x y', 'ids[]': [1, 2], 'c': None}, headers={'X-A': 'b'})
    request = zendesk.calls[0].request
    assert parse_qs(urlsplit(request.url).query) == {'a': ['1'], 'b': ['x y'], 'ids[]': ['1', '2']}
    assert request.headers['X-A'] == 'b'


@pytest.mark.parametrize(
    'name',
    [
        *('Authorization', 'authorization', 'Host', 'Transfer-Encoding', 'content-length', 'Connection', 'Cookie'),
        *('Authorization ', 'X-A\r\nHost', 'X:A', '', 'ä', 'Expect', 'TE', 'Trailer', 'Upgrade'),
    ],
)
def test_a_header_cannot_change_the_token_the_host_or_the_framing(alice, zendesk, name):
    with pytest.raises(ValueError, match='header'):
        alice.post('/api/v2/tickets.json', data=b'x', headers={name: 'canary'})
    assert not zendesk.calls


@pytest.mark.parametrize('value', ['a\r\nHost: evil.example', 'a\n', 'a\x00', '日'])
def test_a_header_with_an_invalid_value_is_rejected(alice, zendesk, value):
    with pytest.raises(ValueError, match='header'):
        alice.get('/api/v2/tickets.json', headers={'X-A': value})
    assert not zendesk.calls


def test_timeout_and_max_bytes_limit_each_request_except_the_refresh(alice, zendesk, monkeypatch):
    limits, send = [], endpoints.send

    def record(*args, timeout=14, max_bytes=2**20, **options):
        limits.append((timeout, max_bytes))
        return send(*args, timeout=timeout, max_bytes=max_bytes, **options)

    monkeypatch.setattr(endpoints, 'send', record)
    zendesk.get(TICKETS, status=401, match=[bearer('old-access')])
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    zendesk.get(TICKETS, body='xx', match=[bearer('new-access')])
    with pytest.raises(ZendeskError, match='larger than 1 bytes'):
        alice.get('/api/v2/tickets.json', timeout=2, max_bytes=1)
    alice.get('/api/v2/tickets.json')
    assert limits == [(2, 1), (14, 2**20), (2, 1), (14, 32 * 2**20)]


@pytest.mark.parametrize('path', ['/api/v2/tickets.json', TICKETS, TICKETS.replace('mondocam', 'MONDOCAM')])
def test_a_path_or_a_url_of_the_same_zendesk_is_accepted(alice, zendesk, path):
    zendesk.get(TICKETS)
    assert alice.get(path).ok


@pytest.mark.parametrize(
    'path',
    [
        *(
            'api/v2',
            '',
            '//evil.example/',
            'https://evil.example/',
            f'{ZENDESK}.evil.example/',
            f'{ZENDESK}@evil.example/',
        ),
        *(
            f'{ZENDESK}:8443/',
            ZENDESK,
            f'{ZENDESK}\\@evil.example/',
            '@evil.example',
            '.evil.example',
            ':8443/',
            '\\\\evil',
        ),
        *('http://mondocam.zendesk.com/', f'{ZENDESK}//evil.example/', ' /api/v2'),
        *('/api/v2/tickets/../oauth/tokens/current', '/api/v2/%2e%2E/x', '/./x', '/x/..', f'{ZENDESK}/x/../y'),
        *('/x\r\nHost: evil.example', '/x\x1b[31m', '/x\\y', '/x#y'),
    ],
)
def test_another_path_is_rejected_before_any_token_is_read(oauth, alice, zendesk, monkeypatch, path):
    monkeypatch.setattr(MemoryStore, 'find', lambda *args: pytest.fail('the store was read'))
    with pytest.raises(ValueError, match='path'):
        alice.get(path)
    with pytest.raises(ValueError, match='path'):
        next(alice.pages(path))
    with pytest.raises(ValueError, match='path'):
        oauth.api_request('GET', path, headers={'Authorization': 'Bearer old-access'})
    assert not zendesk.calls


@pytest.mark.parametrize(
    'path', [None, 5, b'/x', 'https://evil.example/', 'https://zendesk.com/', 'https://acme.zendesk.com/x#y', 'x']
)
def test_another_host_is_rejected_before_any_token_is_read_if_each_user_has_an_account(monkeypatch, path):
    monkeypatch.setattr(MemoryStore, 'find', lambda *args: pytest.fail('the store was read'))
    with pytest.raises(ValueError, match='path'):
        client(zendesk_url=None).session('alice').get(path)


@pytest.mark.parametrize(
    'path',
    [
        *('https://globex.zendesk.com/api/v2/tickets.json', 'api/v2', '//evil.example/', 'http://x/'),
        *('https://evil.example/', 'https://acme.zendesk.com.evil.example/', 'https://acme.zendesk.com/x/../y'),
    ],
)
def test_another_account_is_rejected_if_each_user_has_their_own(zendesk, path):
    oauth = client(zendesk_url=None)
    oauth.import_tokens('alice', {**TOKENS, 'expires_in': 5}, subdomain='acme')  # about to expire
    with pytest.raises(ValueError, match='path'):
        oauth.session('alice').get(path)
    assert not zendesk.calls


# --- The refresh --- #


@pytest.mark.parametrize('method', ['get', 'post', 'put', 'patch', 'delete'])
def test_a_401_refreshes_the_tokens_and_sends_the_request_once_more(oauth, alice, zendesk, sent, method):
    zendesk.add(method.upper(), TICKETS, status=401, match=[bearer('old-access')])
    zendesk.add(method.upper(), TICKETS, json={'a': 1}, match=[bearer('new-access')])
    zendesk.post(
        TOKEN_ENDPOINT,
        json=TOKENS,
        match=[
            form(
                grant_type='refresh_token',
                refresh_token='old-refresh',
                client_id='test_client',
                client_secret='canary-client-secret',
                scope='users:read tickets:read',
                expires_in='1800',
                refresh_token_expires_in='2592000',
            )
        ],
    )
    body = {} if method == 'get' else {'json': {'x': 1}}
    assert getattr(alice, method)('/api/v2/tickets.json', **body).json() == {'a': 1}
    requests = [call.request for call in zendesk.calls if call.request.method == method.upper()]
    assert requests[0].body == requests[-1].body
    assert oauth.store.find('alice')['refresh_token'] == 'new-refresh'
    assert sent == [('tokens_refreshed', True, 'alice')]


def test_the_refresh_asks_for_the_granted_scope(zendesk):
    """A wider scope in the settings must not end the grant (invalid_scope)."""
    oauth = client(scope='users:read tickets:read tickets:write')
    oauth.import_tokens('alice', OLD)
    zendesk.get(TICKETS, status=401)
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    with pytest.raises(NewTokenRejected):
        oauth.session('alice').get('/api/v2/tickets.json')
    assert parse_qs(zendesk.calls[1].request.body)['scope'] == ['users:read tickets:read']


def test_an_unknown_scope_is_not_sent_with_the_refresh(zendesk):
    oauth = client()
    oauth.import_tokens('alice', {'access_token': 'old-access', 'refresh_token': 'old-refresh'})
    assert (oauth.connection('alice').scope, oauth.connection('alice').missing_scopes) == ('', ())
    zendesk.get(TICKETS, status=401, match=[bearer('old-access')])
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    zendesk.get(TICKETS, match=[bearer('new-access')])
    assert oauth.session('alice').get('/api/v2/tickets.json').ok
    assert 'scope' not in parse_qs(zendesk.calls[1].request.body, keep_blank_values=True)
    assert oauth.connection('alice').scope == 'users:read tickets:read'


@pytest.mark.parametrize('scope', [['users:read'], 5, {}, 'ä'])
def test_a_malformed_scope_in_the_record_does_not_lose_the_grant(oauth, alice, zendesk, scope):
    oauth.store.save('alice', {**oauth.store.find('alice'), 'scope': scope})
    assert oauth.connection('alice').scope == ''
    zendesk.get(TICKETS, status=401, match=[bearer('old-access')])
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    zendesk.get(TICKETS, match=[bearer('new-access')])
    assert alice.get('/api/v2/tickets.json').ok
    assert oauth.connection('alice').scope == 'users:read tickets:read'


def test_a_second_401_raises_an_error(alice, zendesk):
    zendesk.get(TICKETS, status=401)
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    with pytest.raises(NewTokenRejected):
        alice.get('/api/v2/tickets.json')
    assert methods(zendesk) == ['GET /api/v2/tickets.json', 'POST /oauth/tokens', 'GET /api/v2/tickets.json']


def test_twenty_threads_refresh_an_expired_token_once(oauth, alice, zendesk, sent):
    zendesk.get(TICKETS, status=401, match=[bearer('old-access')])
    zendesk.get(TICKETS, json={}, match=[bearer('new-access')])
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(lambda _: alice.get('/api/v2/tickets.json').ok, range(20)))
    assert requests_to(zendesk, TOKEN_ENDPOINT) == 1
    assert sent == [('tokens_refreshed', True, 'alice')]


def test_a_rejected_refresh_token_ends_the_grant(oauth, alice, zendesk, sent):
    zendesk.get(TICKETS, status=401)
    zendesk.post(TOKEN_ENDPOINT, **INVALID_GRANT)
    with pytest.raises(NotConnected):
        alice.get('/api/v2/tickets.json')
    assert oauth.connection('alice') is None
    assert sent == [('grant_ended', True, 'alice')]
    with pytest.raises(NotConnected):
        alice.get('/api/v2/tickets.json')
    assert len(sent) == 1


@pytest.mark.parametrize(
    'response',
    [
        {'status': 500},
        {'status': 429},
        {'status': 401, 'json': {'error': 'invalid_client'}},
        {'body': requests.Timeout()},
    ],
)
def test_any_other_failure_of_a_refresh_keeps_the_grant(oauth, alice, zendesk, sent, response):
    zendesk.get(TICKETS, status=401)
    zendesk.post(TOKEN_ENDPOINT, **response)
    with pytest.raises(ZendeskError) as raised:
        alice.get('/api/v2/tickets.json')
    assert not isinstance(raised.value, InvalidGrant)
    assert oauth.store.find('alice')['refresh_token'] == 'old-refresh'
    assert (requests_to(zendesk, TOKEN_ENDPOINT), sent) == (1, [])


def test_a_user_without_a_grant_is_not_connected(oauth, zendesk):
    with pytest.raises(NotConnected):
        oauth.session('bob').get('/api/v2/tickets.json')
    with pytest.raises(NotConnected):
        next(oauth.session('bob').pages('/api/v2/tickets.json'))
    assert not zendesk.calls


def test_a_long_refresh_of_another_request_raises_a_store_error(oauth, alice, zendesk, monkeypatch):
    monkeypatch.setattr('zendesk_oauth.stores.REFRESH_TIMEOUT', 0.05)
    zendesk.get(TICKETS, status=401)
    with oauth.refresh_lock('alice'), pytest.raises(LockTimeout) as raised:
        alice.get('/api/v2/tickets.json')
    assert raised.value.retry_after == 10


def test_an_access_token_that_was_edited_is_refreshed(oauth, alice, zendesk):
    oauth.import_tokens('alice', OLD)
    oauth.store.save('alice', {**oauth.store.find('alice'), 'access_token': 'a\nb'})
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    zendesk.get(TICKETS, match=[bearer('new-access')])
    assert alice.get('/api/v2/tickets.json').ok


# --- The early refresh --- #


@pytest.mark.parametrize(('seconds', 'refreshes'), [(0, 0), (1739, 0), (1740, 1), (1799, 1), (1801, 1), (DAY, 1)])
def test_the_tokens_are_refreshed_one_minute_before_they_expire(oauth, alice, zendesk, clock, seconds, refreshes):
    oauth.import_tokens('alice', OLD)
    clock.advance(seconds)
    zendesk.get(TICKETS)
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    assert alice.get('/api/v2/tickets.json').ok
    assert alice.get('/api/v2/tickets.json').ok
    assert requests_to(zendesk, TOKEN_ENDPOINT) == refreshes
    assert requests_to(zendesk, TICKETS) == 2


FAILURES = [INVALID_GRANT, {'status': 500}, {'status': 429}, {'body': requests.Timeout()}, {'json': {}}]


@pytest.mark.parametrize('response', FAILURES)
def test_a_failed_early_refresh_is_ignored_while_the_token_is_valid(
    oauth, alice, zendesk, clock, sent, package_log, response
):
    oauth.import_tokens('alice', OLD)
    clock.advance(1750)
    zendesk.post(TOKEN_ENDPOINT, **response)
    zendesk.get(TICKETS, match=[bearer('old-access')])
    assert alice.get('/api/v2/tickets.json').ok
    assert oauth.store.find('alice')['refresh_token'] == 'old-refresh'
    assert sent == []
    assert any('the early refresh failed' in record.getMessage() for record in package_log)


def test_a_store_that_fails_during_an_early_refresh_is_ignored(oauth, alice, zendesk, clock, monkeypatch):
    oauth.import_tokens('alice', OLD)
    clock.advance(1750)

    def fail(*args):
        raise StoreError('the disk is full')

    monkeypatch.setattr(MemoryStore, 'check_writable', fail)
    zendesk.get(TICKETS, match=[bearer('old-access')])
    assert alice.get('/api/v2/tickets.json').ok


@pytest.mark.parametrize(('response', 'error'), [(INVALID_GRANT, NotConnected), ({'status': 500}, ZendeskError)])
def test_a_failed_refresh_of_an_expired_token_raises_an_error(oauth, alice, zendesk, clock, response, error):
    oauth.import_tokens('alice', OLD)
    clock.advance(1801)
    zendesk.post(TOKEN_ENDPOINT, **response)
    with pytest.raises(error):
        alice.get('/api/v2/tickets.json')
    assert requests_to(zendesk, TICKETS) == 0


def test_an_early_refresh_does_not_wait_for_another_refresh(oauth, alice, zendesk, clock, monkeypatch, package_log):
    oauth.import_tokens('alice', OLD)
    clock.advance(1750)
    zendesk.get(TICKETS, match=[bearer('old-access')])
    timeouts, refresh_lock = [], oauth.store.refresh_lock

    def record_timeout(user_id, timeout=None):
        timeouts.append(timeout)
        return refresh_lock(user_id, timeout)

    with oauth.refresh_lock('alice'):
        monkeypatch.setattr(oauth.store, 'refresh_lock', record_timeout)
        assert alice.get('/api/v2/tickets.json').ok
    assert (methods(zendesk), timeouts) == (['GET /api/v2/tickets.json'], [0])
    assert not [record for record in package_log if record.levelname == 'WARNING']


def test_a_store_that_loses_new_tokens_raises_although_the_old_token_was_valid(
    oauth, alice, zendesk, clock, monkeypatch
):
    oauth.import_tokens('alice', OLD)
    clock.advance(1750)

    def fail(*args):
        raise StoreError('the disk is full')

    monkeypatch.setattr(MemoryStore, 'replace', fail)
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    with pytest.raises(StoreError):
        alice.get('/api/v2/tickets.json')
    assert methods(zendesk) == ['POST /oauth/tokens', 'DELETE /api/v2/oauth/tokens/current']


def test_a_wrong_clock_does_not_end_a_grant_without_a_refresh_token(zendesk, clock):
    oauth = client()
    oauth.import_tokens('alice', {'access_token': 'old-access', 'expires_in': 1800})
    clock.advance(DAY)
    zendesk.get(TICKETS)
    assert oauth.session('alice').get('/api/v2/tickets.json').ok
    assert len(zendesk.calls) == 1


def test_without_an_expiry_there_is_no_early_refresh(zendesk, clock):
    """A missing expiry does not mean "expired"."""
    oauth = client()
    oauth.import_tokens('alice', {'access_token': 'old-access', 'refresh_token': 'old-refresh'})
    clock.advance(10 * DAY)
    zendesk.get(TICKETS)
    assert oauth.session('alice').get('/api/v2/tickets.json').ok
    assert len(zendesk.calls) == 1


# --- Disconnected, or connected again, during a request --- #


def test_disconnecting_during_a_refresh_wins(oauth, alice, zendesk, sent, monkeypatch):
    monkeypatch.setattr('zendesk_oauth.stores.REFRESH_TIMEOUT', 0.05)

    def refresh(request):
        oauth.store.remove('alice')
        return 200, {}, json.dumps(TOKENS)

    zendesk.get(TICKETS, status=401)
    zendesk.add_callback('POST', TOKEN_ENDPOINT, refresh)
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    with pytest.raises(NotConnected):
        alice.get('/api/v2/tickets.json')
    assert oauth.connection('alice') is None
    assert (requests_to(zendesk, REVOKE), sent) == (1, [])


def test_connecting_again_during_a_refresh_wins(oauth, alice, zendesk, sent):
    def refresh(request):
        oauth.import_tokens('alice', {**TOKENS, 'access_token': 'newest-access', 'refresh_token': 'newest-refresh'})
        return 200, {}, json.dumps(TOKENS)

    zendesk.get(TICKETS, status=401, match=[bearer('old-access')])
    zendesk.add_callback('POST', TOKEN_ENDPOINT, refresh)
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    zendesk.get(TICKETS, match=[bearer('newest-access')])
    assert alice.get('/api/v2/tickets.json').ok
    assert oauth.store.find('alice')['refresh_token'] == 'newest-refresh'
    assert (requests_to(zendesk, REVOKE), sent) == (1, [])


def test_a_record_without_an_account_that_appears_during_a_refresh_is_not_used(zendesk):
    oauth = client(zendesk_url=None)
    oauth.import_tokens('alice', OLD, subdomain='acme')

    def refresh(request):
        oauth.store.save('alice', {'access_token': 'a', 'refresh_token': 'r', 'zendesk_url': 'https://evil.example'})
        return 200, {}, json.dumps(TOKENS)

    zendesk.get('https://acme.zendesk.com/api/v2/tickets.json', status=401)
    zendesk.add_callback('POST', 'https://acme.zendesk.com/oauth/tokens', refresh)
    zendesk.delete('https://acme.zendesk.com/api/v2/oauth/tokens/current', status=204)
    with pytest.raises(NotConnected):
        oauth.session('alice').get('/api/v2/tickets.json')


def test_connecting_again_during_a_request_uses_the_new_tokens(oauth, alice, zendesk):
    def expired(request):
        oauth.import_tokens('alice', TOKENS)
        return 401, {}, ''

    zendesk.add_callback('GET', TICKETS, expired)
    zendesk.get(TICKETS, match=[bearer('new-access')])
    assert alice.get('/api/v2/tickets.json').ok
    assert requests_to(zendesk, TOKEN_ENDPOINT) == 0


# --- 429 --- #


def too_many(retry_after: str | None) -> dict:
    return {'status': 429, 'headers': {'Retry-After': retry_after} if retry_after else {}}


def test_a_429_is_returned_without_max_wait(alice, zendesk, sleeps):
    zendesk.get(TICKETS, **too_many('5'))
    response = alice.get('/api/v2/tickets.json')
    assert (response.status_code, response.retry_after, sleeps) == (429, 5, [])


@pytest.mark.parametrize('method', ['get', 'post'])
def test_with_max_wait_a_429_waits_as_retry_after_says(oauth, zendesk, sleeps, method):
    for retry_after in ('5', '0', None):
        zendesk.add(method.upper(), TICKETS, **too_many(retry_after))
    zendesk.add(method.upper(), TICKETS, json={})
    assert getattr(oauth.session('alice', max_wait=300), method)('/api/v2/tickets.json').ok
    assert sleeps == [5, 1, 30]


def test_max_wait_limits_the_sum_of_all_waits_of_one_request(oauth, zendesk, sleeps):
    zendesk.get(TICKETS, **too_many('40'))
    assert oauth.session('alice', max_wait=100).get('/api/v2/tickets.json').status_code == 429
    assert sleeps == [40, 40]
    assert oauth.session('alice', max_wait=39).get('/api/v2/tickets.json').status_code == 429
    assert sleeps == [40, 40]


def test_a_token_that_expires_while_waiting_is_refreshed(oauth, zendesk, sleeps):
    zendesk.get(TICKETS, **too_many('60'))
    zendesk.get(TICKETS, status=401, match=[bearer('old-access')])
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    zendesk.get(TICKETS, json={}, match=[bearer('new-access')])
    assert oauth.session('alice', max_wait=60).get('/api/v2/tickets.json').ok


# --- Pages --- #


def page(number: int, cursor: str | None, **links) -> dict:
    return {'tickets': [number], 'meta': {'has_more': cursor is not None, 'after_cursor': cursor}, 'links': links}


def test_pages_follows_the_cursor_on_the_given_path(alice, zendesk):
    zendesk.get(TICKETS, json=page(1, 'c=1', next='https://evil.example/'))
    zendesk.get(TICKETS, json=page(2, 'c2', next='https://evil.example/'))
    zendesk.get(TICKETS, json=page(3, None))
    pages = list(alice.pages('/api/v2/tickets.json?sort=id', params={'x': 1}, headers={'X-A': 'b'}))
    assert [page['tickets'] for page in pages] == [[1], [2], [3]]
    queries = [parse_qs(urlsplit(call.request.url).query) for call in zendesk.calls]
    base = {'page[size]': ['100'], 'sort': ['id'], 'x': ['1']}
    assert queries == [base, {**base, 'page[after]': ['c=1']}, {**base, 'page[after]': ['c2']}]
    assert {call.request.headers['X-A'] for call in zendesk.calls} == {'b'}


def test_pages_can_resume_and_change_the_page_size(alice, zendesk):
    zendesk.get(TICKETS, json=page(2, None))
    list(alice.pages('/api/v2/tickets.json', params={'page[after]': 'c1', 'page[size]': 10}))
    assert parse_qs(urlsplit(zendesk.calls[0].request.url).query) == {'page[after]': ['c1'], 'page[size]': ['10']}


@pytest.mark.parametrize(
    'body',
    [
        {'tickets': [], 'next_page': None, 'count': 0},
        {'tickets': [], 'meta': {}},
        {'tickets': [], 'meta': {'has_more': None}},
        {'meta': {'has_more': 'yes', 'after_cursor': 'c'}},
        {'meta': []},
        [],
    ],
)
def test_pages_rejects_an_endpoint_without_cursor_pagination(alice, zendesk, body):
    zendesk.get(TICKETS, json=body)
    with pytest.raises(ResponseError, match='cursor pagination') as raised:
        next(alice.pages('/api/v2/tickets.json'))
    assert (raised.value.response.status_code, raised.value.retry_after) == (200, None)


@pytest.mark.parametrize('cursor', ['', 5, None, 'c1'])
def test_pages_raises_if_the_next_cursor_is_missing_or_was_used_before(alice, zendesk, cursor):
    zendesk.get(TICKETS, json=page(1, 'c1'))
    zendesk.get(TICKETS, json={**page(2, 'c1'), 'meta': {'has_more': True, 'after_cursor': cursor}})
    pages = alice.pages('/api/v2/tickets.json')
    assert [next(pages)['tickets'], next(pages)['tickets']] == [[1], [2]]
    with pytest.raises(ResponseError, match='cursor is missing or was used before'):
        next(pages)


@pytest.mark.parametrize('status', [302, 403, 404, 429, 500])
def test_pages_raises_at_the_first_status_that_is_not_2xx(alice, zendesk, status):
    zendesk.get(TICKETS, json=page(1, 'c1'))
    zendesk.get(TICKETS, status=status, headers={'Retry-After': '7'})
    pages = alice.pages('/api/v2/tickets.json')
    assert next(pages)['tickets'] == [1]
    with pytest.raises(ResponseError) as raised:
        next(pages)
    assert raised.value.response.status_code == status
    assert raised.value.retry_after == {429: 7, 500: 10}.get(status)


def test_pages_waits_at_a_429_in_the_middle_if_max_wait_allows_it(oauth, zendesk, sleeps):
    zendesk.get(TICKETS, json=page(1, 'c1'))
    zendesk.get(TICKETS, **too_many('7'))
    zendesk.get(TICKETS, json=page(2, None))
    pages = oauth.session('alice', max_wait=300).pages('/api/v2/tickets.json')
    assert [page['tickets'] for page in pages] == [[1], [2]]
    assert sleeps == [7]


def test_pages_refreshes_a_token_that_expires_in_the_middle(alice, zendesk):
    zendesk.get(TICKETS, json=page(1, 'c1'), match=[bearer('old-access')])
    zendesk.get(TICKETS, status=401, match=[bearer('old-access')])
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    zendesk.get(TICKETS, json=page(2, None), match=[bearer('new-access')])
    assert [page['tickets'] for page in alice.pages('/api/v2/tickets.json')] == [[1], [2]]


def test_pages_requests_a_page_only_when_it_is_needed(alice, zendesk):
    zendesk.get(TICKETS, json=page(1, 'c1'))
    pages = alice.pages('/api/v2/tickets.json')
    assert not zendesk.calls
    next(pages)
    assert len(zendesk.calls) == 1


def test_a_timeout_raises_an_error(alice, zendesk):
    zendesk.get(TICKETS, body=requests.Timeout())
    with pytest.raises(ZendeskTimeout):
        alice.get('/api/v2/tickets.json')


# --- Errors of a refresh --- #


@pytest.mark.parametrize(
    'response', [{'status': 500}, {'status': 402}, {'status': 401, 'json': {'error': 'invalid_client'}}]
)
@pytest.mark.parametrize('expires_at', [LATER, 0])
def test_each_error_of_a_refresh_has_during_refresh(oauth, zendesk, response, expires_at):
    oauth.store.save('alice', {**OLD, 'zendesk_url': ZENDESK, 'access_token_expires_at': expires_at})
    zendesk.get(TICKETS, status=401)
    zendesk.post(TOKEN_ENDPOINT, **response)
    with pytest.raises(ZendeskError) as raised:
        oauth.session('alice').get('/api/v2/tickets.json')
    assert raised.value.during_refresh


def test_a_store_error_of_a_refresh_has_during_refresh(oauth, zendesk, monkeypatch, alice):
    def fail():
        raise StoreError('The disk is full')

    monkeypatch.setattr(oauth.store, 'check_writable', fail)
    zendesk.get(TICKETS, status=401)
    with pytest.raises(StoreError) as raised:
        alice.get('/api/v2/tickets.json')
    assert raised.value.during_refresh


def test_a_second_401_that_is_not_json_blames_a_firewall(zendesk, alice):
    zendesk.get(TICKETS, status=401, body='<html>')
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    with pytest.raises(ZendeskError) as raised:
        alice.get('/api/v2/tickets.json')
    assert (raised.value.title, raised.value.reauthorize) == ('The request to Zendesk was blocked', False)


def test_other_errors_do_not_have_during_refresh(oauth, zendesk, alice):
    zendesk.get(TICKETS, body=requests.ConnectionError())
    zendesk.post(TOKEN_ENDPOINT, status=500)
    pending = oauth.authorization_request('alice')
    query, cookies = {'code': 'the-code', 'state': pending.state}, {pending.cookie_name: pending.cookie_value}
    for call in (lambda: alice.get('/api/v2/tickets.json'), lambda: oauth.exchange('alice', query, cookies)):
        with pytest.raises(ZendeskError) as raised:
            call()
        assert not raised.value.during_refresh
