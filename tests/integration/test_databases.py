"""Two machines that share a database, and processes that are killed during a refresh."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
from helpers import KEY, OLD, OTHER, PROJECT
from postgresql import PASSWORD
from servers import (
    AGENT,
    HttpBrowser,
    Processes,
    environment,
    free_port,
    overlap,
    port_of,
    request_profiles,
)
from store_suite import records

from zendesk_oauth import ZendeskOAuth
from zendesk_oauth.errors import LockTimeout
from zendesk_oauth.sql_store import LEASE
from zendesk_oauth.stores import REFRESH_TIMEOUT

TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'zendesk_oauth'"

with_each = pytest.mark.parametrize('store_url', ['SQLite', 'PostgreSQL', 'PgBouncer'], indirect=True)
with_postgresql = pytest.mark.parametrize('store_url', ['PostgreSQL', 'PgBouncer'], indirect=True)
directly = pytest.mark.parametrize('store_url', ['PostgreSQL'], indirect=True)


class Machines:
    """Two gunicorn servers in separate folders that share only a database. With SQLite, they are on one machine."""

    def __init__(self, first: Processes, second: Processes, variables: dict[str, str]) -> None:
        self.first, self.second = first, second
        self.ports = (port_of(variables), free_port())
        self.homes = [f'http://localhost:{port}/' for port in self.ports]
        for machine, port in zip((first, second), self.ports, strict=True):
            machine.start('-m', 'gunicorn', '-w', '2', '-b', f'127.0.0.1:{port}', 'app:app', port=port, **variables)

    def request_profiles(self, browsers: list[HttpBrowser], times: int) -> list[requests.Response]:
        """Request the profile of each browser `times` times concurrently, half of them from each machine."""
        with ThreadPoolExecutor(len(self.homes)) as pool:
            responses = pool.map(lambda home: request_profiles(home, browsers, times // len(self.homes)), self.homes)
            return [page for pages in responses for page in pages]

    @property
    def output(self) -> str:
        return self.first.output + self.second.output


@pytest.fixture
def machines(processes, variables, store_url, tmp_path):
    pytest.importorskip('gunicorn', reason='gunicorn is not installed: pip install -r requirements-dev.txt')
    (tmp_path / 'second').mkdir()
    second = Processes(tmp_path / 'second')
    secret_key = 'canary-secret-key-canary-secret-key'
    shared = {'DATABASE_URL': store_url, 'TOKEN_ENCRYPTION_KEYS': KEY, 'SECRET_KEY': secret_key}
    yield Machines(processes, second, {**variables, **shared})
    second.stop_all()


@with_each
def test_two_machines_serve_the_same_user(processes, machines, db):
    browser = HttpBrowser(machines.homes[0])
    browser.grant()
    for home in machines.homes * 4:
        browser.visit(f'{home}profile')
        assert browser.greeting == f'👋 Hi, {AGENT}!'
    assert f'Storing the access and refresh tokens in {db}\n' in machines.output
    assert not list(processes.folder.rglob('users.json*'))
    [record] = records(db).values()
    browser.page = browser.http.post(f'{machines.homes[1]}disconnect', timeout=60)
    assert 'deleted here and revoked at Zendesk' in browser.text
    assert records(db) == {}
    for secret in (record['access_token'], record['refresh_token'], PASSWORD, KEY):
        assert secret not in machines.output


@with_each
def test_one_of_ten_concurrent_callbacks_to_two_machines_succeeds(processes, machines):
    browser = HttpBrowser(machines.homes[0])
    browser.visit(f'{machines.homes[0]}zendesk/auth')
    callback = browser.submit('allow', allow_redirects=False).headers['Location']
    addresses = [callback.replace(f':{machines.ports[0]}', f':{port}') for port in machines.ports] * 5
    with ThreadPoolExecutor(10) as pool:
        cookies = browser.http.cookies.get_dict()
        pages = list(
            pool.map(lambda it: requests.get(it, cookies=cookies, allow_redirects=False, timeout=60), addresses)
        )
    assert sorted(page.status_code for page in pages) == [302] + [400] * 9
    assert len(processes.request_log('exchange')) == 1


@with_each
@pytest.mark.parametrize('users', [1, 6])
def test_sixty_requests_to_four_processes_make_one_refresh_per_user(
    processes, machines, store_url, users, figure, request
):
    browsers = [HttpBrowser(machines.homes[0]) for _ in range(users)]
    for browser in browsers:
        browser.grant()

    def visit() -> None:
        pages = machines.request_profiles(browsers, 60 // users)
        assert [page.status_code for page in pages] == [200] * 60
        assert all(AGENT in page.text for page in pages)

    counted = processes.count_refreshes(visit)
    figure(
        f'{request.node.name}: 60 concurrent requests with the expired tokens of {users} users, 5 times: '
        f'refresh requests {counted}'
    )
    assert counted == [users] * 5


@with_each
def test_refreshes_of_different_users_run_concurrently(processes, machines):
    browsers = [HttpBrowser(machines.homes[0]) for _ in range(12)]
    for browser in browsers:
        browser.grant()
    processes.expire_access_tokens()
    processes.set_faults({'call': 'refresh', 'delay': 0.5, 'times': 12})
    pages = machines.request_profiles(browsers, 2)
    assert [page.status_code for page in pages] == [200] * 24
    refreshes = processes.request_log('refresh')
    assert len(refreshes) == 12
    assert overlap(refreshes)


# --- Moving to a database --- #


def documented(page: str, word: str) -> str:
    """Return the Python program that contains `word` from a page of the documentation."""
    programs = re.findall("python -c '(.*?)'\n", (PROJECT / page).read_text(encoding='utf-8'), re.DOTALL)
    [program] = [program for program in programs if word in program]
    return textwrap.dedent(program)


@with_each
def test_the_documented_command_moves_the_tokens_of_users_json(processes, variables, db, store_url):
    (processes.folder / 'users.json').write_text(json.dumps({'alice': OLD, 'bob': OTHER}))
    database = {'DATABASE_URL': store_url, 'TOKEN_ENCRYPTION_KEYS': KEY}
    ended = processes.run('-c', documented('docs/production.md', 'users.json'), **variables, **database)
    assert ended.returncode == 0, ended.stderr
    assert records(db) == {'alice': OLD, 'bob': OTHER}
    ended = processes.run('-c', documented('docs/production.md', 'reencrypt'), **variables, **database)
    assert ended.stdout == '0\n'


@with_postgresql
def test_the_documented_command_moves_the_tokens_of_an_earlier_version(processes, variables, db, store_url, postgresql):
    postgresql.sql(
        'CREATE TABLE zendesk_tokens (user_id TEXT PRIMARY KEY, record JSONB NOT NULL, dies_at BIGINT)',
        f"INSERT INTO zendesk_tokens VALUES ('alice', '{json.dumps(OLD)}', 5), ('bob', '{json.dumps(OTHER)}', NULL)",
    )
    database = {'DATABASE_URL': store_url, 'TOKEN_ENCRYPTION_KEYS': KEY}
    ended = processes.run('-c', documented('CHANGELOG.md', 'zendesk_tokens'), **variables, **database)
    assert ended.returncode == 0, ended.stderr
    assert records(db) == {'alice': OLD, 'bob': OTHER}


# --- A process is killed during a refresh --- #


@directly
@pytest.mark.slow
def test_pages_return_503_until_the_lease_of_a_killed_process_expires(processes, machines, figure, request):
    browser, next_tab = HttpBrowser(machines.homes[0]), HttpBrowser(machines.homes[0])
    browser.grant()
    next_tab.http.cookies = browser.http.cookies.copy()
    processes.expire_access_tokens()
    processes.set_faults({'call': 'refresh', 'status': 500, 'delay': 60})

    def visit() -> None:
        with contextlib.suppress(requests.ConnectionError):
            browser.visit(f'{machines.homes[0]}profile')

    visiting = threading.Thread(target=visit)
    visiting.start()
    processes.wait_until_faults_are_used()
    os.killpg(processes.running[machines.ports[0]].pid, signal.SIGKILL)
    killed = time.monotonic()
    visiting.join()

    busy = 0
    next_tab.visit(f'{machines.homes[1]}profile')
    while next_tab.status == 503:
        busy += 1
        assert 'The app is busy' in next_tab.text
        assert next_tab.page.headers['Retry-After'] == '10'
        next_tab.visit(f'{machines.homes[1]}profile')
    seconds = time.monotonic() - killed
    figure(f'{request.node.name}: the profile was available again after {seconds:.1f} s and {busy} pages with 503')
    assert next_tab.greeting == f'👋 Hi, {AGENT}!'
    assert seconds < LEASE + 5


@pytest.mark.parametrize('store_url', ['SQLite', 'PostgreSQL'], indirect=True)
@pytest.mark.slow
def test_no_grant_is_lost_if_fifty_processes_are_killed(processes, variables, db, store_url, figure, request):
    """Fifty processes, each of which refreshes the tokens of a different user, are killed at the same time."""
    settings = {
        'zendesk_url': variables['ZENDESK_BASE_URL'],
        'client_id': variables['ZENDESK_CLIENT_ID'],
        'client_secret': variables['ZENDESK_CLIENT_SECRET'],
        'redirect_uri': variables['REDIRECT_URI'],
        'scope': 'users:read',
    }
    oauth = ZendeskOAuth(**settings, store=db)
    users = [f'user-{number}' for number in range(50)]
    for user in users:
        pending = oauth.authorization_request(user)
        callback = HttpBrowser(pending.url).submit('allow', allow_redirects=False).headers['Location']
        oauth.exchange(user, dict(parse_qsl(urlsplit(callback).query)), {pending.cookie_name: pending.cookie_value})
    processes.expire_access_tokens()
    processes.set_faults({'call': 'refresh', 'status': 500, 'delay': 60, 'times': 50})
    program = f"""if True:
        import os, time
        from zendesk_oauth import SqlStore, ZendeskOAuth
        oauth = ZendeskOAuth(**{settings!r}, store=SqlStore({store_url!r}, encryption_keys=[{KEY!r}]))
        for user in {users!r}:
            if not os.fork():
                oauth.session(user).get('/api/v2/users/me')
        time.sleep(60)
    """
    holders = subprocess.Popen([sys.executable, '-c', program], env=environment(), start_new_session=True)
    processes.wait_until_faults_are_used()
    os.killpg(holders.pid, signal.SIGKILL)
    killed = time.monotonic()
    holders.wait(60)

    def visit(user: str) -> tuple[int, int, float]:
        busy = 0
        while True:
            try:
                response = oauth.session(user).get('/api/v2/users/me')
            except LockTimeout:
                busy += 1
            else:
                return response.status_code, busy, time.monotonic() - killed

    with ThreadPoolExecutor(50) as pool:
        statuses, busy, seconds = zip(*pool.map(visit, users), strict=True)
    refreshes = sum(refresh['status'] < 400 for refresh in processes.request_log('refresh'))
    figure(
        f'{request.node.name}: {statuses.count(200)} of 50 users kept their grant, with {refreshes} '
        f'refreshes. Their requests succeeded {min(seconds):.1f} to {max(seconds):.1f} s after the kill, after '
        f'{sum(busy)} times "busy"'
    )
    assert statuses == (200,) * 50
    assert len(records(db)) == 50
    assert max(seconds) < LEASE + 5


# --- The database fails --- #


@with_postgresql
def test_terminated_connections_do_not_start_a_second_refresh(processes, machines, postgresql):
    browser = HttpBrowser(machines.homes[0])
    browser.grant()
    processes.expire_access_tokens()
    processes.set_faults({'call': 'refresh', 'delay': 3})
    with ThreadPoolExecutor(1) as pool:
        pages = pool.submit(machines.request_profiles, [browser], 6)
        processes.wait_until_faults_are_used()
        for _ in range(20):
            postgresql.sql(TERMINATE)
            time.sleep(0.1)
        assert [page.status_code for page in pages.result()] == [200] * 6
    assert processes.refreshes() == 1


@directly
@pytest.mark.slow
def test_terminated_connections_under_load_lose_no_grant(processes, machines, postgresql, figure):
    browsers = [HttpBrowser(machines.homes[0]) for _ in range(10)]
    for browser in browsers:
        browser.grant()
    finished = threading.Event()
    seconds, statuses = [], []

    def keep_visiting(number: int) -> None:
        cookies = browsers[number % 10].http.cookies.get_dict()
        while not finished.is_set():
            before = time.monotonic()
            page = requests.get(f'{machines.homes[number % 2]}profile', cookies=cookies, timeout=120)
            seconds.append(time.monotonic() - before)
            statuses.append(page.status_code)
            if page.status_code != 200:
                # The second title appears if the retry also gets a 401 of this test.
                title = re.search('<h1>(.*)</h1>', page.text)[1]
                failures = ('The app is busy', 'The app cannot access its stored data')
                assert title in (*failures, 'Zendesk rejected the new access token')
                assert 'class="button" href="/' in page.text

    terminated = 0
    with ThreadPoolExecutor(30) as pool:
        visiting = [pool.submit(keep_visiting, number) for number in range(30)]
        try:
            until = time.monotonic() + 20
            while time.monotonic() < until:
                processes.set_faults({'call': 'profile', 'status': 401, 'times': 5})  # as if the token had expired
                for _ in range(5):
                    time.sleep(0.1)
                    terminated += len(postgresql.sql(TERMINATE))
        finally:
            finished.set()
        for visit in visiting:
            visit.result()

    refused = sum((refresh['status'] or 500) >= 400 for refresh in processes.request_log('refresh'))
    lost = 0
    for browser in browsers:
        browser.visit(f'{machines.homes[1]}profile')
        lost += AGENT not in browser.text
    figure(
        f'{terminated} connections terminated during {len(statuses)} requests to two machines: {lost} of 10 users '
        f'lost, {refused} of {processes.refreshes()} refreshes refused, {statuses.count(503)} pages with status 503, '
        f'the longest wait {max(seconds):.2f} s (the lease is {LEASE} s)'
    )
    assert (lost, refused) == (0, 0)
    assert max(seconds) < REFRESH_TIMEOUT + LEASE


@directly
def test_error_pages_offer_a_retry_while_the_database_is_down(processes, machines, postgresql):
    browser, late = HttpBrowser(machines.homes[0]), HttpBrowser(machines.homes[0])
    browser.grant()
    late.visit(f'{machines.homes[0]}zendesk/auth')
    postgresql.stop()
    for home in machines.homes:
        browser.visit(f'{home}profile')
        assert browser.status == 503
        assert re.search('href="/profile">Try again', browser.text)
        browser.visit(home)
        assert browser.status == 200
        browser.visit(f'{home}health')
        assert (browser.status, browser.text) == (503, 'unavailable\n')
    late.decide('allow')
    assert late.status == 503
    assert processes.request_log('exchange')[1:] == []  # a code is not exchanged if its tokens cannot be stored
    assert 'Check that PostgreSQL runs' in machines.output
    assert 'Traceback' not in machines.output
    assert PASSWORD not in machines.output
    postgresql.start()
    for home in machines.homes:
        browser.visit(f'{home}profile')
        assert browser.greeting == f'👋 Hi, {AGENT}!'
        browser.visit(f'{home}health')
        assert (browser.status, browser.text) == (200, 'ok\n')
