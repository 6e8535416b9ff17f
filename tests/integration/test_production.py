"""The production setups in docs/production.md: other servers, a TLS proxy, and a change of the secret key."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import time

import pytest
from servers import AGENT, HttpBrowser, free_port, port_of, serving

OLD_KEY, NEW_KEY = 'canary-old-secret-key-canary-old', 'canary-new-secret-key-canary-new'


def start_gunicorn(processes, variables, **more: str) -> str:
    port = port_of(variables)
    if port in processes.running:
        processes.stop(port)
    command = ('-m', 'gunicorn', '-w', '2', '-b', f'127.0.0.1:{port}', 'app:app')
    processes.start(*command, port=port, **{**variables, **more})
    return f'http://localhost:{port}/'


def test_waitress_serves_the_same_flow(processes, variables):
    port = port_of(variables)
    processes.start('-m', 'waitress', f'--listen=127.0.0.1:{port}', '--threads=16', 'app:app', port=port, **variables)
    browser = HttpBrowser(f'http://localhost:{port}/')
    browser.grant()
    processes.expire_access_tokens()
    browser.click('Get my profile')
    assert browser.greeting == f'👋 Hi, {AGENT}!'
    assert processes.refreshes() == 1


def test_gunicorn_logs_changes_and_with_debug_each_step(processes, variables):
    for level, details in ((None, False), ('DEBUG', True)):
        home = start_gunicorn(processes, variables, **({'LOGURU_LEVEL': level} if level else {}))
        browser = HttpBrowser(home)
        browser.grant()
        browser.click('Get my profile')
        assert ' - Exchanging the authorization code for access and refresh tokens\n' in processes.output
        assert ' - POST /oauth/tokens with code #' in processes.output
        assert (' - GET /api/v2/users/me with access token #' in processes.output) == details


def test_gunicorn_keeps_idle_connections_open(processes, variables):
    """Its default is 2 seconds. A load balancer that reuses the connection later gets no response to a POST."""
    home = start_gunicorn(processes, variables)
    connection = http.client.HTTPConnection('localhost', port_of(variables), timeout=10)
    connection.request('GET', '/health')
    assert connection.getresponse().read() == b'ok\n'
    kept = connection.sock
    time.sleep(3)
    connection.request('POST', '/disconnect', headers={'Origin': home.rstrip('/')})
    assert connection.getresponse().status == 200
    assert connection.sock is kept
    connection.close()


# --- The secret key --- #


def test_users_stay_signed_in_with_the_old_key_as_fallback(processes, variables):
    home = start_gunicorn(processes, variables, SECRET_KEY=OLD_KEY)
    active, absent = HttpBrowser(home), HttpBrowser(home)
    active.grant()
    absent.grant()

    start_gunicorn(processes, variables, SECRET_KEY=NEW_KEY, SECRET_KEY_FALLBACKS=f'{OLD_KEY} another-one')
    processes.expire_access_tokens()
    active.visit(home)
    active.click('Get my profile')
    assert active.greeting == f'👋 Hi, {AGENT}!'

    # The refresh signed the session of `active` with the new key.
    start_gunicorn(processes, variables, SECRET_KEY=NEW_KEY)
    active.visit(f'{home}profile')
    assert active.greeting == f'👋 Hi, {AGENT}!'
    absent.visit(f'{home}profile')
    assert absent.address == f'{home}grant_access'


def test_a_user_can_finish_a_grant_after_the_key_changes(processes, variables):
    home = start_gunicorn(processes, variables, SECRET_KEY=OLD_KEY)
    browser = HttpBrowser(home)
    browser.visit(f'{home}zendesk/auth')
    start_gunicorn(processes, variables, SECRET_KEY=NEW_KEY)
    browser.decide('allow')
    browser.click('Get my profile')
    assert browser.greeting == f'👋 Hi, {AGENT}!'


# --- Several machines --- #


@pytest.mark.parametrize('seconds', [50, -50])
def test_two_machines_accept_each_others_cookies_despite_clock_skew(processes, variables, seconds):
    """The machines share users.json and the key. The clock of the second one is ahead or behind."""
    variables['SECRET_KEY'] = OLD_KEY
    port = free_port()
    home, other_home = start_gunicorn(processes, variables), f'http://localhost:{port}/'
    program = (
        f'import time, waitress; real = time.time; time.time = lambda: real() + {seconds}; '
        f'import app; waitress.serve(app.app, host="127.0.0.1", port={port})'
    )
    processes.start('-c', program, port=port, **variables)

    browser = HttpBrowser(other_home)
    browser.click('Get my profile')
    browser.click('Grant access')
    browser.decide('allow')  # the callback is on the first machine
    assert (browser.address, browser.status) == (home, 200)
    for issuer, reader in ((other_home, home), (home, other_home)):
        processes.expire_access_tokens()
        browser.visit(f'{issuer}profile')  # signs the session anew
        for page in ('', 'profile'):
            browser.visit(f'{reader}{page}')
        assert browser.greeting == f'👋 Hi, {AGENT}!'
    assert len(processes.users) == 1
    assert processes.refreshes() == 2


# --- TLS proxy --- #


@pytest.fixture
def proxy(tls):
    """
    Run a TLS proxy that changes the host, as nginx does by default, and sends X-Forwarded headers.

    Yield its port and the port of the app behind it.
    """
    behind = free_port()

    def talk(connection: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            tls.wrap_socket(connection, server_side=True) as browser,
            socket.create_connection(('127.0.0.1', behind), timeout=30) as app,
        ):
            request = b''
            while b'\r\n\r\n' not in request:
                request += browser.recv(65536)
            line, rest = re.sub(rb'\r\n(Connection|Host|X-Forwarded-\w+): [^\r]*', b'', request, flags=re.I).split(
                b'\r\n', 1
            )
            forwarded = (
                f'X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: localhost:{port}'
            )
            host = f'Host: 127.0.0.1:{behind}\r\nConnection: close\r\n'
            app.sendall(line + b'\r\n' + host.encode() + forwarded.encode() + b'\r\n' + rest)
            while piece := app.recv(65536):
                browser.sendall(piece)

    with serving(talk) as port:
        yield port, behind


@pytest.mark.parametrize(
    ('command', 'hops'),
    [
        (('-m', 'gunicorn', '-w', '2', 'app:app'), ''),
        (('-m', 'gunicorn', '-w', '2', 'app:app'), '1'),
        (('app.py',), ''),
    ],
)
def test_the_flow_works_behind_a_tls_proxy_with_secure_cookies(
    processes, variables, proxy, authority, tmp_path, command, hops
):
    port, behind = proxy
    home = f'https://localhost:{port}/'
    variables |= {'REDIRECT_URI': f'{home}zendesk/oauth/callback', 'PROXY_HOPS': hops, 'PORT': str(behind)}
    zendesk_port = int(processes.zendesk.split(':')[2])
    processes.stop(zendesk_port)
    processes.start('-m', 'practice_zendesk', '--port', str(zendesk_port), port=zendesk_port, **variables)
    processes.start(*command, port=behind, **variables)

    authority.cert_pem.write_to_path(str(tmp_path / 'authority.pem'))
    browser = HttpBrowser(home, tmp_path / 'authority.pem')
    browser.grant()
    browser.click('Get my profile')
    assert browser.greeting == f'👋 Hi, {AGENT}!'
    session, pending = sorted(browser.http.cookies, key=lambda cookie: cookie.name, reverse=True)
    assert (session.name, session.secure) == (f'__Host-zendesk_oauth_{port}_session', True)
    assert (pending.name.startswith(f'__Host-zendesk_oauth_{port}_request_'), pending.secure) == (True, True)
