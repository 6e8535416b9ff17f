"""ZendeskOAuth: one refresh at a time, compare and swap, revocation."""

from __future__ import annotations

import threading

import pytest
import requests
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
    form,
    requests_to,
)

from zendesk_oauth import JsonFileStore, transport
from zendesk_oauth.errors import InvalidGrant, LockTimeout, StoreError

REFRESH = form(
    grant_type='refresh_token',
    refresh_token='old-refresh',
    client_id='test_client',
    client_secret='canary-client-secret',
    expires_in='300',
    refresh_token_expires_in='604800',
    scope='users:read',
)


@pytest.fixture
def db(db) -> JsonFileStore:
    """The store, with the tokens of alice and bob."""
    db.save('alice', OLD)
    db.save('bob', OTHER)
    return db


def log_of(records) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in records]


# --- Requests for tokens --- #


def forms():
    return [
        {'grant_type': 'authorization_code', 'code': 'c', 'scope': 'users:read'},
        {'grant_type': 'refresh_token', 'refresh_token': 'old-refresh', 'scope': 'users:read'},
    ]


@pytest.mark.parametrize(('fields', 'order'), [(forms()[0], ['request']), (forms()[1], ['check', 'request'])])
def test_the_store_is_checked_before_a_refresh_only(oauth, zendesk, monkeypatch, fields, order):
    """Anybody can send a code: that must not write the file."""
    seen = []
    monkeypatch.setattr(JsonFileStore, 'check_writable', lambda self: seen.append('check'))
    zendesk.add_callback('POST', TOKEN_ENDPOINT, lambda request: (seen.append('request'), (400, {}, ''))[1])
    with pytest.raises(Exception, match='400'):
        oauth.request_tokens(fields)
    assert seen == order


def test_nothing_is_requested_if_the_store_is_not_writable(oauth, zendesk, full_disk):
    with pytest.raises(StoreError, match='No space left'):
        oauth.request_tokens(forms()[1])
    assert not zendesk.calls


def test_an_impossible_refresh_token_does_not_touch_the_store(oauth, full_disk):
    with pytest.raises(InvalidGrant):
        oauth.request_tokens({'grant_type': 'refresh_token', 'refresh_token': ''})


# --- The stored tokens --- #


def test_the_refresh_lock_yields_the_record_and_admits_one(oauth, monkeypatch):
    monkeypatch.setattr('zendesk_oauth.stores.REFRESH_TIMEOUT', 0.05)
    with oauth.refresh_lock('alice') as stored:
        assert stored == OLD
        with pytest.raises(LockTimeout) as raised, oauth.refresh_lock('alice'):
            pass
        assert (raised.value.status, raised.value.retry_after) == (503, 10)
        with oauth.refresh_lock('bob') as other:
            assert other == OTHER
    with oauth.refresh_lock('carol') as nothing:
        assert nothing is None


def test_replace_tokens_stores_the_tokens_of_a_refresh(oauth, db, zendesk):
    assert oauth.replace_tokens('alice', 'old-refresh', NEW) == NEW
    assert (db.find('alice'), db.find('bob')) == (NEW, OTHER)
    assert not zendesk.calls


def test_replace_tokens_deletes_a_record_whose_grant_has_ended(oauth, db, zendesk):
    assert oauth.replace_tokens('alice', 'old-refresh', None) is None
    assert (db.find('alice'), db.find('bob')) == (None, OTHER)
    assert not zendesk.calls


def test_replace_tokens_does_not_delete_a_renewed_grant(oauth, db, zendesk, package_log):
    db.save('alice', NEW)
    assert oauth.replace_tokens('alice', 'old-refresh', None) == NEW
    assert db.find('alice') == NEW
    assert not zendesk.calls
    assert not package_log


RENEWED = {'access_token': 'renewed-access', 'refresh_token': 'renewed-refresh'}


@pytest.mark.parametrize('stored', [None, RENEWED], ids=['deleted', 'renewed'])
@pytest.mark.parametrize(
    'response', [{'status': 204}, {'status': 401}, {'status': 500}, {'body': requests.ConnectionError()}]
)
def test_tokens_that_lost_the_race_are_revoked_with_one_request(oauth, db, zendesk, package_log, stored, response):
    db.remove('alice') if stored is None else db.save('alice', stored)
    zendesk.delete(REVOKE, match=[bearer('new-access')], **response)
    assert oauth.replace_tokens('alice', 'old-refresh', NEW) == stored
    assert db.find('alice') == stored
    assert len(zendesk.calls) == 1
    assert package_log[0].getMessage().startswith('The grant was deleted or renewed during the refresh')


@pytest.mark.parametrize('status', [204, 500])
def test_tokens_that_cannot_be_stored_are_revoked_with_one_request(oauth, db, zendesk, package_log, full_disk, status):
    zendesk.delete(REVOKE, status=status, match=[bearer('new-access')])
    with pytest.raises(StoreError, match='No space left'):
        oauth.replace_tokens('alice', 'old-refresh', NEW)
    assert db.find('alice') == OLD
    assert len(zendesk.calls) == 1
    assert log_of(package_log)[0] == ('WARNING', 'The new tokens cannot be stored: revoking them')


def test_a_record_that_cannot_be_deleted_raises_and_revokes_nothing(oauth, db, zendesk, package_log, full_disk):
    with pytest.raises(StoreError):
        oauth.replace_tokens('alice', 'old-refresh', None)
    assert db.find('alice') == OLD
    assert not zendesk.calls
    assert not package_log


def test_sixty_simultaneous_refreshes_send_one_request(oauth, db, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    found = []

    def refresh():
        with oauth.refresh_lock('alice') as stored:
            if stored['refresh_token'] == 'old-refresh':
                tokens = oauth.request_tokens({**forms()[1], 'refresh_token': 'old-refresh'})
                stored = oauth.replace_tokens('alice', 'old-refresh', {**stored, **tokens})
            found.append(stored['access_token'])

    threads = [threading.Thread(target=refresh) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ['new-access'] * 60
    assert len(zendesk.calls) == 1


# --- Revocation --- #


def test_revoke_tokens_revokes_and_verifies(oauth, zendesk, package_log):
    zendesk.delete(REVOKE, status=204, match=[bearer('old-access')])
    zendesk.get(SHOW_SELF, status=401, match=[bearer('old-access')])
    assert oauth.revoke_tokens(OLD) is True
    assert [call.request.url for call in zendesk.calls] == [REVOKE, SHOW_SELF]
    assert log_of(package_log) == [('INFO', 'Zendesk rejects the access token: the tokens are revoked')]


@pytest.mark.parametrize('access_token', ['old-access', '', 'ä日', 'a\nb'])
def test_an_expired_or_impossible_access_token_is_refreshed_first(oauth, db, zendesk, access_token):
    zendesk.delete(REVOKE, status=401, match=[bearer('old-access')])
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS, match=[REFRESH])
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    zendesk.get(SHOW_SELF, status=401, match=[bearer('new-access')])
    assert oauth.revoke_tokens({**OLD, 'access_token': access_token}) is True
    assert requests_to(zendesk, TOKEN_ENDPOINT) == 1
    assert requests_to(zendesk, REVOKE) == 1 + (access_token == 'old-access')
    assert db.find('alice') == OLD  # the store is the caller's business


def test_a_grant_without_a_refresh_token_can_be_revoked(oauth, zendesk):
    zendesk.delete(REVOKE, json={})  # any 2xx confirms
    zendesk.get(SHOW_SELF, status=401)
    assert oauth.revoke_tokens({'access_token': 'only-access'}) is True
    assert requests_to(zendesk, TOKEN_ENDPOINT) == 0


NOT_REVOKED = [
    {'status': 500},
    {'status': 503},
    {'status': 429},
    {'status': 403, 'json': {'error': 'Forbidden'}},
    {'status': 404},
    {'status': 301, 'headers': {'Location': 'https://evil.example/'}},
    {'body': requests.ConnectionError()},
    {'body': requests.Timeout()},
]


@pytest.mark.parametrize('response', NOT_REVOKED)
@pytest.mark.parametrize('best_effort', [False, True])
def test_a_failed_revocation_is_not_confirmed(oauth, zendesk, package_log, response, best_effort):
    zendesk.delete(REVOKE, **response)
    assert oauth.revoke_tokens(OLD, best_effort=best_effort) is False
    assert len(zendesk.calls) == 1
    [(level, message)] = log_of(package_log)
    assert level == 'WARNING'
    assert message.startswith('Could not revoke the tokens, so they may still be valid. ')


@pytest.mark.parametrize('check', [{'json': USER}, {'status': 500}, {'status': 403}, {'body': requests.Timeout()}])
def test_a_revocation_without_a_401_afterwards_is_not_confirmed(oauth, zendesk, package_log, check):
    zendesk.delete(REVOKE, status=204)
    zendesk.get(SHOW_SELF, **check)
    assert oauth.revoke_tokens(OLD) is False
    assert package_log[-1].levelname == 'WARNING'


@pytest.mark.parametrize('refresh_token', ['old-refresh', '', None])
def test_tokens_that_zendesk_rejects_both_are_not_confirmed(oauth, zendesk, package_log, refresh_token):
    """Perhaps a refresh succeeded whose response was lost, and its new tokens are valid."""
    zendesk.delete(REVOKE, status=401)
    zendesk.post(TOKEN_ENDPOINT, **INVALID_GRANT)
    tokens = {name: value for name, value in {**OLD, 'refresh_token': refresh_token}.items() if value is not None}
    assert oauth.revoke_tokens(tokens) is False
    assert requests_to(zendesk, TOKEN_ENDPOINT) == (refresh_token == 'old-refresh')
    assert 'refresh token' in package_log[-1].getMessage()


@pytest.mark.parametrize('response', [{'status': 500}, {'body': requests.Timeout()}, {'json': {}}])
def test_a_failed_refresh_is_not_confirmed(oauth, zendesk, response):
    zendesk.delete(REVOKE, status=401)
    zendesk.post(TOKEN_ENDPOINT, **response)
    assert oauth.revoke_tokens(OLD) is False
    assert requests_to(zendesk, TOKEN_ENDPOINT) == 1


@pytest.mark.parametrize('response', [*NOT_REVOKED, {'status': 401}])
def test_new_tokens_that_cannot_be_revoked_are_not_confirmed(oauth, zendesk, response):
    zendesk.delete(REVOKE, status=401, match=[bearer('old-access')])
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    zendesk.delete(REVOKE, match=[bearer('new-access')], **response)
    zendesk.get(SHOW_SELF, status=401)
    assert oauth.revoke_tokens(OLD) is False


def test_a_revocation_does_not_need_a_writable_store(oauth, zendesk, full_disk):
    zendesk.delete(REVOKE, status=401, match=[bearer('old-access')])
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    zendesk.get(SHOW_SELF, status=401)
    assert oauth.revoke_tokens(OLD) is True


@pytest.mark.parametrize('response', [{'status': 204}, {'status': 500}, {'body': requests.ConnectionError()}])
def test_tokens_of_a_new_grant_are_revoked_if_they_cannot_be_stored(oauth, zendesk, full_disk, response):
    zendesk.delete(REVOKE, match=[bearer('new-access')], **response)
    with pytest.raises(StoreError):
        oauth.save_tokens('carol', NEW)
    assert requests_to(zendesk, REVOKE) == 1


@pytest.mark.parametrize('best_effort', [False, True])
def test_without_tokens_nothing_is_revoked(oauth, zendesk, best_effort):
    assert oauth.revoke_tokens(None, best_effort=best_effort) is False
    assert not zendesk.calls


@pytest.mark.parametrize(
    ('response', 'revoked'), [({'status': 204}, True), ({'json': {}}, True), ({'status': 401}, False)]
)
def test_best_effort_sends_one_request_of_three_seconds(oauth, zendesk, monkeypatch, response, revoked):
    timeouts, send = [], transport.send

    def record_timeout(*args, timeout, **kwargs):
        timeouts.append(timeout)
        return send(*args, timeout=timeout, **kwargs)

    monkeypatch.setattr(transport, 'send', record_timeout)
    zendesk.delete(REVOKE, match=[bearer('old-access')], **response)
    assert oauth.revoke_tokens(OLD, best_effort=True) is revoked
    assert timeouts == [3]


def test_best_effort_does_not_send_an_impossible_token(oauth, zendesk):
    assert oauth.revoke_tokens({**OLD, 'access_token': 'a\nb'}, best_effort=True) is False
    assert not zendesk.calls
