"""The whole flow over real HTTP, with the app and the practice Zendesk as processes."""

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
from servers import ADMIN, AGENT, END_USER, HttpBrowser, Processes, free_port, listens, port_of, request_profiles


def test_practice_mode_completes_the_articles_steps_1_to_6(processes):
    for port in (3000, 3001):
        if listens(port):
            pytest.skip(f'port {port}, which practice mode uses, is taken on this machine')

    # 1: start the app. 2: open the home page, ask for the profile. 3 and 4: sign in (as a practice user), allow.
    processes.start('app.py', port=3000)
    assert 'practice' in processes.output
    assert 'http://localhost:3000' in processes.output
    browser = HttpBrowser('http://localhost:3000')
    assert 'Practice mode' in browser.text
    browser.click('Get my profile')
    assert browser.address == 'http://localhost:3000/grant_access'
    browser.click('Grant access')
    assert browser.address.startswith('http://localhost:3001/oauth/authorizations/new?')
    browser.decide('allow', END_USER)
    assert browser.address == 'http://localhost:3000/'
    browser.click('Get my profile')
    assert browser.greeting == f'👋 Hi, {END_USER}!'
    assert 'Your Zendesk user role is <strong>end-user</strong>.' in browser.text

    # 5: change a digit in the access token, rerun the app.
    [before] = processes.users.values()
    processes.stop(3000)
    processes.edit_users('access_token')
    processes.start('app.py', port=3000)
    browser.visit('http://localhost:3000')
    browser.click('Get my profile')
    assert browser.greeting == f'👋 Hi, {END_USER}!'
    [after] = processes.users.values()
    assert after['access_token'] != before['access_token']
    assert after['refresh_token'] != before['refresh_token']
    assert processes.refreshes() == 1

    # The same while the app runs.
    processes.edit_users('access_token')
    browser.visit('http://localhost:3000/profile')
    assert browser.greeting == f'👋 Hi, {END_USER}!'
    assert processes.refreshes() == 2

    # 6: change a digit in both tokens, rerun the app, grant access again.
    processes.stop(3000)
    processes.edit_users('access_token', 'refresh_token')
    processes.start('app.py', port=3000)
    browser.visit('http://localhost:3000')
    browser.click('Get my profile')
    assert browser.address == 'http://localhost:3000/grant_access?ended=1'
    assert [refresh['status'] for refresh in processes.request_log('refresh')] == [400]
    browser.click('Grant access')
    browser.decide('allow', END_USER)
    browser.click('Get my profile')
    assert browser.greeting == f'👋 Hi, {END_USER}!'

    # Each request is logged once: by the app, not also by the practice Zendesk.
    assert processes.output.count('POST /oauth/tokens with code #') == 2
    assert processes.output.count(f'Zendesk {END_USER} allowed access: issued code #') == 2
    # The log contains these steps in this order.
    story = [
        'Opening the home page',
        "Retrieving the user's access and refresh tokens",
        'The user has not granted access: redirecting to /grant_access',
        'Kicking off the authorization code flow',
        'Exchanging the authorization code for access and refresh tokens',
        'Storing the access and refresh tokens in users.json',
        'Making the API request',
        'Using the response data',
        "The access token has expired: refreshing the user's tokens",
        'Using the refresh token to get new access and refresh tokens',
        'Packaging, storing, and returning the new tokens',
        'Retrying the API request with the new token',
        'The refresh token is invalid',
        'Redirecting to /grant_access: the user must grant access again',
    ]
    position = 0
    for line in story:
        position = processes.output.index(line, position)


def test_two_browsers_can_have_different_users(processes, home):
    first, second = HttpBrowser(home), HttpBrowser(home)
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


def test_local_requests_ignore_the_proxy_variables(processes, variables):
    closed_port = f'http://127.0.0.1:{free_port()}'
    proxies = {
        'HTTP_PROXY': closed_port,
        'http_proxy': closed_port,
        'ALL_PROXY': closed_port,
        'NO_PROXY': '',
        'no_proxy': '',
    }
    processes.start('app.py', port=port_of(variables), **variables, **proxies)
    browser = HttpBrowser(f'http://localhost:{port_of(variables)}/')
    browser.grant()
    browser.click('Get my profile')
    assert browser.greeting == f'👋 Hi, {AGENT}!'


def test_sessions_stay_valid_after_a_restart(processes, variables, home):
    browser = HttpBrowser(home)
    browser.grant()
    processes.stop(port_of(variables))
    processes.start('app.py', port=port_of(variables), **variables)
    browser.click('Get my profile')
    assert browser.greeting == f'👋 Hi, {AGENT}!'


def test_a_user_can_grant_access_after_a_denial(home):
    browser = HttpBrowser(home)
    browser.click('Get my profile')
    browser.click('Grant access')
    browser.decide('deny')
    assert browser.status == 403
    assert 'Access was not granted' in browser.text
    browser.click('Start again')
    browser.click('Grant access')
    browser.decide('allow')
    browser.click('Get my profile')
    assert browser.greeting == f'👋 Hi, {AGENT}!'


def test_a_user_can_grant_access_after_opening_127_0_0_1(home):
    for path in ('', 'grant_access', 'zendesk/auth'):
        browser = HttpBrowser(home.replace('localhost', '127.0.0.1') + path)
        if path == '':
            browser.click('Get my profile')
        if 'Grant access' in browser.text and 'authorizations' not in browser.address:
            browser.click('Grant access')
        browser.decide('allow')
        assert browser.address == home
        browser.click('Get my profile')
        assert browser.greeting == f'👋 Hi, {AGENT}!'


def test_two_tabs_can_finish_in_reverse_order(processes, home):
    browser = HttpBrowser(home)
    browser.visit(home + 'zendesk/auth')
    first_tab = browser.page
    browser.visit(home + 'zendesk/auth')
    browser.decide('allow', ADMIN)
    browser.page = first_tab
    browser.decide('allow', END_USER)
    browser.click('Get my profile')
    assert browser.greeting == f'👋 Hi, {END_USER}!'
    assert len(processes.users) == 1


def test_a_callback_from_another_browser_is_refused(processes, home):
    attacker, victim = HttpBrowser(home), HttpBrowser(home)
    victim.grant(ADMIN)
    before = processes.users
    attacker.visit(home + 'zendesk/auth')
    trap = attacker.submit('allow', AGENT, allow_redirects=False).headers['Location']

    victim.visit(trap)

    assert victim.status == 400
    assert processes.users == before
    victim.visit(home + 'profile')
    assert victim.greeting == f'👋 Hi, {ADMIN}!'


def test_a_planted_session_cannot_open_the_profile_after_the_grant(home):
    attacker, victim = HttpBrowser(home), HttpBrowser(home)
    victim.http.cookies = attacker.http.cookies.copy()
    victim.grant(ADMIN)
    victim.click('Get my profile')
    assert victim.greeting == f'👋 Hi, {ADMIN}!'
    attacker.click('Get my profile')
    assert attacker.address == home + 'grant_access'


def test_a_user_can_start_again_after_the_code_expires(processes, home):
    browser = HttpBrowser(home)
    browser.visit(home + 'zendesk/auth')
    callback = browser.submit('allow', allow_redirects=False).headers['Location']
    with contextlib.closing(sqlite3.connect(processes.folder / 'practice_zendesk.db')) as db, db:
        db.execute('UPDATE codes SET expires_at = 0')
    browser.visit(callback)
    assert browser.status == 400
    browser.start_again()
    assert browser.greeting == f'👋 Hi, {AGENT}!'


def send_ten_concurrent_callbacks(browser: HttpBrowser, home: str) -> list[requests.Response]:
    browser.visit(home + 'zendesk/auth')
    callback = browser.submit('allow', allow_redirects=False).headers['Location']
    cookies = browser.http.cookies.get_dict()

    def send_callback(_):
        return requests.get(callback, cookies=cookies, allow_redirects=False, timeout=60)

    with ThreadPoolExecutor(10) as pool:
        return list(pool.map(send_callback, range(10)))


def check_that_one_callback_succeeds(processes: Processes, home: str) -> None:
    browser = HttpBrowser(home)
    responses = send_ten_concurrent_callbacks(browser, home)
    assert sorted(response.status_code for response in responses) == [302] + [400] * 9
    # The user is signed in even if the browser receives the refusals last.
    for response in sorted(responses, key=lambda response: response.status_code):
        browser.http.cookies.update(response.cookies)
    browser.visit(home + 'profile')
    assert browser.greeting == f'👋 Hi, {AGENT}!'
    assert [exchange['status'] for exchange in processes.request_log('exchange')] == [200]


def test_one_of_ten_concurrent_callbacks_succeeds(processes, home):
    check_that_one_callback_succeeds(processes, home)


def test_the_next_grant_deletes_a_record_that_expired_long_ago(processes, home):
    for _ in range(3):
        HttpBrowser(home).grant()
    users = processes.users
    a_week = next(iter(users.values()))['refresh_token_expires_at'] - time.time()
    assert 604800 - 60 < a_week <= 604800
    expired, *others = users
    users[expired]['refresh_token_expires_at'] -= 604800 + 2 * 24 * 3600
    (processes.folder / 'users.json').write_text(json.dumps(users))
    HttpBrowser(home).grant()
    assert len(processes.users) == 3
    assert set(others) <= set(processes.users)


def test_retrying_succeeds_after_zendesk_was_down(processes, variables, home):
    browser = HttpBrowser(home)
    browser.grant()
    zendesk_port = int(variables['ZENDESK_BASE_URL'].rpartition(':')[2])
    processes.stop(zendesk_port)
    browser.click('Get my profile')
    assert browser.status == 502
    processes.start('-m', 'practice_zendesk', '--port', str(zendesk_port), port=zendesk_port, **variables)
    browser.click('Try again')
    assert browser.greeting == f'👋 Hi, {AGENT}!'


@pytest.mark.parametrize(('kind', 'refreshes'), [('new', 1), ('fixed', 1), ('jwt', 1), ('old', 0)])
def test_the_flow_works_with_each_kind_of_oauth_client(processes, home, kind, refreshes):
    requests.post(f'{processes.zendesk}/practice', {'action': 'use_kind', 'kind': kind}, timeout=60).raise_for_status()
    browser = HttpBrowser(home)
    browser.grant()
    browser.click('Get my profile')
    assert browser.greeting == f'👋 Hi, {AGENT}!'
    processes.expire_access_tokens()
    browser.visit(f'{home}profile')
    assert processes.refreshes() == refreshes
    if not refreshes:
        assert 'has ended' in browser.text
        browser.click('Grant access')
        browser.decide('allow')
        browser.click('Get my profile')
    assert browser.greeting == f'👋 Hi, {AGENT}!'


def test_a_client_that_is_not_allowed_to_refresh_leads_to_a_new_grant(processes, home):
    browser = HttpBrowser(home)
    browser.grant()
    processes.expire_access_tokens()
    requests.post(f'{processes.zendesk}/practice', {'action': 'use_kind', 'kind': 'old'}, timeout=60).raise_for_status()
    browser.visit(f'{home}profile')
    assert (browser.status, 'The OAuth client is not set up for this app' in browser.text) == (502, True)
    browser.click('grant access again')
    browser.click('Grant access')
    browser.decide('allow')
    browser.click('Get my profile')
    assert browser.greeting == f'👋 Hi, {AGENT}!'


# --- Another copy of the app on localhost --- #


@pytest.fixture
def other_home(tmp_path) -> Iterator[str]:
    """Start another copy of the app with its own practice Zendesk, and return the address of its home page."""
    folder = tmp_path / 'other'
    folder.mkdir()
    processes = Processes(folder)
    variables = processes.start_zendesk()
    processes.start('app.py', port=port_of(variables), **variables)
    yield f'http://localhost:{port_of(variables)}/'
    processes.stop_all()


def test_two_copies_of_the_app_keep_their_own_cookies(home, other_home):
    """A browser sends the cookies of localhost to all of its ports."""
    browser = HttpBrowser(home)
    browser.click('Get my profile')
    browser.click('Grant access')
    consent_page = browser.page

    browser.visit(other_home)
    browser.grant(ADMIN)
    for _ in range(20):
        browser.visit(f'{other_home}zendesk/auth')  # more than MAX_PENDING
    browser.http.post(f'{other_home}disconnect', timeout=60)
    browser.visit(other_home)
    browser.grant(ADMIN)

    browser.page = consent_page
    browser.decide('allow', END_USER)
    assert (browser.address, browser.status) == (home, 200)
    for address, user in ((home, END_USER), (other_home, ADMIN), (home, END_USER)):
        browser.visit(f'{address}profile')
        assert browser.greeting == f'👋 Hi, {user}!'


# --- Secrets --- #


def run_all_flows(processes: Processes, proxy: FaultyProxy, home: str) -> tuple[list[str], list[str], list[str]]:
    """Run every flow and every failure. Return the secrets, pages and cookies."""
    secrets, pages, cookies = [], [], []
    browser = HttpBrowser(home)

    def visit(address: str) -> None:
        browser.visit(address)
        collect()

    def collect() -> None:
        for response in (*browser.page.history, browser.page):
            if response.url.startswith(home):
                location = response.headers.pop('Location', '')
                cookies.append(response.headers.pop('Set-Cookie', ''))
                pages.append(f'{response.text} {response.headers}')
                secrets.extend(re.findall('(?:state|code_challenge|code)=([^&]+)', location))
        if (processes.folder / 'users.json').exists():
            secrets.extend(record[name] for record in processes.users.values() for name in OLD)
        secrets.extend(browser.http.cookies.get_dict().values())

    def start() -> str:
        visit(f'{home}zendesk/auth')
        secrets.extend(re.findall('(?:state|code_challenge)=([^&]+)', browser.address))
        return re.search('state=([^&]+)', browser.address)[1]

    def grant() -> str:
        start()
        callback = browser.submit('allow', allow_redirects=False).headers['Location']
        secrets.extend(re.findall('code=([^&]+)', callback))
        visit(callback)
        return callback

    visit(home)
    callback = grant()
    visit(f'{home}profile')
    visit(callback)  # its state has been consumed
    visit(f'{home}zendesk/oauth/callback?code=canary-code&state=canary-state')
    start()
    browser.decide('deny')
    collect()
    for query in ('code=canary-code&iss=https://canary.example', 'error=canary&error_description=canary%0Aline'):
        visit(f'{home}zendesk/oauth/callback?state={start()}&{query}')
    for path in ('nope?code=canary-code', '%E0%A4%A?code=canary-code', 'nope%0A%1B[31mforged-line'):
        visit(f'{home}{path}')

    pair = '{"access_token": "canary-access", "refresh_token": "canary-refresh", "scope": "canary scope"}'
    for fault in (
        {'status': 200, 'body': pair},  # stored but invalid: the next profile request gets a 401
        {'status': 200, 'body': pair.replace('"canary-refresh"', '["canary-refresh"]')},
        {'status': 200, 'body': pair[:-10]},
        {'status': 500, 'body': pair},
        {'status': 302, 'headers': {'Location': f'{home}?code=canary-code'}},
        {'status': 400, 'body': '{"error": "canary {0}", "error_description": "canary"}'},
        {'status': 200, 'body': pair, 'damage': {'cut': 60}},
        {'lost': True},
    ):
        damage = fault.pop('damage', None)
        if damage:
            proxy.damage_next('exchange', **damage)
            proxy.damage_next('refresh', **damage)
        processes.expire_access_tokens()
        processes.set_faults({'call': 'exchange', **fault}, {'call': 'refresh', **fault})
        grant()
        visit(f'{home}profile')
        processes.set_faults()
        proxy.pending.clear()
        grant()
    for body in ('{"user": {"id": 5, "name": "canary", "role": 7}}', '{"canary": 5}', '{"user": {"id": null}}'):
        processes.set_faults({'call': 'profile', 'status': 200, 'body': body})
        visit(f'{home}profile')
    for fault in ({'status': 500}, {'status': 200, 'body': pair}, {}):
        grant()
        visit(f'{home}profile')
        processes.set_faults({'call': 'revoke', **fault})
        browser.page = browser.http.post(f'{home}disconnect', timeout=60)
        collect()
    grant()
    processes.edit_users('access_token', 'refresh_token')
    visit(f'{home}profile')
    pages.append(requests.get(f'{processes.zendesk}/practice', timeout=60).text)
    (processes.folder / 'users.json').write_text('{"canary": "half of a JSON')
    visit(f'{home}profile')
    secrets.extend(['canary', (processes.folder / '.secret_key').read_text()])
    return secrets, pages, cookies


def check_that_no_secret_leaks(processes: Processes, proxy: FaultyProxy, home: str) -> None:
    secrets, pages, cookies = run_all_flows(processes, proxy, home)
    assert len(set(secrets)) > 100
    # These files may contain secrets.
    private = re.compile(r'users\.json(\.unreadable-\d+)?|\.secret_key|practice_zendesk\.db')
    files = [path for path in processes.folder.rglob('*') if path.is_file() and not private.fullmatch(path.name)]
    texts = {path.name: path.read_text() for path in files if path.suffix not in ('.py', '.pyc')}
    assert 'output.txt' in texts
    texts |= {'pages': ''.join(pages), 'session cookies': ''.join(session_cookies(cookies))}
    assert 'user_id' in texts['session cookies']
    for secret in set(secrets):
        assert [name for name, text in texts.items() if secret in text] == []


def session_cookies(cookies: list[str]) -> Iterator[str]:
    """Decode the payloads of the session cookies."""
    for value in re.findall(r'zendesk_oauth_\d+_session=([^.;]+)\.', ''.join(cookies)):
        yield base64.urlsafe_b64decode(value + '=' * (-len(value) % 4)).decode()


AT_DEBUG = 'import logging, runpy; logging.basicConfig(level=logging.DEBUG); '
APP = AT_DEBUG + 'runpy.run_path("app.py", run_name="__main__")'
FLASK_RUN = AT_DEBUG + 'from flask.cli import main; main()'


@pytest.mark.parametrize('server', ['app.py', 'flask run'])
def test_no_secret_is_in_any_output_file_or_page(processes, faulty_proxy, variables, server):
    port = port_of(variables)
    command = ['-c', APP] if server == 'app.py' else ['-c', FLASK_RUN, '--app', 'app', 'run', '--port', str(port)]
    processes.start(*command, port=port, **variables)
    check_that_no_secret_leaks(processes, faulty_proxy, f'http://localhost:{port}/')
    output = re.sub(r'\x1b\[\d+m', '', processes.output)
    assert ('"GET /zendesk/oauth/callback HTTP/1.1"' in output) == (server == 'flask run')
    assert 'DEBUG:urllib3.connectionpool' in output  # debug output was on


def test_the_app_listens_on_loopback_only(home):
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    port = int(home.split(':')[2].strip('/'))
    for address in addresses:
        if not address.startswith('127.'):
            with socket.socket() as connection:
                assert connection.connect_ex((address, port)) != 0


def test_the_debugger_stays_off_if_the_environment_enables_it(processes, variables):
    processes.start('app.py', port=port_of(variables), FLASK_DEBUG='1', **variables)
    home = f'http://localhost:{port_of(variables)}/'
    browser = HttpBrowser(home)
    assert 'Debug mode: off' in processes.output
    for path in ('console', '?__debugger__=yes&cmd=resource&f=debugger.js'):
        browser.visit(home + path)
        assert 'debugger' not in browser.text.lower()


# --- Several processes --- #


def test_gunicorn_with_four_processes_serves_the_same_flow(processes, gunicorn_home):
    first, second = HttpBrowser(gunicorn_home), HttpBrowser(gunicorn_home)
    first.grant(ADMIN)
    second.grant(END_USER)
    for _ in range(8):
        first.visit(gunicorn_home + 'profile')
        second.visit(gunicorn_home + 'profile')
        assert (first.greeting, second.greeting) == (f'👋 Hi, {ADMIN}!', f'👋 Hi, {END_USER}!')
    assert '"GET /zendesk/oauth/callback" 302' in processes.output
    assert 'code=' not in processes.output


def test_gunicorn_puts_no_secret_in_any_output_file_or_page(processes, faulty_proxy, variables):
    port = port_of(variables)
    command = ('-m', 'gunicorn', '-w', '2', '--log-level', 'debug', '--access-logfile', '-', 'app:app')
    processes.start(*command, port=port, LOGURU_LEVEL='DEBUG', **variables)
    check_that_no_secret_leaks(processes, faulty_proxy, f'http://localhost:{port}/')
    assert '"GET /zendesk/oauth/callback" 302' in processes.output
    assert r'"GET /nope\n\x1b[31mforged-line" 404' in processes.output


def test_one_of_ten_concurrent_callbacks_to_four_processes_succeeds(processes, gunicorn_home):
    check_that_one_callback_succeeds(processes, gunicorn_home)


def test_sixty_requests_to_four_processes_make_one_refresh(processes, gunicorn_home):
    browser = HttpBrowser(gunicorn_home)
    browser.grant()
    processes.edit_users('access_token')
    pages = request_profiles(gunicorn_home, [browser], 60)
    assert all(AGENT in page.text for page in pages)
    assert processes.refreshes() == 1


def test_gunicorn_refuses_to_start_without_settings(processes):
    ended = processes.run('-m', 'gunicorn', '-w', '4', '-b', f'127.0.0.1:{free_port()}', 'app:app')
    assert ended.returncode == 4
    assert ended.stderr.count('ZENDESK_CLIENT_ID is missing') == 1
    assert 'Traceback' not in ended.stderr
