"""Guarantees of both stores across threads and processes, and after a process is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import NEW, OLD, OTHER
from servers import environment

from zendesk_oauth import JsonFileStore, Store
from zendesk_oauth.errors import LockTimeout, StoreError
from zendesk_oauth.stores import GRACE, purge_at

WEEK = 7 * 24 * 3600

posix = pytest.mark.skipif(os.name != 'posix', reason='needs POSIX signals and resource limits')


def records(db: Store) -> dict:
    """Return all records in the store."""
    if isinstance(db, JsonFileStore):
        return json.loads(Path('users.json').read_text()) if Path('users.json').exists() else {}
    from zendesk_oauth.postgresql_store import TOKENS

    return {
        row.user_id: row.record for row in db._execute(lambda connection: connection.execute(TOKENS.select()).all())
    }


def set_records(db: Store, **records) -> None:
    """Replace all records in the store, as with an editor."""
    if isinstance(db, JsonFileStore):
        Path('users.json').write_text(json.dumps(records))
        return
    from zendesk_oauth.postgresql_store import TOKENS

    rows = [{'user_id': user_id, 'record': record, 'dies_at': purge_at(record)} for user_id, record in records.items()]
    db._execute(
        lambda connection: (connection.execute(TOKENS.delete()), rows and connection.execute(TOKENS.insert(), rows))
    )


@pytest.fixture
def run(db):
    """A function that runs a program in several processes, with the store as `db`, and returns the exit codes."""
    if isinstance(db, JsonFileStore):
        head = 'from zendesk_oauth import JsonFileStore\ndb = JsonFileStore("users.json")\n'
    else:
        head = f'from zendesk_oauth.postgresql_store import PostgresqlStore\ndb = PostgresqlStore({db._url!r})\n'

    def run(program: str, *arguments: str, processes: int = 1) -> list[int]:
        started = [
            subprocess.Popen([sys.executable, '-c', head + program, *arguments, str(number)], env=environment())
            for number in range(processes)
        ]
        return [process.wait(60) for process in started]

    return run


# --- Records --- #


def test_a_saved_record_is_found(db):
    record = {**OLD, 'refresh_token_expires_at': None, 'scope': 'users:read', 'of': {'name': 'Zoë 山田 "\\'}}
    db.save('Zoë 山田', record)
    assert db.find('Zoë 山田') == record
    assert db.find('bob') is None
    db.save('Zoë 山田', NEW)
    assert records(db) == {'Zoë 山田': NEW}


def test_the_next_request_reads_an_edited_record(db):
    db.save('alice', OLD)
    set_records(db, alice=NEW)
    assert db.find('alice') == NEW


def test_remove_returns_the_record_and_keeps_the_others(db):
    set_records(db, alice=OLD, bob=OTHER)
    assert db.remove('alice') == OLD
    assert db.remove('alice') is None
    assert records(db) == {'bob': OTHER}


def test_replace_swaps_the_record_with_the_same_refresh_token(db):
    set_records(db, alice=OLD, bob=OLD)
    assert db.replace('alice', 'old-refresh', NEW) == NEW
    assert records(db) == {'alice': NEW, 'bob': OLD}
    assert db.replace('alice', 'new-refresh', None) is None
    assert records(db) == {'bob': OLD}


@pytest.mark.parametrize('record', [OTHER, None])
def test_replace_keeps_a_record_with_another_refresh_token(db, record):
    set_records(db, alice=NEW)
    assert db.replace('alice', 'old-refresh', record) == NEW
    assert db.replace('bob', 'old-refresh', record) is None
    assert records(db) == {'alice': NEW}


def test_one_of_twenty_concurrent_replacements_wins(db):
    set_records(db, alice=OLD)
    new = [{'access_token': f'a{number}', 'refresh_token': f'r{number}'} for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        kept = list(pool.map(lambda record: db.replace('alice', 'old-refresh', record), new))
    assert kept == [db.find('alice')] * 20
    assert kept[0] in new


@pytest.mark.parametrize(
    'record', [None, 5, 'text', [], {}, {'access_token': 'a'}, {'access_token': 'a', 'refresh_token': 5}]
)
def test_an_invalid_record_affects_no_other_user(db, log, record):
    set_records(db, alice=record, bob=OTHER)
    assert db.find('alice') is None
    assert sum('without tokens' in line for line in log) == (record is not None)
    assert db.replace('alice', 'old-refresh', NEW) is None
    assert db.remove('alice') is None
    assert records(db) == {'bob': OTHER}
    set_records(db, alice=record, bob=OTHER)
    db.save('alice', NEW)
    assert records(db) == {'alice': NEW, 'bob': OTHER}


def test_check_writable_changes_no_record(db):
    db.check_writable()
    assert records(db) == {}
    set_records(db, alice=OLD)
    db.check_writable()
    assert records(db) == {'alice': OLD}


def test_a_read_only_store_raises_and_keeps_its_records(db, request):
    db.save('alice', OLD)
    request.getfixturevalue('read_only')
    for use in (
        db.check_writable,
        lambda: db.save('bob', OLD),
        lambda: db.replace('alice', 'old-refresh', NEW),
        lambda: db.remove('alice'),
    ):
        with pytest.raises(StoreError):
            use()
    assert records(db) == {'alice': OLD}


def test_writers_in_several_processes_lose_no_record(db, run):
    program = f"""if True:
        import sys
        for number in range(20):
            db.save(f'{{sys.argv[1]}}-{{number}}', {OLD})
    """
    assert run(program, processes=4) == [0] * 4
    assert len(records(db)) == 80


# --- Records whose refresh token has expired --- #


def test_a_grant_deletes_records_that_expired_a_day_ago(db, clock, log):
    clock.now = now = 1_800_000_000
    db.save('alice', {**OLD, 'refresh_token_expires_at': now + WEEK})
    db.save('bob', {**OLD, 'refresh_token_expires_at': now + 2 * WEEK})
    db.save('carol', {**OLD, 'refresh_token_expires_at': None})
    clock.advance(WEEK + GRACE - 1)
    db.save('dave', OLD)
    assert set(records(db)) == {'alice', 'bob', 'carol', 'dave'}
    clock.advance(2)
    log.clear()
    db.save('erin', OLD)
    assert set(records(db)) == {'bob', 'carol', 'dave', 'erin'}
    assert len(log) == 1
    assert 'expired refresh tokens: 1' in log[0]


def test_a_refresh_extends_the_expiry_of_its_record(db, clock):
    clock.now = 1_800_000_000
    db.save('alice', {**OLD, 'refresh_token_expires_at': 1_800_000_000})
    db.replace('alice', 'old-refresh', {**NEW, 'refresh_token_expires_at': 1_900_000_000})
    clock.advance(2 * GRACE)
    db.save('bob', OLD)
    assert set(records(db)) == {'alice', 'bob'}


def test_a_refresh_deletes_no_expired_record(db):
    """A wrong clock must not delete tokens that Zendesk has just issued."""
    expired = {**OLD, 'refresh_token_expires_at': 5}
    set_records(db, alice=expired, bob=expired)
    db.check_writable()
    assert db.replace('alice', 'old-refresh', NEW) == NEW
    assert records(db) == {'alice': NEW, 'bob': expired}


@pytest.mark.parametrize('expires_at', ['5', None, [], {}, True, 5.0])
def test_a_record_with_a_malformed_expiry_is_kept(db, expires_at):
    set_records(db, alice={**OLD, 'refresh_token_expires_at': expires_at}, bob=5)
    db.save('carol', {**OLD, 'refresh_token_expires_at': expires_at})
    db.save('dave', OLD)
    assert set(records(db)) == {'alice', 'bob', 'carol', 'dave'}


# --- The refresh lock --- #


@pytest.mark.usefixtures('short_lock_timeout')
def test_the_refresh_lock_admits_one_holder_per_user(db):
    set_records(db, alice=OLD)
    with db.refresh_lock('alice') as stored:
        assert stored == OLD
        with pytest.raises(LockTimeout, match=r'[Tt]ry again'), db.refresh_lock('alice'):
            pass
        with db.refresh_lock('bob') as nothing:
            assert nothing is None
    with db.refresh_lock('alice'):
        pass


@pytest.mark.usefixtures('short_lock_timeout')
def test_a_failed_refresh_releases_the_lock(db):
    with pytest.raises(ZeroDivisionError) as kept, db.refresh_lock('alice'):  # the exception refers to its frames
        1 / 0  # noqa: B018
    with db.refresh_lock('alice'):
        pass
    assert kept


@pytest.mark.parametrize('user_id', ['a/b', '../x', 'x' * 300, 'Zoë 山田', "'; DROP TABLE zendesk_tokens; --"])
def test_any_user_id_can_have_a_lock_and_a_record(db, user_id):
    with db.refresh_lock(user_id):
        db.save(user_id, OLD)
    assert db.find(user_id) == OLD


def test_one_thread_in_all_processes_holds_the_lock_during_sweeps(db, run):
    program = f"""if True:
        import os, threading, time
        def refresh():
            for _ in range(10):
                with db.refresh_lock('alice'):
                    os.close(os.open('only-one', os.O_CREAT | os.O_EXCL))  # fails if there is another holder
                    time.sleep(0.0002)
                    os.unlink('only-one')
                db.save(threading.current_thread().name, {OLD})
            done.append(True)
        done = []
        threads = [threading.Thread(target=refresh) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        raise SystemExit(len(done) != 4)
    """
    assert run(program, processes=4) == [0] * 4


@posix
def test_a_killed_process_releases_its_lock_before_the_timeout(db, run):
    program = 'import os, signal\nwith db.refresh_lock("alice"): os.kill(os.getpid(), signal.SIGKILL)'
    assert run(program) == [-9]
    with db.refresh_lock('alice'):
        pass


# --- Keys that can be consumed once --- #


def test_several_processes_consume_a_key_only_once(db, run):
    program = 'raise SystemExit(sum(db.consume_once(str(key), 4_000_000_000) for key in range(20)))'
    assert sum(run(program, processes=4)) == 20


# --- users.json --- #

users_json = pytest.mark.parametrize('db', ['users.json'], indirect=True)


@users_json
@posix
def test_check_writable_fails_if_the_file_would_be_too_large(db, run):
    program = """if True:
        import resource, sys
        from zendesk_oauth.errors import StoreError
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
        try:
            db.check_writable()
        except StoreError as error:
            raise SystemExit("users.json cannot be written: File too large" in str(error) and 7)
    """
    set_records(db, alice={**OLD, 'more': 'x' * 10_000})
    assert run(program, '9000') == [7]
    assert run(program, '60000') == [0]
    assert db.find('alice')


@users_json
@posix
@pytest.mark.parametrize('step', ['os.fdopen', 'os.fsync', 'Path.replace'])
def test_the_next_write_deletes_the_file_of_a_killed_writer(db, run, step):
    program = f"""if True:
        import os, signal
        from pathlib import Path
        {step} = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
        db.save('bob', {OLD})
    """
    db.save('alice', OLD)
    assert run(program) == [-9]
    assert {path.name for path in Path().glob('users.json*')} == {'users.json', 'users.json.d', 'users.json.tmp'}
    assert records(db) == {'alice': OLD}
    db.save('bob', NEW)
    assert {path.name for path in Path().glob('users.json*')} == {'users.json', 'users.json.d'}
    assert records(db) == {'alice': OLD, 'bob': NEW}


@users_json
@posix
def test_a_grant_deletes_the_locks_of_killed_refreshes(db, run):
    program = """if True:
        import os, signal, sys
        with db.refresh_lock('user' + sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(program, processes=2) == [-9, -9]
    assert len(list(Path('users.json.d/locks').glob('*.lock'))) == 2
    db.save('carol', OLD)
    assert [path.name for path in Path('users.json.d/locks').iterdir()] == ['write.lock']
