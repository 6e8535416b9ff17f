"""PostgresqlStore: tables, connections and leases, and two machines that share a database."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from helpers import LATER, NEW, OLD
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
    wait_until,
)

from zendesk_oauth.errors import LockTimeout, StoreError
from zendesk_oauth.stores import SWEEP

TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'zendesk_oauth'"
TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"


@pytest.fixture
def db(open_db, postgresql):
    return open_db(postgresql.url)


@pytest.fixture
def short_lease(monkeypatch):
    """Shorten the lease of the refresh lock and the time to wait for it."""
    for name, seconds in {'LEASE': 0.6, 'RENEWAL_INTERVAL': 0.1, 'REFRESH_TIMEOUT': 0.2}.items():
        monkeypatch.setattr(f'zendesk_oauth.postgresql_store.{name}', seconds)


# --- The tables --- #


def test_the_first_use_creates_the_tables(db, postgresql):
    db.save('alice', OLD)
    assert [table for [table] in postgresql.sql(TABLES)] == ['zendesk_refreshes', 'zendesk_tokens', 'zendesk_used_keys']


def test_concurrent_first_uses_create_the_tables_once(db, postgresql):
    users = [f'user-{number}' for number in range(5)]
    for _ in range(20):
        postgresql.sql('DROP TABLE IF EXISTS zendesk_tokens, zendesk_refreshes, zendesk_used_keys')
        with ThreadPoolExecutor(len(users)) as pool:
            list(pool.map(lambda user: db.save(user, OLD), users))
        assert postgresql.sql('SELECT count(*) FROM zendesk_tokens') == [(len(users),)]


@pytest.fixture
def restricted_url(postgresql) -> str:
    """The URL of a database user who can write to tables but cannot create them."""
    postgresql.sql(
        'DROP ROLE IF EXISTS clerk',
        f"CREATE ROLE clerk LOGIN PASSWORD '{PASSWORD}'",
        'REVOKE CREATE ON SCHEMA public FROM PUBLIC',
        'GRANT USAGE ON SCHEMA public TO clerk',
        'ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO clerk',
    )
    yield postgresql.url.replace('app:', 'clerk:')
    postgresql.sql(TERMINATE, 'DROP OWNED BY clerk', 'DROP ROLE clerk')


def test_a_user_without_create_permission_can_use_existing_tables(open_db, db, restricted_url):
    with pytest.raises(StoreError, match='Allow the user in DATABASE_URL to create tables'):
        open_db(restricted_url).find('alice')
    db.save('alice', OLD)
    assert open_db(restricted_url).find('alice') == OLD


def test_check_writable_fails_if_the_table_is_not_writable(open_db, db, restricted_url, postgresql):
    db.save('alice', OLD)
    postgresql.sql('REVOKE UPDATE ON zendesk_tokens FROM clerk')
    with pytest.raises(StoreError, match='permission denied'):
        open_db(restricted_url).check_writable()


@pytest.mark.parametrize(
    'change',
    [
        lambda url: url.replace('postgresql://', 'postgres://'),
        lambda url: url + '?connect_timeout=1&application_name=mine',
    ],
)
def test_other_forms_of_the_url_open_the_same_database(open_db, db, postgresql, change):
    db.save('alice', OLD)
    assert open_db(change(postgresql.url)).find('alice') == OLD


def test_a_key_can_be_consumed_again_after_its_lifetime(db, postgresql):
    assert db.consume_once('key', LATER)
    postgresql.sql("UPDATE zendesk_used_keys SET used_at = used_at - interval '59 minutes'")
    assert not db.consume_once('key', LATER)
    postgresql.sql("UPDATE zendesk_used_keys SET used_at = used_at - interval '2 minutes'")
    assert db.consume_once('key', LATER)


def test_a_callback_deletes_a_limited_number_of_expired_keys(db, postgresql):
    assert db.consume_once('key', LATER)
    old = "SELECT 'old' || n, now() - interval '61 minutes' FROM generate_series(1, 210) n"
    postgresql.sql('INSERT INTO zendesk_used_keys ' + old)
    for left in (210 - SWEEP, 10, 0):
        assert db.consume_once(f'new{left}', LATER)
        assert postgresql.sql("SELECT count(*) FROM zendesk_used_keys WHERE key LIKE 'old%'") == [(left,)]
    assert not db.consume_once('key', LATER)


def test_the_search_for_expired_keys_uses_an_index(db, postgresql):
    """Also right after a flood, before PostgreSQL has analyzed the table."""
    import psycopg
    from sqlalchemy import Engine, event

    sent = []

    def keep(connection, cursor, statement, parameters, *args):
        sent.append((statement, parameters))

    db.consume_once('key', LATER)
    postgresql.sql("INSERT INTO zendesk_used_keys SELECT 'key' || n FROM generate_series(1, 20000) n")
    event.listen(Engine, 'before_cursor_execute', keep)
    assert db.consume_once('other', LATER)
    event.remove(Engine, 'before_cursor_execute', keep)
    deletion, parameters = sent[0]
    with psycopg.connect(postgresql.url) as connection:
        plan = connection.execute(f'EXPLAIN {deletion}', parameters).fetchall()
    assert 'Index Scan using ix_zendesk_used_keys_used_at' in str(plan)
    assert 'Seq Scan' not in str(plan)


# --- Connections --- #


def method_calls(db) -> dict:
    """Return a call of each store method with its expected result. Make the calls in this order."""

    def refresh() -> str:
        with db.refresh_lock('alice'):
            return 'held'

    return {
        'save': (lambda: db.save('alice', OLD), None),
        'find': (lambda: db.find('alice'), OLD),
        'check_writable': (db.check_writable, None),
        'refresh_lock': (refresh, 'held'),
        'replace': (lambda: db.replace('alice', OLD['refresh_token'], NEW), NEW),
        'consume_once': (lambda: db.consume_once('key', LATER), True),
        'remove': (lambda: db.remove('alice'), NEW),
    }


def test_each_method_reconnects_after_its_connection_is_terminated(db, postgresql):
    for use, outcome in method_calls(db).values():
        db.find('bob')
        postgresql.sql(TERMINATE)
        assert use() == outcome


def test_each_method_retries_if_the_connection_breaks_after_the_statement(db, postgresql, monkeypatch):
    """The store cannot know whether the statement arrived, so it repeats it. Each statement is idempotent."""
    db.find('bob')
    first_outcome = []
    real_execute = type(db)._execute

    def execute(self, work, **kwargs):
        def work_and_break(connection):
            outcome = work(connection)
            if connection.engine is not None and not first_outcome:
                first_outcome.append(outcome)
                postgresql.sql(TERMINATE)
                connection.exec_driver_sql('SELECT 1')
            return outcome

        return real_execute(self, work_and_break, **kwargs)

    monkeypatch.setattr(type(db), '_execute', execute)
    for name, (use, outcome) in method_calls(db).items():
        first_outcome.clear()
        assert use() == (False if name == 'consume_once' else outcome)  # the user must start again
        assert first_outcome


def test_methods_raise_only_while_the_database_is_down(db, postgresql):
    db.save('alice', OLD)
    postgresql.stop()
    before = time.monotonic()
    with pytest.raises(StoreError, match='Check that PostgreSQL runs'):
        db.find('alice')
    with pytest.raises(StoreError), db.refresh_lock('alice'):
        pass
    assert time.monotonic() - before < 10
    postgresql.start()
    assert db.find('alice') == OLD


@pytest.mark.parametrize(
    'store', [lambda db: db.save('alice', NEW), lambda db: db.replace('alice', 'old-refresh', NEW)]
)
def test_writes_of_new_tokens_wait_for_the_database(db, postgresql, store):
    db.save('alice', OLD)
    postgresql.stop()
    with ThreadPoolExecutor(1) as pool:
        storing = pool.submit(store, db)
        time.sleep(1.5)  # longer than other methods wait
        assert not storing.done()
        postgresql.start()
        storing.result(30)
    assert db.find('alice') == NEW


def test_a_write_of_new_tokens_raises_after_the_timeout(db, postgresql, monkeypatch):
    monkeypatch.setattr('zendesk_oauth.postgresql_store.WRITE_TIMEOUT', 0.3)
    postgresql.stop()
    with pytest.raises(StoreError):
        db.save('alice', OLD)


def test_each_connection_has_timeouts(db):
    """Without timeouts, the app would notice the loss of the database machine only after hours."""

    def read_settings(connection):
        parameters = connection.connection.driver_connection.info.get_parameters()
        return parameters, connection.exec_driver_sql('SHOW statement_timeout').scalar()

    parameters, statement_timeout = db._execute(read_settings)
    assert statement_timeout == '5s'
    expected = {'keepalives_idle': '3', 'keepalives_interval': '1', 'keepalives_count': '3', 'tcp_user_timeout': '5000'}
    assert expected.items() <= parameters.items()


@pytest.mark.parametrize('host', ['a..b', 'x' * 64 + '.example', 'no-such-host.invalid'])
def test_an_invalid_host_raises_with_advice(open_db, host):
    with pytest.raises(StoreError, match='Check that PostgreSQL runs'):
        open_db(f'postgresql://app:{PASSWORD}@{host}/app').find('alice')


def test_a_slow_statement_raises(open_db, db, postgresql):
    db.save('alice', OLD)
    short_timeout_db = open_db(postgresql.url + '?options=-c%20statement_timeout%3D100')
    with ThreadPoolExecutor(1) as pool:
        locking = pool.submit(postgresql.sql, 'BEGIN', 'LOCK zendesk_tokens', 'SELECT pg_sleep(4)', 'COMMIT')
        wait_until(lambda: postgresql.sql("SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock'"))
        with pytest.raises(StoreError, match='statement timeout'):
            short_timeout_db.find('alice')
        locking.result()


@contextlib.contextmanager
def all_connections_in_use(db, monkeypatch):
    """Occupy all connections of this process."""
    from zendesk_oauth import postgresql_store

    engine = postgresql_store._engine(db._url, os.getpid(), postgresql_store.MAX_CONNECTIONS)
    monkeypatch.setattr(engine.pool, '_timeout', 0.1)
    with contextlib.ExitStack() as stack:
        for _ in range(postgresql_store.MAX_CONNECTIONS):
            stack.enter_context(engine.connect())
        yield


def test_a_method_raises_if_all_connections_stay_in_use(db, monkeypatch):
    with all_connections_in_use(db, monkeypatch), pytest.raises(StoreError, match='QueuePool'):
        db.find('alice')


def test_errors_contain_no_token(db, log):
    with pytest.raises(StoreError) as raised:
        db.save('canary\x00', {'access_token': 'canary', 'refresh_token': 'canary\x00'})
    assert 'canary' not in str(raised.value) + str(raised.value.__cause__) + ''.join(log)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')
def test_each_forked_process_has_its_own_connections(db, postgresql):
    db.save('alice', OLD)
    program = f"""if True:
        import os
        from zendesk_oauth.postgresql_store import PostgresqlStore
        def find():
            return PostgresqlStore({postgresql.url!r}).find('alice')
        find()
        child = os.fork()
        found = [find() for _ in range(300)]
        if child:
            raise SystemExit(found != [{OLD}] * 300 or os.waitpid(child, 0)[1])
        os._exit(found != [{OLD}] * 300)
    """
    subprocess.run([sys.executable, '-c', program], env=environment(), check=True, timeout=60)


# --- The lock --- #


def test_the_lease_ends_only_if_it_is_not_renewed(db, short_lease):
    from zendesk_oauth import postgresql_store

    with db.refresh_lock('alice'):
        time.sleep(2 * postgresql_store.LEASE)
        with pytest.raises(LockTimeout), db.refresh_lock('alice'):
            pass
    assert db._try_lock('alice', 'a killed process')
    with pytest.raises(LockTimeout), db.refresh_lock('alice'):
        pass
    time.sleep(postgresql_store.LEASE)
    with db.refresh_lock('alice'):
        pass


def test_a_holder_keeps_the_lock_if_its_connections_are_terminated(db, short_lease, postgresql):
    from zendesk_oauth import postgresql_store

    with db.refresh_lock('alice'):
        until = time.monotonic() + 2 * postgresql_store.LEASE
        while time.monotonic() < until:
            postgresql.sql(TERMINATE)
            with pytest.raises(LockTimeout), db.refresh_lock('alice'):
                pass


def test_a_holder_can_take_its_lock_again(db):
    assert db._try_lock('alice', 'a holder') is True
    assert db._try_lock('alice', 'a holder') is False
    assert db._try_lock('alice', 'another one') is None


def test_a_holder_keeps_the_lock_while_all_connections_are_used(db, short_lease, monkeypatch, postgresql):
    from zendesk_oauth import postgresql_store

    with db.refresh_lock('alice'), all_connections_in_use(db, monkeypatch):
        time.sleep(2 * postgresql_store.LEASE)
        assert postgresql.sql('SELECT held_until > now() FROM zendesk_refreshes') == [(True,)]


def test_a_new_holder_waits_for_the_previous_holder_to_store(db, short_lease):
    from zendesk_oauth import postgresql_store

    db.save('alice', OLD)
    assert db._try_lock('alice', 'previous holder')
    time.sleep(postgresql_store.LEASE)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(lambda: (time.sleep(0.2), db.replace('alice', OLD['refresh_token'], NEW)))
        with db.refresh_lock('alice'):
            assert db.find('alice') == NEW
        late.result()


def test_a_holder_does_not_retake_a_lost_lock(db, short_lease):
    from zendesk_oauth import postgresql_store

    with db.refresh_lock('alice'):
        db._execute(
            lambda connection: connection.execute(postgresql_store.LOCKS.update().values(holder='the next one'))
        )
        time.sleep(3 * postgresql_store.RENEWAL_INTERVAL)
    assert not db._try_lock('alice', 'a third one')


def test_a_released_lock_leaves_no_thread_and_no_row(db, short_lease, postgresql):
    threads = threading.active_count()
    with db.refresh_lock('alice'):
        assert threading.active_count() == threads + 1
    assert postgresql.sql('SELECT * FROM zendesk_refreshes') == []
    wait_until(lambda: threading.active_count() == threads)


def test_a_failed_release_of_the_lock_raises_nothing(db, short_lease, postgresql):
    with db.refresh_lock('alice'):
        postgresql.stop()


# --- Two machines --- #


class Machines:
    """Two gunicorn servers in separate folders that share only a database."""

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
def machines(processes, variables, postgresql, tmp_path):
    pytest.importorskip('gunicorn', reason='gunicorn is not installed: pip install -r requirements-dev.txt')
    (tmp_path / 'second').mkdir()
    second = Processes(tmp_path / 'second')
    shared = {'DATABASE_URL': postgresql.url, 'SECRET_KEY': 'canary-secret-key-canary-secret-key'}
    yield Machines(processes, second, {**variables, **shared})
    second.stop_all()


def test_two_machines_serve_the_same_user(processes, machines, postgresql):
    browser = HttpBrowser(machines.homes[0])
    browser.grant()
    for home in machines.homes * 4:
        browser.visit(f'{home}profile')
        assert browser.greeting == f'👋 Hi, {AGENT}!'
    assert 'Storing the access and refresh tokens in zendesk_tokens' in machines.output
    assert not list(processes.folder.rglob('users.json*'))
    [(record,)] = postgresql.sql('SELECT record FROM zendesk_tokens')
    browser.page = browser.http.post(f'{machines.homes[1]}disconnect', timeout=60)
    assert 'deleted here and revoked at Zendesk' in browser.text
    assert postgresql.sql('SELECT * FROM zendesk_tokens') == []
    for secret in (record['access_token'], record['refresh_token'], PASSWORD):
        assert secret not in machines.output


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


def test_sixty_requests_to_two_machines_make_one_refresh(processes, machines, figure):
    browser = HttpBrowser(machines.homes[0])
    browser.grant()
    counted = []
    for _ in range(5):
        before = processes.refreshes()
        processes.expire_access_tokens()
        pages = machines.request_profiles([browser], 60)
        assert [page.status_code for page in pages] == [200] * 60
        assert all(AGENT in page.text for page in pages)
        counted.append(processes.refreshes() - before)
    figure(f'60 concurrent requests to two machines with an expired token, 5 times: refresh requests {counted}')
    assert counted == [1] * 5


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


def test_another_machine_takes_the_lock_after_a_machine_is_killed(processes, machines, figure):
    from zendesk_oauth import postgresql_store

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
    before = time.monotonic()
    visiting.join()

    next_tab.visit(f'{machines.homes[1]}profile')
    seconds = time.monotonic() - before
    figure(
        f'one machine killed during a refresh: the next request to the other one took {seconds:.2f} s; '
        f'the lease is {postgresql_store.LEASE} s'
    )
    assert next_tab.greeting == f'👋 Hi, {AGENT}!'
    assert seconds < postgresql_store.REFRESH_TIMEOUT


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


@pytest.mark.slow
def test_terminated_connections_under_load_lose_no_grant(processes, machines, postgresql, figure):
    from zendesk_oauth import postgresql_store

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
                assert title in ('The app cannot access its stored data', 'Zendesk rejected the new access token')
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
        f'the longest wait {max(seconds):.2f} s (the lease is {postgresql_store.LEASE} s)'
    )
    assert (lost, refused) == (0, 0)
    assert max(seconds) < postgresql_store.REFRESH_TIMEOUT + postgresql_store.LEASE


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
