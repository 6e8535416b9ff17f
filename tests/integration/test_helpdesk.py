"""The example product, examples/helpdesk, over HTTP: connect, tickets, the nightly job, disconnect."""

from __future__ import annotations

import contextlib
import html
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urljoin

import pytest
import requests
from helpers import KEY
from servers import ADMIN, AGENT, PROJECT, HttpBrowser, Processes, environment, free_port, listens, wait_until
from store_suite import records

FOLDER = 'examples/helpdesk'


class HelpdeskBrowser(HttpBrowser):
    """The browser of a user of the helpdesk."""

    def __init__(self, address: str, email: str) -> None:
        super().__init__(address)
        self.home, self.email = address, email
        self.enter('Create an account')

    def enter(self, button: str) -> None:
        """Fill in the form and press "Sign in" or "Create an account"."""
        self.press(button, email=self.email, password='canary-password')

    def press(self, button: str, follow: bool = True, **fields: str) -> None:
        """Press a button of the page, with its form's hidden fields. Stop before a redirect to Zendesk."""
        form = next(
            form
            for form in re.findall('<form.*?</form>', self.text, re.DOTALL)
            if re.search(f'>{button}</button>|value="{button}"', form)
        )
        action = re.search('action="([^"]*)"', form)
        name = re.search(f'name="([^"]*)"[^>]*value="{button}"', form)
        fields['csrf_token'] = re.search('name="csrf_token"[^>]*value="([^"]*)"', form)[1]
        if name:
            fields[name[1]] = button
        address = urljoin(self.address, action[1]) if action else self.address
        self.page = self.http.post(address, fields, timeout=60, allow_redirects=follow)

    def connect(self, user: str = AGENT) -> None:
        """Connect Zendesk, from the home page to the list of tickets."""
        self.visit(self.home)
        self.press('Connect Zendesk')
        self.decide('allow', user)

    @contextlib.contextmanager
    def in_another_tab(self) -> Iterator[None]:
        """Open the home page, and return to the current page at the end."""
        page = self.page
        self.visit(self.home)
        yield
        self.page = page

    @property
    def subjects(self) -> list[str]:
        return re.findall('<tr><td>[0-9]+</td><td>[a-z]+</td><td>(.*)</td></tr>', html.unescape(self.text))


class Helpdesk:
    """The helpdesk under gunicorn with two processes, and its practice Zendesk."""

    def __init__(self, processes: Processes, client_id: str = 'helpdesk') -> None:
        self.processes = processes
        port, zendesk_port = free_port(), free_port()
        self.home, processes.zendesk = f'http://localhost:{port}/', f'http://127.0.0.1:{zendesk_port}'
        redirect_uri = f'{self.home}zendesk/callback'
        self.variables = {
            'HELPDESK_SECRET_KEY': 'canary-secret-key',
            'HELPDESK_TOKEN_KEYS': KEY,
            'HELPDESK_ZENDESK_URL': processes.zendesk,
            'HELPDESK_ZENDESK_CLIENT_ID': client_id,
            'HELPDESK_ZENDESK_CLIENT_SECRET': 'canary-client-secret',
            'HELPDESK_ZENDESK_REDIRECT_URI': redirect_uri,
            'PYTHONPATH': str(processes.folder),
        }
        zendesk = {'ZENDESK_CLIENT_ID': 'helpdesk', 'ZENDESK_CLIENT_SECRET': 'canary-client-secret'}
        command = ('-m', 'practice_zendesk', '--port', str(zendesk_port))
        processes.start(*command, port=zendesk_port, REDIRECT_URI=redirect_uri, **zendesk)
        options = ('--preload', '-w', '2', '--threads', '16', '-b', f'127.0.0.1:{port}')
        command = ('-m', 'gunicorn', *options, 'helpdesk:create_app()')
        processes.start(*command, port=port, folder=FOLDER, **self.variables)

    def sign_up(self, name: str) -> HelpdeskBrowser:
        return HelpdeskBrowser(self.home, f'{name}@example.com')

    def statuses(self, pool: ThreadPoolExecutor, browser: HelpdeskBrowser) -> list[int]:
        """Request the tickets 20 times in parallel, with the cookies of this browser."""
        cookies = browser.http.cookies.get_dict()

        def visit(_) -> int:
            return requests.get(f'{self.home}zendesk/tickets', cookies=cookies, timeout=60).status_code

        return list(pool.map(visit, range(20)))

    def sync(self) -> subprocess.CompletedProcess[str]:
        """Run the nightly job."""
        return self.processes.run('nightly_sync.py', folder=FOLDER, **self.variables)


@pytest.fixture
def helpdesk(processes) -> Helpdesk:
    return Helpdesk(processes)


@pytest.fixture
def alice(helpdesk) -> HelpdeskBrowser:
    """The browser of alice, who has connected her Zendesk account."""
    alice = helpdesk.sign_up('alice')
    alice.connect()
    return alice


# --- Connect, tickets, disconnect --- #


def test_an_account_connects_lists_tickets_and_disconnects(helpdesk, processes):
    alice = helpdesk.sign_up('alice')
    assert 'Connect your Zendesk account' in alice.text
    alice.connect()
    assert alice.address == f'{helpdesk.home}zendesk/tickets'
    assert len(alice.subjects) == 100
    alice.visit(helpdesk.home)
    assert 'is connected to' in alice.text
    assert processes.valid_grants() == 1
    alice.press('Disconnect')
    assert 'Connect your Zendesk account' in alice.text
    assert 'did not confirm' not in alice.text
    assert processes.valid_grants() == 0


def test_two_accounts_see_their_own_tickets(helpdesk):
    alice, bob = helpdesk.sign_up('alice'), helpdesk.sign_up('bob')
    alice.connect(AGENT)
    bob.connect(ADMIN)
    assert alice.subjects != bob.subjects
    alice.visit(f'{helpdesk.home}zendesk/tickets')
    before = alice.subjects
    bob.visit(helpdesk.home)
    bob.press('Disconnect')
    alice.visit(f'{helpdesk.home}zendesk/tickets')
    assert alice.subjects == before


def test_the_ticket_page_without_a_connection_offers_to_connect(helpdesk):
    alice = helpdesk.sign_up('alice')
    alice.visit(f'{helpdesk.home}zendesk/tickets')
    assert (alice.status, 'is not connected' in alice.text) == (403, True)
    alice.press('Connect Zendesk')
    alice.decide('allow')
    assert len(alice.subjects) == 100


def test_a_denial_shows_a_page_with_a_connect_button(helpdesk):
    alice = helpdesk.sign_up('alice')
    alice.press('Connect Zendesk')
    alice.decide('deny')
    assert (alice.status, 'Access was not granted' in alice.text) == (403, True)
    alice.press('Connect Zendesk')
    alice.decide('allow')
    assert len(alice.subjects) == 100


def test_signing_out_while_connecting_shows_an_error_page(helpdesk, processes):
    alice = helpdesk.sign_up('alice')
    alice.press('Connect Zendesk')
    with alice.in_another_tab():
        alice.press('Sign out')
    alice.decide('allow')
    assert (alice.status, 'You are not signed in' in alice.text) == (400, True)
    assert processes.request_log('exchange') == []
    alice.visit(helpdesk.home)
    alice.enter('Sign in')
    alice.connect()
    assert len(alice.subjects) == 100


def test_another_account_of_the_same_browser_cannot_complete(helpdesk, processes):
    alice = helpdesk.sign_up('alice')
    alice.press('Connect Zendesk')
    with alice.in_another_tab():
        alice.press('Sign out')
        alice.email = 'mallory@example.com'
        alice.enter('Create an account')
    alice.decide('allow')
    assert 'Another account started this' in alice.text
    assert processes.request_log('exchange') == []


@pytest.mark.parametrize('order', [[0, 1], [1, 0]])
def test_two_pending_requests_can_finish_in_any_order(helpdesk, processes, order):
    alice = helpdesk.sign_up('alice')
    home, consents = alice.page, []
    for _ in range(2):
        alice.page = home
        alice.press('Connect Zendesk')
        consents.append(alice.page)
    for number in order:
        alice.page = consents[number]
        alice.decide('allow')
        assert len(alice.subjects) == 100
    assert processes.valid_grants() == 1  # the first grant was revoked


def test_the_same_callback_ten_times_at_once_connects_once(helpdesk, processes):
    alice = helpdesk.sign_up('alice')
    alice.press('Connect Zendesk')
    callback = alice.submit('allow', allow_redirects=False).headers['Location']
    with ThreadPoolExecutor(10) as pool:
        pages = list(pool.map(lambda _: alice.http.get(callback, timeout=60, allow_redirects=False), range(10)))
    assert {page.headers.get('Location') for page in pages} == {'/zendesk/tickets'}
    assert len(processes.request_log('exchange')) == 1


def test_a_failed_exchange_can_be_repeated(helpdesk, processes):
    alice = helpdesk.sign_up('alice')
    alice.press('Connect Zendesk')
    processes.set_faults({'call': 'exchange', 'status': 503})
    alice.decide('allow')
    assert (alice.status, '<a class="button" href="">Try again</a>' in alice.text) == (503, True)
    alice.visit(alice.address)
    assert len(alice.subjects) == 100


def test_a_narrower_grant_is_shown(processes):
    helpdesk = Helpdesk(processes, client_id='narrow_client')
    alice = helpdesk.sign_up('alice')
    alice.connect()
    assert (alice.status, 'A permission is missing' in alice.text) == (403, True)
    assert 'Connect Zendesk' in alice.text
    alice.visit(helpdesk.home)
    assert 'The access that you granted lacks tickets:read' in alice.text
    alice.press('Connect Zendesk again')
    alice.decide('allow')
    assert alice.status == 403


# --- Expiry --- #


def test_an_expired_token_is_refreshed(helpdesk, processes, alice):
    processes.expire_access_tokens()
    alice.visit(f'{helpdesk.home}zendesk/tickets')
    assert len(alice.subjects) == 100
    assert processes.refreshes() == 1


def test_twenty_parallel_requests_to_two_processes_cause_one_refresh(helpdesk, processes, alice, figure):
    def visit() -> None:
        with ThreadPoolExecutor(20) as pool:
            assert helpdesk.statuses(pool, alice) == [200] * 20

    counts = processes.count_refreshes(visit)
    figure(f'helpdesk: 20 parallel visits on one expired token, 2 processes, five times: {counts} refreshes')
    assert counts == [1] * 5


def test_the_job_and_twenty_parallel_requests_share_one_refresh(helpdesk, processes, alice):
    processes.expire_access_tokens()
    processes.set_faults({'call': 'refresh', 'delay': 2})
    with ThreadPoolExecutor(21) as pool:
        job = pool.submit(helpdesk.sync)
        assert helpdesk.statuses(pool, alice) == [200] * 20
    assert (job.result().returncode, len(job.result().stdout.splitlines())) == (0, 120)
    assert processes.refreshes() == 1


# --- The nightly job --- #


def test_the_job_lists_the_tickets_of_each_connected_account(helpdesk, processes, alice):
    helpdesk.sign_up('bob').connect(ADMIN)
    helpdesk.sign_up('carol')
    processes.expire_access_tokens()
    job = helpdesk.sync()
    assert (job.returncode, job.stderr) == (0, '')
    lines = job.stdout.splitlines()
    assert [sum(line.startswith(f"'{name}@") for line in lines) for name in ('alice', 'bob', 'carol')] == [120, 120, 0]
    assert len(set(lines)) == 240
    assert processes.refreshes() == 2


def test_the_job_reports_an_ended_grant_and_continues(helpdesk, processes, alice):
    processes.end_grants()
    helpdesk.sign_up('bob').connect(ADMIN)
    job = helpdesk.sync()
    assert job.returncode == 1
    assert job.stderr.startswith("'alice@example.com': Your Zendesk account is not connected")
    assert len(job.stderr.splitlines()) == 1
    assert job.stdout.count('bob@example.com') == 120
    again = helpdesk.sync()
    assert (again.returncode, again.stderr) == (0, '')  # alice is not connected any more
    alice.visit(helpdesk.home)
    assert 'Connect your Zendesk account' in alice.text


def test_the_job_reports_an_account_that_disconnects_in_the_middle(helpdesk, processes, alice):
    bob = helpdesk.sign_up('bob')
    bob.connect(ADMIN)
    processes.set_faults({'call': 'tickets', 'delay': 0}, {'call': 'tickets', 'delay': 3})
    job = subprocess.Popen(
        [sys.executable, 'nightly_sync.py'],
        cwd=processes.folder / FOLDER,
        env=environment(**helpdesk.variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: len(processes.request_log('tickets')) >= 3)  # the pages of alice and bob, and one of the job
    alice.visit(helpdesk.home)
    alice.press('Disconnect')
    output, errors = job.communicate(timeout=60)
    assert job.returncode == 1
    assert errors.startswith("'alice@example.com': Your Zendesk account is not connected")
    assert (output.count('alice@'), output.count('bob@')) == (100, 120)
    assert processes.valid_grants() == 1


def test_the_job_waits_after_a_429(helpdesk, processes, alice):
    processes.set_faults({'call': 'tickets', 'status': 429, 'headers': {'Retry-After': '1'}})
    began = time.monotonic()
    job = helpdesk.sync()
    assert (job.returncode, len(job.stdout.splitlines())) == (0, 120)
    assert time.monotonic() - began > 1


# --- The settings, the one command, the size --- #


def test_missing_settings_are_named(processes):
    ended = processes.run('nightly_sync.py', folder=FOLDER, PYTHONPATH=str(processes.folder), HELPDESK_SECRET_KEY='x')
    assert ended.returncode == 1
    assert ended.stderr.startswith('Set the environment variables HELPDESK_TOKEN_KEYS, HELPDESK_ZENDESK_URL, ')
    assert 'Traceback' not in ended.stderr


def test_one_command_runs_the_helpdesk_with_a_practice_zendesk(processes):
    if listens(3010) or listens(3011):
        pytest.skip('another program uses port 3010 or 3011')
    processes.zendesk = 'http://localhost:3011'
    processes.start('run.py', port=3010, folder=FOLDER, PYTHONPATH=str(processes.folder))
    alice = HelpdeskBrowser('http://localhost:3010/', 'alice@example.com')
    alice.press('Connect Zendesk')
    assert 'Allow Helpdesk to access your account?' in alice.text
    alice.decide('allow')
    assert len(alice.subjects) == 100
    alice.visit('http://localhost:3011/practice')
    alice.click('Back to the app')
    assert 'is connected to' in alice.text
    processes.stop(3010)
    assert not listens(3011)
    assert 'code=' not in processes.output


def test_the_zendesk_part_has_at_most_60_lines():
    assert len((PROJECT / FOLDER / 'helpdesk' / 'zendesk.py').read_text().splitlines()) <= 60


def test_no_secret_is_written_to_the_output(helpdesk, processes, alice, open_db):
    processes.expire_access_tokens()
    alice.visit(f'{helpdesk.home}zendesk/tickets')
    [record] = records(open_db(f'sqlite:///{processes.folder}/{FOLDER}/instance/tokens.db')).values()
    for secret in (record['access_token'], record['refresh_token'], 'canary', 'alice', KEY):
        assert secret not in processes.output
