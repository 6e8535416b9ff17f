"""users.json: whole, private, and nobody's record lost."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import session
from servers import environment

import backend_code
from zendesk_oauth import stores as users_db
from zendesk_oauth.stores import UsersDb
from zendesk_oauth.token_store import StoreBusy, StoreError

PAIR = {'access_token': 'a', 'refresh_token': 'r'}
NEW = {'access_token': 'a2', 'refresh_token': 'r2'}


@pytest.fixture
def db(tmp_path, monkeypatch) -> UsersDb:
    monkeypatch.chdir(tmp_path)
    return UsersDb('users.json')


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir() if not path.name.endswith('.lock'))


def test_the_file_is_sorted_indented_json_for_people(db):
    db.save('bob', PAIR)
    db.save('alice', {'refresh_token': 'r', 'access_token': 'a'})
    assert Path('users.json').read_text() == json.dumps({'alice': PAIR, 'bob': PAIR}, sort_keys=True, indent=2) + '\n'


def test_reading_makes_no_file(db):
    assert db.find('alice') is None
    assert files() == []


def test_the_file_can_be_put_elsewhere(db, app, monkeypatch):
    db.save('alice', PAIR)
    monkeypatch.setattr(backend_code, 'USERS_DB', 'elsewhere.json')
    with app.test_request_context():
        session['user_id'] = 'alice'
        backend_code.store_oauth_tokens_in_db(NEW)
    assert json.loads(Path('elsewhere.json').read_text()) == {'alice': NEW}
    assert db.find('alice') == PAIR


def test_an_editor_that_writes_a_byte_order_mark_does_no_harm(db):
    Path('users.json').write_text(json.dumps({'alice': PAIR}), encoding='utf-8-sig')
    db.save('bob', NEW)
    assert (db.find('alice'), db.find('bob')) == (PAIR, NEW)


# What may have become of the file: nothing but a JSON object is a store.
NO_STORE = [b'', b'{"alice": {', b'\xff\xfe\x00', b'[]', b'null', b'[' * 200_000, b'{"alice": 1' + b'1' * 5000 + b'}']


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(users_db, 'EDIT_TIMEOUT', 0.05)


def set_aside() -> list[Path]:
    return list(Path().glob('users.json.unreadable-*'))


@pytest.mark.parametrize('content', NO_STORE)
@pytest.mark.parametrize(
    'use',
    [
        lambda db: db.find('alice'),
        lambda db: db.remove('alice'),
        lambda db: db.replace('alice', 'r', NEW),
        lambda db: db.save('alice', NEW),
    ],
)
def test_a_file_that_is_no_store_is_set_aside_loudly(db, hasty, log, content, use):
    Path('users.json').write_bytes(content)
    Path('users.json').chmod(0o644)
    assert use(db) is None
    [aside] = set_aside()
    assert aside.read_bytes() == content
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600 or os.name != 'posix'
    assert str(aside) in log[0]
    assert 'ERROR' in log[0].record['level'].name
    # From then on it is as in a new folder.
    db.save('bob', PAIR)
    assert db.find('bob') == PAIR
    assert set_aside() == [aside]
    assert len(log) == 1


def test_many_who_find_the_file_unreadable_at_once_set_it_aside_once(db, hasty):
    Path('users.json').write_text('broken')
    together = threading.Barrier(8)

    def find(_):
        together.wait()
        return db.find('alice')

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(find, range(8))) == [None] * 8
    assert len(set_aside()) == 1


def test_a_file_is_set_aside_under_the_lock_of_the_writers_only(db, hasty, monkeypatch):
    """Else it could be the good one that a writer has put there a moment ago."""
    Path('users.json').write_text('broken')
    monkeypatch.setattr(users_db, 'WRITE_TIMEOUT', 0.1)
    with users_db.FileLock('users.json.lock'), pytest.raises(StoreBusy):
        db.find('alice')
    assert set_aside() == []


def test_a_file_that_can_not_be_read_for_a_moment_stays_and_is_an_error(db, monkeypatch):
    db.save('alice', PAIR)

    def refuse(self, **kwargs):
        raise PermissionError(13, 'Permission denied')

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'read_text', refuse)
        for use in (lambda: db.find('alice'), lambda: db.save('bob', PAIR)):
            with pytest.raises(StoreError, match='Permission denied'):
                use()
    assert files() == ['users.json']
    assert db.find('alice') == PAIR


def test_what_is_in_the_way_of_the_file_or_its_lock_is_an_error(db):
    Path('file').touch()
    with pytest.raises(StoreError, match="can't be read"):
        UsersDb('file/users.json').find('alice')
    Path('users.json.lock').mkdir()
    with pytest.raises(StoreError, match="can't be had"):
        db.save('alice', PAIR)


def test_each_unreadable_file_gets_a_name_of_its_own(db, hasty):
    for number in range(3):
        Path('users.json').write_text(f'broken {number}')
        assert db.find('alice') is None
    assert sorted(path.read_text() for path in set_aside()) == ['broken 0', 'broken 1', 'broken 2']


@pytest.mark.parametrize('use', [lambda db: db.find('alice'), lambda db: db.replace('alice', 'r', NEW)])
def test_a_file_that_somebody_is_just_saving_is_waited_for(db, monkeypatch, use):
    """An editor that writes in place: the file is empty, then half of it is there, then all."""
    content = json.dumps({'alice': PAIR, 'bob': PAIR})
    file = Path('users.json').open('w')  # noqa: SIM115 - it is closed while the app waits
    steps = [lambda: (file.write(content[:20]), file.flush()), lambda: (file.write(content[20:]), file.close())]
    monkeypatch.setattr(time, 'sleep', lambda seconds: steps.pop(0)())
    assert use(db) in (PAIR, NEW)
    assert db.find('bob') == PAIR
    assert set_aside() == []


def test_an_editor_has_some_time_to_finish(db):
    Path('users.json').write_text('{')
    threading.Timer(0.3, lambda: Path('users.json').write_text(json.dumps({'alice': PAIR}))).start()
    assert db.find('alice') == PAIR


def test_a_file_that_can_not_be_set_aside_stays_and_is_an_error(db, hasty, monkeypatch):
    Path('users.json').write_text('broken')

    def refuse(self, target):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(Path, 'rename', refuse)
    for use in (db.find, db.remove):
        with pytest.raises(StoreError, match='Permission denied'):
            use('alice')
    assert Path('users.json').read_text() == 'broken'


# --- Reading --- #


@pytest.fixture
def parsed(monkeypatch) -> list[str]:
    """What is parsed as JSON from now on."""
    texts, loads = [], json.loads
    monkeypatch.setattr('zendesk_oauth.stores.json.loads', lambda text: texts.append(text) or loads(text))
    return texts


def test_a_file_that_has_not_changed_is_read_once(db, parsed):
    Path('users.json').write_text(json.dumps({'alice': PAIR}))
    let_some_time_pass()
    for _ in range(100):
        assert UsersDb('users.json').find('alice') == PAIR
    assert len(parsed) == 1


@pytest.mark.parametrize('tick', [50_000_000, 2_000_000_000])
def test_a_change_that_leaves_times_and_size_as_they_were_is_seen(db, monkeypatch, tick):
    """A file system's clock may tick every few milliseconds, or seconds, and a script edits a digit in between."""
    real_stat = Path.stat

    def coarse_stat(path, **kwargs):
        status = real_stat(path, **kwargs)
        ctime = status.st_ctime_ns // tick * tick
        mtime = 1 if tick < 10**9 else 0  # such as a copy that keeps the times has
        return types.SimpleNamespace(
            st_dev=status.st_dev,
            st_ino=status.st_ino,
            st_size=status.st_size,
            st_mtime=mtime / 10**9,
            st_mtime_ns=mtime,
            st_ctime=ctime / 10**9,
            st_ctime_ns=ctime,
        )

    monkeypatch.setattr(Path, 'stat', coarse_stat)
    for number in range(100, 300):
        time.sleep(0.002 if tick > 10**9 else 0)
        record = {'access_token': str(number), 'refresh_token': 'r'}
        with Path('users.json').open('w') as file:
            json.dump({'alice': record}, file)
        assert db.find('alice') == record


def test_a_change_is_seen_after_a_long_time_without_one(db):
    for record in (PAIR, {'access_token': 'b', 'refresh_token': 's'}, NEW):
        Path('users.json').write_text(json.dumps({'alice': record}))
        let_some_time_pass()
        assert db.find('alice') == record
        assert db.find('alice') == record
    times = Path('users.json').stat()
    Path('users.json').write_text(json.dumps({'alice': {'access_token': 'b2', 'refresh_token': 's2'}}))
    os.utime('users.json', ns=(times.st_atime_ns, times.st_mtime_ns))
    assert db.find('alice') == {'access_token': 'b2', 'refresh_token': 's2'}
    Path('users.json').unlink()
    assert db.find('alice') is None


def test_a_store_somewhere_else_is_another_one(db, tmp_path):
    Path('users.json').write_text(json.dumps({'alice': PAIR}))
    let_some_time_pass()
    assert db.find('alice') == PAIR
    assert UsersDb('others.json').find('alice') is None
    assert db.find('alice') == PAIR


def let_some_time_pass() -> None:
    """Put the last change of the file far enough back for it to be over. (Not its ctime: that takes real time.)"""
    time.sleep(2 * users_db.CLOCK_TICK)


def test_a_record_that_was_found_is_nobody_elses(db):
    Path('users.json').write_text(json.dumps({'alice': PAIR}))
    let_some_time_pass()
    db.find('alice')['access_token'] = 'changed'
    assert db.find('alice') == PAIR


# --- Writing --- #


def test_a_rehearsal_changes_nothing_and_leaves_nothing(db):
    db.rehearse()
    assert files() == []
    db.save('alice', PAIR)
    before = Path('users.json').stat()
    db.rehearse()
    assert Path('users.json').stat() == before
    assert files() == ['users.json']


@pytest.mark.skipif(os.name != 'posix', reason='a limit on what a process may write is a matter of POSIX systems')
def test_a_rehearsal_fails_where_the_file_and_some_more_would_not_fit(db):
    program = """if True:
        import resource, sys, zendesk_oauth.stores as users_db
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
        try:
            users_db.UsersDb('users.json').rehearse()
        except users_db.StoreError as error:
            print(error)
    """
    Path('users.json').write_text(' ' * 10_000)
    said = [
        subprocess.run(
            [sys.executable, '-c', program, limit], env=environment(), capture_output=True, text=True, check=True
        ).stdout
        for limit in ('11000', '20000')
    ]
    assert "users.json can't be written: File too large" in said[0]
    assert said[1] == ''


def test_a_rehearsal_fails_where_the_folder_is_not_there():
    with pytest.raises(StoreError):
        UsersDb('no/such/folder/users.json').rehearse()


def test_a_write_waits_for_another_one_but_not_for_ever(db, monkeypatch):
    lock = users_db.FileLock('users.json.lock', thread_local=False)
    lock.acquire()
    threading.Timer(0.3, lock.release).start()
    db.save('alice', PAIR)
    assert db.find('alice') == PAIR
    monkeypatch.setattr(users_db, 'WRITE_TIMEOUT', 0.1)
    with lock, pytest.raises(StoreBusy):
        db.save('bob', PAIR)


@pytest.mark.skipif(os.name != 'posix', reason='file modes are a matter of POSIX systems')
def test_all_that_is_written_is_private_whatever_the_umask(db):
    Path('users.json').write_text('{}')
    Path('users.json').chmod(0o644)
    before = os.umask(0)
    try:
        db.save('alice', PAIR)
        with db.refreshing('alice'):
            assert db.first_use('key', 600)
            modes = {path: stat.S_IMODE(path.stat().st_mode) for path in Path().rglob('*')}
    finally:
        os.umask(before)
    assert modes.pop(Path('users.json.used')) == 0o700
    assert set(modes.values()) == {0o600}
    assert len(modes) == 4  # users.json, its two locks, and the key's marker


def test_a_failed_write_leaves_the_old_file_and_no_other(db, monkeypatch):
    db.save('alice', PAIR)

    def no_space(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', no_space)
    with pytest.raises(StoreError, match='No space left'):
        db.save('alice', NEW)
    assert db.find('alice') == PAIR
    assert files() == ['users.json']


def test_nothing_is_written_where_nothing_changed(db, monkeypatch):
    db.save('alice', PAIR)
    monkeypatch.setattr('zendesk_oauth.private_file.write', None)
    db.save('alice', dict(PAIR))
    db.remove('bob')


@pytest.mark.parametrize('user_id', ['a/b', '../x', 'x' * 300, 'Zoë 山田'])
def test_any_user_id_will_do_for_a_lock(db, user_id):
    with db.refreshing(user_id):
        assert len(list(Path().iterdir())) == 1
    assert list(Path().iterdir()) == []


def test_a_lock_file_that_somebody_has_removed_does_no_harm(db):
    with db.refreshing('alice'):
        locks()[0].unlink()


def test_refreshes_leave_no_files_behind(db):
    def refresh(number):
        with db.refreshing(f'user{number % 5}'):
            return number

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(refresh, range(100))) == list(range(100))
    assert list(Path().iterdir()) == []


def test_a_grant_clears_away_the_locks_of_killed_refreshes_and_no_others(db, monkeypatch):
    program = """if True:
        import os, signal, sys, zendesk_oauth.stores as users_db
        with users_db.UsersDb('users.json').refreshing(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    for user_id in ('alice', 'bob'):
        subprocess.run([sys.executable, '-c', program, user_id], env=environment(), check=False)
    assert len(locks()) == 2
    with db.refreshing('alice'):  # which does not wait for the dead
        db.save('carol', PAIR)
        [held] = locks()
        timeouts = []
        real_locked = users_db._locked

        def locked(path, timeout, **kwargs):
            timeouts.append(timeout)
            return real_locked(path, timeout, **kwargs)

        monkeypatch.setattr(users_db, '_locked', locked)
        db.save('carol', NEW)
        assert locks() == [held]
        assert timeouts == [0, users_db.WRITE_TIMEOUT]  # nobody waits for a refresh that is alive
    assert locks() == []


def test_a_grant_clears_away_no_other_programs_locks(db):
    Path('poetry.lock').touch()
    db.save('alice', PAIR)
    assert Path('poetry.lock').exists()


def locks() -> list[Path]:
    return list(Path().glob('users.json.?*.lock'))


@pytest.mark.parametrize('step', ['os.fdopen', 'os.fsync', 'Path.replace'])
def test_what_a_killed_writer_has_left_behind_goes_with_the_next_write(db, step):
    program = f"""if True:
        import os, signal, zendesk_oauth.stores as users_db
        from pathlib import Path
        {step} = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
        users_db.UsersDb('users.json').save('bob', {PAIR})
    """
    db.save('alice', PAIR)
    subprocess.run([sys.executable, '-c', program], env=environment(), check=False)
    assert len(files()) == 2
    assert db.find('alice') == PAIR
    db.save('bob', NEW)
    assert files() == ['users.json']


def test_markers_of_used_keys_go_when_their_time_is_over(db):
    assert db.first_use('key', 600)
    os.utime('users.json.used/key', (0, 0))
    assert db.first_use('other', 600)
    assert list(Path('users.json.used').iterdir()) == [Path('users.json.used/other')]


def test_a_marker_that_another_process_has_just_swept_is_no_error(db, monkeypatch):
    real_iterdir = Path.iterdir
    monkeypatch.setattr(Path, 'iterdir', lambda self: iter([*real_iterdir(self), self / 'gone']))
    assert db.first_use('key', 600)


def test_a_key_is_marked_in_one_step(db, monkeypatch):
    assert db.first_use('key', 600)
    monkeypatch.setattr(Path, 'exists', lambda self: False)  # a look before would come too early
    assert not db.first_use('key', 600)


def test_a_file_in_the_place_of_the_markers_is_an_error_and_no_used_key(db):
    Path('users.json.used').touch()
    with pytest.raises(StoreError):
        db.first_use('key', 600)


def test_markers_that_can_not_be_written_are_an_error(db):
    with pytest.raises(StoreError):
        UsersDb('no/such/folder/users.json').first_use('key', 600)
