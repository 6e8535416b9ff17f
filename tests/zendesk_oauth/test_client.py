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

from zendesk_oauth import JsonFileStore, endpoints
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
GRANTED = {**OLD, 'scope': 'users:read'}


@pytest.fixture
def db(db) -> JsonFileStore:
    """Return the store with the tokens of alice and bob."""
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
def test_the_store_is_checked_only_before_a_refresh(oauth, zendesk, monkeypatch, fields, order):
    """Do not write the file for an authorization code: anyone can send one."""
    seen = []
    monkeypatch.setattr(JsonFileStore, 'check_writable', lambda self: seen.append('check'))
    zendesk.add_callback('POST', TOKEN_ENDPOINT, lambda request: (seen.append('request'), (400, {}, ''))[1])
    with pytest.raises(Exception, match='400'):
        oauth.request_tokens(fields)
    assert seen == order


def test_no_refresh_is_sent_if_the_store_is_not_writable(oauth, zendesk, full_disk):
    with pytest.raises(StoreError, match='No space left'):
        oauth.request_tokens(forms()[1])
    assert not zendesk.calls


def test_an_unusable_refresh_token_does_not_touch_the_store(oauth, full_disk, package_log):
    with pytest.raises(InvalidGrant):
        oauth.request_tokens({'grant_type': 'refresh_token', 'refresh_token': ''})
    assert log_of(package_log) == [('INFO', 'No usable refresh token is stored: not sending a request')]


# --- The stored tokens --- #


def test_the_refresh_lock_yields_the_record_to_one_holder(oauth, monkeypatch):
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


def test_replace_tokens_deletes_the_record_if_the_grant_has_ended(oauth, db, zendesk):
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
def test_new_tokens_are_revoked_if_the_stored_record_has_changed(oauth, db, zendesk, package_log, stored, response):
    db.remove('alice') if stored is None else db.save('alice', stored)
    zendesk.delete(REVOKE, match=[bearer('new-access')], **response)
    assert oauth.replace_tokens('alice', 'old-refresh', NEW) == stored
    assert db.find('alice') == stored
    assert len(zendesk.calls) == 1
    assert package_log[0].getMessage().startswith('The stored tokens changed during the refresh')


@pytest.mark.parametrize('status', [204, 500])
def test_new_tokens_are_revoked_once_if_they_cannot_be_stored(oauth, db, zendesk, package_log, full_disk, status):
    zendesk.delete(REVOKE, status=status, match=[bearer('new-access')])
    with pytest.raises(StoreError, match='No space left'):
        oauth.replace_tokens('alice', 'old-refresh', NEW)
    assert db.find('alice') == OLD
    assert len(zendesk.calls) == 1
    assert log_of(package_log)[0] == ('WARNING', 'The new tokens cannot be stored: revoking them')


def test_replace_tokens_revokes_nothing_if_the_record_cannot_be_deleted(oauth, db, zendesk, package_log, full_disk):
    with pytest.raises(StoreError) as raised:
        oauth.replace_tokens('alice', 'old-refresh', None)
    assert not raised.value.reauthorize
    assert db.find('alice') == OLD
    assert not zendesk.calls
    assert not package_log


def test_sixty_concurrent_refreshes_send_one_request(oauth, db, zendesk):
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
    assert log_of(package_log) == [
        ('DEBUG', 'Checking that Zendesk now rejects the access token'),
        ('INFO', 'Zendesk rejects the access token (401): it is revoked'),
    ]


@pytest.mark.parametrize('access_token', ['old-access', '', 'ä日', 'a\nb'])
def test_revoke_tokens_refreshes_an_expired_or_unusable_access_token_first(oauth, db, zendesk, access_token):
    zendesk.delete(REVOKE, status=401, match=[bearer('old-access')])
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS, match=[REFRESH])
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    zendesk.get(SHOW_SELF, status=401, match=[bearer('new-access')])
    assert oauth.revoke_tokens({**GRANTED, 'access_token': access_token}) is True
    assert requests_to(zendesk, TOKEN_ENDPOINT) == 1
    assert requests_to(zendesk, REVOKE) == 1 + (access_token == 'old-access')
    assert db.find('alice') == OLD  # the caller updates the store


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
def test_revoke_tokens_returns_false_if_the_revocation_fails(oauth, zendesk, package_log, response, best_effort):
    zendesk.delete(REVOKE, **response)
    assert oauth.revoke_tokens(OLD, best_effort=best_effort) is False
    assert len(zendesk.calls) == 1
    [(level, message)] = log_of(package_log)
    assert level == 'WARNING'
    assert message.startswith('The tokens could not be revoked and may still be valid. ')


@pytest.mark.parametrize('check', [{'json': USER}, {'status': 500}, {'status': 403}, {'body': requests.Timeout()}])
def test_revoke_tokens_returns_false_if_the_check_returns_no_401(oauth, zendesk, package_log, check):
    zendesk.delete(REVOKE, status=204)
    zendesk.get(SHOW_SELF, **check)
    assert oauth.revoke_tokens(OLD) is False
    assert package_log[-1].levelname == 'WARNING'


@pytest.mark.parametrize('refresh_token', ['old-refresh', '', None])
def test_revoke_tokens_returns_false_if_zendesk_rejects_both_tokens(oauth, zendesk, package_log, refresh_token):
    """Assume that the response to a refresh was lost and its new tokens are still valid."""
    zendesk.delete(REVOKE, status=401)
    zendesk.post(TOKEN_ENDPOINT, **INVALID_GRANT)
    tokens = {name: value for name, value in {**OLD, 'refresh_token': refresh_token}.items() if value is not None}
    assert oauth.revoke_tokens(tokens) is False
    assert requests_to(zendesk, TOKEN_ENDPOINT) == (refresh_token == 'old-refresh')
    assert 'refresh token' in package_log[-1].getMessage()


@pytest.mark.parametrize('response', [{'status': 500}, {'body': requests.Timeout()}, {'json': {}}])
def test_revoke_tokens_returns_false_if_the_refresh_fails(oauth, zendesk, response):
    zendesk.delete(REVOKE, status=401)
    zendesk.post(TOKEN_ENDPOINT, **response)
    assert oauth.revoke_tokens(OLD) is False
    assert requests_to(zendesk, TOKEN_ENDPOINT) == 1


@pytest.mark.parametrize('response', [*NOT_REVOKED, {'status': 401}])
def test_revoke_tokens_returns_false_if_refreshed_tokens_cannot_be_revoked(oauth, zendesk, response):
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
def test_save_tokens_revokes_the_tokens_if_storing_them_fails(oauth, zendesk, full_disk, response):
    zendesk.delete(REVOKE, match=[bearer('new-access')], **response)
    with pytest.raises(StoreError):
        oauth.save_tokens('carol', NEW)
    assert requests_to(zendesk, REVOKE) == 1


@pytest.mark.parametrize('best_effort', [False, True])
def test_revoke_tokens_sends_nothing_if_there_are_no_tokens(oauth, zendesk, best_effort):
    assert oauth.revoke_tokens(None, best_effort=best_effort) is False
    assert not zendesk.calls


@pytest.mark.parametrize(
    ('response', 'revoked'), [({'status': 204}, True), ({'json': {}}, True), ({'status': 401}, False)]
)
def test_best_effort_sends_one_request_with_a_three_second_timeout(
    oauth, zendesk, package_log, monkeypatch, response, revoked
):
    timeouts, send = [], endpoints.send

    def record_timeout(*args, timeout, **kwargs):
        timeouts.append(timeout)
        return send(*args, timeout=timeout, **kwargs)

    monkeypatch.setattr(endpoints, 'send', record_timeout)
    zendesk.delete(REVOKE, match=[bearer('old-access')], **response)
    assert oauth.revoke_tokens(OLD, best_effort=True) is revoked
    log = [text for _, text in log_of(package_log)]
    assert any('the refresh token stays valid until it expires' in text for text in log) == (
        response.get('status') == 401
    )
    assert timeouts == [3]


def test_best_effort_does_not_send_an_unusable_token(oauth, zendesk):
    assert oauth.revoke_tokens({**OLD, 'access_token': 'a\nb'}, best_effort=True) is False
    assert not zendesk.calls
