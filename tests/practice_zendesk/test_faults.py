"""The practice Zendesk fails as it is told to."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import requests
from servers import wait_until

from practice_zendesk import faults as simulator_script
from practice_zendesk import server as zendesk_simulator


@pytest.fixture
def address(tmp_path, monkeypatch):
    """A practice Zendesk, served for real; its address."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zendesk_simulator.app, 'testing', False)
    server = zendesk_simulator.server(0)
    threading.Thread(target=server.serve_forever, args=(0.02,)).start()
    simulator_script._journal.clear()
    yield f'http://127.0.0.1:{server.port}'
    server.shutdown()
    server.server_close()
    simulator_script._script.clear()


def script(address: str, *steps: dict) -> None:
    assert requests.post(f'{address}/practice/script', json=steps, timeout=30).status_code == 204


def profile(address: str, **kwargs) -> requests.Response:
    return requests.get(f'{address}/api/v2/users/me', timeout=30, **kwargs)


def token(address: str, **form) -> requests.Response:
    return requests.post(f'{address}/oauth/tokens', form, timeout=30)


def raw_answer(address: str) -> bytes:
    """What comes over the line after a call for the profile, until it is closed."""
    host, port = address.removeprefix('http://').split(':')
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b'GET /api/v2/users/me HTTP/1.1\r\nHost: x\r\n\r\n')
        return b''.join(iter(lambda: connection.recv(65536), b''))


def test_a_step_waits_for_a_call_of_its_kind_and_is_good_for_one(address):
    script(
        address,
        {'call': 'profile', 'status': 429, 'body': 'too many', 'headers': {'Retry-After': '7'}},
        {'call': 'refresh', 'status': 500},
        {'call': 'profile', 'status': 418},
    )
    assert token(address, grant_type='authorization_code').status_code == 401
    answer = profile(address)
    assert (answer.status_code, answer.text, answer.headers['Retry-After']) == (429, 'too many', '7')
    assert profile(address).status_code == 418
    assert profile(address).json()['user']['name'] == 'Anonymous user'
    assert token(address, grant_type='refresh_token').status_code == 500
    assert token(address, grant_type='refresh_token').status_code == 401


def test_a_step_can_be_good_for_several_calls_and_a_new_script_ends_it(address):
    script(address, {'call': 'exchange', 'status': 503, 'times': 3})
    assert token(address).status_code == 503
    left = requests.get(f'{address}/practice/script', timeout=30).json()
    assert left == [{'call': 'exchange', 'status': 503, 'times': 2}]
    assert [token(address).status_code for _ in range(3)] == [503, 503, 400]
    script(address, {'call': 'exchange', 'status': 503, 'times': 3})
    script(address)
    assert token(address).status_code == 400


@pytest.mark.parametrize('body', ['[1]', '"x"', '5', 'null', '{'])
def test_an_answer_can_be_any_json_or_none(address, body):
    script(address, {'call': 'profile', 'status': 200, 'body': body, 'headers': {'Content-Type': 'application/json'}})
    answer = profile(address)
    assert (answer.status_code, answer.text) == (200, body)


def journal(address: str) -> list[dict]:
    return requests.get(f'{address}/practice/journal', timeout=30).json()


def test_what_no_app_would_ask_for_is_no_call(address):
    """A page of another site can make a browser ask for anything, and would fill the journal and use up the script."""
    script(address, {'call': 'any', 'status': 500})
    for path in ('/api/v2/users/me/and-more', '/api/v2/users/mean', '/api/v2/oauth/tokens/currently'):
        assert requests.get(address + path, timeout=30).status_code == 404
    assert profile(address, headers={'Sec-Fetch-Site': 'cross-site'}).status_code == 200
    assert journal(address) == []
    assert profile(address).status_code == 500


def test_both_spellings_of_an_address_are_the_same_call(address):
    for path in ('/api/v2/oauth/tokens/current', '/api/v2/oauth/tokens/current.json'):
        requests.delete(address + path, timeout=30)
    requests.get(f'{address}/api/v2/users/me.json', timeout=30)
    assert [call['call'] for call in journal(address)] == ['revoke', 'revoke', 'profile']


def test_a_cut_answer_is_noted_as_such(address):
    script(address, {'call': 'profile', 'cut': 0})
    with pytest.raises(requests.ConnectionError):
        profile(address)
    profile(address)
    assert [(call['status'], call['cut']) for call in journal(address)] == [(200, True), (200, False)]


def test_a_call_is_noted_as_it_comes(address):
    script(address, {'call': 'revoke', 'delay': 1})
    thread = threading.Thread(target=requests.delete, args=(f'{address}/api/v2/oauth/tokens/current',))
    thread.start()
    wait_until(lambda: journal(address) != [])
    [call] = journal(address)
    assert (call['call'], call['status'], call['ended']) == ('revoke', None, None)
    thread.join()
    assert journal(address)[0]['status'] == 401


def test_a_token_request_sent_as_json_has_its_kind_too(address):
    script(address, {'call': 'refresh', 'status': 500})
    answer = requests.post(f'{address}/oauth/tokens', json={'grant_type': 'refresh_token'}, timeout=30)
    assert answer.status_code == 500


@pytest.mark.parametrize('body', ['{"grant_type', '[]', 'null'])
def test_a_token_request_that_is_no_object_is_left_to_the_token_endpoint(address, body):
    answer = requests.post(f'{address}/oauth/tokens', body, headers={'Content-Type': 'application/json'}, timeout=30)
    assert answer.status_code == 400
    assert answer.json()['error'] == 'invalid_request'


def test_a_delay_is_waited_for(address):
    script(address, {'call': 'profile', 'delay': 0.3})
    before = time.monotonic()
    profile(address)
    assert time.monotonic() - before >= 0.3


def test_a_lost_answer_is_one_of_which_nothing_is_sent_although_the_call_was_handled(address):
    script(address, {'call': 'profile', 'cut': 0})
    with pytest.raises(requests.ConnectionError):
        profile(address)
    journal = requests.get(f'{address}/practice/journal', timeout=30).json()
    assert [(call['call'], call['status']) for call in journal] == [('profile', 200)]
    assert journal[0]['began'] <= journal[0]['ended']


def test_an_answer_without_a_body_can_be_lost_too(address):
    script(address, {'call': 'profile', 'status': 204, 'cut': 0})
    with pytest.raises(requests.ConnectionError):
        profile(address)


def test_an_answer_that_never_was_is_noted_without_a_status(address):
    script(address, {'call': 'profile', 'status': 500, 'cut': 0})
    with pytest.raises(requests.ConnectionError):
        profile(address)
    script(address, {'call': 'profile', 'status': 500, 'cut': 5})
    with pytest.raises(requests.ConnectionError):
        profile(address)
    calls = journal(address)
    assert [(call['status'], call['ended'] is None) for call in calls] == [(None, False), (500, False)]


@pytest.mark.parametrize(
    ('cut', 'sent'), [(20, b'HTTP/1.1 200 OK\r\nCon'), (-3, b'"Anonymous user","role":"end-user"')]
)
def test_an_answer_can_be_cut(address, cut, sent):
    script(address, {'call': 'profile', 'cut': cut})
    assert raw_answer(address).endswith(sent)


def test_a_cut_can_leave_the_line_open_and_silent(address):
    script(address, {'call': 'profile', 'cut': 20, 'hold': 0.3})
    before = time.monotonic()
    assert len(raw_answer(address)) == 20
    assert time.monotonic() - before >= 0.3


def test_an_answer_can_come_byte_by_byte(address):
    script(address, {'call': 'profile', 'status': 200, 'body': 'x' * 20, 'trickle': 0.001})
    before = time.monotonic()
    answer = profile(address)
    assert answer.text == 'x' * 20
    assert time.monotonic() - before >= 0.02


@pytest.mark.parametrize(
    ('script', 'problem'),
    [
        ({}, 'list of steps'),
        (5, 'list of steps'),
        ([5], 'list of steps'),
        ([{}], 'list of steps'),
        ([{'call': 'revoque'}], 'one of any, exchange, refresh, profile, revoke'),
        ([{'call': ['profile']}], 'one of any, exchange, refresh, profile, revoke'),
        ([{'call': 'profile', 'staus': 500}], 'no staus'),
        ([{'call': 'profile', 'status': '500'}], 'status must be a whole number from 200 to 599'),
        ([{'call': 'profile', 'status': 99999}], 'status must be'),
        ([{'call': 'profile', 'times': 0}], 'times must be'),
        ([{'call': 'profile', 'delay': -1}], 'delay must be'),
        ([{'call': 'profile', 'delay': 1e300}], 'delay must be'),
        ([{'call': 'profile', 'headers': {'X': 'a\r\nb'}}], 'headers must be'),
        ([{'call': 'profile', 'body': 5}], 'body must be'),
        ([{'call': 'profile', 'headers': {'Retry-After': 7}}], 'headers must be'),
        ([{'call': 'profile', 'cut': 1.5}], 'cut must be'),
    ],
)
def test_a_script_that_is_none_is_refused_with_a_reason(address, script, problem):
    answer = requests.post(f'{address}/practice/script', json=script, timeout=30)
    assert answer.status_code == 400
    assert problem in answer.json()['error']


def test_a_foreign_name_for_this_machine_is_refused(address):
    """A page of another site can have its own name lead here, and is then no other site to the browser."""
    for path in ('script', 'journal'):
        answer = requests.get(f'{address}/practice/{path}', headers={'Host': 'evil.example:3001'}, timeout=30)
        assert answer.status_code == 400
    assert requests.get(f'{address}/practice/script', headers={'Host': 'localhost:3001'}, timeout=30).status_code == 200


def test_a_script_that_is_no_json_is_refused(address):
    answer = requests.post(f'{address}/practice/script', '[{', headers={'Content-Type': 'application/json'}, timeout=30)
    assert answer.status_code == 400


def test_another_sites_page_can_set_no_script(address):
    """What a browser sends across sites without asking first is a form or plain text, never JSON."""
    for content_type in ('text/plain', 'application/x-www-form-urlencoded'):
        answer = requests.post(
            f'{address}/practice/script',
            '[{"call": "profile", "status": 500}]',
            headers={'Content-Type': content_type},
            timeout=30,
        )
        assert answer.status_code == 415
    assert profile(address).status_code == 200
