"""The tutorial's three services, with Zendesk mocked: refresh, retrieve, store. Each test is one story."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from flask import session
from helpers import (
    INVALID_GRANT,
    NEW,
    NEW_TOKENS,
    OLD,
    OTHER,
    REVOKE,
    SHOW_SELF,
    TOKEN_ENDPOINT,
    USER,
    bearer,
    records,
    requests_to,
    store,
    stored,
    tokens,
)

import backend_code
from zendesk_oauth import errors

REFUSED = {'error': 'invalid_refresh_token'}


@pytest.fixture
def signed_in(app):
    """Open a request of the user alice. She and bob have granted access."""
    store(alice=OLD, bob=OTHER)
    with app.test_request_context():
        session['user_id'] = 'alice'
        yield


# --- Retrieve and store --- #


def test_retrieve_returns_only_the_users_own_tokens(signed_in):
    assert backend_code.retrieve_oauth_tokens_from_db() == OLD
    for user_id in ('carol', '', None):
        session['user_id'] = user_id
        assert backend_code.retrieve_oauth_tokens_from_db() == {'error': 'tokens_not_found'}


def test_store_keeps_the_tokens_of_other_users(signed_in):
    backend_code.store_oauth_tokens_in_db(NEW)
    assert stored() == {'alice': NEW, 'bob': OTHER}


def test_store_fails_if_the_session_has_no_user(app):
    with app.test_request_context(), pytest.raises(LookupError):
        backend_code.store_oauth_tokens_in_db(NEW)


def test_a_changed_users_db_path_takes_effect_immediately(signed_in, monkeypatch):
    monkeypatch.setattr(backend_code, 'USERS_DB', 'elsewhere.json')
    backend_code.store_oauth_tokens_in_db(NEW)
    assert json.loads(Path('elsewhere.json').read_text()) == {'alice': NEW}
    assert stored() == {'alice': OLD, 'bob': OTHER}


def test_a_manual_edit_takes_effect_at_the_next_read(signed_in):
    backend_code.retrieve_oauth_tokens_from_db()
    store(alice={**OLD, 'access_token': 'edited-by-hand'})
    assert backend_code.retrieve_oauth_tokens_from_db()['access_token'] == 'edited-by-hand'


# --- Refresh --- #


def test_a_refresh_returns_and_stores_the_new_tokens(signed_in, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS, status=201)
    assert tokens(backend_code.refresh_tokens('old-refresh')) == NEW
    assert stored() == {'alice': NEW, 'bob': OTHER}
    assert len(zendesk.calls) == 1


def test_a_refresh_stores_the_expiry_of_the_refresh_token(signed_in, zendesk, clock):
    clock.now = 1_800_000_000.7
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    backend_code.refresh_tokens('old-refresh')
    assert records()['alice']['refresh_token_expires_at'] == 1_800_604_800


@pytest.mark.parametrize('lifetime', [None, '604800', -5, 0, 1.5, True, [], 10**12])
def test_a_refresh_ignores_a_malformed_lifetime(signed_in, zendesk, lifetime):
    store(alice={**OLD, 'refresh_token_expires_at': 5})
    zendesk.post(TOKEN_ENDPOINT, json={**NEW_TOKENS, 'refresh_token_expires_in': lifetime})
    backend_code.refresh_tokens('old-refresh')
    assert stored() == {'alice': NEW}
    assert records()['alice']['refresh_token_expires_at'] is None


def test_a_refresh_keeps_the_refresh_token_if_none_is_returned(signed_in, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json={'access_token': 'new-access', 'token_type': 'bearer'})
    assert tokens(backend_code.refresh_tokens('old-refresh'))['refresh_token'] == 'old-refresh'
    assert stored()['alice'] == {'access_token': 'new-access', 'refresh_token': 'old-refresh'}


def test_invalid_grant_deletes_the_tokens(signed_in, zendesk):
    zendesk.post(TOKEN_ENDPOINT, **INVALID_GRANT)
    assert backend_code.refresh_tokens('old-refresh') == REFUSED
    assert stored() == {'bob': OTHER}


@pytest.mark.parametrize(
    'response',
    [
        {'status': 500, 'body': 'invalid_grant'},
        {'status': 500, 'json': {'error': 'invalid_grant'}},
        {'status': 200, 'json': {'error': 'invalid_grant'}},
        {'status': 302, 'json': {'error': 'invalid_grant'}},
        {'status': 429, 'json': {'error': 'invalid_grant'}},
        {'status': 400, 'body': 'invalid_grant'},
        {'status': 503},
        {'status': 401, 'json': {'error': 'invalid_client'}},
        {'status': 400, 'json': {'error': 'invalid_scope'}},
        {'status': 404, 'body': '<html>No help desk'},
        {'status': 302, 'headers': {'Location': 'https://evil.example'}},
        {'status': 200, 'body': ''},
        {'body': requests.ConnectionError()},
        {'body': requests.exceptions.SSLError()},
        {'body': requests.ReadTimeout()},
    ],
)
def test_any_other_failure_keeps_the_tokens(signed_in, zendesk, response):
    zendesk.post(TOKEN_ENDPOINT, **response)
    with pytest.raises(errors.ZendeskError):
        backend_code.refresh_tokens('old-refresh')
    assert stored() == {'alice': OLD, 'bob': OTHER}
    assert len(zendesk.calls) == 1


@pytest.mark.parametrize('user_id', ['alice', 'carol', None])
def test_no_refresh_is_sent_if_the_stored_tokens_have_changed(signed_in, zendesk, user_id):
    session['user_id'] = user_id
    assert backend_code.refresh_tokens('older-refresh') == (OLD if user_id == 'alice' else REFUSED)
    assert not zendesk.calls


def test_an_empty_refresh_token_is_not_sent(signed_in, zendesk):
    backend_code.store_oauth_tokens_in_db({'access_token': 'only-access'})
    assert backend_code.refresh_tokens('') == REFUSED
    assert not zendesk.calls
    assert stored() == {'bob': OTHER}


def test_no_refresh_is_sent_if_the_store_is_not_writable(signed_in, zendesk, full_disk):
    with pytest.raises(errors.StoreError, match='No space left'):
        backend_code.refresh_tokens('old-refresh')
    assert not zendesk.calls
    assert stored() == {'alice': OLD, 'bob': OTHER}


@pytest.mark.parametrize('now_stored', [{}, {'alice': OTHER}], ids=['deleted', 'renewed'])
@pytest.mark.parametrize('response', [(200, json.dumps(NEW_TOKENS)), (400, json.dumps({'error': 'invalid_grant'}))])
def test_a_late_response_does_not_overwrite_a_changed_grant(signed_in, zendesk, now_stored, response):
    def respond(request):
        store(**now_stored, bob=OTHER)
        return response[0], {}, response[1]

    zendesk.add_callback('POST', TOKEN_ENDPOINT, respond)
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    assert backend_code.refresh_tokens('old-refresh') == now_stored.get('alice', REFUSED)
    assert stored() == {**now_stored, 'bob': OTHER}
    assert requests_to(zendesk, REVOKE) == (1 if response[0] == 200 else 0)  # the new tokens were not stored


NOT_ROTATED = {'access_token': 'new-access', 'token_type': 'bearer'}


@pytest.mark.parametrize(
    ('request_count', 'response'), [(2, NEW_TOKENS), (5, NEW_TOKENS), (50, NEW_TOKENS), (10, NOT_ROTATED)]
)
def test_concurrent_requests_refresh_once(app, zendesk, request_count, response):
    store(alice=OLD)

    def show_self(request):
        new = request.headers['Authorization'] == 'Bearer new-access'
        return (200, {}, json.dumps(USER)) if new else (401, {}, '')

    zendesk.add_callback('GET', SHOW_SELF, show_self)
    zendesk.post(TOKEN_ENDPOINT, json=response)
    barrier = threading.Barrier(request_count)

    def open_profile(_):
        browser = app.test_client()
        browser.sign_in('alice')
        barrier.wait()
        return browser.get('/profile')

    with ThreadPoolExecutor(request_count) as pool:
        pages = list(pool.map(open_profile, range(request_count)))

    assert all('Jane Doe' in page.text for page in pages)
    assert requests_to(zendesk, TOKEN_ENDPOINT) == 1


def test_users_do_not_wait_for_each_others_refresh(app, zendesk):
    users = [f'user{number}' for number in range(12)]
    store(**dict.fromkeys(users, OLD))
    barrier = threading.Barrier(len(users), timeout=30)  # breaks if the refreshes run one after another

    def refresh(request):
        barrier.wait()
        return 200, {}, json.dumps(NEW_TOKENS)

    zendesk.add_callback('POST', TOKEN_ENDPOINT, refresh)

    def refresh_as(user):
        with app.test_request_context():
            session['user_id'] = user
            return tokens(backend_code.refresh_tokens('old-refresh'))

    with ThreadPoolExecutor(len(users)) as pool:
        assert list(pool.map(refresh_as, users)) == [NEW] * len(users)
    assert stored() == dict.fromkeys(users, NEW)


def test_profile_shows_a_busy_page_if_another_refresh_is_slow(alice, zendesk, monkeypatch):
    monkeypatch.setattr('zendesk_oauth.stores.REFRESH_TIMEOUT', 0.1)
    zendesk.get(SHOW_SELF, status=401)
    with backend_code.oauth.refresh_lock('alice'):
        page = alice.get('/profile')
    assert (page.status_code, page.headers['Retry-After']) == (503, '10')
    assert 'busy' in page.text
    assert 'Wait a few seconds, then try again.' in page.text
    assert requests_to(zendesk, TOKEN_ENDPOINT) == 0
    assert stored() == {'alice': OLD, 'bob': OTHER}


# --- User ids --- #


def test_new_user_id_restores_the_session_after_an_error(signed_in):
    session.update(color='blue')
    with pytest.raises(ZeroDivisionError), backend_code.new_user_id():
        assert session['user_id'] != 'alice'
        1 / 0  # noqa: B018
    assert dict(session) == {'user_id': 'alice', 'color': 'blue', '_permanent': True}
    assert stored() == {'alice': OLD, 'bob': OTHER}


def test_new_user_id_keeps_an_empty_session_after_an_error(app):
    with app.test_request_context():
        with pytest.raises(ZeroDivisionError), backend_code.new_user_id():
            1 / 0  # noqa: B018
        assert backend_code.current_user_id() is None
        assert not session.modified


def test_a_grant_succeeds_if_the_old_tokens_cannot_be_deleted(alice, zendesk, monkeypatch):
    def fail(*args):
        raise errors.StoreError('disk full')

    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    monkeypatch.setattr(backend_code.oauth.store, 'remove', fail)
    assert alice.grant().location == '/'
    assert stored() == {'alice': OLD, 'bob': OTHER, alice.user_id: NEW}


def test_a_grant_is_stored_under_the_products_account_id(app, zendesk, monkeypatch):
    monkeypatch.setattr(backend_code, 'current_user_id', lambda: session.get('account'))
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    browser = app.test_client()
    with browser.session_transaction() as before:
        before['account'] = 'alice'
    for _ in range(2):
        assert browser.grant().location == '/'
        assert stored() == {'alice': NEW}
