"""What the tests share: settings that no .env can change, a browser, a mocked Zendesk, a clock."""

from __future__ import annotations

import dataclasses
import json
import os
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

# The app reads its settings as it is imported; what stands in the environment wins over a developer's own .env.
os.environ.update(
    ZENDESK_CLIENT_ID='test_client',
    ZENDESK_CLIENT_SECRET='canary-client-secret',
    ZENDESK_SUBDOMAIN='mondocam',
    REDIRECT_URI='http://localhost:3000/zendesk/oauth/callback',
    SECRET_KEY='canary-secret-key-canary-secret-key',
    ZENDESK_BASE_URL='',
    SECRET_KEY_FALLBACKS='',
    DATABASE_URL='',
    PROXY_HOPS='',
)

import pytest
import responses
from flask.testing import FlaskClient
from postgresql import Postgresql, programs
from responses.matchers import header_matcher
from servers import Processes, free_port, port_of

import app as app_module
import backend_code
import settings as settings_module
from practice_zendesk import server as zendesk_simulator
from zendesk_oauth.stores import UsersDb
from zendesk_oauth.token_store import Store, dies_at

ZENDESK = 'https://mondocam.zendesk.com'
TOKEN_ENDPOINT = f'{ZENDESK}/oauth/tokens'
SHOW_SELF = f'{ZENDESK}/api/v2/users/me'
REVOKE = f'{ZENDESK}/api/v2/oauth/tokens/current'

USER = {'user': {'id': 6130907993114, 'name': 'Jane Doe', 'role': 'agent'}}
NEW_PAIR = {
    'access_token': 'new-access',
    'refresh_token': 'new-refresh',
    'token_type': 'bearer',
    'scope': 'users:read',
    'expires_in': 360,
    'refresh_token_expires_in': 604800,
}
# Records of users.json: before a refresh, after one, and somebody else's.
PAIR = {'access_token': 'old-access', 'refresh_token': 'old-refresh'}
NEW = {'access_token': 'new-access', 'refresh_token': 'new-refresh'}
OTHER = {'access_token': 'other-access', 'refresh_token': 'other-refresh'}


def pytest_addoption(parser):
    parser.addoption('--no-skips', action='store_true', help='a test that would be skipped fails')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and item.config.getoption('no_skips'):
        report.outcome = 'failed'
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.skipped and collector.config.getoption('no_skips'):  # a whole file
        report.outcome = 'failed'
    return report


FIGURES: list[str] = []


@pytest.fixture
def figure():
    """A function that puts a line into the summary at the end: what was counted or measured, and not judged."""
    return FIGURES.append


def pytest_terminal_summary(terminalreporter):
    if FIGURES:
        terminalreporter.section('figures')
        for line in FIGURES:
            terminalreporter.write_line(line)


class Browser(FlaskClient):
    """A visitor's browser: Flask's test client, with the steps of a grant as words."""

    def start(self, **kwargs) -> dict[str, str]:
        """Follow "Grant access" and return the authorization request that the app sends the browser away with."""
        response = self.get('/zendesk/auth', **kwargs)
        assert response.location.startswith(f'{ZENDESK}/oauth/authorizations/new?'), response.location
        return {name: values[0] for name, values in parse_qs(urlsplit(response.location).query).items()}

    def come_back(self, **answer):
        """Come back from Zendesk with an answer."""
        return self.get('/zendesk/oauth/callback', query_string=answer)

    def grant(self, code: str = 'the-code'):
        return self.come_back(code=code, state=self.start()['state'])

    def sign_in(self, user_id: str) -> None:
        with self.session_transaction() as session:
            session['user_id'] = user_id

    @property
    def user_id(self) -> str | None:
        with self.session_transaction() as session:
            return session.get('user_id')


@pytest.fixture
def app(tmp_path, monkeypatch):
    """The app, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    app_module.app.testing = True
    app_module.app.test_client_class = Browser
    return app_module.app


@pytest.fixture
def browser(app) -> Browser:
    return app.test_client()


@pytest.fixture
def zendesk():
    """Zendesk, mocked: a call that the test has not registered fails it."""
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


@pytest.fixture
def http(tmp_path, monkeypatch):
    """A client of the practice Zendesk, which keeps its data in an empty folder."""
    monkeypatch.chdir(tmp_path)
    zendesk_simulator.app.testing = True
    return zendesk_simulator.app.test_client()


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only when the test says so."""

    class Clock:
        now = time.time()

        def advance(self, seconds: float) -> None:
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(time, 'time', lambda: clock.now)
    return clock


@pytest.fixture
def log():
    """The lines that the app has logged, at the level DEBUG."""
    lines: list[str] = []
    handler = app_module.logger.add(lines.append, level='DEBUG', format='{message}')
    yield lines
    app_module.logger.remove(handler)


# --- The two stores --- #


@pytest.fixture(scope='session')
def postgresql_server() -> Iterator[Postgresql]:
    """A PostgreSQL server; what it holds need not survive a crash of the machine."""
    for package in ('sqlalchemy', 'psycopg'):
        pytest.importorskip(package, reason=f'{package} is not installed: pip install -r requirements-postgresql.txt')
    if programs() is None:
        pytest.skip('PostgreSQL is not installed: on Debian, apt install postgresql')
    server = Postgresql(fsync='off')
    yield server
    close_connections(server.url)
    server.remove()


@pytest.fixture
def postgresql(postgresql_server) -> Postgresql:
    """The server, running, with an empty database."""
    if postgresql_server.process.poll() is not None:
        postgresql_server.start()
    postgresql_server.sql('DROP SCHEMA public CASCADE', 'CREATE SCHEMA public')
    return postgresql_server


@pytest.fixture(params=['users.json', pytest.param('PostgreSQL', marks=pytest.mark.postgresql)])
def db(request, tmp_path, monkeypatch) -> Store:
    """Each of the two stores, empty, as the one that the app uses."""
    monkeypatch.chdir(tmp_path)
    if request.param == 'PostgreSQL':
        url = request.getfixturevalue('postgresql').url
        with_url = dataclasses.replace(settings_module.current_settings(), database_url=url)
        monkeypatch.setattr(settings_module, '_current', with_url)
    return backend_code.users_db()


@pytest.fixture
def impatient(monkeypatch):
    """Nobody waits for long where somebody else refreshes the tokens."""
    monkeypatch.setattr('zendesk_oauth.stores.REFRESH_TIMEOUT', 0.1)
    if 'postgresql_db' in sys.modules:
        monkeypatch.setattr('zendesk_oauth.postgresql_store.REFRESH_TIMEOUT', 0.1)


@pytest.fixture
def full_disk(request, monkeypatch) -> Iterator[None]:
    """Nothing can be written any more."""

    def no_space(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('zendesk_oauth.private_file.write', no_space)
    monkeypatch.setattr('zendesk_oauth.private_file.rehearse', no_space)
    if not settings_module.current_settings().database_url:
        yield
        return
    server = request.getfixturevalue('postgresql')
    server.set(default_transaction_read_only='on')
    yield
    server.set(default_transaction_read_only='off')


# --- Real processes --- #


@pytest.fixture
def processes(tmp_path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    processes.stop_all()


@pytest.fixture
def variables(processes) -> dict[str, str]:
    """A practice Zendesk on a free port, and the settings of an app on another."""
    zendesk_port, app_port = free_port(), free_port()
    settings = {
        'ZENDESK_CLIENT_ID': 'flow_client',
        'ZENDESK_CLIENT_SECRET': 'canary-client-secret',
        'ZENDESK_SUBDOMAIN': 'practice',
        'REDIRECT_URI': f'http://localhost:{app_port}/zendesk/oauth/callback',
        'ZENDESK_BASE_URL': f'http://127.0.0.1:{zendesk_port}',
    }
    processes.zendesk = settings['ZENDESK_BASE_URL']
    processes.start('practice_zendesk.server.py', '--port', str(zendesk_port), port=zendesk_port, **settings)
    return settings


@pytest.fixture
def home(processes, variables) -> str:
    """The app, started; the address of its home page."""
    processes.start('app.py', port=port_of(variables), **variables)
    return f'http://localhost:{port_of(variables)}/'


@pytest.fixture
def gunicorn_home(processes, variables) -> str:
    """The app under gunicorn with four processes."""
    pytest.importorskip('gunicorn', reason='gunicorn is not installed: pip install -r requirements-dev.txt')
    port = port_of(variables)
    command = ('-m', 'gunicorn', '-w', '4', '-b', f'127.0.0.1:{port}', '--access-logfile', '-', 'app:app')
    processes.start(*command, port=port, **variables)
    return f'http://localhost:{port}/'


@pytest.fixture
def authority():
    """A certificate authority that nobody knows yet."""
    trustme = pytest.importorskip('trustme', reason='trustme is not installed: pip install -r requirements-dev.txt')
    return trustme.CA()


@pytest.fixture
def tls(authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert('localhost').configure_cert(context)
    return context


# --- Helpers --- #


def close_connections(url: str) -> None:
    """Close what this process has opened to the database: Python warns of connections that are left open."""
    from zendesk_oauth import postgresql_store as postgresql_db

    for connections in (1, postgresql_db.MAX_CONNECTIONS):
        postgresql_db._engine(url, os.getpid(), connections).dispose()


def records() -> dict:
    """What the store holds."""
    db = backend_code.users_db()
    if isinstance(db, UsersDb):
        return json.loads(Path(db.path).read_text()) if Path(db.path).exists() else {}
    from zendesk_oauth.postgresql_store import TOKENS

    return {row.user_id: row.record for row in db._do(lambda connection: connection.execute(TOKENS.select()).all())}


def stored() -> dict[str, dict[str, str]]:
    """Who holds which tokens, according to the store."""
    return {user_id: tokens(record) for user_id, record in records().items()}


def tokens(record: dict) -> dict[str, str]:
    return {name: value for name, value in record.items() if name in ('access_token', 'refresh_token')}


def store(**records) -> None:
    """Let the store hold this, and nothing else, as somebody might have edited it."""
    db = backend_code.users_db()
    if isinstance(db, UsersDb):
        Path(db.path).write_text(json.dumps(records))
        return
    from zendesk_oauth.postgresql_store import TOKENS

    rows = [{'user_id': user_id, 'record': record, 'dies_at': dies_at(record)} for user_id, record in records.items()]
    db._do(lambda connection: (connection.execute(TOKENS.delete()), rows and connection.execute(TOKENS.insert(), rows)))


def bearer(token: str):
    """Match a request with this access token."""
    return header_matcher({'Authorization': f'Bearer {token}'})


def calls_to(zendesk: responses.RequestsMock, url: str) -> int:
    return sum(call.request.url == url for call in zendesk.calls)
