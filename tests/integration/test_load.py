"""Load over real HTTP with several processes, and processes that are killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from servers import ADMIN, AGENT, HttpBrowser, Processes, overlap, request_profiles, wait_until


def in_background(visit) -> threading.Thread:
    thread = threading.Thread(target=visit)
    thread.start()
    return thread


def start_visit(processes: Processes, browser: HttpBrowser, home: str, **fault) -> threading.Thread:
    """Start a profile request with an expired token, and wait until Zendesk receives the request that fails."""
    processes.expire_access_tokens()
    processes.set_faults(fault)
    visit = in_background(lambda: browser.visit(f'{home}profile'))
    processes.wait_until_faults_are_used()
    return visit


def worker_pids(processes) -> list[int]:
    """Return the process IDs of the running gunicorn workers."""
    return [int(pid) for pid in re.findall(r'Booting worker with pid: (\d+)', processes.output) if is_running(int(pid))]


def kill(pids: list[int]) -> None:
    """Kill these processes, and wait until all of them have ended."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- One refresh per expired token --- #


@pytest.mark.slow
@pytest.mark.parametrize('connections', ['new', 'persistent'])
def test_sixty_concurrent_requests_with_an_expired_token_make_one_refresh(processes, connections, figure, request):
    if connections == 'persistent':  # the proxy must start before the app
        request.getfixturevalue('keep_alive_proxy')
    gunicorn_home = request.getfixturevalue('gunicorn_home')
    browser = HttpBrowser(gunicorn_home)
    browser.grant()

    def visit() -> None:
        pages = request_profiles(gunicorn_home, [browser], 60)
        assert [page.status_code for page in pages] == [200] * 60
        assert all(AGENT in page.text for page in pages)

    counted = processes.count_refreshes(visit)
    figure(
        f'60 concurrent requests with an expired token, 4 processes, {connections} connections, 5 times: refresh '
        f'requests {counted}'
    )
    assert counted == [1] * 5


@pytest.mark.slow
@pytest.mark.parametrize('server', ['home', 'gunicorn_home'])
def test_300_concurrent_requests_make_one_refresh_per_user(processes, server, figure, request):
    home = request.getfixturevalue(server)
    browsers = [HttpBrowser(home) for _ in range(30)]
    for browser in browsers:
        browser.grant()
    processes.expire_access_tokens()
    before = time.monotonic()
    pages = request_profiles(home, browsers, 10)
    seconds = time.monotonic() - before
    assert [page.status_code for page in pages] == [200] * 300
    figure(
        f'300 concurrent requests of 30 users with expired tokens ({server}): {processes.refreshes()} refresh '
        f'requests, all responses after {seconds:.1f} s'
    )
    assert processes.refreshes() == 30
    assert len(processes.users) == 30


@pytest.mark.slow
def test_refreshes_of_different_users_run_concurrently(processes, gunicorn_home, figure):
    browsers = [HttpBrowser(gunicorn_home) for _ in range(12)]
    for browser in browsers:
        browser.grant()
    processes.expire_access_tokens()
    processes.set_faults({'call': 'refresh', 'delay': 0.5, 'times': 12})
    before = time.monotonic()
    pages = request_profiles(gunicorn_home, browsers, 1)
    seconds = time.monotonic() - before
    assert [page.status_code for page in pages] == [200] * 12
    refreshes = processes.request_log('refresh')
    assert len(refreshes) == 12
    figure(f'12 users with expired tokens, each refresh taking 0.5 s: all done after {seconds:.2f} s')
    assert overlap(refreshes)


def test_slow_requests_of_one_user_do_not_block_another_user(processes, gunicorn_home):
    browser, other = HttpBrowser(gunicorn_home), HttpBrowser(gunicorn_home)
    browser.grant()
    other.grant()
    processes.set_faults({'call': 'profile', 'delay': 3, 'times': 12})
    slow = [in_background(lambda: request_profiles(gunicorn_home, [browser], 1)) for _ in range(12)]
    processes.wait_until_faults_are_used()
    other.visit(f'{gunicorn_home}profile')
    assert other.greeting == f'👋 Hi, {AGENT}!'
    assert all(visit.is_alive() for visit in slow)
    for visit in slow:
        visit.join()


def test_a_401_after_another_tab_refreshed_uses_the_new_tokens(processes, gunicorn_home):
    browser, other_tab = HttpBrowser(gunicorn_home), HttpBrowser(gunicorn_home)
    browser.grant()
    other_tab.http.cookies = browser.http.cookies.copy()
    visit = start_visit(processes, browser, gunicorn_home, call='profile', delay=1)
    other_tab.visit(f'{gunicorn_home}profile')
    assert processes.refreshes() == 1
    visit.join()
    assert browser.greeting == other_tab.greeting == f'👋 Hi, {AGENT}!'
    assert processes.refreshes() == 1


def test_newer_stored_tokens_are_used_after_invalid_grant(processes, gunicorn_home):
    browser, other = HttpBrowser(gunicorn_home), HttpBrowser(gunicorn_home)
    browser.grant(AGENT)
    [user_id] = processes.users
    visit = start_visit(
        processes, browser, gunicorn_home, call='refresh', delay=1, status=400, body='{"error": "invalid_grant"}'
    )
    other.grant(ADMIN)
    users = processes.users
    users[user_id] = next(record for other_id, record in users.items() if other_id != user_id)
    (processes.folder / 'users.json').write_text(json.dumps(users))
    visit.join()
    assert browser.greeting == f'👋 Hi, {ADMIN}!'
    assert processes.users == users


def test_a_late_refresh_does_not_overwrite_a_new_grant(processes, gunicorn_home):
    browser, tab = HttpBrowser(gunicorn_home), HttpBrowser(gunicorn_home)
    browser.grant(AGENT)
    tab.http.cookies = browser.http.cookies.copy()
    visit = start_visit(processes, browser, gunicorn_home, call='refresh', delay=1)
    tab.visit(f'{gunicorn_home}zendesk/auth')
    tab.decide('allow', ADMIN)
    users = processes.users
    assert len(users) == 1
    visit.join()
    assert browser.address == f'{gunicorn_home}grant_access?ended=1'
    assert processes.users == users
    tab.visit(f'{gunicorn_home}profile')
    assert tab.greeting == f'👋 Hi, {ADMIN}!'


@pytest.mark.parametrize(
    'afterwards',
    [
        pytest.param('profile', id='before Zendesk refreshes'),
        pytest.param('grant_access?ended=1', id='after Zendesk refreshes'),
    ],
)
def test_the_app_recovers_after_workers_are_killed_during_a_refresh(
    processes, faulty_proxy, gunicorn_home, figure, afterwards
):
    browser, next_tab = HttpBrowser(gunicorn_home), HttpBrowser(gunicorn_home)
    browser.grant()
    next_tab.http.cookies = browser.http.cookies.copy()
    processes.expire_access_tokens()
    if afterwards == 'profile':
        processes.set_faults({'call': 'refresh', 'status': 500, 'delay': 60})
    else:
        faulty_proxy.damage_next('refresh', cut=0, hold=60)

    def visit() -> None:
        with contextlib.suppress(requests.ConnectionError):
            browser.visit(f'{gunicorn_home}profile')

    visiting = in_background(visit)
    processes.wait_until_faults_are_used()
    wait_until(lambda: afterwards == 'profile' or processes.refreshes() == 1)
    kill(worker_pids(processes))
    visiting.join()

    before = time.monotonic()
    next_tab.visit(f'{gunicorn_home}profile')
    figure(f'the first request after all workers were killed during a refresh: {time.monotonic() - before:.2f} s')
    assert (next_tab.status, next_tab.address) == (200, gunicorn_home + afterwards)
    next_tab.visit(gunicorn_home)
    if afterwards != 'profile':
        next_tab.grant()
    next_tab.click('Get my profile')
    assert next_tab.greeting == f'👋 Hi, {AGENT}!'


# --- The store --- #


@pytest.mark.slow
def test_eighty_concurrent_grants_store_eighty_records(processes, gunicorn_home, figure):
    browsers = [HttpBrowser(gunicorn_home) for _ in range(80)]
    together = threading.Barrier(80)

    def grant(browser: HttpBrowser) -> str:
        browser.visit(f'{gunicorn_home}zendesk/auth')
        together.wait()
        browser.decide('allow')
        browser.click('Get my profile')
        return browser.greeting

    with ThreadPoolExecutor(80) as pool:
        assert list(pool.map(grant, browsers)) == [f'👋 Hi, {AGENT}!'] * 80
    figure(f'80 concurrent grants, 4 processes: {len(processes.users)} records')
    assert len(processes.users) == 80


@pytest.mark.slow
def test_two_hundred_kills_during_writes_lose_no_record(processes, gunicorn_home, figure):
    """Count only the kills during a write. With 5,000 records, a write takes long enough to interrupt."""
    file = processes.folder / 'users.json'
    filler = {'access_token': 'x' * 64, 'refresh_token': 'x' * 64}
    file.write_text(json.dumps({f'filler-{number}': filler for number in range(5000)}))
    granted: list[HttpBrowser] = []
    finished = threading.Event()

    def keep_granting(_) -> None:
        while not finished.is_set():
            with contextlib.suppress(requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
                browser = HttpBrowser(f'{gunicorn_home}zendesk/auth')
                browser.decide('allow')
                assert (browser.status, browser.address) == (200, gunicorn_home)
                granted.append(browser)

    kills = interrupted = broken = 0
    temporary = processes.folder / 'users.json.tmp'
    with ThreadPoolExecutor(8) as pool:
        granting = pool.map(keep_granting, range(8))
        try:
            while interrupted < 200:
                wait_until(lambda: len(worker_pids(processes)) == 4)
                time.sleep(random.uniform(0.02, 0.1))  # noqa: S311
                pids = worker_pids(processes)
                wait_until(temporary.exists, pause=0)
                kill(pids)
                kills += 1
                interrupted += temporary.exists()
                try:
                    json.loads(file.read_text())
                except ValueError:
                    broken += 1
        finally:
            finished.set()
        list(granting)

    wait_until(lambda: len(worker_pids(processes)) == 4)
    HttpBrowser(gunicorn_home).grant()  # this write deletes the temporary file of a killed writer
    kept = 0
    for browser in granted:
        browser.visit(f'{gunicorn_home}profile')
        kept += browser.address == f'{gunicorn_home}profile' and browser.greeting == f'👋 Hi, {AGENT}!'
    fillers = sum(user_id.startswith('filler') for user_id in processes.users)
    left = sorted(path.name for path in processes.folder.glob('users.json*'))
    figure(
        f'{kills} kills of all 4 processes, {interrupted} during a write: {broken} broken files, '
        f'{len(granted) - kept} of {len(granted)} new users lost, {5000 - fillers} of 5,000 other users lost, '
        f'files left {left}'
    )
    assert (broken, kept, fillers) == (0, len(granted), 5000)
    assert left == ['users.json', 'users.json.d']


@pytest.mark.slow
def test_ten_thousand_unfinished_authorization_requests_store_nothing(processes, gunicorn_home, figure):
    HttpBrowser(gunicorn_home).grant()
    before = processes.users
    port = int(gunicorn_home.split(':')[2].strip('/'))

    def visit(number: int) -> int:
        served = 0
        with contextlib.closing(http.client.HTTPConnection('localhost', port, timeout=60)) as connection:
            for path in ('/', '/profile', '/zendesk/auth') * number:
                connection.request('GET', path)
                response = connection.getresponse()
                response.read()
                served += response.status in (200, 302)
        return served

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(visit, [1250] * 8)) == 30_000
    left = sorted(path.name for path in processes.folder.glob('users.json*'))
    figure(f'10,000 unfinished authorization requests: {len(processes.users)} record as before, files {left}')
    assert processes.users == before
    assert left == ['users.json', 'users.json.d']


@pytest.mark.slow
def test_measure_profile_requests_with_ten_thousand_stored_users(processes, home, figure):
    """Measure only: tests/zendesk_oauth/test_stores.py checks that the file is not parsed again."""
    browser = HttpBrowser(home)
    browser.grant()
    medians = []
    for stored in (10, 10_000):
        users = processes.users
        [record] = [users[user_id] for user_id in users if not user_id.startswith('filler')]
        users.update({f'filler-{number}': record for number in range(stored - 1)})
        (processes.folder / 'users.json').write_text(json.dumps(users, indent=2))
        seconds = []
        for _ in range(300):
            before = time.perf_counter()
            browser.visit(f'{home}profile')
            seconds.append(time.perf_counter() - before)
        assert browser.greeting == f'👋 Hi, {AGENT}!'
        medians.append(statistics.median(seconds))
    figure(
        'a profile request, median of 300: {:.2f} ms with 10 stored users, {:.2f} ms with 10,000'.format(
            *(1000 * median for median in medians)
        )
    )
