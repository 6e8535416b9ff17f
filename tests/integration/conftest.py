"""Fixtures for the suites that start processes, browsers or databases."""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
from collections.abc import Callable, Iterator, Sequence

import pytest
from faulty_proxy import FaultyProxy, KeepAliveProxy, proxy_to
from helpers import KEY
from postgresql import PgBouncer, Postgresql, programs
from servers import Processes, listens, port_of

from zendesk_oauth import JsonFileStore, Store

FIGURES: list[str] = []


@pytest.fixture
def figure():
    """A function that adds a measured value to the summary, for information only."""
    return FIGURES.append


def pytest_terminal_summary(terminalreporter):
    if FIGURES:
        terminalreporter.section('figures')
        for line in FIGURES:
            terminalreporter.write_line(line)


# --- Processes --- #


@pytest.fixture
def processes(tmp_path) -> Iterator[Processes]:
    processes = Processes(tmp_path)
    yield processes
    processes.stop_all()


@pytest.fixture
def variables(processes) -> dict[str, str]:
    """Start a practice Zendesk on a free port, and return the settings of an app on another port."""
    return processes.start_zendesk()


@pytest.fixture
def faulty_proxy(variables) -> Iterator[FaultyProxy]:
    """A proxy between the app and the practice Zendesk. Request it before the fixture that starts the app."""
    with proxy_to(variables['ZENDESK_BASE_URL'], FaultyProxy) as proxy:
        variables['ZENDESK_BASE_URL'] = proxy.address
        yield proxy


@pytest.fixture
def keep_alive_proxy(variables) -> Iterator[KeepAliveProxy]:
    """A proxy that keeps the app's connections open. Request it before the fixture that starts the app."""
    with proxy_to(variables['ZENDESK_BASE_URL'], KeepAliveProxy) as proxy:
        variables['ZENDESK_BASE_URL'] = proxy.address
        yield proxy


@pytest.fixture
def home(processes, variables) -> str:
    """Start the app with the built-in server, and return the address of its home page."""
    processes.start('app.py', port=port_of(variables), **variables)
    return f'http://localhost:{port_of(variables)}/'


@pytest.fixture
def gunicorn_home(processes, variables) -> str:
    """Start the app under gunicorn with four processes, and return the address of its home page."""
    port = port_of(variables)
    command = ('-m', 'gunicorn', '-w', '4', '-b', f'127.0.0.1:{port}', '--access-logfile', '-', 'app:app')
    processes.start(*command, port=port, **variables)
    return f'http://localhost:{port}/'


@pytest.fixture(params=['home', 'gunicorn_home'])
def address(request) -> str:
    """The address of the home page, once with the built-in server and once under gunicorn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def authority():
    """A certificate authority that is not trusted yet."""
    return pytest.importorskip('trustme', reason='pip install -r requirements-dev.txt').CA()


@pytest.fixture
def tls(authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert('localhost').configure_cert(context)
    return context


# --- Practice mode in Chromium --- #

PRACTICE_APP, PRACTICE_ZENDESK = 'http://localhost:3000', 'http://localhost:3001'


@pytest.fixture(scope='session')
def start_chromium():
    """A function that starts a Chromium. All are closed after the last test."""
    playwright = pytest.importorskip(
        'playwright.sync_api', reason='Playwright is not installed: pip install -r requirements-dev.txt'
    )
    from chromium import launch

    with playwright.sync_playwright() as engine, contextlib.ExitStack() as browsers:

        def start(*without: str):
            browser = launch(engine, *without)
            if browser is None:
                pytest.skip('there is no Chromium: install it, Chrome or Edge, or run "playwright install chromium"')
            return browsers.enter_context(browser)

        yield start


@pytest.fixture(scope='session')
def chromium(start_chromium):
    return start_chromium()


@pytest.fixture
def practice(processes) -> Processes:
    """Start the app in practice mode."""
    for port in (3000, 3001):
        if listens(port):
            pytest.skip(f'port {port}, which practice mode uses, is taken on this machine')
    processes.start('app.py', port=3000)
    return processes


@pytest.fixture
def new_browser(chromium) -> Iterator[Callable]:
    """A function that opens a new browser with one tab. Console errors and requests to other hosts fail the test."""
    problems, contexts = [], []

    def collect(message) -> None:
        # Chromium logs the status of each error page, which is expected. It logs a missing stylesheet or picture in the
        # same words, but with another URL.
        for_the_page = message.location['url'] == message.page.url
        if message.type in ('error', 'warning') and not (for_the_page and ' with a status of ' in message.text):
            problems.append(f'{message.type}: {message.text} ({message.location["url"]})')

    def check_host(request) -> None:
        if not request.url.startswith((PRACTICE_APP, PRACTICE_ZENDESK, 'http://127.0.0.1:3000')):
            problems.append(f'a request to another host: {request.url}')

    def new_browser(chromium=chromium):
        context = chromium.new_context()
        context.set_default_timeout(30_000)
        context.on('console', collect)
        context.on('weberror', lambda error: problems.append(f'exception: {error.error}'))
        context.on('request', check_host)
        contexts.append(context)
        return context.new_page()

    yield new_browser
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def page(practice, new_browser):
    """A browser tab with the home page."""
    page = new_browser()
    page.goto(f'{PRACTICE_APP}/')
    return page


# --- Stores --- #


@pytest.fixture(scope='session')
def postgresql_server() -> Iterator[Postgresql]:
    """A PostgreSQL server. Its data need not survive a crash, so fsync is off."""
    if programs() is None:
        pytest.skip('PostgreSQL is not installed: on Debian, apt install postgresql')
    server = Postgresql(fsync='off')
    yield server
    server.remove()


@pytest.fixture
def postgresql(postgresql_server) -> Postgresql:
    """The running PostgreSQL server with an empty database."""
    if postgresql_server.process.poll() is not None:
        postgresql_server.start()
    postgresql_server.sql('DROP SCHEMA public CASCADE', 'CREATE SCHEMA public')
    return postgresql_server


@pytest.fixture(scope='session')
def pgbouncer_server(postgresql_server) -> Iterator[PgBouncer]:
    if not shutil.which('pgbouncer', path=f'{os.environ["PATH"]}:/usr/sbin'):
        pytest.skip('PgBouncer is not installed: on Debian, apt install pgbouncer')
    server = PgBouncer(postgresql_server)
    yield server
    server.remove()


@pytest.fixture(params=['users.json', 'SQLite', 'PostgreSQL', 'PgBouncer'])
def store_url(request, tmp_path, monkeypatch) -> str:
    """The URL of an empty database, or '' for users.json, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    if request.param == 'users.json':
        return ''
    for package in ('sqlalchemy', 'cryptography', 'psycopg'):
        pytest.importorskip(package, reason='pip install -r requirements-sql.txt')
    if request.param == 'SQLite':
        return f'sqlite:///{tmp_path}/tokens.db'
    server = request.getfixturevalue('postgresql')
    return server.url if request.param == 'PostgreSQL' else request.getfixturevalue('pgbouncer_server').url


@pytest.fixture
def db(store_url, open_db) -> Store:
    """An empty store."""
    return open_db(store_url) if store_url else JsonFileStore('users.json')


@pytest.fixture
def open_db() -> Iterator[Callable[..., Store]]:
    """A function that opens the database at a URL. Its connections are closed after the test."""
    from zendesk_oauth import SqlStore

    with contextlib.ExitStack() as stack:

        def open_db(url: str, keys: Sequence[str] = (KEY,), **options) -> Store:
            store = SqlStore(url, encryption_keys=keys, **options)
            stack.callback(store._database.engine.dispose)
            return store

        yield open_db


@pytest.fixture
def read_only(db, store_url, request) -> Iterator[None]:
    """Make the store read-only."""
    if not store_url:
        request.getfixturevalue('full_disk')
        yield
    elif store_url.startswith('sqlite'):
        from sqlalchemy import event

        engine = db._database.engine
        event.listen(engine, 'connect', lambda connection, _: connection.execute('PRAGMA query_only = ON'))
        engine.dispose()
        yield
    else:
        server = request.getfixturevalue('postgresql')
        server.set(default_transaction_read_only='on')
        yield
        server.set(default_transaction_read_only='off')
