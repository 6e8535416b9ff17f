"""Many visitors at once, over real HTTP and over several processes; and processes that are killed."""

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
from servers import ADMIN, AGENT, Processes, Visitor, profiles, side_by_side, wait_until


def in_the_background(visit) -> threading.Thread:
    thread = threading.Thread(target=visit)
    thread.start()
    return thread


def visit_under_way(processes: Processes, visitor: Visitor, home: str, **step) -> threading.Thread:
    """Let the visitor ask for the profile with an expired token, and go on once Zendesk has got the step's call."""
    processes.expire_access_tokens()
    processes.set_faults(step)
    visit = in_the_background(lambda: visitor.visit(f'{home}profile'))
    processes.wait_until_faults_are_used()
    return visit


def workers(processes) -> list[int]:
    """The processes of gunicorn that serve."""
    return [int(pid) for pid in re.findall(r'Booting worker with pid: (\d+)', processes.output) if runs(int(pid))]


def kill(pids: list[int]) -> None:
    """Kill these processes, and wait until the last of them has gone: a kill takes a moment."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(runs(pid) for pid in pids))


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- One refresh per expired token --- #


@pytest.mark.slow
def test_sixty_visits_on_one_expired_token_make_one_refresh_five_times_in_a_row(processes, gunicorn_home, figure):
    visitor = Visitor(gunicorn_home)
    visitor.grant()
    counted = []
    for _ in range(5):
        before = processes.refreshes()
        processes.expire_access_tokens()
        pages = profiles(gunicorn_home, [visitor], 60)
        assert [page.status_code for page in pages] == [200] * 60
        assert all(AGENT in page.text for page in pages)
        counted.append(processes.refreshes() - before)
    figure(f'60 visits at once on one expired token, 4 processes, 5 times: refresh requests {counted}')
    assert counted == [1] * 5


@pytest.mark.slow
@pytest.mark.parametrize('server', ['home', 'gunicorn_home'])
def test_hundreds_of_visits_at_once_make_one_refresh_for_each_user(processes, server, figure, request):
    home = request.getfixturevalue(server)
    visitors = [Visitor(home) for _ in range(30)]
    for visitor in visitors:
        visitor.grant()
    processes.expire_access_tokens()
    before = time.monotonic()
    pages = profiles(home, visitors, 10)
    seconds = time.monotonic() - before
    assert [page.status_code for page in pages] == [200] * 300
    figure(
        f'300 visits at once of 30 users with expired tokens ({server}): {processes.refreshes()} refresh requests, '
        f'all answered after {seconds:.1f} s'
    )
    assert processes.refreshes() == 30
    assert len(processes.users) == 30


@pytest.mark.slow
def test_nobody_waits_for_somebody_elses_refresh(processes, gunicorn_home, figure):
    visitors = [Visitor(gunicorn_home) for _ in range(12)]
    for visitor in visitors:
        visitor.grant()
    processes.expire_access_tokens()
    processes.set_faults({'call': 'refresh', 'delay': 0.5, 'times': 12})
    before = time.monotonic()
    pages = profiles(gunicorn_home, visitors, 1)
    seconds = time.monotonic() - before
    assert [page.status_code for page in pages] == [200] * 12
    refreshes = processes.request_log('refresh')
    assert len(refreshes) == 12
    figure(f'12 users expiring together, each refresh taking 0.5 s: all done after {seconds:.2f} s')
    assert side_by_side(refreshes)


def test_more_slow_visits_than_processes_hold_up_nobody_else(processes, gunicorn_home):
    visitor, other = Visitor(gunicorn_home), Visitor(gunicorn_home)
    visitor.grant()
    other.grant()
    processes.set_faults({'call': 'profile', 'delay': 3, 'times': 12})
    slow = [in_the_background(lambda: profiles(gunicorn_home, [visitor], 1)) for _ in range(12)]
    processes.wait_until_faults_are_used()
    other.visit(f'{gunicorn_home}profile')
    assert other.greeting == f'👋 Hi, {AGENT}!'
    assert all(visit.is_alive() for visit in slow)
    for visit in slow:
        visit.join()


def test_a_401_because_a_sibling_has_just_refreshed_uses_the_siblings_pair(processes, gunicorn_home):
    visitor, sibling = Visitor(gunicorn_home), Visitor(gunicorn_home)
    visitor.grant()
    sibling.http.cookies = visitor.http.cookies.copy()
    visit = visit_under_way(processes, visitor, gunicorn_home, call='profile', delay=1)
    sibling.visit(f'{gunicorn_home}profile')
    assert processes.refreshes() == 1
    visit.join()
    assert visitor.greeting == sibling.greeting == f'👋 Hi, {AGENT}!'
    assert processes.refreshes() == 1


def test_after_invalid_grant_a_pair_that_is_newer_by_then_is_used(processes, gunicorn_home):
    visitor, other = Visitor(gunicorn_home), Visitor(gunicorn_home)
    visitor.grant(AGENT)
    [user_id] = processes.users
    visit = visit_under_way(
        processes, visitor, gunicorn_home, call='refresh', delay=1, status=400, body='{"error": "invalid_grant"}'
    )
    other.grant(ADMIN)
    users = processes.users
    users[user_id] = next(record for other_id, record in users.items() if other_id != user_id)
    (processes.folder / 'users.json').write_text(json.dumps(users))
    visit.join()
    assert visitor.greeting == f'👋 Hi, {ADMIN}!'
    assert processes.users == users


def test_a_refresh_that_ends_after_a_new_grant_does_not_bring_the_old_one_back(processes, gunicorn_home):
    visitor, tab = Visitor(gunicorn_home), Visitor(gunicorn_home)
    visitor.grant(AGENT)
    tab.http.cookies = visitor.http.cookies.copy()
    visit = visit_under_way(processes, visitor, gunicorn_home, call='refresh', delay=1)
    tab.visit(f'{gunicorn_home}zendesk/auth')
    tab.answer('allow', ADMIN)
    users = processes.users
    assert len(users) == 1
    visit.join()
    assert visitor.address == f'{gunicorn_home}grant_access'
    assert processes.users == users
    tab.visit(f'{gunicorn_home}profile')
    assert tab.greeting == f'👋 Hi, {ADMIN}!'


@pytest.mark.parametrize(
    'afterwards',
    [
        pytest.param('profile', id='before Zendesk has refreshed'),
        pytest.param('grant_access', id='after Zendesk has refreshed'),
    ],
)
def test_a_process_killed_in_the_middle_of_a_refresh_stops_nobody(
    processes, faulty_proxy, gunicorn_home, figure, afterwards
):
    visitor, next_one = Visitor(gunicorn_home), Visitor(gunicorn_home)
    visitor.grant()
    next_one.http.cookies = visitor.http.cookies.copy()
    processes.expire_access_tokens()
    if afterwards == 'profile':
        processes.set_faults({'call': 'refresh', 'status': 500, 'delay': 60})
    else:
        faulty_proxy.damage_next('refresh', cut=0, hold=60)

    def visit() -> None:
        with contextlib.suppress(requests.ConnectionError):
            visitor.visit(f'{gunicorn_home}profile')

    visiting = in_the_background(visit)
    processes.wait_until_faults_are_used()
    wait_until(lambda: afterwards == 'profile' or processes.refreshes() == 1)
    kill(workers(processes))
    visiting.join()

    before = time.monotonic()
    next_one.visit(f'{gunicorn_home}profile')
    figure(f'the first visit after all processes were killed in a refresh: {time.monotonic() - before:.2f} s')
    assert (next_one.status, next_one.address) == (200, gunicorn_home + afterwards)
    next_one.visit(gunicorn_home)
    if afterwards == 'grant_access':
        next_one.grant()
    next_one.click('Get my profile')
    assert next_one.greeting == f'👋 Hi, {AGENT}!'


# --- The store --- #


@pytest.mark.slow
def test_eighty_grants_at_once_are_eighty_records(processes, gunicorn_home, figure):
    visitors = [Visitor(gunicorn_home) for _ in range(80)]
    together = threading.Barrier(80)

    def grant(visitor: Visitor) -> str:
        visitor.visit(f'{gunicorn_home}zendesk/auth')
        together.wait()
        visitor.answer('allow')
        visitor.click('Get my profile')
        return visitor.greeting

    with ThreadPoolExecutor(80) as pool:
        assert list(pool.map(grant, visitors)) == [f'👋 Hi, {AGENT}!'] * 80
    figure(f'80 grants at once, 4 processes: {len(processes.users)} records')
    assert len(processes.users) == 80


@pytest.mark.slow
def test_two_hundred_kills_in_the_middle_of_writes_lose_nobody(processes, gunicorn_home, figure):
    """With 5,000 records a write takes long enough to be met; a kill that comes too late for that does not count."""
    file = processes.folder / 'users.json'
    nobody = {'access_token': 'x' * 64, 'refresh_token': 'x' * 64}
    file.write_text(json.dumps({f'filler-{number}': nobody for number in range(5000)}))
    granted: list[Visitor] = []
    over = threading.Event()

    def keep_granting(_) -> None:
        while not over.is_set():
            with contextlib.suppress(requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
                visitor = Visitor(f'{gunicorn_home}zendesk/auth')
                visitor.answer('allow')
                assert (visitor.status, visitor.address) == (200, gunicorn_home)
                granted.append(visitor)

    kills = interrupted = broken = 0
    temporary = processes.folder / 'users.json.tmp'
    with ThreadPoolExecutor(8) as pool:
        granting = pool.map(keep_granting, range(8))
        try:
            while interrupted < 200:
                wait_until(lambda: len(workers(processes)) == 4)
                time.sleep(random.uniform(0.02, 0.1))  # noqa: S311
                pids = workers(processes)
                wait_until(temporary.exists, pause=0)
                kill(pids)
                kills += 1
                interrupted += temporary.exists()
                try:
                    json.loads(file.read_text())
                except ValueError:
                    broken += 1
        finally:
            over.set()
        list(granting)

    wait_until(lambda: len(workers(processes)) == 4)
    Visitor(gunicorn_home).grant()  # a last write
    kept = 0
    for visitor in granted:
        visitor.visit(f'{gunicorn_home}profile')
        kept += visitor.address == f'{gunicorn_home}profile' and visitor.greeting == f'👋 Hi, {AGENT}!'
    fillers = sum(user_id.startswith('filler') for user_id in processes.users)
    left = sorted(path.name for path in processes.folder.glob('users.json*'))
    figure(
        f'{kills} kills of all 4 processes, {interrupted} in the middle of a write: {broken} broken files, '
        f'{len(granted) - kept} of {len(granted)} users who granted meanwhile lost, {5000 - fillers} of 5,000 others '
        f'lost, files left {left}'
    )
    assert (broken, kept, fillers) == (0, len(granted), 5000)
    assert left == ['users.json', 'users.json.d']


@pytest.mark.slow
def test_ten_thousand_visitors_without_a_grant_leave_nothing_behind(processes, gunicorn_home, figure):
    Visitor(gunicorn_home).grant()
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
    figure(f'10,000 visitors who start and never come back: {len(processes.users)} record as before, files {left}')
    assert processes.users == before
    assert left == ['users.json', 'users.json.d']


@pytest.mark.slow
def test_a_profile_with_ten_thousand_stored_users(processes, home, figure):
    """Nothing to judge here: whether the file is parsed again is tested in tests/zendesk_oauth/test_stores.py."""
    visitor = Visitor(home)
    visitor.grant()
    medians = []
    for stored in (10, 10_000):
        users = processes.users
        [record] = [users[user_id] for user_id in users if not user_id.startswith('filler')]
        users.update({f'filler-{number}': record for number in range(stored - 1)})
        (processes.folder / 'users.json').write_text(json.dumps(users, indent=2))
        seconds = []
        for _ in range(300):
            before = time.perf_counter()
            visitor.visit(f'{home}profile')
            seconds.append(time.perf_counter() - before)
        assert visitor.greeting == f'👋 Hi, {AGENT}!'
        medians.append(statistics.median(seconds))
    figure(
        'a profile, median of 300: {:.2f} ms with 10 stored users, {:.2f} ms with 10,000'.format(
            *(1000 * median for median in medians)
        )
    )
