"""Requests to Zendesk: the form sent, the result of each response, the log records."""

from __future__ import annotations

import json
import logging
import re
from urllib.parse import parse_qs

import pytest
import requests
import urllib3
from helpers import INVALID_GRANT, NEW, NEW_TOKENS, REVOKE, SHOW_SELF, TOKEN_ENDPOINT, USER, bearer, form

from zendesk_oauth import Response, fingerprints, user_from
from zendesk_oauth.endpoints import fingerprint
from zendesk_oauth.errors import (
    SETUP_ERRORS,
    AnonymousUser,
    InsufficientScope,
    InvalidGrant,
    NewTokenRejected,
    RateLimited,
    ResponseError,
    SetupError,
    ZendeskError,
    ZendeskTimeout,
    ZendeskUnavailable,
)

CODE_FORM = {
    'grant_type': 'authorization_code',
    'client_id': 'test_client',
    'client_secret': 'canary-client-secret',
    'redirect_uri': 'http://localhost:3000/zendesk/oauth/callback',
    'code': 'canary-code',
    'scope': 'users:read',
    'expires_in': 360,
    'code_verifier': 'canary-verifier',
}
REFRESH_FORM = {
    'grant_type': 'refresh_token',
    'client_id': 'test_client',
    'client_secret': 'canary-client-secret',
    'refresh_token': 'canary-old-refresh',
    'scope': 'users:read',
}

MIB = 2**20


def show_self(oauth, access_token: str) -> Response:
    return oauth.api_request('GET', '/api/v2/users/me', headers={'Authorization': f'Bearer {access_token}'})


def without_ellipses(data: dict) -> dict:
    return {name: value for name, value in data.items() if value is not ...}


REQUESTS = {
    'exchange the code': (lambda oauth: oauth.request_tokens(CODE_FORM), 'POST', TOKEN_ENDPOINT),
    'refresh': (lambda oauth: oauth.request_tokens(REFRESH_FORM), 'POST', TOKEN_ENDPOINT),
    'show self': (lambda oauth: user_from(show_self(oauth, 'canary-access')), 'GET', SHOW_SELF),
}


@pytest.fixture(params=REQUESTS)
def send(request, oauth, zendesk):
    """Return a function that registers a response and sends one of the three requests."""
    make, method, url = REQUESTS[request.param]

    def send(callback=None, **response):
        if callback:
            zendesk.add_callback(method, url, callback)
        else:
            zendesk.add(method, url, **response)
        return make(oauth)

    return send


# --- All requests --- #


@pytest.mark.parametrize(
    ('response', 'error', 'status', 'remedy'),
    [
        ({'status': 500, 'body': '<html>'}, ZendeskError, 502, 'Try again later'),
        ({'status': 502, 'body': '<html>'}, ZendeskError, 502, 'Try again later'),
        ({'status': 408, 'body': '<html>'}, ZendeskError, 502, 'Try again later'),
        ({'status': 503, 'body': '<html>'}, ZendeskUnavailable, 503, 'unavailable'),
        ({'status': 429, 'body': 'Number of allowed API requests exceeded'}, RateLimited, 503, 'too many requests'),
        ({'status': 404, 'body': '<html>No help desk here'}, SetupError, 502, 'the subdomain'),
        ({'status': 301, 'headers': {'Location': 'https://evil.example/'}}, SetupError, 502, 'the subdomain'),
        ({'status': 302, 'headers': {'Location': 'http://['}}, SetupError, 502, 'redirect'),
        ({'status': 302, 'headers': {'Location': '\xff\xfe'}}, SetupError, 502, 'redirect'),
        ({'status': 418}, ZendeskError, 502, '418. Check that the account is active'),
        ({'status': 403, 'body': '<html>'}, ZendeskError, 502, '403 and a body that is not JSON: a firewall'),
        ({'status': 401, 'body': '<html>'}, ZendeskError, 502, '401 and a body that is not JSON: a firewall'),
        ({'status': 200, 'body': ''}, ZendeskError, 502, 'without|has no valid'),
        ({'status': 200, 'body': '<html>'}, ZendeskError, 502, 'without|has no valid'),
        ({'status': 200, 'body': 'null'}, ZendeskError, 502, 'without|has no valid'),
        ({'status': 200, 'body': '[]'}, ZendeskError, 502, 'without|has no valid'),
        ({'status': 200, 'body': '{"access_token": "a'}, ZendeskError, 502, 'without|has no valid'),
        ({'status': 200, 'body': b'\xff\xfe\x00'}, ZendeskError, 502, 'without|has no valid'),
        ({'status': 200, 'body': '[' * 200_000}, ZendeskError, 502, 'without|has no valid'),
        ({'status': 200, 'body': '{"a":' * 900 + '1' + '}' * 900}, ZendeskError, 502, 'without|has no valid'),
        ({'body': requests.ConnectTimeout()}, ZendeskTimeout, 504, 'ConnectTimeout'),
        ({'body': requests.ReadTimeout()}, ZendeskTimeout, 504, 'ReadTimeout'),
        ({'body': requests.ConnectionError('refused')}, ZendeskError, 502, 'network'),
        ({'body': requests.exceptions.SSLError('canary')}, ZendeskError, 502, 'SSLError.*CA certificate'),
        ({'body': requests.exceptions.ProxyError('canary')}, ZendeskError, 502, 'ProxyError.*HTTPS_PROXY'),
        (
            {'body': requests.exceptions.ProxyError(OSError('Tunnel connection failed: 407 canary'))},
            ZendeskError,
            502,
            r'\(Tunnel connection failed: 407\): check HTTPS_PROXY',
        ),
        ({'body': requests.exceptions.ChunkedEncodingError()}, ZendeskError, 502, 'network'),
        ({'body': urllib3.exceptions.ProtocolError('x')}, ZendeskError, 502, 'network'),
        ({'body': ValueError('invalid chunk size')}, ZendeskError, 502, 'network'),
    ],
)
def test_each_failure_raises_one_error_with_its_remedy(send, zendesk, response, error, status, remedy):
    with pytest.raises(ZendeskError, match=remedy) as raised:
        send(**response)
    assert (type(raised.value), raised.value.status) == (error, status)
    assert 'canary' not in str(raised.value)
    assert len(zendesk.calls) == 1


@pytest.mark.parametrize('status', [200, 302])
def test_token_responses_are_limited_to_1_mib(oauth, zendesk, status):
    zendesk.post(TOKEN_ENDPOINT, status=status, body=b'x' * (MIB + 1))
    with pytest.raises(ZendeskError, match='larger than 1048576 bytes'):
        oauth.request_tokens(REFRESH_FORM)
    zendesk.replace('POST', TOKEN_ENDPOINT, body=json.dumps(NEW_TOKENS).ljust(MIB))
    assert oauth.request_tokens(REFRESH_FORM)['access_token'] == 'new-access'


def test_api_responses_are_limited_to_32_mib(oauth, zendesk):
    zendesk.get(SHOW_SELF, body=b'x' * 32 * MIB)
    assert len(show_self(oauth, 'canary-access').content) == 32 * MIB
    zendesk.replace('GET', SHOW_SELF, body=b'x' * (32 * MIB + 1))
    with pytest.raises(ZendeskError, match='larger than 33554432 bytes'):
        show_self(oauth, 'canary-access')


@pytest.mark.parametrize('status', [429, 503])
@pytest.mark.parametrize(
    ('header', 'seconds'),
    [
        ('7', 7),
        ('0', 1),
        ('99999', 300),
        ('-5', 30),
        ('', 30),
        (None, 30),
        ('soon', 30),
        ('1' * 5000, 30),
        ('Wed, 21 Oct 2026 07:28:00 GMT', 30),
        ('٣', 30),
    ],
)
def test_retry_after_is_between_one_second_and_five_minutes(send, status, header, seconds):
    with pytest.raises(ZendeskUnavailable) as raised:
        send(status=status, headers={'Retry-After': header} if header is not None else {})
    assert raised.value.retry_after == seconds
    unit = 'second' if seconds == 1 else 'seconds'
    assert raised.value.advice == f'Wait {seconds} {unit}, then try again.'


def test_errors_repeat_no_text_from_zendesk(send):
    with pytest.raises(ZendeskError) as raised:
        send(status=400, json={'error': 'invalid_client', 'error_description': 'canary\nline'})
    assert 'canary' not in str(raised.value) + raised.value.title + raised.value.advice


# --- The token endpoint --- #


@pytest.mark.parametrize('fields', [CODE_FORM, REFRESH_FORM])
@pytest.mark.parametrize('status', [200, 201])
def test_request_tokens_sends_the_form_unchanged_and_returns_the_tokens(oauth, zendesk, clock, fields, status):
    clock.now = 1_800_000_000
    exactly = form(**{name: str(value) for name, value in fields.items()})
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS, status=status, match=[exactly])
    assert oauth.request_tokens(fields) == {
        **NEW,
        'access_token_expires_at': 1_800_000_360,
        'refresh_token_expires_at': 1_800_604_800,
        'scope': 'users:read',
    }


@pytest.mark.parametrize(
    ('lifetime', 'expires_at'),
    [
        (1, 1_800_000_001),
        (10**9 - 1, 2_799_999_999),
        (10**9, None),
        (0, None),
        (-5, None),
        (604800.0, None),
        (True, None),
        ('604800', None),
        (None, None),
        ([], None),
    ],
)
def test_the_expiry_is_unknown_if_the_lifetime_is_malformed(oauth, zendesk, clock, lifetime, expires_at):
    clock.now = 1_800_000_000
    zendesk.post(TOKEN_ENDPOINT, json={**NEW_TOKENS, 'refresh_token_expires_in': lifetime})
    assert oauth.request_tokens(REFRESH_FORM)['refresh_token_expires_at'] == expires_at


def test_request_tokens_accepts_a_response_without_a_refresh_token(oauth, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json={'access_token': 'only-access', 'token_type': 'bearer', 'expires_in': 360})
    tokens = oauth.request_tokens(CODE_FORM)
    assert tokens['access_token'] == 'only-access'
    assert not any(name.startswith('refresh_token') for name in tokens)


@pytest.mark.parametrize(
    'changes',
    [
        *({'access_token': token} for token in (None, 5, '', ['a'], 'with space', 'a\nb', 'ä', 'x' * 4097)),
        *({'refresh_token': token} for token in (None, 5, '', ['a'], 'with space', 'a\nb', 'ä', 'x' * 4097)),
        *({'token_type': name} for name in ('mac', '', None, 5)),
    ],
)
def test_malformed_fields_are_refused_at_the_code_exchange(oauth, zendesk, changes):
    zendesk.post(TOKEN_ENDPOINT, json={**NEW_TOKENS, **changes})
    with pytest.raises(ZendeskError):
        oauth.request_tokens(CODE_FORM)


@pytest.mark.parametrize('changes', [{'access_token': None}, {'access_token': 'with space'}, {'token_type': 'mac'}])
def test_a_malformed_access_token_is_refused_at_a_refresh(oauth, zendesk, changes):
    zendesk.post(TOKEN_ENDPOINT, json={**NEW_TOKENS, **changes})
    with pytest.raises(ZendeskError):
        oauth.request_tokens(REFRESH_FORM)


@pytest.mark.parametrize('token', [None, 5, '', ['a'], 'with space', 'a\nb', 'ä', 'x' * 4097, ...])
def test_a_malformed_refresh_token_is_omitted_at_a_refresh(oauth, zendesk, package_log, token):
    zendesk.post(TOKEN_ENDPOINT, json=without_ellipses({**NEW_TOKENS, 'refresh_token': token}))
    assert set(oauth.request_tokens(REFRESH_FORM)) == {'access_token', 'access_token_expires_at', 'scope'}
    assert 'Zendesk returned no valid refresh token: keeping the old one' in [
        record.getMessage() for record in package_log
    ]


@pytest.mark.parametrize('token_type', ['Bearer', 'BEARER', ...])
def test_the_case_of_the_token_type_is_ignored(oauth, zendesk, token_type):
    zendesk.post(TOKEN_ENDPOINT, json=without_ellipses({**NEW_TOKENS, 'token_type': token_type}))
    assert oauth.request_tokens(REFRESH_FORM)['access_token'] == 'new-access'


def test_an_access_token_of_the_maximum_length_is_returned(oauth, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json={**NEW_TOKENS, 'access_token': 'x' * 4096})
    assert oauth.request_tokens(REFRESH_FORM)['access_token'] == 'x' * 4096


@pytest.mark.parametrize(
    ('changes', 'warnings'),
    [({'scope': 'tickets:read'}, 1), ({'scope': 'users:read'}, 0), ({'scope': ...}, 0), ({'scope': None}, 0)],
)
def test_an_unrequested_scope_is_logged(oauth, zendesk, package_log, changes, warnings):
    zendesk.post(TOKEN_ENDPOINT, json=without_ellipses({**NEW_TOKENS, **changes}))
    assert oauth.request_tokens(REFRESH_FORM)['access_token'] == 'new-access'
    assert [(record.levelname, 'a scope other than users:read' in record.getMessage()) for record in package_log] == [
        ('WARNING', True)
    ] * warnings


def test_an_error_for_a_failed_request_has_no_cause(oauth, zendesk):
    """The cause would contain the request."""
    request = requests.Request('POST', TOKEN_ENDPOINT, data={'client_secret': 'canary'}).prepare()
    zendesk.post(TOKEN_ENDPOINT, body=requests.ConnectionError(request=request))
    with pytest.raises(ZendeskError) as raised:
        oauth.request_tokens(REFRESH_FORM)
    assert (raised.value.__cause__, raised.value.__context__) == (None, None)


def test_repeated_tokens_are_replaced_in_the_exchange_record(oauth, zendesk, exchanges):
    zendesk.post(
        TOKEN_ENDPOINT,
        json={**NEW_TOKENS, 'note': 'issued new-access', 'Token': {'value': 'canary'}, 'tokens': ['canary']},
        headers={'WWW-Authenticate': 'Bearer new-refresh'},
    )
    oauth.request_tokens(REFRESH_FORM)
    for secret in ('new-access', 'new-refresh', 'canary'):
        assert secret not in str(exchanges[0].response)


@pytest.mark.parametrize('error', [None, 'invalid_scope'])
def test_the_scope_is_optional_in_the_form(oauth, zendesk, package_log, error):
    fields = {name: value for name, value in REFRESH_FORM.items() if name != 'scope'}
    if error:
        zendesk.post(TOKEN_ENDPOINT, status=400, json={'error': error})
        with pytest.raises(SetupError):
            oauth.request_tokens(fields)
    else:
        zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
        assert oauth.request_tokens(fields)['access_token'] == 'new-access'
    assert package_log == []


@pytest.mark.parametrize('status', [400, 401, 403])
@pytest.mark.parametrize(
    ('fields', 'cause'), [(CODE_FORM, 'older than 120 seconds.*redirect URI'), (REFRESH_FORM, 'the refresh token is')]
)
def test_invalid_grant_names_the_cause_with_any_client_error_status(oauth, zendesk, status, fields, cause):
    zendesk.post(TOKEN_ENDPOINT, status=status, json={'error': 'invalid_grant'})
    with pytest.raises(InvalidGrant, match=cause) as raised:
        oauth.request_tokens(fields)
    assert (raised.value.status, raised.value.reauthorize) == (400, True)


@pytest.mark.parametrize('status', [200, 302, 429, 500])
def test_invalid_grant_is_ignored_with_any_other_status(oauth, zendesk, status):
    zendesk.post(TOKEN_ENDPOINT, status=status, json={'error': 'invalid_grant'})
    with pytest.raises(ZendeskError) as raised:
        oauth.request_tokens(REFRESH_FORM)
    assert not isinstance(raised.value, InvalidGrant)


@pytest.mark.parametrize('status', [400, 401])
@pytest.mark.parametrize('error', sorted(SETUP_ERRORS))
def test_a_setup_error_names_the_settings_to_check(oauth, zendesk, status, error):
    zendesk.post(TOKEN_ENDPOINT, status=status, json={'error': error})
    title, remedy = SETUP_ERRORS[error]
    with pytest.raises(SetupError, match=error) as raised:
        oauth.request_tokens(REFRESH_FORM)
    assert raised.value.title == title
    assert remedy.format(scope='users:read') in raised.value.advice


def test_the_invalid_client_error_names_both_settings(oauth, zendesk):
    zendesk.post(TOKEN_ENDPOINT, status=401, json={'error': 'invalid_client'})
    with pytest.raises(SetupError, match=r'client ID.*client secret'):
        oauth.request_tokens(REFRESH_FORM)


@pytest.mark.parametrize('error', [{'title': 'Forbidden'}, ['invalid_grant'], 5, None, 'unheard_of'])
def test_an_unknown_error_raises_a_plain_zendesk_error(oauth, zendesk, error):
    zendesk.post(TOKEN_ENDPOINT, status=400, json={'error': error})
    with pytest.raises(ZendeskError, match='400') as raised:
        oauth.request_tokens(REFRESH_FORM)
    assert type(raised.value) is ZendeskError


@pytest.mark.parametrize('refresh_token', ['', '\ud800x', 'with space', 'x' * 5000])
def test_an_unusable_refresh_token_is_not_sent(oauth, zendesk, refresh_token):
    with pytest.raises(InvalidGrant, match='No usable refresh token'):
        oauth.request_tokens({**REFRESH_FORM, 'refresh_token': refresh_token})
    assert not zendesk.calls


# --- The API --- #


@pytest.mark.parametrize('status', [200, 401, 403, 500])
def test_api_request_returns_a_response_with_any_status(oauth, zendesk, status):
    zendesk.get(SHOW_SELF, status=status, json=USER, match=[bearer('canary-access')])
    response = show_self(oauth, 'canary-access')
    assert (response.status_code, response.json()) == (status, USER)


@pytest.mark.parametrize('token', ['', 'with space', 'new\nline', 'ä', '日本', 'x' * 4097])
def test_an_unusable_access_token_returns_401_without_a_request(oauth, zendesk, exchanges, token):
    assert show_self(oauth, token) == Response(401, {}, b'')
    assert not zendesk.calls
    assert not exchanges


def user_of(status: int = 200, **changes) -> dict[str, str]:
    """Return the result of `user_from` for a response with this status and these changes to USER."""
    return user_from(Response(status, {}, json.dumps({'user': {**USER['user'], **changes}}).encode()))


def test_user_from_returns_only_name_and_role():
    assert user_of(authenticity_token='canary', email='jane@example.com') == {'name': 'Jane Doe', 'role': 'agent'}


def test_user_from_replaces_lone_surrogates():
    assert user_of(name='n\ud800', role='r\udfff') == {'name': 'n?', 'role': 'r?'}


@pytest.mark.parametrize('data', [{}, {'user': None}, {'user': []}, {'user': 'text'}, {'users': [USER]}])
def test_a_response_without_a_user_raises_an_error(data):
    with pytest.raises(ZendeskError, match='without a user'):
        user_from(Response(200, {}, json.dumps(data).encode()))


@pytest.mark.parametrize('user', [{'name': 'Anonymous user'}, {**USER['user'], 'id': None}])
def test_a_user_without_an_id_is_anonymous(user):
    with pytest.raises(AnonymousUser, match='Authorization header') as raised:
        user_from(Response(200, {}, json.dumps({'user': user}).encode()))
    assert (raised.value.status, raised.value.reauthorize) == (502, True)


@pytest.mark.parametrize(
    'changes',
    [
        *({'id': value} for value in (False, True, [], '', '1', 1.0, float('nan'), {})),
        *({'name': value} for value in (5, None, ['a'])),
        *({'role': value} for value in (5, None, ['agent'])),
    ],
)
def test_a_field_of_the_wrong_type_raises_a_plain_zendesk_error(changes):
    with pytest.raises(ZendeskError, match='wrong type') as raised:
        user_of(**changes)
    assert (type(raised.value), raised.value.reauthorize) == (ZendeskError, False)


SCOPE = {'error': 'Forbidden', 'description': 'Missing the following required scopes: read'}
ROLE = {'error': {'title': 'Forbidden', 'message': 'You do not have access to this page. Please contact the account'}}
PAGE = '<html><h1>403 Forbidden: the firewall has no scope for you</h1></html>'
BLOCKED = 'The request to Zendesk was blocked'


REJECTIONS = [
    (401, {'error': 'invalid_token'}, NewTokenRejected, 'Zendesk rejected the new access token', 502, True),
    (401, '', NewTokenRejected, 'Zendesk rejected the new access token', 502, True),
    (401, PAGE, ZendeskError, BLOCKED, 502, False),
    (403, SCOPE, InsufficientScope, 'A permission is missing', 403, True),
    (403, {'error': 'insufficient_scope'}, InsufficientScope, 'A permission is missing', 403, True),
    (403, {'a': {'Required_Scopes': ['read']}}, InsufficientScope, 'A permission is missing', 403, True),
    (403, ROLE, ZendeskError, 'Zendesk does not allow this request', 403, False),
    (403, {'error': 'horoscope.example is blocked'}, ZendeskError, 'Zendesk does not allow this request', 403, False),
    (403, '{}', ZendeskError, 'Zendesk does not allow this request', 403, False),
    (403, '', ZendeskError, 'Zendesk does not allow this request', 403, False),
    (403, PAGE, ZendeskError, BLOCKED, 502, False),
    (403, '["scope"]', ZendeskError, BLOCKED, 502, False),
    *(
        (status, body, ZendeskError, 'Zendesk rejected the request', 502, False)
        for status in (204, 206, 400, 402, 405, 410, 423, 451)
        for body in (ROLE, PAGE, '')
    ),
]


def check_rejection(call, status, title, page, reauthorize):
    with pytest.raises(ZendeskError, match=str(status)) as raised:
        call()
    assert (raised.value.title, raised.value.status, raised.value.reauthorize) == (title, page, reauthorize)
    assert raised.value.retry_after is None
    inactive = status in (402, 405, 410, 423, 451)
    assert ('may be suspended or closed' in raised.value.advice) == inactive
    assert ('account is active' in str(raised.value)) == inactive
    assert 'try again' not in raised.value.advice.lower()
    assert ('rant access again' in raised.value.advice) == reauthorize
    return type(raised.value)


def test_a_missing_scope_in_the_header_is_recognized():
    response = Response(403, {'WWW-Authenticate': 'Bearer error="insufficient_scope"'}, b'')
    with pytest.raises(InsufficientScope):
        user_from(response)


@pytest.mark.parametrize(('status', 'body', 'error', 'title', 'page', 'reauthorize'), REJECTIONS)
def test_an_error_of_show_self_names_the_cause(status, body, error, title, page, reauthorize):
    response = Response(status, {}, (body if isinstance(body, str) else json.dumps(body)).encode())
    assert check_rejection(lambda: user_from(response), status, title, page, reauthorize) is error


@pytest.mark.parametrize(
    ('body', 'title', 'page', 'reauthorize'), [(row[1], *row[3:]) for row in REJECTIONS if row[0] == 403]
)
def test_a_403_in_a_product_names_the_cause(body, title, page, reauthorize):
    response = Response(403, {}, (body if isinstance(body, str) else json.dumps(body)).encode())
    assert check_rejection(response.raise_for_status, 403, title, page, reauthorize) is ResponseError


# --- Fingerprints --- #


def test_each_token_has_its_own_stable_fingerprint():
    assert fingerprint('one-token') == fingerprint('one-token')
    assert len({fingerprint(f'token-{number}') for number in range(1000)}) == 1000


def test_a_fingerprint_is_a_prefix_of_the_sha_256_hash():
    # printf abc | sha256sum
    assert fingerprint('abc') == '#ba7816bf'


def test_fingerprints_include_only_the_code_and_the_tokens():
    data = {'refresh_token': 'abc', 'code': 'abc', 'client_secret': 'abc', 'code_verifier': 'abc', 'state': 'abc'}
    assert fingerprints(data) == 'code #ba7816bf, refresh token #ba7816bf'


@pytest.mark.parametrize('token', ['', None, 5, ['abc'], {'abc': 'abc'}])
def test_a_missing_token_has_no_fingerprint(token):
    assert fingerprints({'access_token': token}) == ''


def test_a_token_that_is_not_utf_8_has_a_fingerprint():
    assert re.fullmatch('#[0-9a-f]{8}', fingerprint('\ud800'))


# --- Log records of exchanges --- #


def test_a_refresh_logs_one_record_with_request_and_response(oauth, zendesk, exchanges):
    headers = {'Cache-Control': 'no-store', 'Set-Cookie': 'canary=1', 'X-Request-Id': 'canary'}
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS, headers=headers)
    oauth.request_tokens(REFRESH_FORM)
    [record] = exchanges
    assert record.request == {
        'method': 'POST',
        'path': '/oauth/tokens',
        'headers': {'Host': 'mondocam.zendesk.com', 'Content-Type': 'application/x-www-form-urlencoded'},
        'form': {
            'grant_type': 'refresh_token',
            'client_id': 'test_client',
            'client_secret': fingerprint('canary-client-secret'),
            'refresh_token': fingerprint('canary-old-refresh'),
            'scope': 'users:read',
        },
    }
    assert record.response == {
        'status': 200,
        'headers': {'Content-Type': 'application/json', 'Cache-Control': 'no-store'},
        'body': {
            **NEW_TOKENS,
            'access_token': fingerprint('new-access'),
            'refresh_token': fingerprint('new-refresh'),
        },
    }
    assert record.levelname == 'INFO'
    assert record.getMessage() == (
        f'POST /oauth/tokens with refresh token {fingerprint("canary-old-refresh")}: 200, issued '
        f'access token {fingerprint("new-access")}, refresh token {fingerprint("new-refresh")}'
    )


def test_an_api_request_logs_one_record_with_request_and_response(oauth, zendesk, exchanges):
    data = {
        'user': {**USER['user'], 'authenticity_token': 'canary', 'api_token': None, 'tags': ['a', {'token': 'canary'}]}
    }
    zendesk.get(SHOW_SELF, json=data)
    show_self(oauth, 'canary-access')
    [record] = exchanges
    assert record.request == {
        'method': 'GET',
        'path': '/api/v2/users/me',
        'headers': {'Host': 'mondocam.zendesk.com', 'Authorization': f'Bearer {fingerprint("canary-access")}'},
        'form': {},
    }
    assert record.response['body'] == {
        'user': {
            **USER['user'],
            'authenticity_token': fingerprint('canary'),
            'api_token': None,
            'tags': ['a', {'token': fingerprint('canary')}],
        }
    }
    assert record.getMessage() == f'GET /api/v2/users/me with access token {fingerprint("canary-access")}: 200'


@pytest.mark.parametrize(
    'response',
    [
        {'json': dict.fromkeys(('access_token', 'refresh_token', 'state', 'code', 'password'), 'canary')},
        {'json': {'user': {'authenticity_token': 'canary', 'api_token': ['canary'], 'secret': 5}}},
        {'body': '<html>canary', 'headers': {'Set-Cookie': '_zendesk_session=canary', 'Location': '/canary'}},
        {'json': ['canary']},
        {'json': 'canary'},
        {'body': b'canary\xff', 'status': 500},
        {'body': requests.ConnectionError('canary')},
        {'body': requests.Timeout('canary')},
    ],
)
def test_no_record_contains_a_secret(send, exchanges, package_log, response):
    try:
        send(**response)
    except ZendeskError as error:
        assert 'canary' not in str(error)
    [record] = exchanges
    assert 'canary' not in record.getMessage() + json.dumps([record.request, record.response])
    assert 'canary' not in ''.join(record.getMessage() for record in package_log)


def test_the_record_hides_secrets_repeated_in_the_response(send, exchanges):
    def repeat(request):
        form = {name: values[0] for name, values in parse_qs(request.body or '').items()}
        sent = f'{request.headers.get("Authorization")} {list(form.values())}'
        assert 'canary' in sent
        data = {'error': 'invalid_grant', 'error_description': sent, sent: [sent, {'detail': sent}]}
        return 400, {'WWW-Authenticate': sent}, json.dumps(data)

    with pytest.raises(ZendeskError):
        send(callback=repeat)
    [record] = exchanges
    assert record.response['body']['error'] == 'invalid_grant'
    assert 'canary' not in record.getMessage() + json.dumps([record.request, record.response])


@pytest.mark.parametrize('response', [{'body': '<html>'}, {'json': ['a']}, {'json': 5}, {'body': b'\xff'}])
def test_the_record_omits_bodies_other_than_json_objects(send, exchanges, response):
    with pytest.raises(ZendeskError):
        send(**response)
    assert exchanges[0].response['body'] is None


@pytest.mark.parametrize('error', [requests.ConnectionError(), requests.Timeout()])
def test_an_exchange_without_a_response_logs_one_record(send, exchanges, error):
    with pytest.raises(ZendeskError):
        send(body=error)
    [record] = exchanges
    assert record.response is None
    assert record.getMessage().endswith(': no response')


def test_a_revocation_logs_one_record(oauth, zendesk, exchanges):
    zendesk.delete(REVOKE, status=204)
    oauth.revoke_tokens(NEW, best_effort=True)
    [record] = exchanges
    assert record.request['headers']['Authorization'] == f'Bearer {fingerprint("new-access")}'
    assert record.response == {'status': 204, 'headers': {'Content-Type': 'text/plain'}, 'body': None}
    assert record.levelname == 'INFO'


def test_a_response_with_many_secrets_is_logged_in_linear_size(oauth, zendesk, exchanges):
    """Fingerprints contain characters that may be secrets. They must not be replaced again."""
    secrets = {f'{number}_token': character for number, character in enumerate('#0123456789abcdef' * 2)}
    zendesk.post(TOKEN_ENDPOINT, json={**NEW_TOKENS, **secrets, 'note': '#0123456789abcdef'})
    oauth.request_tokens(REFRESH_FORM)
    assert len(str(exchanges[0].response)) < 10_000


def test_no_part_of_a_secret_is_logged_if_it_begins_with_another(oauth, zendesk, exchanges):
    zendesk.post(TOKEN_ENDPOINT, json={**NEW_TOKENS, 'id_token': 'new-access-canary', 'note': 'new-access-canary'})
    oauth.request_tokens(REFRESH_FORM)
    assert exchanges[0].response['body']['note'] == fingerprint('new-access-canary')


def test_a_large_response_is_omitted_from_the_exchange_record(oauth, zendesk, exchanges):
    zendesk.post(TOKEN_ENDPOINT, json={**NEW_TOKENS, 'note': 'x' * 16_384})
    assert oauth.request_tokens(REFRESH_FORM)['access_token'] == 'new-access'
    assert exchanges[0].response['body'] is None


def test_the_message_names_no_token_if_the_request_has_none(oauth, zendesk, exchanges):
    zendesk.post(TOKEN_ENDPOINT, **INVALID_GRANT)
    with pytest.raises(InvalidGrant):
        oauth.request_tokens({'grant_type': 'authorization_code'})
    assert exchanges[0].getMessage() == 'POST /oauth/tokens: 400 invalid_grant'


@pytest.mark.parametrize(('name', 'logged'), [('exchange the code', 1), ('refresh', 1), ('show self', 0)])
def test_level_info_logs_token_requests_only(oauth, zendesk, exchanges, name, logged):
    logging.getLogger('zendesk_oauth.exchange').setLevel(logging.INFO)
    make, method, url = REQUESTS[name]
    zendesk.add(method, url, status=500)
    with pytest.raises(ZendeskError):
        make(oauth)
    assert len(exchanges) == logged


@pytest.mark.parametrize(
    'error', ['invalid_grant', 'invalid_client', 'invalid_scope', 'canary', ['invalid_grant'], None, 5]
)
def test_the_message_shows_known_error_codes_only(oauth, zendesk, exchanges, error):
    zendesk.post(TOKEN_ENDPOINT, status=400, json={'error': error})
    with pytest.raises(ZendeskError):
        oauth.request_tokens({'grant_type': 'authorization_code'})
    known = error in ('invalid_grant', 'invalid_client', 'invalid_scope')
    assert exchanges[0].getMessage() == ('POST /oauth/tokens: 400' + f' {error}' * known)


LOST = [{'status': 500}, {'body': requests.ConnectionError()}, {'body': requests.Timeout()}, {'json': []}]
NOT_LOST = [{'status': 429}, {'status': 503}, {'status': 400, 'json': {'error': 'invalid_client'}}]


@pytest.mark.parametrize(('response', 'lost'), [*((r, True) for r in LOST), *((r, False) for r in NOT_LOST)])
@pytest.mark.parametrize('name', REQUESTS)
def test_only_a_failed_token_request_warns_that_the_grant_may_be_lost(oauth, zendesk, name, response, lost):
    make, method, url = REQUESTS[name]
    zendesk.add(method, url, **response)
    with pytest.raises(ZendeskError) as raised:
        make(oauth)
    assert ('If the app then asks for access' in raised.value.advice) == (lost and method == 'POST')
