"""Guarantees of the stores across threads and processes, and after a process is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import KEY, NEW, OLD
from servers import environment
from store_suite import records, set_records

from zendesk_oauth.errors import StoreError

posix = pytest.mark.skipif(os.name != 'posix', reason='needs POSIX signals and resource limits')


@pytest.fixture
def run(db, store_url):
    """A function that runs a program in several processes, with the store as `db`, and returns the exit codes."""
    store = f'SqlStore({store_url!r}, encryption_keys=[{KEY!r}])' if store_url else 'JsonFileStore("users.json")'
    head = f'from zendesk_oauth import JsonFileStore, SqlStore\ndb = {store}\n'

    def run(program: str, *arguments: str, processes: int = 1) -> list[int]:
        started = [
            subprocess.Popen([sys.executable, '-c', head + program, *arguments, str(number)], env=environment())
            for number in range(processes)
        ]
        return [process.wait(60) for process in started]

    return run


# --- Records --- #


def test_a_read_only_store_raises_and_keeps_its_records(db, request, monkeypatch):
    monkeypatch.setattr(f'{type(db).__module__}.WRITE_TIMEOUT', 0.1)
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


# --- The refresh lock --- #


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
@pytest.mark.parametrize('store_url', ['users.json'], indirect=True)
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

users_json = pytest.mark.parametrize('store_url', ['users.json'], indirect=True)


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
