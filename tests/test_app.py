"""The tutorial's routes, with Zendesk mocked. Each test is one story."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from pathlib import Path
from urllib.parse import parse_qs

import pytest
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
    store,
    stored,
)

import app as app_module
import backend_code

# --- Home --- #


def test_home_links_to_the_profile_and_sets_a_user_id(browser):
    page = browser.get('/')
    assert page.status_code == 200
    assert '<a class="button" href="/profile">Get my profile</a>' in page.text
    assert len(browser.user_id) >= 32


def test_each_browser_keeps_its_own_user_id(app):
    one, other = app.test_client(), app.test_client()
    for _ in range(2):
        ids = [(browser.get('/'), browser.user_id)[1] for browser in (one, other)]
    assert ids == [one.user_id, other.user_id]
    assert one.user_id != other.user_id


def test_home_asks_for_the_next_click_after_a_grant(alice):
    assert 'Access granted. Now click Get my profile.' in alice.get('/').text
    alice.sign_in('carol')
    assert 'Access granted' not in alice.get('/').text


def test_home_is_shown_without_a_hint_if_the_store_fails(browser, log):
    browser.sign_in('alice')
    Path('users.json').mkdir()
    page = browser.get('/')
    assert page.status_code == 200
    assert 'Access granted' not in page.text
    assert 'Get my profile' in page.text
    assert log[-1].startswith('The app cannot access its stored data: users.json cannot be read')


def test_home_does_not_read_the_store_for_a_new_browser(browser, log):
    Path('users.json').mkdir()
    assert browser.get('/').status_code == 200
    assert log == ['Opening the home page\n']


def test_home_shows_an_unexpected_error(app, alice, monkeypatch):
    monkeypatch.setattr(app, 'testing', False)
    monkeypatch.setattr('zendesk_oauth.stores.JsonFileStore.find', lambda *args: 1 / 0)
    assert alice.get('/').status_code == 500


# --- Profile --- #


@pytest.mark.parametrize('user_id', ['carol', None, '', 5, ['alice'], {'alice': 1}, True])
def test_profile_redirects_to_the_grant_page_if_no_tokens_exist(browser, zendesk, user_id):
    store(alice=OLD, **{'': OLD, 'None': OLD})
    browser.sign_in(user_id)
    assert browser.get('/profile').location == '/grant_access'
    assert not zendesk.calls


def test_profile_shows_name_and_role_after_one_api_request(alice, zendesk):
    zendesk.get(SHOW_SELF, json=USER, match=[bearer('old-access')])
    page = alice.get('/profile')
    assert page.status_code == 200
    assert '👋 Hi, Jane Doe!' in page.text
    assert 'Your Zendesk user role is <strong>agent</strong>.' in page.text
    assert '<a class="button" href="/profile">Get my profile again</a>' in page.text
    assert [call.request.url for call in zendesk.calls] == [SHOW_SELF]


def test_an_expired_token_causes_one_refresh_and_one_retry(alice, zendesk):
    zendesk.get(SHOW_SELF, status=401, match=[bearer('old-access')])
    zendesk.get(SHOW_SELF, json=USER, match=[bearer('new-access')])
    refresh = form(
        grant_type='refresh_token',
        refresh_token='old-refresh',
        client_id='test_client',
        client_secret='canary-client-secret',
        expires_in='360',
        refresh_token_expires_in='604800',
        scope='users:read',
    )
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS, match=[refresh])

    assert '👋 Hi, Jane Doe!' in alice.get('/profile').text

    assert [call.request.url for call in zendesk.calls] == [SHOW_SELF, TOKEN_ENDPOINT, SHOW_SELF]
    assert stored() == {'alice': NEW, 'bob': OTHER}


def test_a_second_401_shows_an_error_page(alice, zendesk):
    zendesk.get(SHOW_SELF, status=401)
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    page = alice.get('/profile')
    assert page.status_code == 502
    assert 'href="/grant_access"' in page.text
    assert [call.request.url for call in zendesk.calls] == [SHOW_SELF, TOKEN_ENDPOINT, SHOW_SELF]
    assert stored()['alice'] == NEW


def test_a_refused_refresh_redirects_to_the_grant_page(alice, zendesk):
    zendesk.get(SHOW_SELF, status=401)
    zendesk.post(TOKEN_ENDPOINT, **INVALID_GRANT)
    assert alice.get('/profile').location == '/grant_access?ended=1'
    assert requests_to(zendesk, TOKEN_ENDPOINT) == 1
    assert stored() == {'bob': OTHER}


def test_a_rate_limit_shows_an_error_page_and_keeps_tokens(alice, zendesk):
    zendesk.get(SHOW_SELF, status=429, body='Number of allowed API requests exceeded', headers={'Retry-After': '7'})
    page = alice.get('/profile')
    assert (page.status_code, page.headers['Retry-After']) == (503, '7')
    assert 'Wait 7 seconds, then try again.' in page.text
    assert 'href="/profile"' in page.text
    assert stored() == {'alice': OLD, 'bob': OTHER}


@pytest.mark.parametrize(
    ('name', 'shown'),
    [
        ('<script>alert(1)</script>', '&lt;script&gt;alert(1)&lt;/script&gt;'),
        ('"quoted" & \'single\'', '&#34;quoted&#34; &amp; &#39;single&#39;'),
        ('\u202eevil', '\u202eevil'),
        ('Zoë 山田 🦄', 'Zoë 山田 🦄'),
        ('x' * 1_000_000, 'x' * 1_000_000),
    ],
)
def test_any_name_is_shown_as_text(alice, zendesk, name, shown):
    zendesk.get(SHOW_SELF, body=json.dumps({'user': {**USER['user'], 'name': name}}))
    assert f'Hi, {shown}!' in alice.get('/profile').text


# --- Grant access --- #


def test_the_grant_page_explains_why_access_is_needed(browser):
    page = browser.get('/grant_access')
    assert page.status_code == 200
    assert 'needs to access your Zendesk account' in page.text
    assert '<a class="button" href="/zendesk/auth">Grant access</a>' in page.text
    assert 'home page' in page.text
    assert 'to show your profile' in page.text
    assert 'ended' not in page.text


def test_the_grant_page_explains_why_access_has_ended(browser):
    page = browser.get('/grant_access?ended=1').text
    assert 'access to your account has ended' in page
    assert 'no valid refresh token' in page
    assert 'needs to access your Zendesk account' in page
    assert 'to show your profile' not in page


def test_the_grant_page_explains_errors_shown_by_zendesk(browser):
    page = browser.get('/grant_access').text
    for words in ('Did Zendesk show an error?', 'ZENDESK_CLIENT_ID', 'REDIRECT_URI', 'https://mondocam.zendesk.com'):
        assert words in page


def test_the_grant_page_has_no_setup_help_on_a_public_host(browser, monkeypatch):
    public = dataclasses.replace(app_module.settings, redirect_uri='https://app.example.com/zendesk/oauth/callback')
    monkeypatch.setattr(app_module, 'settings', public)
    assert 'Did Zendesk show an error?' not in browser.get('/grant_access').text


# --- Authorization request --- #


def test_the_authorization_request_has_the_articles_parameters_state_and_pkce(browser):
    sent = browser.start()
    assert len(base64.urlsafe_b64decode(sent.pop('state') + '=')) == 32
    assert len(sent.pop('code_challenge')) == 43
    assert sent == {
        'response_type': 'code',
        'client_id': 'test_client',
        'redirect_uri': 'http://localhost:3000/zendesk/oauth/callback',
        'expires_in': '360',
        'scope': 'users:read',
        'code_challenge_method': 'S256',
    }


# --- Callback --- #


@pytest.mark.parametrize('status', [200, 201])
def test_the_callback_stores_the_tokens_under_a_new_user_id(browser, zendesk, status):
    browser.get('/')
    before = browser.user_id
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS, status=status)
    assert browser.grant().location == '/'
    assert browser.user_id != before
    assert stored() == {browser.user_id: NEW}


def test_the_code_exchange_sends_the_articles_form_and_code_verifier(browser, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    sent = browser.start()
    browser.come_back(code='the-code', state=sent['state'])
    fields = {name: value for name, [value] in parse_qs(zendesk.calls[0].request.body).items()}
    challenge = base64.urlsafe_b64encode(hashlib.sha256(fields['code_verifier'].encode()).digest()).decode().rstrip('=')
    assert challenge == sent['code_challenge']
    assert 43 <= len(fields.pop('code_verifier')) <= 128
    assert fields == {
        'grant_type': 'authorization_code',
        'client_id': 'test_client',
        'client_secret': 'canary-client-secret',
        'redirect_uri': 'http://localhost:3000/zendesk/oauth/callback',
        'code': 'the-code',
        'scope': 'users:read',
        'expires_in': '360',
        'refresh_token_expires_in': '604800',
    }


def test_a_new_grant_deletes_and_revokes_the_old_tokens(alice, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    zendesk.delete(REVOKE, status=204, match=[bearer('old-access')])
    alice.grant()
    assert stored() == {alice.user_id: NEW, 'bob': OTHER}
    assert requests_to(zendesk, REVOKE) == 1


def test_an_attacker_cannot_use_a_planted_session_after_the_grant(app, zendesk):
    attacker, victim = app.test_client(), app.test_client()
    attacker.get('/')
    victim.sign_in(attacker.user_id)
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    victim.grant()
    assert attacker.get('/profile').location == '/grant_access'


def test_denied_consent_shows_an_error_page_and_keeps_existing_tokens(alice, zendesk):
    page = alice.come_back(error='access_denied', error_description='...', state=alice.start()['state'])
    assert page.status_code == 403
    assert 'Access was not granted' in page.text
    assert 'href="/grant_access"' in page.text
    assert not zendesk.calls
    assert (alice.user_id, stored()) == ('alice', {'alice': OLD, 'bob': OTHER})


def test_a_callback_with_an_unknown_state_sends_no_request(alice, zendesk):
    assert alice.come_back(code='the-code', state='A' * 43).status_code == 400
    assert not zendesk.calls
    assert stored() == {'alice': OLD, 'bob': OTHER}


@pytest.mark.parametrize(
    ('response', 'status'),
    [
        (INVALID_GRANT, 400),
        ({'status': 500}, 502),
        ({'json': {**NEW_TOKENS, 'access_token': 5}}, 502),
        ({'json': []}, 502),
    ],
)
def test_a_failed_code_exchange_keeps_the_old_tokens(alice, zendesk, response, status):
    zendesk.post(TOKEN_ENDPOINT, **response)
    page = alice.grant()
    assert page.status_code == status
    assert requests_to(zendesk, TOKEN_ENDPOINT) == 1
    assert (alice.user_id, stored()) == ('alice', {'alice': OLD, 'bob': OTHER})


def test_new_tokens_are_revoked_if_they_cannot_be_stored(alice, zendesk, full_disk):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    page = alice.grant()
    assert page.status_code == 503
    assert 'Grant access again.' in page.text
    assert 'href="/grant_access"' in page.text
    assert requests_to(zendesk, REVOKE) == 1
    assert (alice.user_id, stored()) == ('alice', {'alice': OLD, 'bob': OTHER})


def test_a_401_without_a_refresh_token_ends_the_grant(browser, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json={'access_token': 'only-access', 'token_type': 'bearer', 'scope': 'users:read'})
    browser.grant()
    assert stored()[browser.user_id] == {'access_token': 'only-access', 'refresh_token': ''}
    zendesk.get(SHOW_SELF, status=401)
    assert browser.get('/profile').location == '/grant_access?ended=1'
    assert requests_to(zendesk, TOKEN_ENDPOINT) == 1


# --- Disconnect --- #


def test_disconnect_deletes_and_revokes_the_tokens(alice, zendesk):
    zendesk.delete(REVOKE, status=204, match=[bearer('old-access')])
    zendesk.get(SHOW_SELF, status=401, match=[bearer('old-access')])
    page = alice.post('/disconnect')
    assert page.status_code == 200
    assert 'deleted here and revoked at Zendesk' in page.text
    assert stored() == {'bob': OTHER}
    assert [call.request.url for call in zendesk.calls] == [REVOKE, SHOW_SELF]
    assert alice.get('/profile').location == '/grant_access'


def test_disconnect_shows_a_warning_if_zendesk_does_not_confirm(alice, zendesk):
    zendesk.delete(REVOKE, status=500)
    page = alice.post('/disconnect').text
    assert 'Zendesk did not confirm' in page
    assert 'revoked at Zendesk' not in page
    assert 'Devices &amp; Apps' in page
    assert stored() == {'bob': OTHER}


@pytest.mark.parametrize('user_id', ['carol', None])
def test_disconnect_reports_no_revocation_if_no_tokens_are_stored(alice, zendesk, user_id):
    alice.sign_in(user_id)
    page = alice.post('/disconnect').text
    assert 'No tokens are stored for you' in page
    assert 'revoked at Zendesk' not in page
    assert not zendesk.calls
    assert stored() == {'alice': OLD, 'bob': OTHER}


def test_disconnect_leaves_no_files_if_no_tokens_are_stored(browser):
    browser.get('/')
    browser.post('/disconnect')
    assert list(Path().iterdir()) == []


def test_disconnect_deletes_the_tokens_during_a_slow_refresh(alice, zendesk, monkeypatch):
    monkeypatch.setattr('zendesk_oauth.stores.REFRESH_TIMEOUT', 0.05)
    zendesk.delete(REVOKE, status=401)
    zendesk.post(TOKEN_ENDPOINT, **INVALID_GRANT)
    with backend_code.oauth.refresh_lock('alice'):
        page = alice.post('/disconnect')
    assert 'Zendesk did not confirm' in page.text
    assert stored() == {'bob': OTHER}


def test_disconnect_keeps_the_tokens_if_the_disk_is_full(alice, zendesk, full_disk):
    assert alice.post('/disconnect').status_code == 503
    assert not zendesk.calls
    assert stored() == {'alice': OLD, 'bob': OTHER}


def test_a_get_request_cannot_disconnect(alice):
    assert alice.get('/disconnect').status_code == 405
    assert stored() == {'alice': OLD, 'bob': OTHER}
