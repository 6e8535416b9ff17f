"""What the app says to Zendesk, and what it makes of the answers."""

from __future__ import annotations

import json

import pytest
import requests
import urllib3
from conftest import NEW_PAIR, SHOW_SELF, TOKEN_ENDPOINT, USER

from zendesk_oauth import endpoints as zendesk_module
from zendesk_oauth.endpoints import (
    Busy,
    InvalidGrant,
    NotSignedIn,
    PermissionMissing,
    SetupError,
    TooSlow,
    ZendeskError,
)

CALLS = {
    'exchange': (lambda: zendesk_module.exchange_code('the-code', 'the-verifier'), 'POST', TOKEN_ENDPOINT),
    'refresh': (lambda: zendesk_module.refresh('old-refresh'), 'POST', TOKEN_ENDPOINT),
    'profile': (lambda: zendesk_module.show_self('an-access-token'), 'GET', SHOW_SELF),
}


@pytest.fixture(params=CALLS)
def call(request, zendesk):
    """Each of the three calls in turn; returns a function that registers the answer and makes the call."""
    make, method, url = CALLS[request.param]

    def answer_with(**answer):
        zendesk.add(method, url, **answer)
        return make()

    return answer_with


@pytest.mark.parametrize(
    ('answer', 'error', 'status', 'remedy'),
    [
        ({'status': 500, 'body': '<html>'}, ZendeskError, 502, 'wait'),
        ({'status': 502, 'body': '<html>'}, ZendeskError, 502, 'wait'),
        ({'status': 503, 'body': '<html>'}, Busy, 503, 'maintenance'),
        ({'status': 429, 'body': 'Number of allowed API requests exceeded'}, Busy, 503, 'too many'),
        ({'status': 404, 'body': '<html>No help desk here'}, SetupError, 502, 'ZENDESK_SUBDOMAIN'),
        ({'status': 301, 'headers': {'Location': 'https://evil.example/'}}, SetupError, 502, 'ZENDESK_SUBDOMAIN'),
        ({'status': 418}, ZendeskError, 502, '418'),
        ({'status': 200, 'body': ''}, ZendeskError, 502, '200|without'),
        ({'status': 200, 'body': '<html>'}, ZendeskError, 502, '200|without'),
        ({'status': 200, 'body': 'null'}, ZendeskError, 502, '200|without'),
        ({'status': 200, 'body': '[]'}, ZendeskError, 502, '200|without'),
        ({'status': 200, 'body': '{"access_token": "a'}, ZendeskError, 502, '200|without'),
        ({'status': 200, 'body': b'\xff\xfe\x00'}, ZendeskError, 502, '200|without'),
        ({'status': 200, 'body': '[' * 200_000}, ZendeskError, 502, '200|without'),
        ({'status': 200, 'body': 'x' * (1024 * 1024 + 1)}, ZendeskError, 502, 'more than'),
        ({'body': requests.ConnectTimeout()}, TooSlow, 504, 'ConnectTimeout'),
        ({'body': requests.ReadTimeout()}, TooSlow, 504, 'ReadTimeout'),
        ({'body': requests.ConnectionError('refused')}, ZendeskError, 502, 'network'),
        ({'body': requests.exceptions.SSLError('bad certificate')}, ZendeskError, 502, 'certificate'),
        ({'body': requests.exceptions.ChunkedEncodingError()}, ZendeskError, 502, 'network'),
        ({'body': urllib3.exceptions.ProtocolError('x')}, ZendeskError, 502, 'network'),
        ({'body': ValueError('invalid chunk size')}, ZendeskError, 502, 'network'),
        ({'status': 302, 'headers': {'Location': 'http://['}}, SetupError, 502, 'redirect'),
        ({'status': 302, 'headers': {'Location': '\xff\xfe'}}, SetupError, 502, 'redirect'),
        (
            {'status': 302, 'headers': {'Location': '/'}, 'body': 'x' * (1024 * 1024 + 1)},
            ZendeskError,
            502,
            'more than',
        ),
    ],
)
def test_each_failure_is_one_named_error_with_its_remedy(call, zendesk, answer, error, status, remedy):
    with pytest.raises(error, match=remedy) as raised:
        call(**answer)
    assert raised.value.status == status
    assert not isinstance(raised.value, InvalidGrant)
    assert len(zendesk.calls) == 1


def test_every_call_has_time_limits(call, zendesk, monkeypatch):
    sent = {}

    def record(self, request, **kwargs):
        sent.update(kwargs)
        raise requests.ConnectionError

    monkeypatch.setattr(requests.adapters.HTTPAdapter, 'send', record)
    with pytest.raises(ZendeskError):
        call(status=200)
    assert sent['timeout'].connect_timeout == 3
    assert 13 < sent['timeout'].total <= 14
    assert sent['stream'] is True


def test_no_password_from_netrc_is_sent(call, zendesk, monkeypatch, tmp_path):
    netrc = tmp_path / 'netrc'
    netrc.write_text('machine mondocam.zendesk.com login canary-login password canary-password\n')
    monkeypatch.setenv('NETRC', str(netrc))
    with pytest.raises(ZendeskError):
        call(status=500)
    assert zendesk.calls[0].request.headers.get('Authorization') in (None, 'Bearer an-access-token')


def test_a_cookie_of_zendesk_is_not_sent_with_the_next_call(zendesk):
    zendesk.get(SHOW_SELF, json=USER, headers={'Set-Cookie': '_zendesk_session=somebody; Path=/'})
    zendesk_module.show_self('one-token')
    zendesk_module.show_self('another-token')
    assert 'Cookie' not in zendesk.calls[1].request.headers


@pytest.mark.parametrize('status', [400, 401])
def test_invalid_client_names_the_settings_to_check(zendesk, status):
    zendesk.post(TOKEN_ENDPOINT, status=status, json={'error': 'invalid_client'})
    with pytest.raises(SetupError, match=r'ZENDESK_CLIENT_SECRET.*ZENDESK_CLIENT_ID'):
        zendesk_module.refresh('old-refresh')


@pytest.mark.parametrize(
    ('header', 'seconds'),
    [
        ('7', 7),
        ('0', 1),
        ('99999', 300),
        ('-5', 30),
        ('', 30),
        ('soon', 30),
        ('Wed, 21 Oct 2026 07:28:00 GMT', 30),
        ('٣', 30),
    ],
)
def test_the_time_to_wait_is_bounded(call, header, seconds):
    with pytest.raises(Busy) as raised:
        call(status=429, headers={'Retry-After': header})
    assert raised.value.retry_after == seconds


def test_show_self_returns_name_and_role_and_nothing_else(zendesk):
    zendesk.get(SHOW_SELF, json={'user': {**USER['user'], 'authenticity_token': 'canary', 'email': 'jane@example.com'}})
    assert zendesk_module.show_self('an-access-token') == {'name': 'Jane Doe', 'role': 'agent'}


@pytest.mark.parametrize('token', ['', 'with space', 'new\nline', 'ä', '日本'])
def test_a_token_that_can_not_stand_in_a_header_counts_as_expired(zendesk, token):
    assert zendesk_module.show_self(token) == {'error': 'invalid_token'}
    assert not zendesk.calls


@pytest.mark.parametrize('refresh_token', ['', '\ud800x', 'with space', 'x' * 5000])
def test_a_refresh_token_that_can_not_be_one_is_refused_without_a_call(zendesk, refresh_token):
    with pytest.raises(InvalidGrant):
        zendesk_module.refresh(refresh_token)
    assert not zendesk.calls


@pytest.mark.parametrize('user_id', [False, True, [], '', '1', float('nan'), {}])
def test_an_id_that_is_no_number_is_nobody(zendesk, user_id):
    zendesk.get(SHOW_SELF, body=json.dumps({'user': {**USER['user'], 'id': user_id}}))
    with pytest.raises(NotSignedIn):
        zendesk_module.show_self('an-access-token')


def test_halves_of_surrogate_pairs_are_replaced_in_name_and_role(zendesk):
    zendesk.get(SHOW_SELF, body=json.dumps({'user': {'id': 1, 'name': 'n\ud800', 'role': 'r\udfff'}}))
    assert zendesk_module.show_self('an-access-token') == {'name': 'n?', 'role': 'r?'}


@pytest.mark.parametrize('user', [{'name': 5}, {'name': None}, {'role': 5}, {'role': None}, {'id': '1'}, {'id': True}])
def test_a_user_with_fields_of_other_types_is_not_shown(zendesk, user):
    zendesk.get(SHOW_SELF, json={'user': {**USER['user'], **user}})
    with pytest.raises(ZendeskError):
        zendesk_module.show_self('an-access-token')


def test_a_status_that_is_not_documented_for_a_profile_is_an_error(zendesk):
    zendesk.get(SHOW_SELF, status=206, json=USER)
    with pytest.raises(ZendeskError, match='206'):
        zendesk_module.show_self('an-access-token')


@pytest.mark.parametrize('error', ['invalid_scope', 'unauthorized_client', 'invalid_request'])
def test_an_error_of_the_setup_is_named(zendesk, error):
    zendesk.post(TOKEN_ENDPOINT, status=400, json={'error': error})
    with pytest.raises(SetupError, match=error):
        zendesk_module.refresh('old-refresh')


@pytest.mark.parametrize('status', [400, 401, 403])
def test_invalid_grant_counts_with_any_status_for_an_error_of_the_client(zendesk, status):
    zendesk.post(TOKEN_ENDPOINT, status=status, json={'error': 'invalid_grant'})
    with pytest.raises(InvalidGrant):
        zendesk_module.refresh('old-refresh')


@pytest.mark.parametrize('token_type', ['bearer', 'Bearer', 'BEARER'])
def test_the_case_of_the_token_type_does_not_matter(zendesk, token_type):
    zendesk.post(TOKEN_ENDPOINT, json={**NEW_PAIR, 'token_type': token_type})
    assert zendesk_module.refresh('old-refresh')['access_token'] == 'new-access'


def test_an_answer_that_names_no_scope_has_the_one_asked_for(zendesk, log):
    zendesk.post(TOKEN_ENDPOINT, json={name: value for name, value in NEW_PAIR.items() if name != 'scope'})
    zendesk_module.refresh('old-refresh')
    assert 'scope' not in ''.join(log)


def test_a_403_is_a_missing_permission(zendesk):
    zendesk.get(SHOW_SELF, status=403, json={'error': {'title': 'Forbidden', 'message': 'no'}})
    with pytest.raises(PermissionMissing, match='users:read'):
        zendesk_module.show_self('an-access-token')


def test_another_scope_than_asked_for_is_logged(zendesk, log):
    zendesk.post(TOKEN_ENDPOINT, json={**NEW_PAIR, 'scope': 'tickets:read'})
    assert zendesk_module.refresh('old-refresh')['access_token'] == 'new-access'
    assert 'scope' in log[-1]


def test_the_error_object_of_zendesks_other_apis_is_no_traceback(zendesk):
    zendesk.post(TOKEN_ENDPOINT, status=400, json={'error': {'title': 'Forbidden'}})
    with pytest.raises(ZendeskError):
        zendesk_module.refresh('old-refresh')


def test_errors_repeat_nothing_of_what_zendesk_sent(call):
    body = json.dumps({'error': 'invalid_client', 'error_description': 'canary\nline'})
    with pytest.raises(ZendeskError) as raised:
        call(status=400, body=body)
    assert 'canary' not in str(raised.value)
