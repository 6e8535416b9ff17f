"""SqlStore: tables, encryption, connections and leases."""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from helpers import KEY, LATER, NEW, OLD, OTHER, PROJECT
from postgresql import PASSWORD
from product import client
from servers import environment, free_port, wait_until
from store_suite import records, set_records

from zendesk_oauth import SqlStore
from zendesk_oauth.errors import LockTimeout, StoreError
from zendesk_oauth.stores import SWEEP

OTHER_KEY = 'YW5vdGhlci1lbmNyeXB0aW9uLWtleS0wMTIzNDU2Nzg='
TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'zendesk_oauth'"
TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"

with_each = pytest.mark.parametrize('store_url', ['SQLite', 'PostgreSQL', 'PgBouncer'], indirect=True)
with_postgresql = pytest.mark.parametrize('store_url', ['PostgreSQL', 'PgBouncer'], indirect=True)
with_sqlite = pytest.mark.parametrize('store_url', ['SQLite'], indirect=True)
directly = pytest.mark.parametrize('store_url', ['PostgreSQL'], indirect=True)


@pytest.fixture
def short_timeouts(monkeypatch):
    """Do not wait for an unavailable database."""
    monkeypatch.setattr('zendesk_oauth.sql_store.WRITE_TIMEOUT', 0)
    monkeypatch.setattr('zendesk_oauth.database.RETRY_TIMEOUT', 0)


@pytest.fixture
def short_lease(monkeypatch):
    """Shorten the lease of the refresh lock and the time to wait for it."""
    monkeypatch.setattr('zendesk_oauth.sql_store.LEASE', 1.5)
    monkeypatch.setattr('zendesk_oauth.sql_store.TAKEOVER_DELAY', 0.3)
    monkeypatch.setattr('zendesk_oauth.sql_store.REFRESH_TIMEOUT', 0.2)


@pytest.fixture
def sql(store_url, request):
    """A function that executes statements over a separate connection and returns the rows of the last one."""

    def sql(*statements: str) -> list:
        with contextlib.closing(sqlite3.connect(store_url.removeprefix('sqlite:///'), timeout=60)) as connection:
            for statement in statements:
                rows = connection.execute(statement).fetchall()
            connection.commit()
            return rows

    return sql if store_url.startswith('sqlite') else request.getfixturevalue('postgresql').sql


# --- Arguments --- #


def test_the_signature_does_not_change():
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(SqlStore).parameters.values()
    ]
    expected = '(url, *, encryption_keys, create_tables=True, engine_options=None)'
    assert str(inspect.Signature(parameters)) == expected


@with_sqlite
@pytest.mark.parametrize(
    'url',
    [
        *(
            None,
            5,
            '',
            'tokens.db',
            'sqlite://',
            'sqlite://host/tokens.db',
            'sqlite:///tokens.db\n',
            'sqlite:///',
            'sqlite:///:memory:',
            'sqlite:///file:canary?uri=true',
        ),
        *('mysql://canary/app', 'postgresql:', 'postgresql+psycopg2://canary/app', 'postgresql://canary:port/app'),
        *('postgresql://canary host/app', 'postgresql://app:can@ry-canary@db.example/app', 'postgresql://[canary/app'),
        *('postgresql://app:canary%zz@db.example/app', 'postgresql://app:canary/canary@db.example/app'),
        'postgresql://app:777/canary@db.example/app',
    ],
)
def test_an_invalid_url_is_refused_and_not_in_the_message(store_url, url):
    with pytest.raises(ValueError, match=r'^url is not a database URL of the form') as raised:
        SqlStore(url, encryption_keys=[KEY])
    assert 'canary' not in str(raised.value)
    assert raised.value.__cause__ is None


@with_sqlite
def test_the_error_names_an_unknown_libpq_option(store_url):
    with pytest.raises(ValueError, match=r'^url has an invalid URI query parameter: "sslmod"$'):
        SqlStore('postgresql://app:canary@db.example/app?sslmod=require', encryption_keys=[KEY])


@with_sqlite
@pytest.mark.parametrize(
    'keys', [None, [], (), KEY, KEY.encode(), ['canary'], [KEY, 'canary'], [f'{KEY},{KEY}'], [b'\xff'], [None]]
)
def test_an_invalid_key_is_refused_and_not_in_the_message(store_url, keys):
    with pytest.raises(ValueError, match=r'^encryption_keys must be a list of keys') as raised:
        SqlStore(store_url, encryption_keys=keys)
    assert 'canary' not in str(raised.value)


@with_sqlite
@pytest.mark.parametrize('missing', ['psycopg', 'psycopg.conninfo'])
def test_a_missing_driver_is_an_import_error(store_url, missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=missing):
        SqlStore('postgresql://localhost/app', encryption_keys=[KEY])


@directly
@pytest.mark.parametrize(
    'change',
    [
        lambda url: url.replace('postgresql://', 'postgres://'),
        lambda url: url.replace('postgresql://', 'postgresql+psycopg://'),
        lambda url: url + '?connect_timeout=1&application_name=mine',
        # Several hosts. Nothing listens on port 1.
        lambda url: url.replace('127.0.0.1:', '127.0.0.1:1,127.0.0.1:') + '?target_session_attrs=read-write',
    ],
)
def test_other_forms_of_the_url_open_the_same_database(open_db, db, store_url, change):
    db.save('alice', OLD)
    assert open_db(change(store_url)).find('alice') == OLD


@with_sqlite
def test_a_path_is_relative_to_the_folder_at_the_start(open_db, store_url, monkeypatch, tmp_path):
    Path('other').mkdir()
    db = open_db('sqlite:///tokens.db')
    monkeypatch.chdir('other')
    db.save('alice', OLD)
    assert open_db(store_url).find('alice') == OLD
    assert str(db) == str(tmp_path / 'tokens.db')


@with_each
def test_engine_options_replace_the_defaults(open_db, store_url):
    from sqlalchemy import NullPool

    db = open_db(store_url, engine_options={'pool_size': 2})
    assert db._database.engine.pool.size() == 2
    db = open_db(store_url, engine_options={'poolclass': NullPool})
    db.save('alice', OLD)
    assert db.find('alice') == OLD
    with pytest.raises(TypeError, match='pool_sizes'):
        open_db(store_url, engine_options={'pool_sizes': 2})


# --- Tables --- #


@with_each
def test_the_first_use_creates_the_tables_once_for_all_processes(store_url, sql):
    program = f"""if True:
        import sys
        from zendesk_oauth import SqlStore
        db = SqlStore({store_url!r}, encryption_keys=[{KEY!r}])
        sys.stdin.read()
        db.save(sys.argv[1], {OLD})
    """
    started = [
        subprocess.Popen(
            [sys.executable, '-c', program, str(number)], env=environment(), stdin=subprocess.PIPE, close_fds=True
        )
        for number in range(8)
    ]
    time.sleep(2)  # until all of them wait
    for process in started:
        process.stdin.close()
    assert [process.wait(60) for process in started] == [0] * 8
    assert sql('SELECT count(*) FROM zendesk_oauth_tokens') == [(8,)]


@with_postgresql
def test_concurrent_first_uses_create_the_tables_once(open_db, store_url, sql):
    users = [f'user-{number}' for number in range(5)]
    for _ in range(20):
        sql('DROP TABLE IF EXISTS zendesk_oauth_tokens, zendesk_oauth_locks')
        db = open_db(store_url)
        with ThreadPoolExecutor(len(users)) as pool:
            list(pool.map(lambda user, db=db: db.save(user, OLD), users))
        assert sql('SELECT count(*) FROM zendesk_oauth_tokens') == [(len(users),)]
        db._database.engine.dispose()


@with_each
def test_check_readable_creates_neither_a_file_nor_a_table(open_db, store_url, sql, tmp_path):
    db = open_db(store_url)
    db.check_readable()
    assert not (tmp_path / 'tokens.db').exists()
    db._database.engine.connect().close()  # SQLite creates an empty file
    db.check_readable()
    with pytest.raises(Exception, match='zendesk_oauth_tokens'):
        sql('SELECT * FROM zendesk_oauth_tokens')
    db.save('alice', OLD)
    db.check_readable()


@with_each
def test_check_readable_reads_the_table(db, sql):
    db.save('alice', OLD)
    db.check_readable()
    sql('DROP TABLE zendesk_oauth_tokens')
    with pytest.raises(StoreError, match='zendesk_oauth_tokens'):
        db.check_readable()


@with_sqlite
def test_check_readable_fails_if_the_file_is_deleted(db, tmp_path):
    db.save('alice', OLD)
    (tmp_path / 'tokens.db').unlink()
    with pytest.raises(StoreError, match=r'tokens\.db was deleted or cannot be read'):
        db.check_readable()


def test_check_readable_does_not_retry_while_the_database_is_down(open_db, monkeypatch):
    db = open_db(f'postgresql://127.0.0.1:{free_port()}/app')
    monkeypatch.setattr(time, 'sleep', lambda seconds: pytest.fail('it waits'))
    with pytest.raises(StoreError, match=r'refused.*Check that PostgreSQL runs'):
        db.check_readable()


@with_each
def test_the_documented_sql_creates_the_same_tables(open_db, store_url, sql):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    db = open_db(store_url, create_tables=False)
    with pytest.raises(StoreError, match='zendesk_oauth_tokens') as raised:
        db.find('alice')
    assert raised.value.retry_after is None
    page = (PROJECT / 'docs' / 'use-in-your-product.md').read_text(encoding='utf-8')
    [tables] = re.findall('^```sql\n(.*?)^```', page, re.MULTILINE | re.DOTALL)
    sql(*filter(str.strip, tables.split(';')))
    db = open_db(store_url, create_tables=False)
    db.save('alice', OLD)
    with db.refresh_lock('alice') as stored:
        assert stored == OLD
    with db._database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={'compare_type': True})
        assert compare_metadata(context, db.metadata) == []


@with_sqlite
def test_the_documented_code_opens_a_database_and_changes_its_key(store_url, open_db, tmp_path, monkeypatch, capsys):
    page = (PROJECT / 'docs' / 'use-in-your-product.md').read_text(encoding='utf-8')
    snippets = re.findall('^```python\n(.*?)^```', page, re.MULTILINE | re.DOTALL)
    program = '\n'.join(code for code in snippets if re.search(r'SqlStore\(|reencrypt\(|store\.save', code))
    open_db(store_url).save('alice', OLD)
    monkeypatch.setenv('TOKEN_ENCRYPTION_KEYS', f'{OTHER_KEY} {KEY}')
    namespace = {}
    exec(program.replace('/var/lib/my-product', str(tmp_path)), namespace)  # noqa: S102
    namespace['use_the_new_key']()
    assert capsys.readouterr().out == '1\n'
    (tmp_path / 'tokens.json').write_text(json.dumps({'bob': OTHER}))
    namespace['move'](tmp_path / 'tokens.json')
    assert namespace['store'].find('bob') == OTHER
    namespace['store']._database.engine.dispose()
    assert open_db(store_url, keys=[OTHER_KEY]).find('alice') == OLD


@with_sqlite
def test_a_file_with_tables_of_another_app_is_refused(open_db, store_url, sql):
    sql('CREATE TABLE customers (id INTEGER)')
    with pytest.raises(StoreError, match=r'tokens\.db contains other tables. Use a separate file') as raised:
        open_db(store_url).check_setup()
    assert raised.value.retry_after is None
    assert sql('PRAGMA journal_mode') == [('delete',)]
    assert sql('SELECT name FROM sqlite_master') == [('customers',)]
    sql('DROP TABLE customers', 'CREATE TABLE alembic_version (id INTEGER)')
    open_db(store_url).check_setup()
    sql('CREATE TABLE customers (id INTEGER)')
    open_db(store_url, create_tables=False).check_setup()


@with_sqlite
@pytest.mark.skipif(os.name != 'posix', reason='needs file modes')
def test_only_the_owner_can_read_the_file(db, tmp_path):
    before = os.umask(0)
    try:
        db.save('alice', OLD)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob('tokens.db*')}
    assert modes == {'tokens.db': 0o600, 'tokens.db-wal': 0o600, 'tokens.db-shm': 0o600}


@with_sqlite
@pytest.mark.usefixtures('short_timeouts')
def test_a_missing_folder_is_named(open_db, store_url):
    db = open_db(store_url.replace('tokens.db', 'missing/tokens.db'))
    with pytest.raises(StoreError, match=r'/missing/tokens.db cannot be created: No such file') as raised:
        db.check_setup()
    assert raised.value.retry_after is None
    with pytest.raises(StoreError, match=r'/missing/tokens.db cannot be accessed: unable to open database file'):
        db.save('alice', OLD)


@with_sqlite
@pytest.mark.skipif(os.name != 'posix', reason='needs links and owners')
def test_a_planted_file_is_refused(open_db, store_url, tmp_path):
    (tmp_path / 'target.db').touch()
    (tmp_path / 'tokens.db').symlink_to('target.db')
    with pytest.raises(StoreError, match='is a symbolic link'):
        open_db(store_url).save('alice', OLD)
    assert (tmp_path / 'target.db').read_bytes() == b''


@with_sqlite
def test_no_request_is_sent_if_the_disk_is_almost_full(db, monkeypatch):
    db.check_writable()
    usage = shutil.disk_usage('.')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=2**20 - 1))
    with pytest.raises(StoreError, match=r'The disk of .*tokens.db is full'):
        db.check_writable()


@with_sqlite
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')
def test_a_child_keeps_its_changes_after_its_parent_ends(store_url, open_db):
    program = f"""if True:
        import os, time
        from zendesk_oauth import SqlStore
        db = SqlStore({store_url!r}, encryption_keys=[{KEY!r}])
        db.save('alice', {OLD})
        if not os.fork():
            db.find('alice')
            time.sleep(1)  # the parent has ended
            db.replace('alice', 'old-refresh', {NEW})
            os._exit(0)
    """
    subprocess.run([sys.executable, '-c', program], env=environment(), check=True, timeout=60)
    open_db(store_url).find('alice')
    open_db(store_url)._database.engine.dispose()
    wait_until(lambda: open_db(store_url).find('alice') == NEW)


@with_each
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')
def test_a_process_can_fork_while_its_threads_use_the_store(store_url):
    program = f"""if True:
        import os, signal, threading, time
        from zendesk_oauth import SqlStore
        db = SqlStore({store_url!r}, encryption_keys=[{KEY!r}])
        db.save('alice', {OLD})
        stopped = []
        def use():
            while not stopped:
                assert db.find('alice')
                db.consume_once(str(time.time_ns()), 5)
        threads = [threading.Thread(target=use) for _ in range(5)]
        [thread.start() for thread in threads]
        codes = []
        def fork_in_another_thread():
            child = os.fork()
            if not child:
                os._exit(0)
            os.waitpid(child, 0)
        for number in range(10):
            threading.Thread(target=fork_in_another_thread).start()
            child = os.fork()
            if not child:
                signal.alarm(30)
                for _ in range(10):
                    assert db.find('alice')
                    db.save(f'child {{number}}', {OLD})
                os._exit(0)
            codes.append(os.waitpid(child, 0)[1])
        stopped.append(True)
        [thread.join() for thread in threads]
        raise SystemExit(any(codes))
    """
    subprocess.run([sys.executable, '-W', 'ignore', '-c', program], env=environment(), check=True, timeout=100)


@with_sqlite
def test_the_check_at_the_start_does_not_create_the_file(db, tmp_path):
    """If root starts the server, the file would belong to root, and the workers could not open it."""
    db.check_setup()
    assert not list(tmp_path.iterdir())
    db.save('alice', OLD)
    db.check_setup()


@with_sqlite
def test_a_file_that_is_not_a_database_is_not_overwritten(open_db, store_url, tmp_path):
    (tmp_path / 'tokens.db').write_text('not a database' * 100)
    with pytest.raises(StoreError, match='file is not a database'):
        open_db(store_url).save('alice', OLD)
    assert (tmp_path / 'tokens.db').read_text() == 'not a database' * 100


@pytest.fixture
def restricted_url(store_url, postgresql) -> str:
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


@directly
def test_a_user_without_create_permission_can_use_existing_tables(open_db, db, restricted_url):
    with pytest.raises(StoreError, match=r'permission denied .* Check .* the permissions of the account'):
        open_db(restricted_url).check_setup()
    db.save('alice', OLD)
    assert open_db(restricted_url).find('alice') == OLD


@directly
def test_check_writable_fails_if_the_table_is_not_writable(open_db, db, restricted_url, sql):
    db.save('alice', OLD)
    sql('REVOKE UPDATE ON zendesk_oauth_tokens FROM clerk')
    with pytest.raises(StoreError, match='permission denied'):
        open_db(restricted_url).check_writable()


@with_postgresql
@pytest.mark.parametrize('use', ['replace', 'end', 'remove'])
def test_a_change_between_reading_and_writing_is_not_overwritten(db, open_db, store_url, use):
    from sqlalchemy import event

    db.save('alice', OLD)
    other, changed = open_db(store_url), []

    def change(connection, cursor, statement, *args) -> None:
        if re.match('UPDATE|DELETE', statement) and not changed:
            changed.append(True)
            other.replace('alice', 'old-refresh', OTHER)

    event.listen(db._database.engine, 'before_cursor_execute', change)
    if use == 'remove':
        assert db.remove('alice') == OTHER
        assert records(db) == {}
    else:
        assert db.replace('alice', 'old-refresh', NEW if use == 'replace' else None) == OTHER
        assert records(db) == {'alice': OTHER}
    assert changed


@with_postgresql
def test_a_retried_save_does_not_overwrite_a_later_refresh(db, open_db, store_url, monkeypatch):
    from sqlalchemy import Connection
    from sqlalchemy.exc import OperationalError

    db.save('alice', OLD)
    other, commit, broken = open_db(store_url), Connection.commit, []

    def commit_and_break(self) -> None:
        commit(self)
        if not broken:
            broken.append(True)
            other.replace('alice', 'new-refresh', OTHER)
            raise OperationalError('', {}, Exception('the connection broke'))

    monkeypatch.setattr(Connection, 'commit', commit_and_break)
    with pytest.raises(StoreError, match='was changed by another request while'):
        db.save('alice', NEW)
    assert records(db) == {'alice': OTHER}


@directly
def test_a_policy_that_hides_rows_from_changes_is_a_store_error(open_db, db, restricted_url, sql):
    db.save('alice', OLD)
    sql(
        'ALTER TABLE zendesk_oauth_tokens ENABLE ROW LEVEL SECURITY',
        'CREATE POLICY readable ON zendesk_oauth_tokens FOR SELECT USING (true)',
    )
    for use in (lambda db: db.replace('alice', 'old-refresh', NEW), lambda db: db.remove('alice')):
        with pytest.raises(StoreError, match='Check whether a trigger or a row security policy prevents it'):
            use(open_db(restricted_url))
    assert records(db) == {'alice': OLD}


@with_each
def test_a_key_can_be_consumed_again_after_its_lifetime(db, sql):
    assert db.consume_once('key', int(time.time()) + 60)
    sql('UPDATE zendesk_oauth_locks SET expires_at = expires_at - 3600')
    assert not db.consume_once('key', LATER)
    sql('UPDATE zendesk_oauth_locks SET expires_at = expires_at - 120')
    assert db.consume_once('key', LATER)


@with_each
def test_a_request_deletes_a_limited_number_of_expired_rows(db, sql):
    assert db.consume_once('key', LATER)
    set_records(db, **{f'user-{number}': {**OLD, 'refresh_token_expires_at': 5} for number in range(210)})
    sql(*(f"INSERT INTO zendesk_oauth_locks (name, holder, expires_at) VALUES ('old {n}', '', 5)" for n in range(310)))
    for left in (210, 110):
        assert db.consume_once(f'new {left}', LATER)
        assert sql("SELECT count(*) FROM zendesk_oauth_locks WHERE name LIKE 'old%'") == [(left,)]
    for left in (110, 10, 0):
        db.save('alice', OLD)
        assert len(records(db)) == left + 1
    assert sql("SELECT count(*) FROM zendesk_oauth_locks WHERE name LIKE 'old%'") == [(0,)]
    assert not db.consume_once('key', LATER)


@with_postgresql
def test_the_search_for_expired_rows_uses_an_index(db, sql, postgresql):
    """This also holds right after a flood, before PostgreSQL has analyzed the table."""
    import psycopg
    from sqlalchemy import Engine, event

    sent = []

    def keep(connection, cursor, statement, parameters, *args):
        sent.append((statement, parameters))

    db.consume_once('key', LATER)
    sql("INSERT INTO zendesk_oauth_locks SELECT 'key' || n, '', 5 FROM generate_series(1, 20000) n")
    event.listen(Engine, 'before_cursor_execute', keep)
    assert db.consume_once('other', LATER)
    event.remove(Engine, 'before_cursor_execute', keep)
    statements = [(statement, values) for statement, values in sent if re.match('SELECT|DELETE', statement)]
    assert len(statements) == 2
    with psycopg.connect(postgresql.url) as connection:
        for statement, values in statements:
            plan = str(connection.execute(f'EXPLAIN {statement}', values).fetchall())
            assert 'Index' in plan
            assert 'Seq Scan' not in plan


# --- Encryption --- #


def rows(sql) -> list:
    return sql('SELECT * FROM zendesk_oauth_tokens ORDER BY user_id')


@with_each
def test_the_database_contains_no_tokens(db, sql, tmp_path):
    db.save('alice', {'access_token': 'canary-access', 'refresh_token': 'canary-refresh'})
    db.replace('alice', 'canary-refresh', {'access_token': 'canary-new', 'refresh_token': 'canary-newer'})
    with db.refresh_lock('alice'):
        content = str(rows(sql)) + str(sql('SELECT * FROM zendesk_oauth_locks'))
    content += ''.join(path.read_bytes().decode('latin-1') for path in tmp_path.glob('tokens.db*'))
    assert 'alice' in content
    assert 'canary' not in content


@with_each
def test_a_wrong_key_is_an_error_and_overwrites_nothing(db, open_db, store_url, sql):
    db.save('alice', OLD)
    before = rows(sql)
    wrong = open_db(store_url, keys=[OTHER_KEY])

    def refresh() -> None:
        with wrong.refresh_lock('alice'):
            pytest.fail('the record was decrypted')

    for use in (
        lambda: wrong.find('alice'),
        lambda: wrong.save('alice', NEW),
        lambda: wrong.replace('alice', 'old-refresh', NEW),
        lambda: wrong.replace('alice', 'old-refresh', None),
        lambda: wrong.remove('alice'),
        wrong.check_setup,
        refresh,
    ):
        with pytest.raises(
            StoreError, match=r'None of the encryption keys decrypts a record in .* Add its key'
        ) as raised:
            use()
        assert raised.value.retry_after is None
        assert rows(sql) == before
    wrong.save('bob', OTHER)
    assert wrong.find('bob') == OTHER
    assert db.find('alice') == OLD


@with_each
@pytest.mark.parametrize('content', ['', 'x', 'Zoë 山田', 'gAAAAA==', Fernet(KEY).encrypt(b'5').decode()])
def test_a_damaged_record_is_an_error(db, sql, content):
    db.save('alice', OLD)
    sql(f"UPDATE zendesk_oauth_tokens SET record = '{content}'")
    with pytest.raises(StoreError, match='None of the encryption keys decrypts'):
        db.find('alice')


@with_each
def test_a_row_copied_to_another_user_is_rejected(db, sql):
    db.save('alice', OLD)
    sql("INSERT INTO zendesk_oauth_tokens SELECT 'mallory', version, record, purge_at FROM zendesk_oauth_tokens")
    before = rows(sql)
    for use in (lambda: db.find('mallory'), lambda: db.save('mallory', NEW), lambda: db.remove('mallory')):
        with pytest.raises(StoreError, match='was copied from another user'):
            use()
    assert rows(sql) == before


@with_each
def test_reencrypt_changes_only_records_of_older_keys(db, open_db, store_url, sql):
    set_records(db, **{f'user-{number}': {**OLD, 'number': number} for number in range(SWEEP + 5)})
    versions = sql('SELECT user_id, version FROM zendesk_oauth_tokens ORDER BY user_id')
    both = open_db(store_url, keys=[OTHER_KEY, KEY])
    assert both.find('user-7') == {**OLD, 'number': 7}
    both.save('alice', NEW)
    assert both.reencrypt() == SWEEP + 5
    before = rows(sql)
    assert both.reencrypt() == 0
    assert rows(sql) == before
    assert (
        sql("SELECT user_id, version FROM zendesk_oauth_tokens WHERE user_id <> 'alice' ORDER BY user_id") == versions
    )
    new = open_db(store_url, keys=[OTHER_KEY])
    assert records(new) == {
        'alice': NEW,
        **{f'user-{number}': {**OLD, 'number': number} for number in range(SWEEP + 5)},
    }
    with pytest.raises(StoreError):
        db.find('alice')


@with_each
def test_reencrypt_reports_records_that_no_key_decrypts(db, open_db, store_url, sql):
    set_records(db, alice=OLD, bob=OTHER, carol=NEW)
    sql("UPDATE zendesk_oauth_tokens SET record = 'x' WHERE user_id = 'bob'")
    both = open_db(store_url, keys=[OTHER_KEY, KEY])
    with pytest.raises(StoreError, match='None of the encryption keys decrypts 1 of the records'):
        both.reencrypt()
    new = open_db(store_url, keys=[OTHER_KEY])
    assert (new.find('alice'), new.find('carol')) == (OLD, NEW)


@with_each
def test_reencrypt_loses_nothing_while_the_app_refreshes(db, open_db, store_url):
    """Each user's refresh token counts the refreshes, so a lost refresh is detected."""
    users = [f'user-{number}' for number in range(8)]
    set_records(db, **{user: {'access_token': 'a', 'refresh_token': '0'} for user in users})
    keys, done = [[OTHER_KEY, KEY], [KEY, OTHER_KEY]], threading.Event()
    app = [open_db(store_url, keys=order) for order in keys]
    counts = dict.fromkeys(users, 0)

    def refresh(user: str) -> None:
        while not done.is_set():
            count = counts[user]
            new = {'access_token': 'a', 'refresh_token': str(count + 1)}
            assert app[count % 2].replace(user, str(count), new) == new
            counts[user] = count + 1

    with ThreadPoolExecutor(len(users)) as pool:
        refreshing = [pool.submit(refresh, user) for user in users]
        changed = 0
        try:
            while changed < 50 or min(counts.values()) < 10:
                changed += sum(store.reencrypt() for store in app)
                assert not any(each.done() for each in refreshing)
        finally:
            done.set()
        for each in refreshing:
            each.result()
    assert {user: record['refresh_token'] for user, record in records(app[0]).items()} == {
        user: str(count) for user, count in counts.items()
    }


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
        'reencrypt': (db.reencrypt, 0),
        'remove': (lambda: db.remove('alice'), NEW),
    }


@with_postgresql
def test_each_method_reconnects_after_its_connection_is_terminated(db, sql):
    for use, outcome in method_calls(db).values():
        db.find('bob')
        sql(TERMINATE)
        assert use() == outcome


@pytest.fixture
def breaks(sql, monkeypatch) -> list:
    """A list. If it is not empty, the next commit removes an item, and then its connection breaks."""
    from sqlalchemy import Connection

    breaks, commit = [], Connection.commit

    def commit_and_break(self) -> None:
        commit(self)
        if breaks:
            breaks.pop()
            sql(TERMINATE)
            self.exec_driver_sql('SELECT 1')

    monkeypatch.setattr(Connection, 'commit', commit_and_break)
    return breaks


@with_postgresql
def test_each_method_can_repeat_a_committed_transaction(db, breaks):
    """If the connection breaks during a commit, the store cannot know whether PostgreSQL received it."""
    db.find('bob')
    for use, outcome in method_calls(db).values():
        breaks.append(True)
        assert use() == outcome
        assert not breaks


@with_postgresql
def test_a_retried_replace_returns_the_committed_record(db, breaks):
    """A refresh that returns no new refresh token keeps the old one, so only the access token differs."""
    db.save('alice', OLD)
    kept = {**NEW, 'refresh_token': OLD['refresh_token']}
    breaks.append(True)
    assert db.replace('alice', OLD['refresh_token'], kept) == kept
    assert not breaks
    assert records(db) == {'alice': kept}


@directly
def test_methods_raise_only_while_the_database_is_down(db, postgresql):
    db.save('alice', OLD)
    postgresql.stop()
    before = time.monotonic()
    with pytest.raises(StoreError, match='Check that PostgreSQL runs') as raised:
        db.find('alice')
    assert raised.value.retry_after == 10
    with pytest.raises(StoreError), db.refresh_lock('alice'):
        pass
    assert time.monotonic() - before < 10
    postgresql.start()
    assert db.find('alice') == OLD


@directly
def test_the_app_starts_while_the_database_is_down(open_db, store_url, postgresql, log):
    postgresql.stop()
    db = open_db(store_url)
    db.check_setup()
    assert 'Starting without the database. PostgreSQL cannot be accessed: connection failed' in log[-1]
    postgresql.start()
    db.save('alice', OLD)
    db.check_setup()
    assert db._database.engine.pool.checkedin() == 0  # a process that is forked later has no connections
    assert db.find('alice') == OLD


@directly
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


@with_sqlite
def test_writes_of_new_tokens_wait_for_another_program(open_db, db, store_url):
    """Its lock outlasts the busy timeout of SQLite."""
    db.save('alice', OLD)
    impatient = open_db(store_url, engine_options={'connect_args': {'timeout': 0.1}})
    with contextlib.closing(sqlite3.connect(store_url.removeprefix('sqlite:///'), isolation_level=None)) as other:
        other.execute('BEGIN IMMEDIATE')
        assert impatient.find('alice') == OLD
        with pytest.raises(StoreError, match=r'database is locked. .* stop other programs that use the file') as raised:
            impatient.check_writable()
        assert raised.value.retry_after == 10
        with ThreadPoolExecutor(1) as pool:
            storing = pool.submit(impatient.replace, 'alice', 'old-refresh', NEW)
            time.sleep(1.5)
            assert not storing.done()
            other.execute('COMMIT')
            assert storing.result(30) == NEW


@directly
def test_a_write_of_new_tokens_raises_after_the_timeout(db, postgresql, short_timeouts):
    db.save('alice', OLD)
    postgresql.stop()
    with pytest.raises(StoreError):
        db.save('alice', NEW)


@directly
def test_writes_work_again_soon_after_a_failover(db, sql, figure):
    """While the role is read-only, as on a standby server, the pool opens connections that stay read-only."""
    db.save('alice', OLD)
    sql('ALTER ROLE app SET default_transaction_read_only = on', TERMINATE)
    try:
        with pytest.raises(StoreError, match='read-only transaction') as raised, db.refresh_lock('alice'):
            pass
        assert raised.value.retry_after == 10
        assert db.find('alice') == OLD
    finally:
        sql('SET default_transaction_read_only = off', 'ALTER ROLE app RESET default_transaction_read_only')
    before = time.monotonic()
    with db.refresh_lock('alice'):
        assert db.replace('alice', 'old-refresh', NEW) == NEW
    figure(f'after a failover, the first write took {time.monotonic() - before:.2f} s')


@with_postgresql
def test_each_transaction_has_limits(db, sql):
    """Without limits, a lock of another program, or a process that stops in a transaction, would block all others."""
    limits = ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_isolation')

    def show(connection) -> list:
        return [connection.exec_driver_sql(f'SHOW {name}').scalar() for name in limits]

    sql("ALTER ROLE app SET default_transaction_isolation = 'serializable'", TERMINATE)
    try:
        for writes in (True, False):
            assert db._database.run(show, writes=writes) == ['5s', '5s', 'read committed']
    finally:
        sql('ALTER ROLE app RESET default_transaction_isolation', TERMINATE)


@directly
def test_the_encoding_of_the_database_does_not_matter(open_db, store_url, sql):
    sql('DROP DATABASE IF EXISTS ascii', "CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0")
    db = open_db(store_url.replace('/postgres', '/ascii'))
    db.save('Zoë 山田', OLD)
    with db.refresh_lock('Zoë 山田') as stored:
        assert stored == OLD
    assert db.reencrypt() == 0
    db._database.engine.dispose()
    sql('DROP DATABASE ascii')


@with_postgresql
def test_the_limits_do_not_apply_to_other_clients(db, store_url):
    import psycopg

    db.save('alice', OLD)
    with psycopg.connect(store_url, autocommit=True, prepare_threshold=None) as connection:
        limits = {connection.execute('SHOW statement_timeout').fetchone()[0] for _ in range(10)}
    assert limits == {'0'}


@directly
def test_each_connection_detects_a_lost_server(db):
    """Without these options, the app would notice the loss of the database machine only after hours."""
    parameters = db._database.run(lambda db: db.connection.driver_connection.info.get_parameters())
    expected = {'keepalives_idle': '3', 'keepalives_interval': '1', 'keepalives_count': '3', 'tcp_user_timeout': '5000'}
    assert expected.items() <= parameters.items()


@directly
@pytest.mark.parametrize('host', ['a..b', 'x' * 64 + '.example', 'no-such-host.invalid'])
@pytest.mark.usefixtures('short_timeouts')
def test_a_host_that_cannot_be_resolved_is_a_store_error(open_db, store_url, host):
    with pytest.raises(StoreError, match='Check '):
        open_db(f'postgresql://app:{PASSWORD}@{host}/app').find('alice')


@with_postgresql
@pytest.mark.usefixtures('short_timeouts')
def test_a_server_that_only_resembles_postgresql_is_a_store_error(open_db, store_url, sql):
    real = 'ALTER FUNCTION pg_catalog.real_version() RENAME TO version'
    version = (
        "CREATE FUNCTION pg_catalog.version() RETURNS text LANGUAGE sql AS $$ SELECT 'CockroachDB CCL v23.1.11' $$"
    )
    sql('ALTER FUNCTION pg_catalog.version() RENAME TO real_version', version)
    try:
        with pytest.raises(StoreError, match='PostgreSQL cannot be used: Could not determine version from string'):
            open_db(store_url).find('alice')
    finally:
        sql('DROP FUNCTION pg_catalog.version()', real)


@pytest.mark.usefixtures('short_timeouts')
def test_the_console_of_pgbouncer_is_a_store_error(open_db, pgbouncer_server):
    with pytest.raises(StoreError, match='PostgreSQL cannot be'):
        open_db(pgbouncer_server.url.replace('/postgres', '/pgbouncer')).find('alice')


@with_postgresql
@pytest.mark.usefixtures('short_timeouts')
def test_a_slow_statement_raises(open_db, store_url, sql, postgresql, monkeypatch):
    monkeypatch.setattr('zendesk_oauth.database.BEGIN_POSTGRESQL', 'BEGIN; SET LOCAL statement_timeout = 100')
    db = open_db(store_url)
    db.save('alice', OLD)
    with ThreadPoolExecutor(1) as pool:
        locking = pool.submit(sql, 'BEGIN', 'LOCK zendesk_oauth_tokens', 'SELECT pg_sleep(2)', 'COMMIT')
        wait_until(lambda: sql("SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock'"))
        with pytest.raises(StoreError, match='statement timeout'):
            db.find('alice')
        locking.result()
    assert db.find('alice') == OLD


@with_postgresql
def test_a_process_that_stops_in_a_transaction_does_not_block_others(db, open_db, store_url, monkeypatch):
    from zendesk_oauth.sql_store import TOKENS

    db.save('alice', OLD)
    monkeypatch.setattr(
        'zendesk_oauth.database.BEGIN_POSTGRESQL', 'BEGIN; SET LOCAL idle_in_transaction_session_timeout = 200'
    )
    engine = open_db(store_url)._database.engine
    with engine.connect() as stopped:
        stopped.exec_driver_sql('BEGIN; SET LOCAL idle_in_transaction_session_timeout = 200')
        stopped.execute(TOKENS.delete())
        assert db.replace('alice', 'old-refresh', NEW) == NEW
        stopped.invalidate()


@with_each
def test_a_method_raises_if_all_connections_stay_in_use(open_db, store_url):
    db = open_db(store_url, engine_options={'pool_timeout': 0.1})
    db.save('alice', OLD)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(db._database.engine.connect())
        with pytest.raises(StoreError, match='QueuePool') as raised:
            db.find('alice')
    assert raised.value.retry_after == 10
    assert db.find('alice') == OLD


@with_postgresql
def test_errors_contain_no_token_and_no_user_id(db, log):
    with pytest.raises(StoreError) as raised:
        db.save('canary\x00', {'access_token': 'canary', 'refresh_token': 'canary\x00'})
    assert 'canary' not in str(raised.value) + str(raised.value.__cause__) + ''.join(log)


@with_each
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')
def test_each_forked_process_has_its_own_connections(db, store_url):
    db.save('alice', OLD)
    program = f"""if True:
        import os
        from zendesk_oauth import SqlStore
        db = SqlStore({store_url!r}, encryption_keys=[{KEY!r}])
        db.find('alice')
        child = os.fork()
        found = [db.find('alice') for _ in range(300)]
        if child:
            raise SystemExit(found != [{OLD}] * 300 or os.waitpid(child, 0)[1])
        db.save('bob', {OLD})
        os._exit(found != [{OLD}] * 300)
    """
    subprocess.run([sys.executable, '-c', program], env=environment(), check=True, timeout=60)
    assert db.find('bob') == OLD


# --- The lease --- #


@with_each
def test_a_lease_expires_if_it_is_not_released(db, short_lease, sql):
    with db.refresh_lock('alice'):
        with pytest.raises(LockTimeout), db.refresh_lock('alice'):
            pass
        time.sleep(1.5)
        with db.refresh_lock('alice'):
            pass
    assert sql('SELECT * FROM zendesk_oauth_locks') == []


@with_each
def test_a_holder_does_not_release_the_lease_of_the_next_one(db, short_lease):
    with db.refresh_lock('alice'):
        time.sleep(1.5)
        next_one = db.refresh_lock('alice')
        next_one.__enter__()
    with pytest.raises(LockTimeout), db.refresh_lock('alice'):
        pass
    next_one.__exit__(None, None, None)


@with_each
def test_a_lease_is_ignored_if_the_clock_was_set_back(db, sql, monkeypatch):
    monkeypatch.setattr('zendesk_oauth.sql_store.TAKEOVER_DELAY', 0)
    assert db._try_lock('user alice', 'a killed process', 16)
    sql('UPDATE zendesk_oauth_locks SET expires_at = expires_at + 3600')
    with db.refresh_lock('alice', timeout=1):
        pass


@with_each
def test_no_request_is_sent_if_the_lease_could_expire_before_the_response(db, monkeypatch):
    real_time, real_run = time.monotonic, db._database.run
    delay = 1

    def slow_run(*args, **kwargs):
        result = real_run(*args, **kwargs)
        now = real_time() + delay
        monkeypatch.setattr(time, 'monotonic', lambda: now)
        return result

    with db.refresh_lock('alice'):
        monkeypatch.setattr(db._database, 'run', slow_run)
        db.check_writable()
        delay += 3
        with pytest.raises(LockTimeout, match='too slow') as raised:
            db.check_writable()
        assert raised.value.retry_after == 10


@with_each
@pytest.mark.parametrize(
    'change',
    [
        pytest.param("UPDATE zendesk_oauth_locks SET holder = 'another process'", id='another process has it'),
        pytest.param('DELETE FROM zendesk_oauth_locks', id='another process has had it'),
    ],
)
def test_no_request_is_sent_without_the_lease(db, sql, change):
    with db.refresh_lock('alice'):
        sql(change)
        with pytest.raises(LockTimeout):
            db.check_writable()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(db.check_writable).result()  # another thread has no lease
    db.check_writable()


@with_each
def test_a_lock_of_a_long_dead_process_does_not_delay(db, sql):
    assert db._try_lock('user alice', 'a killed process', 16)
    sql('UPDATE zendesk_oauth_locks SET expires_at = expires_at - 3600')
    before = time.monotonic()
    with db.refresh_lock('alice', timeout=0):
        assert time.monotonic() - before < 2


@with_each
def test_an_unused_store_is_deleted_with_its_connections(store_url):
    db = SqlStore(store_url, encryption_keys=[KEY])
    database = weakref.ref(db._database)
    del db
    gc.collect()
    assert database() is None


@with_each
def test_check_writable_renews_the_lease(db, sql):
    with db.refresh_lock('alice'):
        sql('UPDATE zendesk_oauth_locks SET expires_at = expires_at - 15')
        [(before,)] = sql('SELECT expires_at FROM zendesk_oauth_locks')
        db.check_writable()
        [(after,)] = sql('SELECT expires_at FROM zendesk_oauth_locks')
        assert after - before >= 15


@with_each
def test_no_code_is_exchanged_without_the_lease(db, sql, zendesk):
    oauth = client(store=db)
    pending = oauth.authorization_request('alice')
    find = db.find

    def find_slowly(user_id: str):
        sql("UPDATE zendesk_oauth_locks SET holder = 'another process'")
        return find(user_id)

    db.find = find_slowly
    with pytest.raises(LockTimeout):
        oauth.exchange('alice', {'code': 'c', 'state': pending.state}, {pending.cookie_name: pending.cookie_value})
    assert not zendesk.calls


@with_each
def test_the_outer_lease_applies_after_the_inner_lock(db, sql):
    with db.refresh_lock('alice'):
        sql("UPDATE zendesk_oauth_locks SET holder = 'another process'")
        with db.refresh_lock('bob'):
            db.check_writable()
        with pytest.raises(LockTimeout):
            db.check_writable()


@with_each
def test_a_new_holder_waits_for_the_previous_holder_to_store(db, monkeypatch):
    """After an outage of the database, both try to reach it again, and the lease has expired."""
    monkeypatch.setattr('zendesk_oauth.sql_store.TAKEOVER_DELAY', 1)
    db.save('alice', OLD)
    assert db._try_lock('user alice', 'previous', 0.1)
    time.sleep(0.2)
    db.save('bob', OLD)  # does not sweep a lock that has just expired
    with pytest.raises(LockTimeout), db.refresh_lock('alice', timeout=0):  # an early refresh does not wait
        pass
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(lambda: (time.sleep(0.1), db.replace('alice', 'old-refresh', NEW)))
        with db.refresh_lock('alice') as stored:
            assert stored == NEW
        late.result()


@with_postgresql
def test_the_clock_of_the_machine_does_not_matter(db, clock):
    db.save('alice', {**OLD, 'refresh_token_expires_at': int(time.time())})
    with db.refresh_lock('bob'):
        assert db.consume_once('key', int(time.time()) + 60)
        clock.advance(30 * 24 * 3600)
        with pytest.raises(LockTimeout), db.refresh_lock('bob', timeout=0):
            pass
        assert not db.consume_once('key', int(time.time()) + 60)
        db.save('carol', NEW)
        assert set(records(db)) == {'alice', 'carol'}


@with_each
def test_a_lock_with_timeout_zero_fails_immediately(db):
    with db.refresh_lock('alice'):
        before = time.monotonic()
        with pytest.raises(LockTimeout), db.refresh_lock('alice', timeout=0):
            pass
        assert time.monotonic() - before < 1


@with_postgresql
def test_a_holder_keeps_the_lease_if_its_connections_are_terminated(db, sql):
    with db.refresh_lock('alice'):
        for _ in range(5):
            sql(TERMINATE)
            with pytest.raises(LockTimeout), db.refresh_lock('alice', timeout=0.1):
                pass


@directly
@pytest.mark.usefixtures('short_timeouts')
def test_a_failed_release_of_the_lock_raises_nothing(db, postgresql):
    with db.refresh_lock('alice'):
        postgresql.stop()


@with_each
def test_no_transaction_is_open_while_the_lock_is_held(db, store_url, sql):
    with db.refresh_lock('alice'):
        if store_url.startswith('sqlite'):
            sql('BEGIN EXCLUSIVE')
        else:
            states = "SELECT state FROM pg_stat_activity WHERE application_name = 'zendesk_oauth'"
            assert {state for [state] in sql(states)} <= {'idle'}
