"""The practice Zendesk fails on request and logs the API requests."""

from __future__ import annotations

import hashlib
import threading
import time

import pytest
import requests

from practice_zendesk import faults, server


def set_faults(client, *new: dict) -> None:
    assert client.post('/practice/faults', json=new).status_code == 204


def logged(client, *names: str) -> list[tuple]:
    """Return these fields of each entry of the request log."""
    return [tuple(entry[name] for name in names) for entry in client.get('/practice/request_log').json]


# --- Faults --- #


def test_a_fault_replaces_the_response(client):
    set_faults(client, {'call': 'profile', 'status': 429, 'body': 'too many', 'headers': {'Retry-After': '7'}})
    response = client.get('/api/v2/users/me')
    assert (response.status_code, response.text, response.headers['Retry-After']) == (429, 'too many', '7')


def test_a_fault_affects_only_its_kind_of_request(client):
    set_faults(
        client,
        {'call': 'profile', 'status': 418},
        {'call': 'revoke', 'status': 502},
        {'call': 'tickets', 'status': 505},
        {'call': 'exchange', 'status': 503},
        {'call': 'refresh', 'status': 504},
        {'call': 'any', 'status': 500},
    )
    tokens = {'access_token': 'x', 'refresh_token': 'y'}
    assert client.refresh(tokens).status_code == 504
    assert client.exchange('code').status_code == 503
    assert client.revoke(tokens).status_code == 502
    assert client.tickets(tokens).status_code == 505
    assert client.show_self(tokens).status_code == 418
    assert client.show_self(tokens).status_code == 500
    assert client.show_self(tokens).status_code == 401


def test_a_fault_can_affect_several_requests(client):
    set_faults(client, {'call': 'profile', 'status': 503, 'times': 2})
    assert client.get('/api/v2/users/me').status_code == 503
    assert client.get('/practice/faults').json == [{'call': 'profile', 'status': 503, 'times': 1}]
    assert client.get('/api/v2/users/me').status_code == 503
    assert client.get('/api/v2/users/me').status_code == 200


def test_new_faults_replace_the_pending_faults(client):
    set_faults(client, {'call': 'profile', 'status': 503, 'times': 3})
    set_faults(client)
    assert client.get('/practice/faults').json == []
    assert client.get('/api/v2/users/me').status_code == 200


@pytest.mark.parametrize('body', ['[1]', '"x"', '5', 'null', '{'])
def test_a_fault_can_send_any_body(client, body):
    headers = {'Content-Type': 'application/json'}
    set_faults(client, {'call': 'profile', 'status': 200, 'body': body, 'headers': headers})
    response = client.get('/api/v2/users/me')
    assert (response.status_code, response.text) == (200, body)


def test_a_delay_precedes_the_handling_of_the_request(client, monkeypatch):
    tokens = client.grant()
    set_faults(client, {'call': 'revoke', 'delay': 0.5})
    during = []

    def sleep(seconds: float) -> None:
        if seconds:
            during.append(
                (seconds, logged(client, 'call', 'status', 'ended')[-1], client.show_self(tokens).status_code)
            )

    monkeypatch.setattr(time, 'sleep', sleep)
    assert client.revoke(tokens).status_code == 204
    assert during == [(0.5, ('revoke', None, None), 200)]


@pytest.fixture
def address(client, monkeypatch):
    """Start a server and yield its address."""
    monkeypatch.setattr(server.app, 'testing', False)
    running = server.server(0)
    threading.Thread(target=running.serve_forever, args=(0.02,)).start()
    yield f'http://127.0.0.1:{running.port}'
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize(
    ('fault', 'revoked'),
    [({'lost': True}, True), ({'lost': True, 'status': 204}, False), ({'lost': True, 'status': 500}, False)],
)
def test_a_lost_response_closes_the_connection(client, address, log, fault, revoked):
    tokens = client.grant()
    set_faults(client, {'call': 'revoke', **fault})
    headers = {'Authorization': f'Bearer {tokens["access_token"]}'}
    with pytest.raises(requests.ConnectionError, match='closed connection without response'):
        requests.delete(f'{address}/api/v2/oauth/tokens/current', headers=headers, timeout=5)
    # Without a status, the request takes effect.
    assert client.show_self(tokens).status_code == (401 if revoked else 200)
    assert logged(client, 'call', 'status', 'lost')[1] == ('revoke', 204 if revoked else None, True)
    outcome = '204, response lost' if revoked else 'no response'
    token = faults.fingerprint(tokens['access_token'])
    assert f'DELETE /api/v2/oauth/tokens/current with access token {token}: {outcome}\n' in log


def test_a_response_is_sent_if_lost_is_false(client):
    set_faults(client, {'call': 'profile', 'status': 500, 'lost': False})
    assert client.get('/api/v2/users/me').status_code == 500
    assert logged(client, 'status', 'lost') == [(500, False)]


@pytest.mark.parametrize(
    ('invalid', 'error'),
    [
        ({}, 'send a JSON list of objects'),
        (5, 'send a JSON list of objects'),
        ([5], 'send a JSON list of objects'),
        ([{}], 'send a JSON list of objects'),
        ([{'call': 'revoque'}], 'one of any, exchange, refresh, profile, tickets, revoke'),
        ([{'call': ['profile']}], 'one of any, exchange, refresh, profile, tickets, revoke'),
        ([{'call': 'profile', 'staus': 500}], 'unknown key staus'),
        ([{'call': 'profile', 'cut': 0}], 'unknown key cut'),
        ([{'call': 'profile', 'status': '500'}], 'status must be an integer from 200 to 599'),
        ([{'call': 'profile', 'status': 99999}], 'status must be'),
        ([{'call': 'profile', 'times': 0}], 'times must be'),
        ([{'call': 'profile', 'delay': -1}], 'delay must be'),
        ([{'call': 'profile', 'delay': 1e300}], 'delay must be'),
        ([{'call': 'profile', 'body': 5}], 'body must be'),
        ([{'call': 'profile', 'headers': {'X': 'a\r\nb'}}], 'headers must be'),
        ([{'call': 'profile', 'headers': {'Retry-After': 7}}], 'headers must be'),
        ([{'call': 'profile', 'lost': 1}], 'lost must be true or false'),
    ],
)
def test_invalid_faults_are_refused_with_a_reason(client, invalid, error):
    response = client.post('/practice/faults', json=invalid)
    assert response.status_code == 400
    assert error in response.json['error']
    assert faults.pending_faults() == []


def test_malformed_json_is_refused(client):
    assert client.post('/practice/faults', data='[{', content_type='application/json').status_code == 400


# --- The request log --- #


def test_paths_with_and_without_json_suffix_are_logged_alike(client):
    for path in ('/api/v2/oauth/tokens/current', '/api/v2/oauth/tokens/current.json'):
        client.delete(path)
    client.get('/api/v2/users/me.json')
    for path in ('/api/v2/tickets', '/api/v2/tickets.json', '/api/v2/search', '/api/v2/search.json'):
        client.get(path)
    calls = [call for (call,) in logged(client, 'call')]
    assert calls == ['revoke', 'revoke', 'profile', 'tickets', 'tickets', 'tickets', 'tickets']


@pytest.mark.parametrize('path', ['/api/v2/tickets', '/api/v2/search'])
def test_the_query_of_a_ticket_request_is_not_logged(client, log, path):
    tokens = client.grant(scope='tickets:read')
    log.clear()
    client.tickets(tokens, path, query='canary', per_page=5, page=2)
    line = f'GET {path} with access token {faults.fingerprint(tokens["access_token"])}'
    assert logged(client, 'request')[-1] == (line,)
    assert log == [f'{line}: 200\n']


def test_an_exchange_is_logged_with_fingerprints(client):
    code = client.code()
    tokens = client.exchange(code).json
    access, refresh = faults.fingerprint(tokens['access_token']), faults.fingerprint(tokens['refresh_token'])
    [entry] = client.get('/practice/request_log').json
    assert entry.pop('began') <= entry.pop('ended')
    assert entry == {
        'call': 'exchange',
        'request': f'POST /oauth/tokens with code {faults.fingerprint(code)}',
        'status': 200,
        'issued': f'access token {access}, refresh token {refresh}',
        'lost': False,
    }


def test_a_fingerprint_is_eight_digits_of_sha256():
    assert faults.fingerprint('secret') == f'#{hashlib.sha256(b"secret").hexdigest()[:8]}' == '#2bb80d53'


def test_a_refresh_sent_as_json_is_logged_as_a_refresh(client):
    client.post('/oauth/tokens', json={'grant_type': 'refresh_token'})
    assert logged(client, 'call') == [('refresh',)]


@pytest.mark.parametrize('body', ['{"grant_type', '[]', 'null'])
def test_a_malformed_token_request_is_logged_as_an_exchange(client, body):
    client.post('/oauth/tokens', data=body, content_type='application/json')
    assert logged(client, 'call', 'status') == [('exchange', 400)]


# --- Requests from web pages --- #


def test_other_requests_consume_no_fault_and_are_not_logged(client):
    """Ignore unrelated requests: another site can make a browser send them."""
    set_faults(client, {'call': 'any', 'status': 500})
    for path in ('/api/v2/users/me/and-more', '/api/v2/users/mean', '/api/v2/oauth/tokens/currently'):
        assert client.get(path).status_code == 404
    assert client.get('/api/v2/users/me', headers={'Sec-Fetch-Site': 'cross-site'}).status_code == 200
    assert logged(client) == []
    assert client.get('/api/v2/users/me').status_code == 500


@pytest.mark.parametrize('content_type', ['text/plain', 'application/x-www-form-urlencoded'])
def test_another_site_cannot_set_faults(client, content_type):
    """Refuse the content types that browsers send to other sites without a preflight request."""
    body = '[{"call": "profile", "status": 500}]'
    assert client.post('/practice/faults', data=body, content_type=content_type).status_code == 415
    assert faults.pending_faults() == []


@pytest.mark.parametrize('path', ['/practice', '/practice/faults', '/practice/request_log', '/practice/next'])
def test_control_requests_for_another_host_are_refused(client, path):
    """Refuse names of other sites that resolve to this machine (DNS rebinding)."""
    for method in ('GET', 'POST'):
        response = client.open(path, method=method, headers={'Host': 'evil.example:3001'})
        assert (response.status_code, response.json) == (400, {'error': 'unknown host'})
        for host in ('localhost:3001', '127.0.0.1'):
            assert 'unknown host' not in client.open(path, method=method, headers={'Host': host}).text
