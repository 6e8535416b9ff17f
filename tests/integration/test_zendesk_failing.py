"""Zendesk failures over real HTTP: the page that the user sees, and whether the grant is kept."""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import pytest
from faulty_proxy import FaultyProxy
from servers import AGENT, HttpBrowser, Processes, free_port, listening, port_of

HTML = '<html><body>Something went wrong'
COLUMNS = ('exchange', 'refresh', 'profile')


def error(name: str) -> str:
    return json.dumps({'error': name, 'error_description': 'canary {0} \n \x1b[31m'})


# Each fault, its name, and its outcome for the exchange, the refresh and the profile request. The outcome is the status
# of the page, or "asks again" for a redirect to the grant page. "kept": the previous grant still works. The practice
# Zendesk produces the fault, and the proxy adds the `damage` to the response.
FAULTS = [
    ({'status': 500, 'body': HTML}, '500 with HTML', '502 kept', '502 kept', '502 kept'),
    ({'status': 502, 'body': HTML}, '502 with HTML', '502 kept', '502 kept', '502 kept'),
    ({'status': 503, 'body': HTML}, '503 with HTML', '503 kept', '503 kept', '503 kept'),
    ({'status': 429, 'body': 'Too many'}, '429 with a text', '503 kept', '503 kept', '503 kept'),
    (
        {'status': 429, 'body': 'Too many', 'headers': {'Retry-After': '99999'}},
        '429, Retry-After: 99999',
        '503 kept',
        '503 kept',
        '503 kept',
    ),
    ({'status': 500, 'lost': True}, 'closed without a response', '502 kept', '502 kept', '502 kept'),
    ({'status': 200, 'body': '{' * 50, 'damage': {'cut': -20}}, 'closed halfway', '502 kept', '502 kept', '502 kept'),
    ({'status': 200, 'body': HTML}, '200 with HTML', '502 kept', '502 kept', '502 kept'),
    ({'status': 200, 'body': ''}, '200 with an empty body', '502 kept', '502 kept', '502 kept'),
    ({'status': 200, 'body': 'null'}, '200 with null', '502 kept', '502 kept', '502 kept'),
    ({'status': 200, 'body': '[]'}, '200 with []', '502 kept', '502 kept', '502 kept'),
    ({'status': 200, 'body': '{"access_token": "x'}, '200 with truncated JSON', '502 kept', '502 kept', '502 kept'),
    ({'status': 200, 'body': ' ' * (1024 * 1024 + 1)}, '200 with more than 1 MiB', '502 kept', '502 kept', '502 kept'),
    ({'status': 404, 'body': HTML}, '404, no such help desk', '502 kept', '502 kept', '502 kept'),
    ({'status': 403, 'body': error('Forbidden')}, '403', '403 kept', '403 kept', '403 kept'),
    ({'status': 403, 'body': HTML}, '403 with HTML', '502 kept', '502 kept', '502 kept'),
    ({'status': 402, 'body': HTML}, '402, suspended', '502 kept', '502 kept', '502 kept'),
    ({'status': 408, 'body': HTML}, '408', '502 kept', '502 kept', '502 kept'),
    ({'status': 410, 'body': HTML}, '410, gone', '502 kept', '502 kept', '502 kept'),
    ({'status': 400, 'body': error('invalid_scope')}, '400 invalid_scope', '502 kept', '502 kept', '502 kept'),
    # After any 401 for the profile, the app refreshes the tokens and shows the profile.
    ({'status': 401, 'body': error('invalid_client')}, '401 invalid_client', '502 kept', '502 kept', '200 kept'),
    # Only this response ends a grant.
    ({'status': 400, 'body': error('invalid_grant')}, '400 invalid_grant', '400 kept', 'asks again', '502 kept'),
    # Zendesk has processed the request: after a refresh, the old tokens are invalid and the new ones are lost.
    ({'lost': True}, 'processed, response lost', '502 kept', '502, then asks again', '502 kept'),
]
SLOW_FAULTS = [
    ({'status': 500, 'delay': 60}, 'never responds', '504 kept', '504 kept', '504 kept'),
    ({'status': 200, 'damage': {'cut': 30, 'hold': 60}}, 'stops in the headers', '504 kept', '504 kept', '504 kept'),
    (
        {'status': 200, 'body': '{' * 50, 'damage': {'cut': -20, 'hold': 60}},
        'stops halfway in the body',
        '504 kept',
        '504 kept',
        '504 kept',
    ),
    (
        {'status': 200, 'body': '{' * 5000, 'damage': {'trickle': 0.05}},
        'sends byte by byte',
        '504 kept',
        '504 kept',
        '504 kept',
    ),
]


@dataclass
class Trial:
    """A browser with a grant, and a request during which Zendesk fails."""

    processes: Processes
    proxy: FaultyProxy
    home: str
    column: str
    fault: dict
    browser: HttpBrowser = field(init=False)
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        self.browser = HttpBrowser(self.home)
        self.browser.grant()
        if self.column == 'exchange':
            self.browser.visit(f'{self.home}zendesk/auth')
        if self.column == 'refresh':
            self.processes.expire_access_tokens()
        fault = dict(self.fault)
        damage = fault.pop('damage', None)
        if damage:
            self.proxy.damage_next(self.column, **damage)
        self.processes.set_faults({'call': self.column, **fault})
        self.thread = threading.Thread(target=self.visit)
        self.thread.start()
        self.processes.wait_until_faults_are_used()
        assert self.proxy.pending == []

    def visit(self) -> None:
        before = time.monotonic()
        if self.column == 'exchange':
            self.browser.decide('allow')
        else:
            self.browser.visit(f'{self.home}profile')
        self.seconds = time.monotonic() - before

    def outcome(self) -> str:
        self.thread.join()
        browser = self.browser
        if urlsplit(browser.address).path == '/grant_access':
            return 'asks again'
        outcome = str(browser.status)
        if browser.status != 200:
            assert 'href="/' in browser.text  # a link to continue
            assert self.column != 'refresh' or 'href="/grant_access"' in browser.text
            assert 'canary' not in browser.text
        if browser.status == 503:
            assert 1 <= int(browser.page.headers['Retry-After']) <= 300
        browser.visit(f'{self.home}profile')
        if urlsplit(browser.address).path == '/grant_access':
            return outcome + ', then asks again'
        assert browser.greeting == f'👋 Hi, {AGENT}!'
        return outcome + ' kept'


def check(processes, proxy, home, faults, figure) -> list[Trial]:
    trials = {
        (name, column): Trial(processes, proxy, home, column, fault) for fault, name, *_ in faults for column in COLUMNS
    }
    outcomes = {key: trial.outcome() for key, trial in trials.items()}
    figure('Status of the page after each fault. "kept": the previous grant still works')
    figure('{:28}{:24}{:24}{}'.format('Zendesk', *COLUMNS))
    for _, name, *_ in faults:
        figure('{:28}{:24}{:24}{}'.format(name, *(outcomes[name, column] for column in COLUMNS)))
    expected = {(name, column): row[index] for _, name, *row in faults for index, column in enumerate(COLUMNS)}
    assert outcomes == expected
    assert 'Traceback' not in processes.output
    assert 'canary' not in processes.output
    return list(trials.values())


def test_each_fault_has_the_expected_effect_on_page_and_grant(processes, faulty_proxy, home, figure):
    check(processes, faulty_proxy, home, FAULTS, figure)


@pytest.mark.slow
def test_a_timeout_shows_an_error_page_and_keeps_the_grant(processes, faulty_proxy, home, figure):
    trials = check(processes, faulty_proxy, home, SLOW_FAULTS, figure)
    figure(f'the longest wait for one of these pages: {max(trial.seconds for trial in trials):.2f} s')


@pytest.mark.parametrize(
    ('fault', 'title'),
    [
        ({'status': 200, 'body': '{"user": {"id": null, "name": "Anonymous user"}}'}, 'ignored the access token'),
        ({'status': 401, 'times': 2}, 'rejected the new access token'),
    ],
)
def test_a_profile_fault_shows_an_error_page_and_keeps_the_grant(processes, home, fault, title):
    browser = HttpBrowser(home)
    browser.grant()
    processes.set_faults({'call': 'profile', **fault})
    browser.visit(f'{home}profile')
    assert browser.status == 502
    assert title in browser.text
    assert processes.refreshes() == fault.get('times', 1) - 1
    browser.visit(f'{home}profile')
    assert browser.greeting == f'👋 Hi, {AGENT}!'


def test_grant_profile_and_refresh_share_one_connection(processes, keep_alive_proxy, home):
    browser = HttpBrowser(home)
    browser.grant()
    browser.visit(f'{home}profile')
    processes.expire_access_tokens()
    browser.visit(f'{home}profile')
    assert browser.greeting == f'👋 Hi, {AGENT}!'
    assert keep_alive_proxy.connections == [['exchange', 'profile', 'profile', 'refresh', 'profile']]


def test_the_second_visit_refreshes_if_the_connection_breaks_after_a_401(processes, keep_alive_proxy, home):
    browser = HttpBrowser(home)
    browser.grant()
    processes.expire_access_tokens()
    keep_alive_proxy.closes_after_401 = True

    browser.visit(f'{home}profile')
    assert (browser.status, 'Try again in a moment' in browser.text) == (502, True)
    assert processes.refreshes() == 0
    assert sum(kinds.count('refresh') for kinds in keep_alive_proxy.connections) == 1  # sent once

    browser.visit(f'{home}profile')
    assert browser.greeting == f'👋 Hi, {AGENT}!'
    assert processes.refreshes() == 1


def test_the_app_does_not_follow_a_redirect_from_zendesk(processes, faulty_proxy, home):
    with listening() as trap:
        address = f'http://127.0.0.1:{trap.getsockname()[1]}/'
        for status in (301, 302, 303, 307, 308):
            for column in COLUMNS:
                fault = {'status': status, 'headers': {'Location': address}}
                trial = Trial(processes, faulty_proxy, home, column, fault)
                assert trial.outcome() == '502 kept'
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()


@pytest.fixture
def untrusted(tls):
    """The address of a server with an untrusted certificate."""
    listener = listening()

    def serve():
        while True:
            try:
                tls.wrap_socket(listener.accept()[0], server_side=True).close()
            except ssl.SSLError:
                pass
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    yield f'https://localhost:{listener.getsockname()[1]}'
    listener.close()


@pytest.mark.parametrize('case', ['closed port', 'no such host', 'untrusted certificate'])
def test_an_unreachable_zendesk_shows_an_error_page_and_keeps_the_grant(processes, variables, home, case, request):
    browser, late = HttpBrowser(home), HttpBrowser(home)
    browser.grant()
    addresses = {
        'closed port': f'http://127.0.0.1:{free_port()}',
        'no such host': 'https://no-such-host.invalid',
    }
    address = addresses.get(case) or request.getfixturevalue('untrusted')

    processes.stop(port_of(variables))
    processes.start('app.py', port=port_of(variables), **{**variables, 'ZENDESK_BASE_URL': address})
    browser.visit(f'{home}profile')
    request_url = late.http.get(f'{home}zendesk/auth', allow_redirects=False).headers['Location']
    late.visit(f'{home}zendesk/oauth/callback?code=x&state={parse_qs(urlsplit(request_url).query)["state"][0]}')
    assert (browser.status, late.status) == (502, 502)
    assert 'Try again' in browser.text
    remedy = 'REQUESTS_CA_BUNDLE' if 'certificate' in case else 'check the network'
    assert remedy in re.sub(r'\s+', ' ', processes.output)
    assert 'Traceback' not in processes.output

    processes.stop(port_of(variables))
    processes.start('app.py', port=port_of(variables), **variables)
    browser.click('Try again')
    assert browser.greeting == f'👋 Hi, {AGENT}!'
