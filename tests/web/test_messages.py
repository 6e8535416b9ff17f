"""The message of each failure on its page and in the log."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from helpers import INVALID_GRANT, NEW_TOKENS, OLD, REVOKE, SHOW_SELF, TOKEN_ENDPOINT, stored

import backend_code
from zendesk_oauth.errors import StoreError


def exchange(**response):
    """Return a function that comes back from Zendesk with a code, to which the token endpoint responds like this."""

    def visit(browser, zendesk, clock):
        zendesk.post(TOKEN_ENDPOINT, **response)
        return browser.grant()

    return visit


def authorization(**query):
    """Return a function that comes back from Zendesk with this query."""
    return lambda browser, zendesk, clock: browser.come_back(state=browser.start()['state'], **query)


def profile(**response):
    """Return a function that opens the profile, to which Zendesk responds like this."""

    def visit(browser, zendesk, clock):
        zendesk.get(SHOW_SELF, **response)
        return browser.get('/profile')

    return visit


def refresh(**response):
    def visit(browser, zendesk, clock):
        zendesk.get(SHOW_SELF, status=401)
        zendesk.post(TOKEN_ENDPOINT, **response)
        return browser.get('/profile')

    return visit


def without_cookies(browser, zendesk, clock):
    state = browser.start()['state']
    return browser.application.test_client().come_back(code='the-code', state=state)


def twice(browser, zendesk, clock):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    zendesk.delete(REVOKE, status=204)
    state = browser.start()['state']
    browser.come_back(code='the-code', state=state)
    return browser.come_back(code='the-code', state=state)


def too_late(browser, zendesk, clock):
    state = browser.start()['state']
    clock.advance(601)
    return browser.come_back(code='the-code', state=state)


INVALID_CLIENT = {'status': 401, 'json': {'error': 'invalid_client'}}
INVALID_SCOPE = {'status': 400, 'json': {'error': 'invalid_scope'}}
NO_HELP_DESK = {'status': 404, 'body': '<html>There is no help desk configured at this address.'}
ELSEWHERE = {'status': 302, 'headers': {'Location': 'https://elsewhere.example/'}}
ANONYMOUS = {'json': {'user': {'id': None, 'name': 'Anonymous user', 'role': 'end-user'}}}
SECRET = ('Zendesk rejected the client ID or the client secret', ['client ID', 'client secret'])
NOT_ALLOWED = ('The OAuth client does not allow this scope', ['add the scope users:read'])
NO_ZENDESK = ('There is no Zendesk account at this address', ['Check the subdomain', 'not of a brand'])
PAGE = '<html><h1>Blocked</h1></html>'
BLOCKED = (
    'The request to Zendesk was blocked',
    ['responded with 403. Contact the operator of the app. Home'],
)
MOVED = ('Zendesk redirects to another address', ['Check the subdomain', 'a former one', 'an alias'])


@pytest.mark.parametrize(
    ('visit', 'status', 'title', 'reads', 'logs'),
    [
        (exchange(**INVALID_CLIENT), 502, *SECRET, ['invalid_client', 'client secret']),
        (refresh(**INVALID_CLIENT), 502, *SECRET, ['invalid_client']),
        (exchange(**INVALID_SCOPE), 502, *NOT_ALLOWED, ['invalid_scope', 'add the scope users:read']),
        (authorization(error='invalid_scope'), 502, *NOT_ALLOWED, ['invalid_scope']),
        (
            authorization(error='unauthorized_client'),
            502,
            'The OAuth client is not set up for this app',
            ['Confidential', 'redirect URLs', 'restart it'],
            ['unauthorized_client'],
        ),
        (exchange(**NO_HELP_DESK), 502, *NO_ZENDESK, ['404', 'Check the subdomain']),
        (profile(**NO_HELP_DESK), 502, *NO_ZENDESK, ['404']),
        (exchange(**ELSEWHERE), 502, *MOVED, ['redirect']),
        (profile(**ELSEWHERE), 502, *MOVED, ['redirect']),
        (
            exchange(**INVALID_GRANT),
            400,
            'Zendesk rejected the authorization code',
            ['two minutes', 'redirect URI', 'Start again'],
            ['invalid_grant', 'older than 120 seconds', 'does not match one of'],
        ),
        (too_late, 400, 'That took too long', ['ten minutes', 'Start again'], ['expired', 'can start again']),
        (
            without_cookies,
            400,
            'This browser did not start the request',
            ['Start again at http://localhost:3000', 'in the same browser'],
            ['localhost and 127.0.0.1 have separate cookies', 'Start again at http://localhost:3000'],
        ),
        (twice, 400, 'This link cannot be used', ['already used', 'already granted access'], ['opened twice']),
        (authorization(error='access_denied'), 403, 'Access was not granted', ['Start again'], ['clicked Deny']),
        (
            profile(
                status=403, json={'error': 'Forbidden', 'description': 'Missing the following required scopes: read'}
            ),
            403,
            'A permission is missing',
            ['a permission that the app needs', 'Start again'],
            ['403', 'Add the scope users:read'],
        ),
        (
            profile(status=403, json={'error': {'title': 'Forbidden'}}),
            403,
            'Zendesk does not allow this request',
            ['role', 'Ask an administrator of your Zendesk account. Home'],
            ['not because of a scope', 'role', 'IP addresses'],
        ),
        (
            exchange(status=403, json={'error': 'Forbidden'}),
            403,
            'Zendesk does not allow this request',
            ['block the IP address'],
            ['IP addresses'],
        ),
        (profile(status=403, body=PAGE), 502, *BLOCKED, ['firewall', 'network']),
        (exchange(status=403, body=PAGE), 502, *BLOCKED, ['firewall', 'network']),
        (
            profile(status=402, body=PAGE),
            502,
            'Zendesk rejected the request',
            ['responded with 402', 'may be suspended', 'contact the operator of the app. Home'],
            ['402', 'account is active'],
        ),
        (
            refresh(status=402, body=PAGE),
            502,
            'Zendesk rejected the request',
            [
                'responded with 402',
                'contact the operator of the app. You can also grant access again . Home',
            ],
            ['402', 'account is active'],
        ),
        (
            profile(**ANONYMOUS),
            502,
            'Zendesk ignored the access token',
            ['may be removing the Authorization header'],
            ['anonymous user', 'Authorization header'],
        ),
    ],
)
def test_each_failure_has_its_own_message(alice, zendesk, clock, log, visit, status, title, reads, logs):
    page = visit(alice, zendesk, clock)
    assert page.status_code == status
    text = ' '.join(html.unescape(re.sub('<[^>]+>', ' ', page.text)).split())
    for words in (title, *reads):
        assert words in text
    for words in logs:
        assert words in ''.join(log)


@pytest.mark.parametrize('response', [INVALID_GRANT, {'json': {'access_token': 'x'}}])
def test_an_invalid_refresh_token_does_not_blame_the_redirect_uri(alice, zendesk, log, response):
    refresh(**response)(alice, zendesk, None)
    assert 'redirect URI' not in ''.join(log)


def test_a_narrower_scope_is_logged(alice, zendesk, clock, log):
    zendesk.delete(REVOKE, status=204)
    assert exchange(json={**NEW_TOKENS, 'scope': 'tickets:read'})(alice, zendesk, clock).location == '/'
    assert 'a scope other than users:read: check the scopes of the OAuth client' in ''.join(log)


def test_a_revocation_that_does_nothing_is_logged(alice, zendesk, log):
    zendesk.delete(REVOKE, status=204)
    zendesk.get(SHOW_SELF, status=200)
    assert 'Zendesk did not confirm' in alice.post('/disconnect').text
    assert 'still responds with 200 instead of 401' in ''.join(log)


REFUSED = {'status': 400, 'json': {'error': 'invalid_request'}}


@pytest.mark.parametrize(
    ('response', 'status', 'try_again'),
    [
        (INVALID_CLIENT, 502, False),
        (INVALID_SCOPE, 502, False),
        (REFUSED, 502, False),
        (NO_HELP_DESK, 502, False),
        (ELSEWHERE, 502, False),
        ({'status': 402}, 502, False),
        ({'status': 403, 'body': PAGE}, 502, False),
        ({'status': 500}, 502, True),
        ({'status': 503}, 503, True),
        ({'status': 429}, 503, True),
        ({'json': []}, 502, True),
        ({'body': TimeoutError()}, 504, True),
        ({'body': ConnectionError()}, 502, True),
    ],
)
def test_an_error_page_after_a_failed_refresh_offers_to_grant_access_again(alice, zendesk, response, status, try_again):
    page = refresh(**response)(alice, zendesk, None)
    assert page.status_code == status
    assert 'You can also <a href="/grant_access">grant access again</a>.' in page.text
    assert ('href="/profile">Try again' in page.text) == try_again
    assert stored()['alice'] == OLD


def test_an_error_page_of_disconnect_does_not_offer_to_grant_access_again(alice):
    Path('users.json.d').mkdir()
    Path('users.json.d/locks').touch()
    page = alice.post('/disconnect')
    assert (page.status_code, 'grant access again' in page.text) == (503, False)


def test_an_error_page_of_the_profile_request_does_not_offer_to_grant_access_again(alice, zendesk):
    assert 'grant_access' not in profile(status=500)(alice, zendesk, None).text


@pytest.mark.parametrize('method', ['refresh_lock', 'check_writable', 'replace'])
def test_a_store_error_during_a_refresh_offers_to_grant_access_again(alice, zendesk, monkeypatch, method):
    def fail(*args, **kwargs):
        raise StoreError('The disk is full')

    monkeypatch.setattr(backend_code.store, method, fail)
    zendesk.delete(REVOKE, status=204)
    page = refresh(json=NEW_TOKENS)(alice, zendesk, None)
    assert page.status_code == 503
    assert page.text.count('href="/grant_access"') == 1
