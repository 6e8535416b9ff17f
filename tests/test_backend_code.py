"""The three services of the tutorial, over each of the two stores."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from conftest import (
    NEW,
    NEW_PAIR,
    OTHER,
    PAIR,
    REVOKE,
    SHOW_SELF,
    TOKEN_ENDPOINT,
    USER,
    bearer,
    calls_to,
    records,
    store,
    stored,
    tokens,
)
from flask import session

import backend_code
from zendesk_oauth import endpoints as zendesk_module
from zendesk_oauth.token_store import StoreError

pytestmark = pytest.mark.usefixtures('db')

REFUSED = {'error': 'invalid_refresh_token'}


@pytest.fixture
def signed_in(app):
    """A request of the user alice, who has granted access, as bob has."""
    store(alice=PAIR, bob=OTHER)
    with app.test_request_context():
        session['user_id'] = 'alice'
        yield


def test_stored_tokens_are_retrieved_for_their_user_only(signed_in):
    assert backend_code.retrieve_oauth_tokens_from_db() == PAIR
    session['user_id'] = 'carol'
    assert backend_code.retrieve_oauth_tokens_from_db() == {'error': 'tokens_not_found'}
    session.clear()
    assert backend_code.retrieve_oauth_tokens_from_db() == {'error': 'tokens_not_found'}


@pytest.mark.parametrize('user_id', [None, ''])
def test_nobody_is_no_user(app, user_id):
    store(**{'': PAIR, 'None': PAIR})
    with app.test_request_context():
        session['user_id'] = user_id
        assert backend_code.retrieve_oauth_tokens_from_db() == {'error': 'tokens_not_found'}
        assert backend_code.current_user_id() is None


def test_storing_keeps_every_other_users_record(signed_in):
    backend_code.store_oauth_tokens_in_db(NEW)
    assert stored() == {'alice': NEW, 'bob': OTHER}


def test_storing_without_a_user_fails(app):
    with app.test_request_context(), pytest.raises(LookupError):
        backend_code.store_oauth_tokens_in_db(NEW)


def test_a_refresh_returns_and_stores_the_new_pair(signed_in, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR, status=201)
    zendesk.delete(REVOKE)
    assert tokens(backend_code.refresh_tokens('old-refresh')) == NEW
    assert stored() == {'alice': NEW, 'bob': OTHER}
    assert calls_to(zendesk, REVOKE) == 0


@pytest.mark.parametrize('lifetime', [None, '604800', -5, 0, 1.5, True, [], 10**12])
def test_a_new_pair_is_taken_whatever_is_said_of_its_lifetime(signed_in, zendesk, lifetime):
    store(alice={**PAIR, 'refresh_token_expires_at': 5})
    zendesk.post(TOKEN_ENDPOINT, json={**NEW_PAIR, 'refresh_token_expires_in': lifetime})
    backend_code.refresh_tokens('old-refresh')
    # The old token's time is not the new one's.
    assert records() == {'alice': {**NEW, 'refresh_token_expires_at': None}}


def test_the_lifetime_of_a_refresh_token_is_stored_with_it(signed_in, zendesk, clock):
    clock.now = 1_800_000_000.7
    zendesk.post(TOKEN_ENDPOINT, json={**NEW_PAIR, 'refresh_token_expires_in': 604800})
    backend_code.refresh_tokens('old-refresh')
    assert records()['alice'] == {**NEW, 'refresh_token_expires_at': 1_800_604_800}


def test_where_a_new_pair_could_not_be_stored_none_is_asked_for(signed_in, zendesk, full_disk):
    with pytest.raises(StoreError, match=r'No space left|read-only'):
        backend_code.refresh_tokens('old-refresh')
    assert stored() == {'alice': PAIR, 'bob': OTHER}
    assert not zendesk.calls


def test_a_new_pair_is_stored_before_it_is_returned(signed_in, db, zendesk, monkeypatch):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    monkeypatch.setattr(type(db), 'replace', lambda *args: raise_(StoreError('disk full')))
    with pytest.raises(StoreError, match='disk full'):
        backend_code.refresh_tokens('old-refresh')


def test_without_a_new_refresh_token_the_old_one_is_kept(signed_in, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json={'access_token': 'new-access', 'token_type': 'bearer'})
    assert backend_code.refresh_tokens('old-refresh') == {'access_token': 'new-access', 'refresh_token': 'old-refresh'}
    assert stored()['alice'] == {'access_token': 'new-access', 'refresh_token': 'old-refresh'}


def test_a_refused_refresh_token_drops_the_pair(signed_in, zendesk):
    zendesk.post(TOKEN_ENDPOINT, status=400, json={'error': 'invalid_grant'})
    assert backend_code.refresh_tokens('old-refresh') == REFUSED
    assert stored() == {'bob': OTHER}


@pytest.mark.parametrize(
    'answer',
    [
        {'status': 500, 'body': 'invalid_grant'},
        {'status': 500, 'json': {'error': 'invalid_grant'}},
        {'status': 200, 'json': {'error': 'invalid_grant'}},
        {'status': 302, 'json': {'error': 'invalid_grant'}},
        {'status': 503},
        {'status': 429},
        {'status': 401, 'json': {'error': 'invalid_client'}},
        {'status': 400, 'json': {'error': 'invalid_scope'}},
        {'status': 404, 'body': '<html>No help desk'},
        {'status': 302, 'headers': {'Location': 'https://evil.example'}},
        {'status': 400, 'body': 'invalid_grant'},
        {'status': 200, 'body': ''},
        {'body': requests.ConnectionError()},
        {'body': requests.exceptions.SSLError()},
        {'body': requests.ReadTimeout()},
    ],
)
def test_nothing_but_invalid_grant_drops_the_pair(signed_in, zendesk, answer):
    zendesk.post(TOKEN_ENDPOINT, **answer)
    with pytest.raises(zendesk_module.ZendeskError):
        backend_code.refresh_tokens('old-refresh')
    assert stored() == {'alice': PAIR, 'bob': OTHER}
    assert len(zendesk.calls) == 1


def test_a_pair_that_a_sibling_has_refreshed_is_used_without_a_call(signed_in, zendesk):
    assert backend_code.refresh_tokens('older-refresh') == PAIR
    assert not zendesk.calls


def test_after_invalid_grant_a_pair_that_is_newer_by_then_is_used(signed_in, zendesk):
    def refuse_and_refresh_elsewhere(request):
        store(alice=NEW, bob=OTHER)
        return 400, {}, json.dumps({'error': 'invalid_grant'})

    zendesk.add_callback('POST', TOKEN_ENDPOINT, refuse_and_refresh_elsewhere)
    assert backend_code.refresh_tokens('old-refresh') == NEW
    assert stored() == {'alice': NEW, 'bob': OTHER}


@pytest.mark.parametrize('status', [200, 400])
def test_a_grant_removed_during_a_refresh_does_not_come_back(signed_in, zendesk, status):
    def answer_late(request):
        store(bob=OTHER)
        return status, {}, json.dumps(NEW_PAIR if status == 200 else {'error': 'invalid_grant'})

    zendesk.add_callback('POST', TOKEN_ENDPOINT, answer_late)
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    assert backend_code.refresh_tokens('old-refresh') == REFUSED
    assert stored() == {'bob': OTHER}
    assert calls_to(zendesk, REVOKE) == (1 if status == 200 else 0)  # nobody is to have the new pair


def test_a_grant_made_anew_during_a_refresh_stays(signed_in, zendesk):
    def answer_late(request):
        store(alice=OTHER)
        return 200, {}, json.dumps(NEW_PAIR)

    zendesk.add_callback('POST', TOKEN_ENDPOINT, answer_late)
    zendesk.delete(REVOKE, status=500)
    assert backend_code.refresh_tokens('old-refresh') == OTHER
    assert stored() == {'alice': OTHER}
    assert calls_to(zendesk, REVOKE) == 1


def test_a_grant_removed_before_the_refresh_is_not_refreshed(signed_in, zendesk):
    store()
    assert backend_code.refresh_tokens('old-refresh') == REFUSED
    assert not zendesk.calls


def test_an_empty_refresh_token_is_not_sent(signed_in, zendesk):
    backend_code.store_oauth_tokens_in_db({'access_token': 'only-access'})
    assert backend_code.refresh_tokens('') == REFUSED
    assert not zendesk.calls
    assert stored() == {'bob': OTHER}


@pytest.mark.parametrize('visits', [2, 5, 50])
def test_many_requests_at_once_make_one_refresh(app, zendesk, visits):
    store(alice=PAIR)

    def show_self(request):
        new = request.headers['Authorization'] == 'Bearer new-access'
        return (200, {}, json.dumps(USER)) if new else (401, {}, '')

    zendesk.add_callback('GET', SHOW_SELF, show_self)
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    together = threading.Barrier(visits)

    def visit(_):
        browser = app.test_client()
        browser.sign_in('alice')
        together.wait()
        return browser.get('/profile')

    with ThreadPoolExecutor(visits) as pool:
        pages = list(pool.map(visit, range(visits)))

    assert all('Jane Doe' in page.text for page in pages)
    assert calls_to(zendesk, TOKEN_ENDPOINT) == 1


def test_nobody_waits_for_somebody_elses_refresh(app, zendesk):
    users = [f'user{number}' for number in range(12)]
    store(**dict.fromkeys(users, PAIR))
    all_at_once = threading.Barrier(len(users), timeout=30)  # broken if the refreshes come one after the other

    def refresh(request):
        all_at_once.wait()
        return 200, {}, json.dumps(NEW_PAIR)

    zendesk.add_callback('POST', TOKEN_ENDPOINT, refresh)

    def refresh_as(user):
        with app.test_request_context():
            session['user_id'] = user
            return tokens(backend_code.refresh_tokens('old-refresh'))

    with ThreadPoolExecutor(len(users)) as pool:
        assert list(pool.map(refresh_as, users)) == [NEW] * len(users)
    assert stored() == dict.fromkeys(users, NEW)


def test_a_refresh_that_takes_too_long_lets_nobody_wait_for_ever(browser_of_alice, zendesk, impatient):
    zendesk.get(SHOW_SELF, status=401)
    with backend_code.users_db().refreshing('alice'):
        page = browser_of_alice.get('/profile')
    assert page.status_code == 503
    assert page.headers['Retry-After'] == '10'
    assert 'busy' in page.text
    assert calls_to(zendesk, TOKEN_ENDPOINT) == 0
    assert stored() == {'alice': PAIR}


def test_a_failed_block_gives_the_old_session_back(app):
    store(alice=PAIR)
    with app.test_request_context():
        session.update(user_id='alice', colour='blue')
        with pytest.raises(ZeroDivisionError), backend_code.fresh_user_id():
            assert session['user_id'] != 'alice'
            1 / 0  # noqa: B018
        assert dict(session) == {'user_id': 'alice', 'colour': 'blue'}
    assert stored() == {'alice': PAIR}


def test_with_a_sign_in_of_a_products_own_a_grant_is_stored_for_the_account(app, zendesk, monkeypatch):
    monkeypatch.setattr(backend_code, 'current_user_id', lambda: session.get('account'))
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    browser = app.test_client()
    with browser.session_transaction() as before:
        before['account'] = 'alice'
    for _ in range(2):
        assert browser.grant().location == '/'
        assert stored() == {'alice': NEW}


def test_a_failed_grant_sends_no_session_that_could_overwrite_a_newer_one(browser_of_alice, db, zendesk, monkeypatch):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    monkeypatch.setattr(type(db), 'save', lambda *args: raise_(StoreError('disk full')))
    answer = browser_of_alice.grant()
    assert answer.status_code == 503
    assert not [header for header in answer.headers.getlist('Set-Cookie') if 'session' in header]
    assert stored() == {'alice': PAIR}


def test_a_grant_counts_even_where_the_old_one_can_not_be_removed(browser_of_alice, db, zendesk, monkeypatch, log):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    monkeypatch.setattr(type(db), 'remove', lambda *args: raise_(StoreError('disk full')))
    assert browser_of_alice.grant().location == '/'
    assert stored() == {'alice': PAIR, browser_of_alice.user_id: NEW}
    assert 'disk full' in ''.join(log)


def raise_(error):
    raise error


@pytest.fixture
def browser_of_alice(app):
    store(alice=PAIR)
    browser = app.test_client()
    browser.sign_in('alice')
    return browser


def test_user_ids_are_long_and_never_the_same():
    ids = {backend_code.new_user_id() for _ in range(100)}
    assert len(ids) == 100
    assert min(map(len, ids)) >= 32
