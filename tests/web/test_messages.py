"""The message of each failure on its page and in the log."""

from __future__ import annotations

import html
import re

import pytest
from helpers import INVALID_GRANT, NEW_TOKENS, REVOKE, SHOW_SELF, TOKEN_ENDPOINT


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
            'The authorization code is no longer valid',
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
            profile(status=403, json={'error': 'Forbidden'}),
            403,
            'A permission is missing',
            ['users:read', 'downgraded', 'Start again'],
            ['403', 'users:read', 'role'],
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
