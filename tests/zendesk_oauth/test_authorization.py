"""Authorization requests: bound to one browser, valid for ten minutes, used once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import ZENDESK
from werkzeug.datastructures import MultiDict

from zendesk_oauth import AuthorizationRequest, ZendeskOAuth
from zendesk_oauth.authorization import COOKIE_LIFETIME, LIFETIME, code_challenge
from zendesk_oauth.errors import (
    AccessDenied,
    AuthorizationError,
    AuthorizationExpired,
    SetupError,
    StateCookieMissing,
    StoreError,
)


@pytest.fixture
def pending(oauth) -> AuthorizationRequest:
    """Start an authorization request in this browser."""
    return oauth.authorization_request(None)


def cookies(*requests: AuthorizationRequest) -> dict[str, str]:
    """Return the cookies of a browser that has started these requests."""
    return {request.cookie_name: request.cookie_value for request in requests}


def complete(oauth: ZendeskOAuth, request: AuthorizationRequest) -> str:
    """Complete the request in the same browser and return its code verifier."""
    return oauth.consume_state({'state': request.state}, cookies(request))


def client(oauth: ZendeskOAuth, **changes: str) -> ZendeskOAuth:
    """Return a client with the same store and other settings."""
    settings = {
        'zendesk_url': ZENDESK,
        'client_id': 'test_client',
        'client_secret': 'canary-client-secret',
        'redirect_uri': 'http://localhost:3000/zendesk/oauth/callback',
        'scope': 'users:read',
        **changes,
    }
    return ZendeskOAuth(**settings, store=oauth.store)


# --- The request --- #


def test_the_challenge_matches_the_example_in_rfc_7636_appendix_b():
    verifier = 'dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk'
    assert code_challenge(verifier) == 'E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM'


def test_the_verifier_matches_the_challenge_of_its_request(oauth, pending):
    verifier = complete(oauth, pending)
    assert len(verifier) == 43
    assert code_challenge(verifier) == pending.code_challenge


def test_the_verifier_depends_on_the_client_secret(oauth, pending):
    other = client(oauth, client_secret='another')._authorization
    assert other.code_verifier(pending.state) != complete(oauth, pending)


def test_a_request_has_256_random_bits_and_its_own_cookie(oauth):
    requests = [oauth.authorization_request(None) for _ in range(100)]
    assert {len(request.state) for request in requests} == {43}
    for attribute in ('state', 'code_challenge', 'cookie_name', 'cookie_value'):
        assert len({getattr(request, attribute) for request in requests}) == 100


def test_the_cookie_reveals_no_state_verifier_or_challenge(oauth, pending):
    for secret in (pending.state, pending.code_challenge, complete(oauth, pending)):
        assert secret not in str(cookies(pending))


def test_the_repr_and_the_log_reveal_no_secrets(oauth, package_log):
    pending = oauth.authorization_request(None)
    verifier = complete(oauth, pending)
    shown = repr(pending) + ''.join(record.getMessage() for record in package_log)
    assert len(package_log) == 2
    for secret in (pending.state, pending.code_challenge, pending.cookie_value, verifier):
        assert secret not in shown


@pytest.mark.parametrize(
    ('redirect_uri', 'prefix', 'secure'),
    [
        ('http://localhost:3000/callback', 'zendesk_oauth_3000_request_', False),
        ('http://localhost/callback', 'zendesk_oauth_request_', False),
        ('https://app.example.com:8443/callback', '__Host-zendesk_oauth_8443_request_', True),
        ('https://app.example.com/callback', '__Host-zendesk_oauth_request_', True),
    ],
)
def test_the_cookie_is_secure_if_the_redirect_uri_is_https(oauth, redirect_uri, prefix, secure):
    oauth = client(oauth, redirect_uri=redirect_uri)
    pending = oauth.authorization_request(None)
    assert pending.cookie_prefix == prefix
    assert pending.cookie_name.startswith(prefix)
    assert pending.cookie_options == {
        'max_age': 3600,
        'path': '/',
        'secure': secure,
        'httponly': True,
        'samesite': 'Lax',
    }
    assert COOKIE_LIFETIME > LIFETIME
    assert complete(oauth, pending)


def test_the_newest_cookie_name_sorts_last(oauth, clock):
    names = []
    for _ in range(20):
        names.append(oauth.authorization_request(None).cookie_name)
        clock.advance(1)
    assert sorted(names) == names


# --- The state --- #

STATES = {
    'missing': [],
    'empty': [''],
    'unknown': ['A' * 43],
    'not ASCII': ['ä🦄'],
    'control characters': ['\ufffd\x00'],
    'trailing line break': ['{state}\n'],
    'extra character': ['{state}x'],
    'twice': ['{state}', '{state}'],
    'followed by another': ['{state}', 'other'],
    'huge': ['x' * 100_000],
}


@pytest.mark.parametrize('values', STATES.values(), ids=STATES)
def test_a_malformed_state_is_refused_and_the_request_stays_valid(oauth, pending, values):
    query = MultiDict([('code', 'c'), *(('state', value.format(state=pending.state)) for value in values)])
    with pytest.raises(AuthorizationError) as raised:
        oauth.consume_state(query, cookies(pending))
    assert raised.value.status == 400
    assert raised.value.reauthorize
    assert pending.state not in str(raised.value)
    assert complete(oauth, pending)


@pytest.mark.parametrize('query', [{}, {'state': ''}])
def test_a_plain_dict_without_a_state_is_refused(oauth, pending, query):
    with pytest.raises(AuthorizationError, match='The parameter state is missing'):
        oauth.consume_state(query, cookies(pending))


def test_the_missing_cookie_error_names_the_start_address(oauth, pending):
    with pytest.raises(StateCookieMissing) as raised:
        oauth.consume_state({'state': pending.state}, {'session': 'x'})
    assert raised.value.status == 400
    assert 'Start again at http://localhost:3000' in raised.value.advice


def test_the_state_of_another_browser_is_refused(oauth, pending):
    with pytest.raises(AuthorizationError, match='another browser') as raised:
        oauth.consume_state({'state': pending.state}, cookies(oauth.authorization_request(None)))
    assert not isinstance(raised.value, StateCookieMissing)


def test_a_state_works_only_once_if_its_cookie_remains(oauth, pending, clock):
    complete(oauth, pending)
    for seconds in (0, 599):
        clock.advance(seconds)
        with pytest.raises(AuthorizationError, match='already used'):
            complete(oauth, pending)


def test_one_of_ten_concurrent_callbacks_succeeds(oauth, pending):
    def callback(_):
        try:
            return complete(oauth, pending)
        except AuthorizationError:
            return None

    with ThreadPoolExecutor(10) as pool:
        outcomes = list(pool.map(callback, range(10)))
    assert sorted(outcome is None for outcome in outcomes) == [False] + [True] * 9


def test_a_state_stays_valid_if_marking_it_as_used_fails(oauth, pending):
    folder = Path(f'{oauth.store}.d')
    folder.touch()
    with pytest.raises(StoreError):
        complete(oauth, pending)
    folder.unlink()
    assert complete(oauth, pending)


def test_two_tabs_can_finish_in_reverse_order(oauth):
    first, second = (oauth.authorization_request(None) for _ in range(2))
    for request in (second, first):
        assert oauth.consume_state({'state': request.state}, cookies(first, second))


@pytest.mark.parametrize(
    ('seconds', 'valid'), [(-61, False), (-60, True), (0, True), (600, True), (601, False), (3599, False)]
)
def test_a_request_is_valid_for_ten_minutes_despite_clock_skew(oauth, clock, seconds, valid):
    clock.now = 1_800_000_000
    pending = oauth.authorization_request(None)
    clock.advance(seconds)
    if valid:
        assert complete(oauth, pending)
    else:
        with pytest.raises(AuthorizationExpired) as raised:
            complete(oauth, pending)
        assert (raised.value.status, raised.value.title) == (400, 'That took too long')


def test_the_store_never_contains_a_state(oauth, pending):
    complete(oauth, pending)
    [marker] = Path(f'{oauth.store}.d').glob('used-*/*')
    assert pending.state not in marker.name + marker.read_text()


# --- Forged cookies --- #


@pytest.mark.parametrize(
    'tamper',
    [
        lambda value: '',
        lambda value: value[:-1],
        lambda value: value[:20],
        lambda value: ('y' if value[0] == 'x' else 'x') + value[1:],
        lambda value: value + 'x',
        lambda value: 'x' * 8192,
        lambda value: 'ä\ud800',
    ],
)
def test_a_tampered_cookie_is_refused(oauth, pending, tamper):
    with pytest.raises(AuthorizationError):
        oauth.consume_state({'state': pending.state}, {pending.cookie_name: tamper(pending.cookie_value)})


def test_a_cookie_of_an_earlier_version_is_refused(oauth, pending):
    """Its signature was the whole value."""
    started = pending.cookie_name.removeprefix(pending.cookie_prefix).split('_')[0]
    for label in ('cookie', 'request'):
        value = oauth._authorization._mac(f'{label} {started} {pending.state} ')
        with pytest.raises(AuthorizationError):
            oauth.consume_state({'state': pending.state}, {pending.cookie_name: value})


def test_a_request_for_another_account_is_refused(oauth, pending):
    other = client(oauth, zendesk_url='https://globex.zendesk.com')
    with pytest.raises(AuthorizationError, match='has changed since the request'):
        complete(other, pending)


def test_a_cookie_signed_with_another_client_secret_is_refused(oauth):
    other = client(oauth, client_secret='another secret')
    with pytest.raises(AuthorizationError):
        complete(oauth, other.authorization_request(None))


def test_a_cookie_is_refused_for_another_request(oauth):
    first, second = (oauth.authorization_request(None) for _ in range(2))
    for forged in (
        {first.cookie_name: second.cookie_value},
        {second.cookie_name: first.cookie_value},
        cookies(second),
    ):
        with pytest.raises(AuthorizationError):
            oauth.consume_state({'state': first.state}, forged)
    assert complete(oauth, second)


@pytest.mark.parametrize(
    'forge',
    [
        lambda time, hash: '',
        lambda time, hash: 'junk',
        lambda time, hash: f'_{hash}',
        lambda time, hash: f'{int(time) + 1}_{hash}',  # a later start would extend the lifetime
        lambda time, hash: f'-{time}_{hash}',
        lambda time, hash: f'{time}.0_{hash}',
        lambda time, hash: f'{"9" * 5000}_{hash}',
        lambda time, hash: f'{time.translate({ord(str(n)): chr(0x0660 + n) for n in range(10)})}_{hash}',
        lambda time, hash: f'{time}_{hash}x',
        lambda time, hash: f'{time}_{hash[:-1]}',
        lambda time, hash: f'{time}_{"A" * 16}',
    ],
)
def test_a_forged_cookie_name_is_ignored(oauth, pending, forge):
    started, hashed = pending.cookie_name.removeprefix(pending.cookie_prefix).split('_', 1)
    forged = {pending.cookie_prefix + forge(started, hashed): pending.cookie_value}
    with pytest.raises(AuthorizationError):
        oauth.consume_state({'state': pending.state}, forged)
    assert oauth.consume_state({'state': pending.state}, {**forged, **cookies(pending)})


def test_a_cookie_with_another_prefix_is_ignored(oauth, pending):
    https = client(oauth, redirect_uri='https://app.example.com/callback')
    with pytest.raises(StateCookieMissing):
        complete(https, pending)


# --- The authorization response --- #


def test_the_correct_issuer_and_unknown_parameters_are_accepted(oauth):
    for query in ({}, {'iss': ZENDESK, 'session_state': 'x', 'lang': 'en'}):
        assert oauth.authorization_code({'code': 'the-code', **query}) == 'the-code'
        assert oauth.authorization_code(MultiDict({'code': 'the-code', **query})) == 'the-code'


@pytest.mark.parametrize(
    ('error', 'kind', 'status', 'title'),
    [
        ('access_denied', AccessDenied, 403, 'Access was not granted'),
        ('temporarily_unavailable', AuthorizationError, 503, 'Zendesk is temporarily unavailable'),
        ('server_error', AuthorizationError, 502, 'The request to Zendesk failed'),
        ('invalid_scope', SetupError, 502, 'The OAuth client does not allow this scope'),
        ('invalid_request', SetupError, 502, 'The OAuth client is not set up for this app'),
        ('unauthorized_client', SetupError, 502, 'The OAuth client is not set up for this app'),
        ('unsupported_response_type', SetupError, 502, 'The OAuth client is not set up for this app'),
        # Errors of the token endpoint, which Zendesk does not send here.
        ('invalid_client', AuthorizationError, 400, 'Access was not granted'),
        ('unsupported_grant_type', AuthorizationError, 400, 'Access was not granted'),
        # Not OAuth errors.
        ('', AuthorizationError, 400, 'Access was not granted'),
        ('<script>alert("canary")</script>', AuthorizationError, 400, 'Access was not granted'),
        ('canary\r\nSet-Cookie: b=c\x1b[31m{}', AuthorizationError, 400, 'Access was not granted'),
        ('canary' * 100_000, AuthorizationError, 400, 'Access was not granted'),
    ],
)
def test_each_error_has_a_status_and_repeats_no_input(oauth, error, kind, status, title):
    with pytest.raises(kind) as raised:
        oauth.authorization_code({'error': error, 'error_description': 'canary', 'code': 'canary'})
    assert (raised.value.status, raised.value.title) == (status, title)
    assert 'canary' not in str(raised.value) + raised.value.title + raised.value.advice


def test_the_invalid_scope_error_names_the_scope_to_add(oauth):
    with pytest.raises(SetupError, match='In Admin Center, add the scope users:read'):
        oauth.authorization_code({'error': 'invalid_scope'})


@pytest.mark.parametrize('values', [[], [''], ['a', 'b'], ['a\nb'], ['ä'], ['with space'], ['x' * 1025]])
def test_a_malformed_code_is_refused(oauth, values):
    with pytest.raises(AuthorizationError):
        oauth.authorization_code(MultiDict(('code', value) for value in values))


def test_a_code_of_the_maximum_length_is_returned(oauth):
    assert oauth.authorization_code({'code': 'x' * 1024}) == 'x' * 1024


@pytest.mark.parametrize('issuers', [['https://evil.example'], [''], [ZENDESK, 'x'], [f'{ZENDESK}/']])
@pytest.mark.parametrize('response', [('code', 'c'), ('error', 'access_denied'), ('error', 'invalid_scope')])
def test_a_response_from_another_issuer_is_refused(oauth, issuers, response):
    with pytest.raises(AuthorizationError) as raised:
        oauth.authorization_code(MultiDict([response, *(('iss', issuer) for issuer in issuers)]))
    assert raised.value.title == 'This link cannot be used'
