"""What a product relies on: arguments, connections, disconnecting, imported tokens, errors, signals, responses."""

from __future__ import annotations

import inspect
import logging
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from helpers import INVALID_GRANT, PROJECT, REVOKE, SHOW_SELF, TOKEN_ENDPOINT, ZENDESK, bearer, requests_to
from product import OLD, TOKENS, client, connected_client

import zendesk_oauth
from zendesk_oauth import (
    Connection,
    JsonFileStore,
    Response,
    ZendeskOAuth,
    endpoints,
    errors,
    signals,
    stores,
    tokens,
)
from zendesk_oauth.errors import NotConnected, ResponseError, StoreError, ZendeskOAuthError

ME = f'{ZENDESK}/api/v2/users/me.json'


@pytest.fixture
def oauth() -> ZendeskOAuth:
    return connected_client()


# --- The arguments of ZendeskOAuth --- #


@pytest.mark.parametrize(
    ('argument', 'values'),
    [
        ('subdomain', ['https://evil.example', '', 'a.b', 5, b'acme']),
        (
            'zendesk_url',
            [
                *('acme', 'http://acme.zendesk.com', 'https://acme.zendesk.com/x', 'https://u@acme.zendesk.com', ''),
                *('https://', 'https://acme.zendesk.com?x', 'https://acme.zendesk.com#x', 'https://a b', 5),
                *('https://acme.zendesk.com:99999', 'ftp://acme.zendesk.com', 'https://[x'),
                *('https://acme.zendesk.com\\.evil.example', 'https://acme.zendesk.com%2eevil.example', b'https://a.b'),
            ],
        ),
        (
            'redirect_uri',
            [None, '', '/callback', 'http://app.example.com/x', 'https://app.example.com/x#y', 'app.example.com'],
        ),
        ('client_id', [None, '', 5, 'a\nb', 'ä']),
        ('client_secret', [None, '', 5, 'a\nb', 'ä']),
        ('scope', [None, '', ' ', ['read'], 'users:read,\n', 'users:read  tickets:read', ' read']),
        ('store', [None, 'users.json']),
        ('access_token_lifetime', [299, 172_801, '1800', None, 1800.0, True]),
        ('refresh_token_lifetime', [604_799, 7_776_001, '604800', None]),
    ],
)
def test_a_bad_argument_raises_a_value_error_that_names_it(argument, values):
    for value in values:
        changes = {'zendesk_url': None} if argument == 'subdomain' else {}
        with pytest.raises(ValueError, match=f'^{argument} '):
            client(**changes | {argument: value})


def test_the_account_is_a_subdomain_or_a_url_but_not_both():
    with pytest.raises(ValueError, match='subdomain or zendesk_url'):
        client(subdomain='acme')
    for account in ({'subdomain': 'ACME'}, {'zendesk_url': 'https://Acme.zendesk.com/'}):
        oauth = client(**{'zendesk_url': None, **account})
        assert oauth.authorization_request('alice').url.startswith('https://acme.zendesk.com/oauth/')
    assert client(zendesk_url='http://localhost:3001', redirect_uri='http://127.0.0.1:3000/callback')


def test_public_names_and_signatures_do_not_change():
    expected = {
        'ZendeskOAuth': '(*, subdomain=None, zendesk_url=None, client_id, client_secret, redirect_uri, scope, store, '
        'access_token_lifetime=1800, refresh_token_lifetime=2592000)',
        'ZendeskOAuth.begin_authorization': "(self, user_id, *, subdomain=None, next_url='/')",
        'ZendeskOAuth.complete_authorization': '(self, user_id)',
        'ZendeskOAuth.authorization_request': "(self, user_id, *, subdomain=None, next_url='/')",
        'ZendeskOAuth.exchange': '(self, user_id, query, cookies)',
        'ZendeskOAuth.connection': '(self, user_id)',
        'ZendeskOAuth.session': '(self, user_id, *, max_wait=0)',
        'ZendeskOAuth.disconnect': '(self, user_id)',
        'ZendeskOAuth.import_tokens': '(self, user_id, tokens, *, subdomain=None)',
        'ZendeskOAuth.consume_state': '(self, query, cookies)',
        'ZendeskOAuth.authorization_code': '(self, query)',
        'ZendeskOAuth.request_tokens': '(self, form)',
        'ZendeskOAuth.api_request': '(self, method, path, *, headers)',
        'ZendeskOAuth.refresh_lock': '(self, user_id)',
        'ZendeskOAuth.replace_tokens': '(self, user_id, old_refresh_token, tokens)',
        'Session.pages': '(self, path, *, params=None, headers=None, timeout=14, max_bytes=33554432)',
        'Response.raise_for_status': '(self)',
        'JsonFileStore': '(path)',
        'MemoryStore': '()',
    }
    for name, signature in expected.items():
        found = zendesk_oauth
        for part in name.split('.'):
            found = getattr(found, part)
        parameters = [
            parameter.replace(annotation=inspect.Parameter.empty)
            for parameter in inspect.signature(found).parameters.values()
        ]
        assert str(inspect.Signature(parameters)) == signature, name


# --- Connections --- #


def test_connection_looks_only_at_the_store(oauth, zendesk):
    assert oauth.connection('alice') == Connection('alice', ZENDESK, 'users:read tickets:read', (), '/')
    assert oauth.connection('bob') is None
    assert not zendesk.calls


def test_a_connection_ends_when_its_refresh_token_expires(oauth, clock):
    oauth.import_tokens('alice', OLD)
    clock.advance(2_592_000 - 1)
    assert oauth.connection('alice')
    clock.advance(2)
    assert oauth.connection('alice') is None


def test_tokens_without_an_expiry_stay_connected(oauth, clock):
    oauth.import_tokens('alice', {'access_token': 'a'})
    clock.advance(10**9)
    assert oauth.connection('alice')


# --- Disconnecting --- #


@pytest.mark.parametrize(
    ('delete', 'check', 'revoked'),
    [(204, 401, True), (204, 200, False), (500, 401, False), (403, 401, False)],
)
def test_disconnect_removes_the_grant_and_then_revokes_it(oauth, zendesk, delete, check, revoked):
    def gone(request):
        assert oauth.connection('alice') is None
        return delete, {}, ''

    zendesk.add_callback('DELETE', REVOKE, gone)
    zendesk.get(SHOW_SELF, status=check)
    oauth.import_tokens('bob', TOKENS)
    assert oauth.disconnect('alice') is revoked
    assert (oauth.connection('alice'), bool(oauth.connection('bob'))) == (None, True)


def test_disconnecting_a_user_without_a_grant_returns_true(oauth, zendesk):
    assert oauth.disconnect('bob') is True
    assert not zendesk.calls


def test_disconnect_refreshes_an_expired_access_token_to_revoke_it(oauth, zendesk):
    zendesk.delete(REVOKE, status=401, match=[bearer('old-access')])
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    zendesk.get(SHOW_SELF, status=401)
    assert oauth.disconnect('alice') is True


def test_disconnect_waits_for_a_running_refresh(oauth, zendesk):
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    zendesk.get(SHOW_SELF, status=401)
    results = []
    with oauth.refresh_lock('alice'):
        thread = threading.Thread(target=lambda: results.append(oauth.disconnect('alice')))
        thread.start()
        thread.join(0.1)
        oauth.import_tokens('alice', TOKENS)  # the result of the refresh
    thread.join()
    assert (results, oauth.connection('alice')) == ([True], None)


def test_disconnect_returns_false_if_a_refresh_takes_too_long(oauth, zendesk, monkeypatch):
    """The new tokens of that refresh may be valid."""
    monkeypatch.setattr('zendesk_oauth.stores.REFRESH_TIMEOUT', 0.05)
    zendesk.delete(REVOKE, status=204)
    zendesk.get(SHOW_SELF, status=401)
    with oauth.refresh_lock('alice'):
        assert oauth.disconnect('alice') is False
    assert oauth.connection('alice') is None


def test_disconnect_raises_if_the_tokens_cannot_be_deleted(oauth, zendesk, monkeypatch):
    def fail(*args):
        raise StoreError('the disk is full')

    monkeypatch.setattr(oauth.store, 'remove', fail)
    with pytest.raises(StoreError):
        oauth.disconnect('alice')
    assert not zendesk.calls


def test_disconnect_revokes_at_the_account_of_the_user(zendesk):
    oauth = client(zendesk_url=None)
    oauth.import_tokens('alice', TOKENS, subdomain='acme')
    zendesk.delete('https://acme.zendesk.com/api/v2/oauth/tokens/current', status=204)
    zendesk.get('https://acme.zendesk.com/api/v2/users/me', status=401)
    assert oauth.disconnect('alice') is True


# --- Imported tokens --- #


@pytest.mark.parametrize(
    'changes',
    [
        *({'access_token': value} for value in (None, '', 5, 'a b', 'ä', ...)),
        *({'refresh_token': value} for value in (5, 'a b', 'ä', ['x'])),
        *({'scope': value} for value in (5, ['read'], 'ä')),
        *({'expires_in': value} for value in (-5, '1800', [])),
        *({'refresh_token_expires_in': value} for value in (0, 'x')),
    ],
)
def test_malformed_tokens_are_not_imported(oauth, changes):
    tokens = {name: value for name, value in {**TOKENS, **changes}.items() if value is not ...}
    with pytest.raises(ValueError, match=next(iter(changes))):
        oauth.import_tokens('alice', tokens)
    assert oauth.store.find('alice')['access_token'] == 'old-access'


def test_imported_tokens_replace_the_old_ones_without_a_request(oauth, zendesk):
    oauth.import_tokens('alice', TOKENS)
    assert oauth.store.find('alice')['access_token'] == 'new-access'
    assert not zendesk.calls


def test_an_import_needs_the_subdomain_if_each_user_has_an_account():
    oauth = client(zendesk_url=None)
    for subdomain in (None, 'evil.example'):
        with pytest.raises(errors.AuthorizationError):
            oauth.import_tokens('alice', TOKENS, subdomain=subdomain)
    oauth.import_tokens('alice', TOKENS, subdomain='acme')
    assert oauth.connection('alice').zendesk_url == 'https://acme.zendesk.com'


def test_tokens_without_a_refresh_token_work_until_a_401(oauth, zendesk):
    oauth.import_tokens('alice', {'access_token': 'old-access', 'refresh_token': None})
    zendesk.get(ME, json={})
    assert oauth.session('alice').get('/api/v2/users/me.json').ok
    zendesk.replace('GET', ME, status=401)
    with pytest.raises(NotConnected):
        oauth.session('alice').get('/api/v2/users/me.json')
    assert requests_to(zendesk, TOKEN_ENDPOINT) == 0
    assert oauth.connection('alice') is None


# --- Signals --- #


@pytest.fixture
def rejected_tokens(oauth, zendesk):
    """Make Zendesk reject both tokens of alice."""
    zendesk.get(ME, status=401)
    zendesk.post(TOKEN_ENDPOINT, **INVALID_GRANT)
    return oauth


def test_a_receiver_of_grant_ended_can_disconnect(rejected_tokens):
    seen = []

    def receiver(oauth, user_id):
        seen.append((oauth.disconnect(user_id), oauth.connection(user_id)))

    with signals.grant_ended.connected_to(receiver, rejected_tokens), pytest.raises(NotConnected):
        rejected_tokens.session('alice').get('/api/v2/users/me.json')
    assert seen == [(True, None)]


def test_an_exception_in_a_receiver_is_logged_and_the_others_are_called(rejected_tokens, package_log):
    seen = []

    def broken(oauth, user_id):
        raise RuntimeError('a bug')

    def receiver(oauth, user_id):
        seen.append(user_id)

    signal = signals.grant_ended
    with signal.connected_to(broken), signal.connected_to(receiver), pytest.raises(NotConnected):
        rejected_tokens.session('alice').get('/api/v2/users/me.json')
    assert seen == ['alice']
    [record] = [record for record in package_log if record.exc_info]
    assert 'alice' not in record.getMessage()


def test_tokens_refreshed_is_sent_after_storing_and_without_the_lock(oauth, zendesk):
    seen = []

    def receiver(sender, user_id):
        with sender.refresh_lock(user_id) as stored:
            seen.append(stored['access_token'])

    zendesk.get(ME, status=401, match=[bearer('old-access')])
    zendesk.get(ME, json={}, match=[bearer('new-access')])
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    with signals.tokens_refreshed.connected_to(receiver, oauth):
        oauth.session('alice').get('/api/v2/users/me.json')
    assert seen == ['new-access']


def test_disconnect_does_not_send_grant_ended(oauth, zendesk):
    zendesk.delete(REVOKE, status=204)
    zendesk.get(SHOW_SELF, status=401)
    seen = []
    with signals.grant_ended.connected_to(seen.append, oauth):
        oauth.disconnect('alice')
    assert seen == []


# --- Errors --- #


def every_error() -> list[type[ZendeskOAuthError]]:
    def below(error):
        return [error, *(found for subclass in error.__subclasses__() for found in below(subclass))]

    return below(ZendeskOAuthError)


@pytest.mark.parametrize('error', every_error(), ids=lambda error: error.__name__)
def test_errors_survive_pickle(error):
    response = Response(429, requests.structures.CaseInsensitiveDict({'Retry-After': '7'}), b'{}')
    original = error('the message', next_url='/x', retry_after=7, response=response)
    copy = pickle.loads(pickle.dumps(original))  # noqa: S301 - our own data
    assert type(copy) is error
    assert (str(copy), copy.next_url, copy.retry_after, copy.title) == ('the message', '/x', 7, original.title)
    assert (copy.response.status_code, copy.response.headers['retry-after']) == (429, '7')


@pytest.mark.parametrize('error', every_error(), ids=lambda error: error.__name__)
def test_each_error_has_a_page(error):
    assert error.title[0].isupper()
    assert error.advice.endswith('.')
    assert 400 <= error.status < 600
    assert error.next_url is None


def test_retry_after_is_set_only_if_trying_again_helps():
    retried = {error.__name__ for error in every_error() if error.retry_after}
    assert retried == {
        'ZendeskError',
        'ZendeskTimeout',
        'ZendeskUnavailable',
        'RateLimited',
        'StoreError',
        'LockTimeout',
    }


def test_error_classes_have_their_documented_bases():
    bases = {
        'NotConnected': 'ZendeskOAuthError',
        'AuthorizationError': 'ZendeskOAuthError',
        'AccessDenied': 'AuthorizationError',
        'ZendeskError': 'ZendeskOAuthError',
        'InvalidGrant': 'ZendeskError',
        'SetupError': 'ZendeskError',
        'ResponseError': 'ZendeskError',
        'StoreError': 'ZendeskOAuthError',
    }
    for name, base in bases.items():
        assert getattr(errors, name).__base__ is getattr(errors, base)


# --- Responses --- #


@pytest.mark.parametrize(('status', 'ok'), [(199, False), (200, True), (299, True), (302, False), (404, False)])
def test_ok_is_true_for_2xx(status, ok):
    assert Response(status, {}, b'').ok is ok


def test_raise_for_status_returns_the_response():
    response = Response(204, {}, b'')
    assert response.raise_for_status() is response


@pytest.mark.parametrize(
    ('status', 'page_status', 'retry_after'),
    [
        (302, 502, None),
        (403, 502, None),
        (404, 502, None),
        (408, 502, 10),
        (429, 503, 30),
        (500, 502, 10),
        (503, 503, 30),
    ],
)
def test_raise_for_status_raises_a_response_error(status, page_status, retry_after):
    response = Response(status, {}, b'canary')
    with pytest.raises(ResponseError) as raised:
        response.raise_for_status()
    assert raised.value.response is response
    assert (raised.value.status, raised.value.retry_after) == (page_status, retry_after)
    assert 'canary' not in str(raised.value)


@pytest.mark.parametrize('content', [b'', b'{', b'\xff\xfe\x00', b'[' * 200_000, b'1' * 5000])
def test_json_raises_a_response_error_for_other_content(content):
    response = Response(200, {}, content)
    with pytest.raises(ResponseError) as raised:
        response.json()
    assert raised.value.response is response


def test_a_response_does_not_contain_the_request(oauth, zendesk):
    zendesk.get(ME, json={})
    response = oauth.session('alice').get('/api/v2/users/me.json')
    assert set(vars(response)) == {'status_code', 'headers', 'content'}
    assert b'old-access' not in pickle.dumps(response)


def test_a_response_has_text_and_json():
    response = Response(200, {'Retry-After': '0'}, '{"name": "Zoë"}'.encode())
    assert (response.text, response.json(), response.retry_after) == ('{"name": "Zoë"}', {'name': 'Zoë'}, 0)
    assert Response(200, {}, b'\xff').text == '\ufffd'


@pytest.mark.parametrize(
    ('status', 'header', 'seconds'),
    [(429, '7', 7), (429, '86400', 86400), (429, 'soon', 30), (503, '', 30), (200, '', None), (200, '7', 7)],
)
def test_a_response_has_retry_after(status, header, seconds):
    assert Response(status, {'Retry-After': header}, b'').retry_after == seconds


# --- Secrets --- #


def test_no_user_id_or_secret_is_logged_or_in_an_error(zendesk, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    # The handler of caplog is on the root logger; the app keeps the package's records from it.
    monkeypatch.setattr(logging.getLogger('zendesk_oauth'), 'propagate', True)
    oauth = client()
    tokens = {**TOKENS, 'access_token': 'canary-access-1', 'refresh_token': 'canary-refresh-1'}
    newer = {**TOKENS, 'access_token': 'canary-access-2', 'refresh_token': 'canary-refresh-2'}
    zendesk.post(TOKEN_ENDPOINT, json=tokens)
    zendesk.post(TOKEN_ENDPOINT, json=newer)
    zendesk.post(TOKEN_ENDPOINT, **INVALID_GRANT)
    echo = {'json': {'echo': 'canary-access-1'}, 'headers': {'WWW-Authenticate': 'canary-access-1'}}
    zendesk.get(ME, status=401, match=[bearer('canary-access-1')], **echo)
    zendesk.get(ME, status=401, match=[bearer('canary-access-2')])
    pending = oauth.authorization_request('canary-user')
    query = {'state': pending.state, 'code': 'canary-code'}
    oauth.exchange('canary-user', query, {pending.cookie_name: pending.cookie_value})
    found = []
    for _ in range(3):
        with pytest.raises(ZendeskOAuthError) as raised:
            oauth.session('canary-user').get('/api/v2/users/me.json', params={'query': 'canary-query'})
        found += [str(raised.value), raised.value.advice]
    assert isinstance(raised.value, NotConnected)
    assert requests_to(zendesk, TOKEN_ENDPOINT) == 3
    shown = caplog.text + ''.join(str(vars(record)) for record in caplog.records) + str(found)
    assert 'POST /oauth/tokens' in shown
    for secret in ('canary-', pending.state, oauth._authorization.code_verifier(pending.state)):
        assert secret not in shown


def test_api_requests_are_logged_at_debug_and_token_requests_at_info(oauth, zendesk, exchanges):
    zendesk.post(ME, status=401, match=[bearer('old-access')])
    zendesk.post(ME, json={}, match=[bearer('new-access')])
    zendesk.post(TOKEN_ENDPOINT, json=TOKENS)
    oauth.session('alice').post('/api/v2/users/me.json?query=oauth/tokens-canary', json={'note': 'canary'})
    oauth.session('alice').post('/api/v2/users/me.json', data={'note': 'canary'})
    assert [record.levelname for record in exchanges] == ['DEBUG', 'INFO', 'DEBUG', 'DEBUG']
    assert 'canary' not in ''.join(str(vars(record)) for record in exchanges)


# --- Threads and processes, imports --- #


def test_twenty_threads_share_one_object(zendesk):
    oauth = client()
    zendesk.get(ME, json={})
    names = [f'user-{number}' for number in range(20)]

    def use(name):
        oauth.import_tokens(name, {**TOKENS, 'access_token': name})
        return oauth.session(name).get('/api/v2/users/me.json').ok

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(use, names))
    assert {call.request.headers['Authorization'] for call in zendesk.calls} == {f'Bearer {name}' for name in names}


def run(program: str) -> str:
    """Run a program with the package in a new process, and return its output."""
    return subprocess.run(
        [sys.executable, '-c', program],
        env={**os.environ, 'PYTHONPATH': str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_package_imports_no_flask_and_changes_no_global_state():
    assert (
        run(
            'import logging, os, sys, socket, warnings\n'
            'def state():\n'
            '    loggers = {name: (logging.getLogger(name).level, logging.getLogger(name).handlers)\n'
            '               for name in ("", "urllib3", "urllib3.connection", "requests", "zendesk_oauth")}\n'
            '    return dict(os.environ), loggers, socket.getdefaulttimeout(), list(warnings.filters)\n'
            'import requests\n'
            'before = state()\n'
            'from zendesk_oauth import *\n'
            'oauth = ZendeskOAuth(subdomain="acme", client_id="c", client_secret="s", scope="read",\n'
            '    redirect_uri="https://app.example.com/callback", store=MemoryStore())\n'
            'oauth.authorization_request("alice")\n'
            'assert state() == before\n'
            'print(sorted({"flask", "dotenv", "loguru", "sqlalchemy", "app", "backend_code"} & set(sys.modules)))\n'
        )
        == '[]\n'
    )


def test_a_missing_package_for_databases_is_named():
    assert run(
        'import sys; sys.modules["sqlalchemy"] = None\n'
        'try: from zendesk_oauth import SqlStore\n'
        'except ImportError as error: print(error)'
    ).endswith('Install this package with [sql]\n')


def test_the_time_limits():
    assert (stores.REFRESH_TIMEOUT, endpoints.CALL_TIMEOUT, tokens.BEST_EFFORT_TIMEOUT) == (10, 14, 3)  # seconds


def test_the_public_names_exist():
    for name in zendesk_oauth.__all__:
        assert getattr(zendesk_oauth, name)
    assert (PROJECT / 'zendesk_oauth' / 'py.typed').exists()


def test_a_store_path_can_be_a_path_object(tmp_path):
    oauth = client(store=JsonFileStore(tmp_path / 'tokens.json'))
    oauth.import_tokens('alice', TOKENS)
    assert (tmp_path / 'tokens.json').exists()
    assert client(store=JsonFileStore(str(tmp_path / 'tokens.json'))).connection('alice')


def test_the_repr_shows_no_secrets(oauth):
    for thing in (oauth, oauth.session('alice'), oauth.connection('alice'), oauth.store):
        for secret in ('canary', 'old-access', 'old-refresh'):
            assert secret not in repr(thing) + str(thing)


def test_responses_can_mock_zendesk(oauth, zendesk):
    """A product's tests can use the library responses, because the package sends requests with requests."""
    zendesk.get(ME, json={'user': {'name': 'Jane'}})
    assert oauth.session('alice').get('/api/v2/users/me.json').json()['user']['name'] == 'Jane'
    assert endpoints.requests is requests
