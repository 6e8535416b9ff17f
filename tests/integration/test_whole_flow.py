"""The whole flow over real HTTP: the app and the practice Zendesk as real processes, and a visitor who clicks."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from faulty_proxy import FaultyProxy
from helpers import OLD
from servers import ADMIN, AGENT, END_USER, Processes, Visitor, free_port, listens, port_of, profiles


def test_the_tutorials_steps_1_to_6_in_practice_mode(processes):
    for port in (3000, 3001):
        if listens(port):
            pytest.skip(f'port {port}, which practice mode uses, is taken on this machine')

    # 1: start the app. 2: open the home page, ask for the profile. 3 and 4: sign in (as a practice user), allow.
    processes.start('app.py', port=3000)
    assert 'practice' in processes.output
    assert 'http://localhost:3000' in processes.output
    visitor = Visitor('http://localhost:3000')
    assert 'Practice mode' in visitor.text
    visitor.click('Get my profile')
    assert visitor.address == 'http://localhost:3000/grant_access'
    visitor.click('Grant access')
    assert visitor.address.startswith('http://localhost:3001/oauth/authorizations/new?')
    visitor.answer('allow', END_USER)
    assert visitor.address == 'http://localhost:3000/'
    visitor.click('Get my profile')
    assert visitor.greeting == f'👋 Hi, {END_USER}!'
    assert 'Your Zendesk user role is <strong>end-user</strong>.' in visitor.text

    # 5: change a digit in the access token, rerun the app.
    [before] = processes.users.values()
    processes.stop(3000)
    processes.edit_users('access_token')
    processes.start('app.py', port=3000)
    visitor.visit('http://localhost:3000')
    visitor.click('Get my profile')
    assert visitor.greeting == f'👋 Hi, {END_USER}!'
    [after] = processes.users.values()
    assert after['access_token'] != before['access_token']
    assert after['refresh_token'] != before['refresh_token']
    assert processes.refreshes() == 1

    # The same while the app runs.
    processes.edit_users('access_token')
    visitor.visit('http://localhost:3000/profile')
    assert visitor.greeting == f'👋 Hi, {END_USER}!'
    assert processes.refreshes() == 2

    # 6: change a digit in both tokens, rerun the app: it asks for access again, and gets it.
    processes.stop(3000)
    processes.edit_users('access_token', 'refresh_token')
    processes.start('app.py', port=3000)
    visitor.visit('http://localhost:3000')
    visitor.click('Get my profile')
    assert visitor.address == 'http://localhost:3000/grant_access'
    assert [refresh['status'] for refresh in processes.request_log('refresh')] == [400]
    visitor.click('Grant access')
    visitor.answer('allow', END_USER)
    visitor.click('Get my profile')
    assert visitor.greeting == f'👋 Hi, {END_USER}!'

    # The log has told the story, in the order in which it happened.
    story = [
        'Opening the home page',
        "Retrieving the user's access and refresh tokens",
        'The user has not granted access to this app yet',
        'Kicking off the authorization code flow',
        'Exchanging the authorization code for an access and refresh token',
        'Storing the access and refresh tokens in users.json',
        'Making the API request',
        'Using the response data',
        "The access token has expired: refreshing the user's tokens and retrying",
        'Using the refresh token to get new access and refresh tokens',
        'Packaging, storing, and returning the new tokens',
        'Retrying the API request with the new token',
        'The refresh token is invalid',
        'redirecting to the grant page',
    ]
    position = 0
    for line in story:
        position = processes.output.index(line, position)


def test_two_browsers_with_two_users_work_side_by_side(processes, home):
    first, second = Visitor(home), Visitor(home)
    first.grant(ADMIN)
    second.grant(END_USER)
    for _ in range(2):
        first.click('Get my profile')
        second.click('Get my profile')
        assert (first.greeting, second.greeting) == (f'👋 Hi, {ADMIN}!', f'👋 Hi, {END_USER}!')
        assert '<strong>admin</strong>' in first.text
        processes.edit_users('access_token')
        first.click('Home')
        second.click('Home')
    assert len(processes.users) == 2
    assert processes.refreshes() == 2


def test_a_proxy_has_no_part_in_what_is_said_on_this_machine(processes, variables):
    nobody = f'http://127.0.0.1:{free_port()}'
    proxies = {'HTTP_PROXY': nobody, 'http_proxy': nobody, 'ALL_PROXY': nobody, 'NO_PROXY': '', 'no_proxy': ''}
    processes.start('app.py', port=port_of(variables), **variables, **proxies)
    visitor = Visitor(f'http://localhost:{port_of(variables)}/')
    visitor.grant()
    visitor.click('Get my profile')
    assert visitor.greeting == f'👋 Hi, {AGENT}!'


def test_sessions_survive_a_restart(processes, variables, home):
    visitor = Visitor(home)
    visitor.grant()
    processes.stop(port_of(variables))
    processes.start('app.py', port=port_of(variables), **variables)
    visitor.click('Get my profile')
    assert visitor.greeting == f'👋 Hi, {AGENT}!'


def test_after_a_denial_there_is_a_way_on(home):
    visitor = Visitor(home)
    visitor.click('Get my profile')
    visitor.click('Grant access')
    visitor.answer('deny')
    assert visitor.status == 403
    assert 'Access was not granted' in visitor.text
    visitor.click('Start again')
    visitor.click('Grant access')
    visitor.answer('allow')
    visitor.click('Get my profile')
    assert visitor.greeting == f'👋 Hi, {AGENT}!'


def test_a_visit_on_127_0_0_1_ends_in_a_grant(home):
    for path in ('', 'grant_access', 'zendesk/auth'):
        visitor = Visitor(home.replace('localhost', '127.0.0.1') + path)
        if path == '':
            visitor.click('Get my profile')
        if 'Grant access' in visitor.text and 'authorizations' not in visitor.address:
            visitor.click('Grant access')
        visitor.answer('allow')
        assert visitor.address == home
        visitor.click('Get my profile')
        assert visitor.greeting == f'👋 Hi, {AGENT}!'


def test_two_tabs_end_well_in_reverse_order(processes, home):
    visitor = Visitor(home)
    visitor.visit(home + 'zendesk/auth')
    first_tab = visitor.page
    visitor.visit(home + 'zendesk/auth')
    visitor.answer('allow', ADMIN)
    visitor.page = first_tab
    visitor.answer('allow', END_USER)
    visitor.click('Get my profile')
    assert visitor.greeting == f'👋 Hi, {END_USER}!'
    assert len(processes.users) == 1


def test_somebody_elses_answer_is_refused(processes, home):
    attacker, victim = Visitor(home), Visitor(home)
    victim.grant(ADMIN)
    before = processes.users
    attacker.visit(home + 'zendesk/auth')
    trap = attacker.submit('allow', AGENT, allow_redirects=False).headers['Location']

    victim.visit(trap)

    assert victim.status == 400
    assert processes.users == before
    victim.visit(home + 'profile')
    assert victim.greeting == f'👋 Hi, {ADMIN}!'


def test_a_session_planted_before_the_grant_does_not_see_the_profile(home):
    attacker, victim = Visitor(home), Visitor(home)
    victim.http.cookies = attacker.http.cookies.copy()
    victim.grant(ADMIN)
    victim.click('Get my profile')
    assert victim.greeting == f'👋 Hi, {ADMIN}!'
    attacker.click('Get my profile')
    assert attacker.address == home + 'grant_access'


def test_a_code_that_came_too_late_leads_to_a_new_start(processes, home):
    visitor = Visitor(home)
    visitor.visit(home + 'zendesk/auth')
    callback = visitor.submit('allow', allow_redirects=False).headers['Location']
    with contextlib.closing(sqlite3.connect(processes.folder / 'practice_zendesk.db')) as db, db:
        db.execute('UPDATE codes SET expires_at = 0')
    visitor.visit(callback)
    assert visitor.status == 400
    visitor.start_again()
    assert visitor.greeting == f'👋 Hi, {AGENT}!'


def answer_ten_times_at_once(visitor: Visitor, home: str) -> list[requests.Response]:
    visitor.visit(home + 'zendesk/auth')
    callback = visitor.submit('allow', allow_redirects=False).headers['Location']
    cookies = visitor.http.cookies.get_dict()

    def come_back(_):
        return requests.get(callback, cookies=cookies, allow_redirects=False, timeout=60)

    with ThreadPoolExecutor(10) as pool:
        return list(pool.map(come_back, range(10)))


def check_that_an_answer_works_once(processes: Processes, home: str) -> None:
    visitor = Visitor(home)
    answers = answer_ten_times_at_once(visitor, home)
    assert sorted(answer.status_code for answer in answers) == [302] + [400] * 9
    # However the browser orders the ten answers, the visitor is signed in.
    for answer in sorted(answers, key=lambda answer: answer.status_code):
        visitor.http.cookies.update(answer.cookies)
    visitor.visit(home + 'profile')
    assert visitor.greeting == f'👋 Hi, {AGENT}!'
    assert processes.output.count('for a grant of type authorization_code') == 1


def test_the_same_answer_ten_times_at_once_works_once(processes, home):
    check_that_an_answer_works_once(processes, home)


def test_the_record_of_a_visitor_long_gone_goes_with_the_next_grant(processes, home):
    for _ in range(3):
        Visitor(home).grant()
    users = processes.users
    a_week = next(iter(users.values()))['refresh_token_expires_at'] - time.time()
    assert 604800 - 60 < a_week <= 604800
    gone, *others = users
    users[gone]['refresh_token_expires_at'] -= 604800 + 2 * 24 * 3600
    (processes.folder / 'users.json').write_text(json.dumps(users))
    Visitor(home).grant()
    assert len(processes.users) == 3
    assert set(others) <= set(processes.users)


def test_a_zendesk_that_is_down_is_a_page_and_works_again_when_zendesk_does(processes, variables, home):
    visitor = Visitor(home)
    visitor.grant()
    zendesk_port = int(variables['ZENDESK_BASE_URL'].rpartition(':')[2])
    processes.stop(zendesk_port)
    visitor.click('Get my profile')
    assert visitor.status == 502
    processes.start('-m', 'practice_zendesk', '--port', str(zendesk_port), port=zendesk_port, **variables)
    visitor.click('Try again')
    assert visitor.greeting == f'👋 Hi, {AGENT}!'


# --- Secrets --- #


def play_all_flows(processes: Processes, proxy: FaultyProxy, home: str) -> tuple[list[str], list[str], list[str]]:
    """Grant, deny, refresh, fail, in all the ways there are; return the secrets met, the pages and the cookies."""
    secrets, pages, cookies = [], [], []
    visitor = Visitor(home)

    def visit(address: str) -> None:
        visitor.visit(address)
        look()

    def look() -> None:
        for answer in (*visitor.page.history, visitor.page):
            if answer.url.startswith(home):
                location = answer.headers.pop('Location', '')
                cookies.append(answer.headers.pop('Set-Cookie', ''))
                pages.append(f'{answer.text} {answer.headers}')
                secrets.extend(re.findall('(?:state|code_challenge|code)=([^&]+)', location))
        if (processes.folder / 'users.json').exists():
            secrets.extend(record[name] for record in processes.users.values() for name in OLD)
        secrets.extend(visitor.http.cookies.get_dict().values())

    def start() -> str:
        visit(f'{home}zendesk/auth')
        secrets.extend(re.findall('(?:state|code_challenge)=([^&]+)', visitor.address))
        return re.search('state=([^&]+)', visitor.address)[1]

    def grant() -> str:
        start()
        callback = visitor.submit('allow', allow_redirects=False).headers['Location']
        secrets.extend(re.findall('code=([^&]+)', callback))
        visit(callback)
        return callback

    visit(home)
    callback = grant()
    visit(f'{home}profile')
    visit(callback)  # a second time
    visit(f'{home}zendesk/oauth/callback?code=canary-code&state=canary-state')
    start()
    visitor.answer('deny')
    look()
    for answer in ('code=canary-code&iss=https://canary.example', 'error=canary&error_description=canary%0Aline'):
        visit(f'{home}zendesk/oauth/callback?state={start()}&{answer}')
    for path in ('nope?code=canary-code', '%E0%A4%A?code=canary-code', 'nope%0A%1B[31mforged-line'):
        visit(f'{home}{path}')

    pair = '{"access_token": "canary-access", "refresh_token": "canary-refresh", "scope": "canary scope"}'
    for step in (
        {'status': 200, 'body': pair},  # taken, and worth nothing: the next call for the profile is a 401
        {'status': 200, 'body': pair.replace('"canary-refresh"', '["canary-refresh"]')},
        {'status': 200, 'body': pair[:-10]},
        {'status': 500, 'body': pair},
        {'status': 302, 'headers': {'Location': f'{home}?code=canary-code'}},
        {'status': 400, 'body': '{"error": "canary {0}", "error_description": "canary"}'},
        {'status': 200, 'body': pair, 'damage': {'cut': 60}},
        {'lost': True},
    ):
        damage = step.pop('damage', None)
        if damage:
            proxy.damage_next('exchange', **damage)
            proxy.damage_next('refresh', **damage)
        processes.expire_access_tokens()
        processes.set_faults({'call': 'exchange', **step}, {'call': 'refresh', **step})
        grant()
        visit(f'{home}profile')
        processes.set_faults()
        proxy.pending.clear()
        grant()
    for body in ('{"user": {"id": 5, "name": "canary", "role": 7}}', '{"canary": 5}', '{"user": {"id": null}}'):
        processes.set_faults({'call': 'profile', 'status': 200, 'body': body})
        visit(f'{home}profile')
    for step in ({'status': 500}, {'status': 200, 'body': pair}, {}):
        grant()
        visit(f'{home}profile')
        processes.set_faults({'call': 'revoke', **step})
        visitor.page = visitor.http.post(f'{home}disconnect', timeout=60)
        look()
    grant()
    processes.edit_users('access_token', 'refresh_token')
    visit(f'{home}profile')
    pages.append(requests.get(f'{processes.zendesk}/practice', timeout=60).text)
    (processes.folder / 'users.json').write_text('{"canary": "half of a JSON')
    visit(f'{home}profile')
    secrets.extend(['canary', (processes.folder / '.secret_key').read_text()])
    return secrets, pages, cookies


def check_that_no_secret_got_out(processes: Processes, proxy: FaultyProxy, home: str) -> None:
    secrets, pages, cookies = play_all_flows(processes, proxy, home)
    assert len(set(secrets)) > 100
    # These files are where secrets belong.
    private = re.compile(r'users\.json(\.unreadable-\d+)?|\.secret_key|practice_zendesk\.db')
    files = [path for path in processes.folder.rglob('*') if path.is_file() and not private.fullmatch(path.name)]
    texts = {path.name: path.read_text() for path in files if path.suffix not in ('.py', '.pyc')}
    assert 'output.txt' in texts
    texts |= {'pages': ''.join(pages), 'session cookies': ''.join(session_cookies(cookies))}
    assert 'user_id' in texts['session cookies']
    for secret in set(secrets):
        assert [name for name, text in texts.items() if secret in text] == []


def session_cookies(cookies: list[str]) -> Iterator[str]:
    """What can be read in the session cookies."""
    for value in re.findall(r'zendesk_oauth_session=([^.;]+)\.', ''.join(cookies)):
        yield base64.urlsafe_b64decode(value + '=' * (-len(value) % 4)).decode()


AT_DEBUG = """
import logging, runpy
logging.basicConfig(level=logging.DEBUG)
runpy.run_path('app.py', run_name='__main__')
"""


def test_no_secret_is_in_any_output_file_or_page(processes, faulty_proxy, variables):
    processes.start('-c', AT_DEBUG, port=port_of(variables), **variables)
    check_that_no_secret_got_out(processes, faulty_proxy, f'http://localhost:{port_of(variables)}/')
    output = re.sub(r'\x1b\[\d+m', '', processes.output)
    assert '"GET /zendesk/oauth/callback HTTP/1.1"' in output
    assert 'DEBUG:urllib3.connectionpool' in output  # it was all told


def test_the_app_is_on_loopback_only(home):
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    port = int(home.split(':')[2].strip('/'))
    for address in addresses:
        if not address.startswith('127.'):
            with socket.socket() as connection:
                assert connection.connect_ex((address, port)) != 0


def test_there_is_no_debugger_even_where_the_environment_asks_for_one(processes, variables):
    processes.start('app.py', port=port_of(variables), FLASK_DEBUG='1', **variables)
    home = f'http://localhost:{port_of(variables)}/'
    visitor = Visitor(home)
    assert 'Debug mode: off' in processes.output
    for path in ('console', '?__debugger__=yes&cmd=resource&f=debugger.js'):
        visitor.visit(home + path)
        assert 'debugger' not in visitor.text.lower()


# --- Several processes --- #


def test_gunicorn_with_four_processes_serves_the_same_flow(processes, gunicorn_home):
    first, second = Visitor(gunicorn_home), Visitor(gunicorn_home)
    first.grant(ADMIN)
    second.grant(END_USER)
    for _ in range(8):
        first.visit(gunicorn_home + 'profile')
        second.visit(gunicorn_home + 'profile')
        assert (first.greeting, second.greeting) == (f'👋 Hi, {ADMIN}!', f'👋 Hi, {END_USER}!')
    assert '"GET /zendesk/oauth/callback" 302' in processes.output
    assert 'code=' not in processes.output


def test_under_gunicorn_no_secret_is_in_any_output_file_or_page(processes, faulty_proxy, variables):
    port = port_of(variables)
    command = ('-m', 'gunicorn', '-w', '2', '--log-level', 'debug', '--access-logfile', '-', 'app:app')
    processes.start(*command, port=port, LOGURU_LEVEL='DEBUG', **variables)
    check_that_no_secret_got_out(processes, faulty_proxy, f'http://localhost:{port}/')
    assert '"GET /zendesk/oauth/callback" 302' in processes.output
    assert r'"GET /nope\n\x1b[31mforged-line" 404' in processes.output


def test_over_four_processes_the_same_answer_ten_times_at_once_works_once(processes, gunicorn_home):
    check_that_an_answer_works_once(processes, gunicorn_home)


def test_over_four_processes_sixty_visits_on_one_expired_token_make_one_refresh(processes, gunicorn_home):
    visitor = Visitor(gunicorn_home)
    visitor.grant()
    processes.edit_users('access_token')
    pages = profiles(gunicorn_home, [visitor], 60)
    assert all(AGENT in page.text for page in pages)
    assert processes.refreshes() == 1


def test_gunicorn_refuses_to_start_without_settings(processes):
    ended = processes.run('-m', 'gunicorn', '-w', '4', '-b', f'127.0.0.1:{free_port()}', 'app:app')
    assert ended.returncode == 4
    assert ended.stderr.count('ZENDESK_CLIENT_ID is missing') == 1
    assert 'Traceback' not in ended.stderr
