"""PostgreSQL: what it does beyond what every store does, and what two machines do that share one."""

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
from conftest import NEW, PAIR, close_connections
from postgresql import PASSWORD
from servers import AGENT, Processes, Visitor, environment, free_port, port_of, profiles, side_by_side, wait_until

from zendesk_oauth.token_store import StoreBusy, StoreError

pytestmark = pytest.mark.postgresql

TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'zendesk_oauth'"
TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"


@pytest.fixture
def open_db(postgresql):
    """A function that opens the database at an address; its connections are closed in the end."""
    from zendesk_oauth import postgresql_store as postgresql_db

    with contextlib.ExitStack() as stack:

        def open_db(url: str) -> postgresql_db.PostgresqlDb:
            db = postgresql_db.PostgresqlDb(url)
            stack.callback(close_connections, url)
            return db

        yield open_db


@pytest.fixture
def db(open_db, postgresql):
    return open_db(postgresql.url)


@pytest.fixture
def brief(monkeypatch):
    """A lock that is soon free after its holder's last sign of life."""
    for name, seconds in {'LEASE': 0.6, 'SIGN_OF_LIFE': 0.1, 'REFRESH_TIMEOUT': 0.2}.items():
        monkeypatch.setattr(f'postgresql_db.{name}', seconds)


# --- The tables --- #


def test_the_tables_are_made_on_first_use(db, postgresql):
    db.save('alice', PAIR)
    assert [table for [table] in postgresql.sql(TABLES)] == ['zendesk_refreshes', 'zendesk_tokens', 'zendesk_used_keys']


def test_many_who_miss_the_tables_at_once_make_them_once(db, postgresql):
    users = [f'user-{number}' for number in range(5)]
    for _ in range(20):
        postgresql.sql('DROP TABLE IF EXISTS zendesk_tokens, zendesk_refreshes, zendesk_used_keys')
        with ThreadPoolExecutor(len(users)) as pool:
            list(pool.map(lambda user: db.save(user, PAIR), users))
        assert postgresql.sql('SELECT count(*) FROM zendesk_tokens') == [(len(users),)]


@pytest.fixture
def clerk(postgresql) -> str:
    """The address of the database for a user who may write to tables, and make none."""
    postgresql.sql(
        'DROP ROLE IF EXISTS clerk',
        f"CREATE ROLE clerk LOGIN PASSWORD '{PASSWORD}'",
        'REVOKE CREATE ON SCHEMA public FROM PUBLIC',
        'GRANT USAGE ON SCHEMA public TO clerk',
        'ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO clerk',
    )
    yield postgresql.url.replace('app:', 'clerk:')
    postgresql.sql(TERMINATE, 'DROP OWNED BY clerk', 'DROP ROLE clerk')


def test_a_user_who_may_make_no_tables_is_told_so_and_can_use_those_that_are_there(open_db, db, clerk):
    with pytest.raises(StoreError, match='Allow the user in DATABASE_URL to create tables'):
        open_db(clerk).find('alice')
    db.save('alice', PAIR)
    assert open_db(clerk).find('alice') == PAIR


def test_a_rehearsal_fails_where_the_table_can_not_be_written(open_db, db, clerk, postgresql):
    db.save('alice', PAIR)
    postgresql.sql('REVOKE UPDATE ON zendesk_tokens FROM clerk')
    with pytest.raises(StoreError, match='permission denied'):
        open_db(clerk).rehearse()


@pytest.mark.parametrize(
    'change',
    [
        lambda url: url.replace('postgresql://', 'postgres://'),
        lambda url: url + '?connect_timeout=1&application_name=mine',
    ],
)
def test_an_address_in_another_form_leads_to_the_same_tokens(open_db, db, postgresql, change):
    db.save('alice', PAIR)
    assert open_db(change(postgresql.url)).find('alice') == PAIR


# --- Connections --- #


def uses(db) -> dict:
    """What can be done with the store, and what comes of it."""

    def refresh() -> str:
        with db.refreshing('alice'):
            return 'held'

    return {
        'save': (lambda: db.save('alice', PAIR), None),
        'find': (lambda: db.find('alice'), PAIR),
        'rehearse': (db.rehearse, None),
        'refreshing': (refresh, 'held'),
        'replace': (lambda: db.replace('alice', PAIR['refresh_token'], NEW), NEW),
        'first_use': (lambda: db.first_use('key', 600), True),
        'remove': (lambda: db.remove('alice'), NEW),
    }


def test_connections_that_were_terminated_are_no_error(db, postgresql):
    for use, outcome in uses(db).values():
        db.find('bob')
        postgresql.sql(TERMINATE)
        assert use() == outcome


def test_a_connection_that_breaks_when_all_is_done_is_no_error(db, postgresql, monkeypatch):
    """Nobody can tell whether the statement has arrived: so it is sent again, and must do no harm."""
    db.find('bob')
    once_more = []
    real_do = type(db)._do

    def do(self, work, **kwargs):
        def work_and_break(connection):
            outcome = work(connection)
            if connection.engine is not None and not once_more:
                once_more.append(outcome)
                postgresql.sql(TERMINATE)
                connection.exec_driver_sql('SELECT 1')
            return outcome

        return real_do(self, work_and_break, **kwargs)

    monkeypatch.setattr(type(db), '_do', do)
    for name, (use, outcome) in uses(db).items():
        once_more.clear()
        assert use() == (False if name == 'first_use' else outcome)  # better a visitor who starts again
        assert once_more


def test_while_the_database_is_away_it_is_an_error_and_afterwards_none(db, postgresql):
    db.save('alice', PAIR)
    postgresql.stop()
    before = time.monotonic()
    with pytest.raises(StoreError, match='Check that PostgreSQL runs'):
        db.find('alice')
    with pytest.raises(StoreError), db.refreshing('alice'):
        pass
    assert time.monotonic() - before < 10
    postgresql.start()
    assert db.find('alice') == PAIR


@pytest.mark.parametrize(
    'store', [lambda db: db.save('alice', NEW), lambda db: db.replace('alice', 'old-refresh', NEW)]
)
def test_a_pair_that_zendesk_has_just_issued_waits_for_the_database(db, postgresql, store):
    db.save('alice', PAIR)
    postgresql.stop()
    with ThreadPoolExecutor(1) as pool:
        storing = pool.submit(store, db)
        time.sleep(1.5)  # longer than anything else waits
        assert not storing.done()
        postgresql.start()
        storing.result(30)
    assert db.find('alice') == NEW


def test_a_pair_does_not_wait_for_ever(db, postgresql, monkeypatch):
    monkeypatch.setattr('zendesk_oauth.postgresql_store.WRITE_TIMEOUT', 0.3)
    postgresql.stop()
    with pytest.raises(StoreError):
        db.save('alice', PAIR)


def test_each_connection_has_its_limits(db):
    """A database machine that vanishes says nothing: else its absence would be noticed after hours."""

    def look(connection):
        parameters = connection.connection.driver_connection.info.get_parameters()
        return parameters, connection.exec_driver_sql('SHOW statement_timeout').scalar()

    parameters, statement_timeout = db._do(look)
    assert statement_timeout == '5s'
    expected = {'keepalives_idle': '3', 'keepalives_interval': '1', 'keepalives_count': '3', 'tcp_user_timeout': '5000'}
    assert expected.items() <= parameters.items()


@pytest.mark.parametrize('host', ['a..b', 'x' * 64 + '.example', 'no-such-host.invalid'])
def test_a_host_that_is_none_is_an_error_with_a_remedy(open_db, host):
    with pytest.raises(StoreError, match='Check that PostgreSQL runs'):
        open_db(f'postgresql://app:{PASSWORD}@{host}/app').find('alice')


def test_a_statement_that_takes_too_long_is_an_error(open_db, db, postgresql):
    db.save('alice', PAIR)
    hasty = open_db(postgresql.url + '?options=-c%20statement_timeout%3D100')
    with ThreadPoolExecutor(1) as pool:
        locking = pool.submit(postgresql.sql, 'BEGIN', 'LOCK zendesk_tokens', 'SELECT pg_sleep(4)', 'COMMIT')
        wait_until(lambda: postgresql.sql("SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock'"))
        with pytest.raises(StoreError, match='statement timeout'):
            hasty.find('alice')
        locking.result()


@contextlib.contextmanager
def all_connections_taken(db, monkeypatch):
    """Let others have all the connections of this process."""
    from zendesk_oauth import postgresql_store as postgresql_db

    engine = postgresql_db._engine(db._url, os.getpid(), postgresql_db.MAX_CONNECTIONS)
    monkeypatch.setattr(engine.pool, '_timeout', 0.1)
    with contextlib.ExitStack() as stack:
        for _ in range(postgresql_db.MAX_CONNECTIONS):
            stack.enter_context(engine.connect())
        yield


def test_where_all_connections_are_taken_there_is_an_error_after_a_while(db, monkeypatch):
    with all_connections_taken(db, monkeypatch), pytest.raises(StoreError, match='QueuePool'):
        db.find('alice')


def test_no_token_is_in_an_error(db, log):
    with pytest.raises(StoreError) as raised:
        db.save('canary\x00', {'access_token': 'canary', 'refresh_token': 'canary\x00'})
    assert 'canary' not in str(raised.value) + str(raised.value.__cause__) + ''.join(log)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')
def test_after_a_fork_each_process_has_connections_of_its_own(db, postgresql):
    db.save('alice', PAIR)
    program = f"""if True:
        import os, sys, postgresql_db
        def find():
            return postgresql_db.PostgresqlDb({postgresql.url!r}).find('alice')
        find()
        child = os.fork()
        found = [find() for _ in range(300)]
        if child:
            raise SystemExit(found != [{PAIR}] * 300 or os.waitpid(child, 0)[1])
        os._exit(found != [{PAIR}] * 300)
    """
    subprocess.run([sys.executable, '-c', program], env=environment(), check=True, timeout=60)


# --- The lock --- #


def test_a_holder_who_lives_keeps_the_lock_and_a_dead_one_loses_it(db, brief):
    from zendesk_oauth import postgresql_store as postgresql_db

    with db.refreshing('alice'):
        time.sleep(2 * postgresql_db.LEASE)
        with pytest.raises(StoreBusy), db.refreshing('alice'):
            pass
    assert db._hold('alice', 'somebody who dies')
    with pytest.raises(StoreBusy), db.refreshing('alice'):
        pass
    time.sleep(postgresql_db.LEASE)
    with db.refreshing('alice'):
        pass


def test_a_holder_whose_connections_are_terminated_keeps_the_lock(db, brief, postgresql):
    from zendesk_oauth import postgresql_store as postgresql_db

    with db.refreshing('alice'):
        until = time.monotonic() + 2 * postgresql_db.LEASE
        while time.monotonic() < until:
            postgresql.sql(TERMINATE)
            with pytest.raises(StoreBusy), db.refreshing('alice'):
                pass


def test_a_holder_who_could_not_hear_that_it_is_one_can_ask_again(db):
    assert db._hold('alice', 'a holder') is True
    assert db._hold('alice', 'a holder') is False
    assert db._hold('alice', 'another one') is None


def test_a_holder_keeps_the_lock_while_others_have_all_the_connections(db, brief, monkeypatch, postgresql):
    from zendesk_oauth import postgresql_store as postgresql_db

    with db.refreshing('alice'), all_connections_taken(db, monkeypatch):
        time.sleep(2 * postgresql_db.LEASE)
        assert postgresql.sql('SELECT held_until > now() FROM zendesk_refreshes') == [(True,)]


def test_who_takes_over_from_one_who_seemed_dead_lets_it_store_what_it_got(db, brief):
    from zendesk_oauth import postgresql_store as postgresql_db

    db.save('alice', PAIR)
    assert db._hold('alice', 'cut off')
    time.sleep(postgresql_db.LEASE)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(lambda: (time.sleep(0.2), db.replace('alice', PAIR['refresh_token'], NEW)))
        with db.refreshing('alice'):
            assert db.find('alice') == NEW
        late.result()


def test_who_has_lost_the_lock_does_not_take_it_from_the_next_one(db, brief):
    from zendesk_oauth import postgresql_store as postgresql_db

    with db.refreshing('alice'):
        db._do(lambda connection: connection.execute(postgresql_db.LOCKS.update().values(holder='the next one')))
        time.sleep(3 * postgresql_db.SIGN_OF_LIFE)
    assert not db._hold('alice', 'a third one')


def test_a_lock_leaves_no_thread_and_no_row_behind(db, brief, postgresql):
    threads = threading.active_count()
    with db.refreshing('alice'):
        assert threading.active_count() == threads + 1
    assert postgresql.sql('SELECT * FROM zendesk_refreshes') == []
    wait_until(lambda: threading.active_count() == threads)


def test_a_lock_that_can_not_be_given_back_is_no_error(db, brief, postgresql):
    with db.refreshing('alice'):
        postgresql.stop()


# --- Two machines --- #


class Machines:
    """Two gunicorns in two folders, on two ports, that share a database and nothing else."""

    def __init__(self, first: Processes, second: Processes, variables: dict[str, str]) -> None:
        self.first, self.second = first, second
        self.ports = (port_of(variables), free_port())
        self.homes = [f'http://localhost:{port}/' for port in self.ports]
        for machine, port in zip((first, second), self.ports, strict=True):
            machine.start('-m', 'gunicorn', '-w', '2', '-b', f'127.0.0.1:{port}', 'app:app', port=port, **variables)

    def profiles(self, visitors: list[Visitor], times: int) -> list[requests.Response]:
        """Let each visitor ask for the profile so many times, at each machine as often, all at once."""
        with ThreadPoolExecutor(len(self.homes)) as pool:
            at_each = pool.map(lambda home: profiles(home, visitors, times // len(self.homes)), self.homes)
            return [page for pages in at_each for page in pages]

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


def test_two_machines_serve_the_same_visitor(processes, machines, postgresql):
    visitor = Visitor(machines.homes[0])
    visitor.grant()
    for home in machines.homes * 4:
        visitor.visit(f'{home}profile')
        assert visitor.greeting == f'👋 Hi, {AGENT}!'
    assert 'Writing the tokens to zendesk_tokens' in machines.output
    assert not list(processes.folder.rglob('users.json*'))
    [(record,)] = postgresql.sql('SELECT record FROM zendesk_tokens')
    visitor.page = visitor.http.post(f'{machines.homes[1]}disconnect', visitor.form, timeout=60)
    assert 'Zendesk has revoked them' in visitor.text
    assert postgresql.sql('SELECT * FROM zendesk_tokens') == []
    for secret in (record['access_token'], record['refresh_token'], PASSWORD):
        assert secret not in machines.output


def test_an_answer_that_comes_to_both_machines_at_once_works_once(processes, machines):
    visitor = Visitor(machines.homes[0])
    visitor.visit(f'{machines.homes[0]}zendesk/auth')
    callback = visitor.submit('allow', allow_redirects=False).headers['Location']
    addresses = [callback.replace(f':{machines.ports[0]}', f':{port}') for port in machines.ports] * 5
    with ThreadPoolExecutor(10) as pool:
        cookies = visitor.http.cookies.get_dict()
        pages = list(
            pool.map(lambda it: requests.get(it, cookies=cookies, allow_redirects=False, timeout=60), addresses)
        )
    assert sorted(page.status_code for page in pages) == [302] + [400] * 9
    assert len(processes.journal('exchange')) == 1


def test_sixty_visits_at_two_machines_on_one_expired_token_make_one_refresh(processes, machines, figure):
    visitor = Visitor(machines.homes[0])
    visitor.grant()
    counted = []
    for _ in range(5):
        before = processes.refreshes()
        processes.expire_access_tokens()
        pages = machines.profiles([visitor], 60)
        assert [page.status_code for page in pages] == [200] * 60
        assert all(AGENT in page.text for page in pages)
        counted.append(processes.refreshes() - before)
    figure(f'60 visits at once at two machines on one expired token, 5 times: refresh requests {counted}')
    assert counted == [1] * 5


def test_nobody_waits_for_somebody_elses_refresh(processes, machines):
    visitors = [Visitor(machines.homes[0]) for _ in range(12)]
    for visitor in visitors:
        visitor.grant()
    processes.expire_access_tokens()
    processes.script({'call': 'refresh', 'delay': 0.5, 'times': 12})
    pages = machines.profiles(visitors, 2)
    assert [page.status_code for page in pages] == [200] * 24
    refreshes = processes.journal('refresh')
    assert len(refreshes) == 12
    assert side_by_side(refreshes)


def test_a_machine_killed_in_the_middle_of_a_refresh_stops_nobody_for_longer_than_the_lock_is_good(
    processes, machines, figure
):
    from zendesk_oauth import postgresql_store as postgresql_db

    visitor, next_one = Visitor(machines.homes[0]), Visitor(machines.homes[0])
    visitor.grant()
    next_one.http.cookies = visitor.http.cookies.copy()
    processes.expire_access_tokens()
    processes.script({'call': 'refresh', 'status': 500, 'delay': 60})

    def visit() -> None:
        with contextlib.suppress(requests.ConnectionError):
            visitor.visit(f'{machines.homes[0]}profile')

    visiting = threading.Thread(target=visit)
    visiting.start()
    processes.wait_for_the_script_to_end()
    os.killpg(processes.running[machines.ports[0]].pid, signal.SIGKILL)
    before = time.monotonic()
    visiting.join()

    next_one.visit(f'{machines.homes[1]}profile')
    seconds = time.monotonic() - before
    figure(
        f'one machine killed in a refresh: the next visit at the other one was answered after {seconds:.2f} s; '
        f'the bound on the lock is {postgresql_db.LEASE} s'
    )
    assert next_one.greeting == f'👋 Hi, {AGENT}!'
    assert seconds < postgresql_db.REFRESH_TIMEOUT


def test_while_a_refresh_is_under_way_terminated_connections_let_nobody_else_begin_one(processes, machines, postgresql):
    visitor = Visitor(machines.homes[0])
    visitor.grant()
    processes.expire_access_tokens()
    processes.script({'call': 'refresh', 'delay': 3})
    with ThreadPoolExecutor(1) as pool:
        pages = pool.submit(machines.profiles, [visitor], 6)
        processes.wait_for_the_script_to_end()
        for _ in range(20):
            postgresql.sql(TERMINATE)
            time.sleep(0.1)
        assert [page.status_code for page in pages.result()] == [200] * 6
    assert processes.refreshes() == 1


@pytest.mark.slow
def test_connections_terminated_under_load_cost_nobody_a_grant(processes, machines, postgresql, figure):
    from zendesk_oauth import postgresql_store as postgresql_db

    visitors = [Visitor(machines.homes[0]) for _ in range(10)]
    for visitor in visitors:
        visitor.grant()
    over = threading.Event()
    seconds, statuses = [], []

    def keep_visiting(number: int) -> None:
        cookies = visitors[number % 10].http.cookies.get_dict()
        while not over.is_set():
            before = time.monotonic()
            page = requests.get(f'{machines.homes[number % 2]}profile', cookies=cookies, timeout=120)
            seconds.append(time.monotonic() - before)
            statuses.append(page.status_code)
            if page.status_code != 200:
                # The second: a new access token met the next 401 of this test's.
                title = re.search('<h1>(.*)</h1>', page.text)[1]
                assert title in ('The app cannot reach its stored data', 'Zendesk refuses the new access token')
                assert 'class="button" href="/' in page.text

    terminated = 0
    with ThreadPoolExecutor(30) as pool:
        visiting = [pool.submit(keep_visiting, number) for number in range(30)]
        try:
            until = time.monotonic() + 20
            while time.monotonic() < until:
                processes.script({'call': 'profile', 'status': 401, 'times': 5})  # as if they had expired
                for _ in range(5):
                    time.sleep(0.1)
                    terminated += len(postgresql.sql(TERMINATE))
        finally:
            over.set()
        for visit in visiting:
            visit.result()

    refused = sum((refresh['status'] or 500) >= 400 for refresh in processes.journal('refresh'))
    lost = 0
    for visitor in visitors:
        visitor.visit(f'{machines.homes[1]}profile')
        lost += AGENT not in visitor.text
    figure(
        f'{terminated} connections terminated under the load of {len(statuses)} visits at two machines: {lost} of 10 '
        f'users lost, {refused} of {processes.refreshes()} refreshes refused, {statuses.count(503)} pages to try '
        f'again, the longest wait {max(seconds):.2f} s (the bound on the lock is {postgresql_db.LEASE} s)'
    )
    assert (lost, refused) == (0, 0)
    assert max(seconds) < postgresql_db.REFRESH_TIMEOUT + postgresql_db.LEASE


def test_while_the_database_is_away_each_page_has_a_way_on_and_afterwards_all_is_well(processes, machines, postgresql):
    visitor, late = Visitor(machines.homes[0]), Visitor(machines.homes[0])
    visitor.grant()
    late.visit(f'{machines.homes[0]}zendesk/auth')
    postgresql.stop()
    for home in machines.homes:
        visitor.visit(f'{home}profile')
        assert visitor.status == 503
        assert re.search('href="/profile">Try again', visitor.text)
        visitor.visit(home)
        assert visitor.status == 200
    late.answer('allow')
    assert late.status == 503
    assert processes.journal('exchange')[1:] == []  # a code that can't be used is not spent
    assert 'Check that PostgreSQL runs' in machines.output
    assert 'Traceback' not in machines.output
    assert PASSWORD not in machines.output
    postgresql.start()
    for home in machines.homes:
        visitor.visit(f'{home}profile')
        assert visitor.greeting == f'👋 Hi, {AGENT}!'
