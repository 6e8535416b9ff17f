"""
What people run into, one by one: each has its own words, on the page for the visitor and in the log for the developer.

Those that end the app before there is a page are tested in test_settings.py and test_ports.py.
"""

from __future__ import annotations

import dataclasses
import html
import re

import pytest
from conftest import NEW_PAIR, PAIR, REVOKE, SHOW_SELF, TOKEN_ENDPOINT, USER, store
from servers import PROJECT

import app as app_module
import settings as settings_module

README = (PROJECT / 'README.md').read_text(encoding='utf-8')


@pytest.fixture
def numeric_client_id(monkeypatch):
    settings = dataclasses.replace(app_module.settings, client_id='360001234567')
    monkeypatch.setattr(app_module, 'settings', settings)
    monkeypatch.setattr(settings_module, '_current', settings)


@pytest.fixture
def page_and_log(browser, log):
    """Compare what the visitor reads and what the log says with what they should."""

    def check(page, *, reads: list[str], logs: list[str], status: int) -> None:
        assert page.status_code == status
        text = ' '.join(html.unescape(re.sub('<[^>]+>', ' ', page.text)).split())
        for words in reads:
            assert words in text
        for words in logs:
            assert words in ''.join(log)
        # README's table of messages is in step with what people see.
        title = html.unescape(re.search('<h1>(.*)</h1>', page.text)[1])
        if status >= 400 and title not in README:
            pytest.fail(f'README does not explain "{title}"')

    return check


def exchange(browser, zendesk, **answer):
    """Come back from Zendesk with a code, which the token endpoint answers like this."""
    zendesk.post(TOKEN_ENDPOINT, **answer)
    return browser.grant()


def profile(browser, zendesk, **answer):
    """Ask for the profile, which Zendesk answers like this."""
    browser.sign_in('alice')
    store(alice=PAIR)
    zendesk.get(SHOW_SELF, **answer)
    return browser.get('/profile')


INVALID_CLIENT = {'status': 401, 'json': {'error': 'invalid_client'}}
INVALID_GRANT = {'status': 400, 'json': {'error': 'invalid_grant'}}
NO_HELP_DESK = {'status': 404, 'body': '<html>There is no help desk configured at this address.'}
ANONYMOUS = {'json': {'user': {'id': None, 'name': 'Anonymous user', 'role': 'end-user'}}}


# --- The OAuth client --- #


def test_a_numeric_client_id_that_the_token_endpoint_refuses(browser, zendesk, numeric_client_id, page_and_log):
    page_and_log(
        exchange(browser, zendesk, **INVALID_CLIENT),
        status=502,
        reads=["The app's client id is a number", 'ZENDESK_CLIENT_ID', 'Identifier', 'my_oauth_app'],
        logs=['invalid_client', 'Set ZENDESK_CLIENT_ID to the Identifier'],
    )


def test_a_numeric_client_id_that_zendesk_accepts_is_no_trouble(browser, zendesk, numeric_client_id):
    assert exchange(browser, zendesk, json=NEW_PAIR).location == '/'


def test_a_numeric_client_id_does_not_hide_another_cause(browser, zendesk, numeric_client_id, page_and_log):
    page_and_log(
        exchange(browser, zendesk, status=400, json={'error': 'invalid_scope'}),
        status=502,
        reads=['The app is not allowed the permission it asks for', 'Then start the app again'],
        logs=['invalid_scope'],
    )


def test_a_numeric_client_id_is_told_before_zendesk_refuses_it(browser, numeric_client_id, page_and_log):
    page_and_log(
        browser.get('/grant_access'),
        status=200,
        reads=['The app’s client id is a number', '“No such client”', 'ZENDESK_CLIENT_ID'],
        logs=[],
    )
    assert 'Did Zendesk show an error?' not in browser.get('/grant_access').text


def test_a_numeric_client_id_is_logged_at_the_start(log):
    environ = {
        'ZENDESK_CLIENT_ID': '360001234567',
        'ZENDESK_CLIENT_SECRET': 'canary',
        'ZENDESK_SUBDOMAIN': 'mondocam',
        'REDIRECT_URI': 'http://localhost:3000/zendesk/oauth/callback',
        'SECRET_KEY': 'x' * 32,
    }
    settings_module.read_settings(environ, practice_allowed=True)
    assert 'ZENDESK_CLIENT_ID is a number' in ''.join(log)
    assert 'Identifier' in ''.join(log)
    log.clear()
    settings_module.read_settings({**environ, 'ZENDESK_CLIENT_ID': 'client2'})
    assert log == []


@pytest.mark.parametrize('at', ['exchange', 'refresh'])
def test_a_wrong_client_secret(browser, zendesk, page_and_log, at):
    if at == 'exchange':
        page = exchange(browser, zendesk, **INVALID_CLIENT)
    else:
        zendesk.post(TOKEN_ENDPOINT, **INVALID_CLIENT)
        page = profile(browser, zendesk, status=401)
    page_and_log(
        page,
        status=502,
        reads=["Zendesk does not accept the app's client secret", 'Check ZENDESK_CLIENT_SECRET', 'ZENDESK_CLIENT_ID'],
        logs=['invalid_client', 'Check ZENDESK_CLIENT_SECRET'],
    )


@pytest.mark.parametrize(
    ('at', 'error'),
    [
        ('authorization', 'unauthorized_client'),
        ('authorization', 'invalid_request'),
        ('authorization', 'unsupported_response_type'),
        ('exchange', 'unauthorized_client'),
        ('exchange', 'invalid_request'),
        ('exchange', 'unsupported_grant_type'),
    ],
)
def test_a_client_of_another_kind(browser, zendesk, page_and_log, at, error):
    if at == 'authorization':
        page = browser.come_back(error=error, state=browser.start()['state'])
    else:
        page = exchange(browser, zendesk, status=400, json={'error': error})
    page_and_log(
        page,
        status=502,
        reads=['The OAuth client does not fit this app', 'Confidential', 'Redirect URLs'],
        logs=[error, 'kind of the OAuth client is Confidential'],
    )


# --- The address --- #


@pytest.mark.parametrize('at', [exchange, profile])
def test_a_wrong_subdomain_or_that_of_a_brand(browser, zendesk, page_and_log, at):
    page_and_log(
        at(browser, zendesk, **NO_HELP_DESK),
        status=502,
        reads=['There is no Zendesk at this address', 'Check ZENDESK_SUBDOMAIN', "not of a brand's"],
        logs=['no help desk', 'Check ZENDESK_SUBDOMAIN'],
    )


@pytest.mark.parametrize('at', [exchange, profile])
def test_a_subdomain_that_leads_elsewhere(browser, zendesk, page_and_log, at):
    page_and_log(
        at(browser, zendesk, status=302, headers={'Location': 'https://elsewhere.example/'}),
        status=502,
        reads=['Zendesk is at another address', 'Check ZENDESK_SUBDOMAIN', 'a former one', 'an alias'],
        logs=['a redirect', 'Check ZENDESK_SUBDOMAIN'],
    )


def test_an_error_that_zendesk_shows_itself(browser, page_and_log, log):
    """With a client, a redirect URI or a subdomain that it does not know, Zendesk sends nobody back to the app."""
    browser.start()
    page_and_log(
        browser.get('/grant_access'),
        status=200,
        reads=[
            'Did Zendesk show an error?',
            '“Invalid Authorization Request: No such client” ZENDESK_CLIENT_ID',
            '“Invalid Authorization Request: invalid_request” REDIRECT_URI',
            'http://localhost:3000/zendesk/oauth/callback must be among',
            '“No help desk”',
            'ZENDESK_SUBDOMAIN',
            'https://mondocam.zendesk.com',
        ],
        logs=['has not come back', 'ZENDESK_CLIENT_ID', 'REDIRECT_URI', 'ZENDESK_SUBDOMAIN'],
    )


def test_a_visitor_who_was_not_there_yet_reads_nothing_of_errors(browser, zendesk, log):
    assert 'show an error' not in browser.get('/grant_access').text
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    browser.grant()
    assert 'show an error' not in browser.get('/grant_access').text
    assert 'has not come back' not in ''.join(log)


# --- The answer --- #


def test_a_code_that_is_too_old_or_a_redirect_uri_that_differs(browser, zendesk, page_and_log):
    page_and_log(
        exchange(browser, zendesk, **INVALID_GRANT),
        status=400,
        reads=['That took too long, or was used before', 'two minutes', 'REDIRECT_URI', 'Start again'],
        logs=['invalid_grant', 'older than 120 seconds', 'REDIRECT_URI is not, to the letter'],
    )


def test_a_request_that_is_too_old(browser, zendesk, clock, page_and_log):
    state = browser.start()['state']
    clock.advance(601)
    page_and_log(
        browser.come_back(code='the-code', state=state),
        status=400,
        reads=['That took too long', 'ten minutes', 'Start again'],
        logs=['too old', 'can start again'],
    )


def test_a_state_lost_between_localhost_and_127_0_0_1(app, browser, zendesk, page_and_log):
    state = browser.start()['state']
    page_and_log(
        app.test_client().come_back(code='the-code', state=state),
        status=400,
        reads=['This browser is not the one that asked', 'start at http://localhost:3000', 'in the same browser'],
        logs=['localhost and 127.0.0.1 are two hosts', 'Start at http://localhost:3000'],
    )


def test_an_answer_that_was_used_before(browser, zendesk, page_and_log):
    browser.get('/')
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    state = browser.start()['state']
    browser.come_back(code='the-code', state=state)
    page_and_log(
        browser.come_back(code='the-code', state=state),
        status=400,
        reads=['This answer cannot be used', 'If you have granted access already, all is well'],
        logs=['opened twice'],
    )


def test_a_denial(browser, page_and_log):
    page_and_log(
        browser.come_back(error='access_denied', state=browser.start()['state']),
        status=403,
        reads=['Access was not granted', 'Try again'],
        logs=['did not grant access'],
    )


def test_a_refresh_token_that_is_spent_does_not_blame_the_redirect_uri(browser, zendesk, log):
    zendesk.post(TOKEN_ENDPOINT, **INVALID_GRANT)
    assert profile(browser, zendesk, status=401).location == '/grant_access'
    assert 'the refresh token is spent, expired or revoked' in ''.join(log)
    assert 'REDIRECT_URI' not in ''.join(log)


# --- Scopes and users --- #


def test_a_missing_scope_or_a_user_who_was_demoted(browser, zendesk, page_and_log):
    page_and_log(
        profile(browser, zendesk, status=403, json={'error': 'Forbidden'}),
        status=403,
        reads=['A permission is missing', 'users:read', 'demoted'],
        logs=['403', 'users:read', "the user's role"],
    )


def test_a_scope_that_zendesk_has_narrowed_is_logged_at_once(browser, zendesk, log):
    assert exchange(browser, zendesk, json={**NEW_PAIR, 'scope': 'tickets:read'}).location == '/'
    assert 'another scope than users:read' in ''.join(log)
    assert 'check the scopes allowed to the OAuth client' in ''.join(log)


@pytest.mark.parametrize('at', ['authorization', 'exchange'])
def test_a_scope_that_is_not_allowed_to_the_client(browser, zendesk, page_and_log, at):
    if at == 'authorization':
        page = browser.come_back(error='invalid_scope', state=browser.start()['state'])
    else:
        page = exchange(browser, zendesk, status=400, json={'error': 'invalid_scope'})
    page_and_log(
        page,
        status=502,
        reads=['The app is not allowed the permission it asks for', 'allow the scope users:read'],
        logs=['invalid_scope', 'allow the scope users:read'],
    )


def test_an_anonymous_answer(browser, zendesk, page_and_log):
    page_and_log(
        profile(browser, zendesk, **ANONYMOUS),
        status=502,
        reads=['Zendesk does not recognise you', 'anonymous', 'takes the access token away'],
        logs=['anonymous user', 'Authorization header'],
    )


def test_a_client_without_refresh_tokens(browser, zendesk, log):
    zendesk.post(TOKEN_ENDPOINT, json={'access_token': 'the-only-token', 'token_type': 'bearer'})
    browser.grant()
    zendesk.get(SHOW_SELF, status=401)
    assert browser.get('/profile').location == '/grant_access'
    assert 'There is no refresh token: the OAuth client issues none' in ''.join(log)


def test_a_revocation_that_does_nothing(browser, zendesk, page_and_log):
    page = profile(browser, zendesk, json=USER)
    zendesk.delete(REVOKE, status=204)
    form = {'csrf_token': re.search('name="csrf_token" value="(.+)"', page.text)[1]}
    page_and_log(
        browser.post('/disconnect', data=form, follow_redirects=True),
        status=200,
        reads=['Zendesk did not confirm', 'Devices & Apps'],
        logs=['says that it has revoked the tokens, but the access token still works'],
    )


# --- README --- #


def test_readme_is_ordered_by_the_message_on_the_page():
    table = README.split('**On a page of the app**')[1].split('\n## ')[0]
    messages = re.findall(r'^\| ([A-Z][^|]+) \|', table, re.MULTILINE)
    assert len(messages) > 20
    assert messages == sorted(messages, key=str.lower)


def test_readme_tells_of_what_ends_the_app_at_the_start_and_of_what_zendesk_shows():
    for message in (
        'is taken by another program',
        'These settings are missing or malformed',
        'ZENDESK_CLIENT_ID is a number',
        'is more than a subdomain',
        'No such client',
        'Invalid Authorization Request',
        'help desk',
    ):
        if message not in README:
            pytest.fail(f'README does not explain "{message}"')
