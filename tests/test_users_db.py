"""users.json: whole, private, and nobody's record lost."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import environment

import users_db
from users_db import StoreError, UsersDb

PAIR = {'access_token': 'a', 'refresh_token': 'r'}
NEW = {'access_token': 'a2', 'refresh_token': 'r2'}


@pytest.fixture
def db(tmp_path, monkeypatch) -> UsersDb:
    monkeypatch.chdir(tmp_path)
    return UsersDb('users.json')


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir() if not path.name.endswith('.lock'))


def test_a_record_comes_back(db):
    db.save('alice', PAIR)
    assert db.find('alice') == PAIR
    assert UsersDb('users.json').find('alice') == PAIR
    assert db.find('bob') is None


def test_the_file_is_sorted_indented_json_for_people(db):
    db.save('bob', PAIR)
    db.save('alice', {'refresh_token': 'r', 'access_token': 'a'})
    assert Path('users.json').read_text() == json.dumps({'alice': PAIR, 'bob': PAIR}, sort_keys=True, indent=2) + '\n'


def test_reading_makes_no_file(db):
    assert db.find('alice') is None
    assert files() == []


def test_an_edit_by_hand_counts_at_once(db):
    db.save('alice', PAIR)
    Path('users.json').write_text(json.dumps({'alice': NEW}))
    assert db.find('alice') == NEW


def test_an_editor_that_writes_a_byte_order_mark_does_no_harm(db):
    Path('users.json').write_text(json.dumps({'alice': PAIR}), encoding='utf-8-sig')
    db.save('bob', NEW)
    assert (db.find('alice'), db.find('bob')) == (PAIR, NEW)


def test_a_removed_record_is_gone_and_the_others_stay(db):
    db.save('alice', PAIR)
    db.save('bob', NEW)
    db.remove('alice')
    db.remove('alice')
    assert json.loads(Path('users.json').read_text()) == {'bob': NEW}


def test_replacing_takes_the_refresh_token_that_was_read(db):
    db.save('alice', PAIR)
    assert db.replace('alice', 'r', NEW) == NEW
    assert db.find('alice') == NEW


def test_replacing_leaves_a_newer_pair_alone(db):
    db.save('alice', NEW)
    assert db.replace('alice', 'r', {'access_token': 'a3', 'refresh_token': 'r3'}) == NEW
    assert db.replace('alice', 'r', None) == NEW
    assert db.find('alice') == NEW


def test_replacing_does_not_bring_a_removed_record_back(db):
    assert db.replace('alice', 'r', NEW) is None
    assert db.find('alice') is None


def test_replacing_by_nothing_removes_the_record(db):
    db.save('alice', PAIR)
    assert db.replace('alice', 'r', None) is None
    assert db.find('alice') is None


@pytest.mark.parametrize(
    'record', [None, 5, [], {}, {'access_token': 'a'}, {'access_token': 'a', 'refresh_token': None}]
)
def test_a_bad_record_costs_one_user_at_most(db, record):
    Path('users.json').write_text(json.dumps({'alice': record, 'bob': PAIR}))
    assert db.find('alice') is None
    assert db.replace('alice', 'r', NEW) is None
    db.save('alice', NEW)
    assert (db.find('alice'), db.find('bob')) == (NEW, PAIR)


@pytest.mark.parametrize('content', [b'', b'{"alice": {', b'\xff\xfe\x00', b'[]', b'null', b'[' * 200_000])
def test_a_file_that_is_no_store_is_never_overwritten(db, content):
    Path('users.json').write_bytes(content)
    for use in (
        db.find,
        db.remove,
        lambda user_id: db.save(user_id, PAIR),
        lambda user_id: db.replace(user_id, 'r', NEW),
    ):
        with pytest.raises(StoreError, match=r'users\.json is not'):
            use('alice')
    assert Path('users.json').read_bytes() == content


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
    assert len(modes) == 4


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
    monkeypatch.setattr('private_file.write', None)
    db.save('alice', dict(PAIR))
    db.remove('bob')


def test_writers_in_several_processes_lose_nobodys_record(db):
    program = f"""if True:
        import sys, users_db
        for number in range(20):
            users_db.UsersDb('users.json').save(f'{{sys.argv[1]}}-{{number}}', {PAIR})
    """
    writers = [subprocess.Popen([sys.executable, '-c', program, str(number)], env=environment()) for number in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert len(json.loads(Path('users.json').read_text())) == 80


def test_a_lock_that_can_not_be_had_is_an_error_after_a_while(db, monkeypatch):
    monkeypatch.setattr(users_db, 'REFRESH_TIMEOUT', 0.1)
    with db.refreshing('alice'):
        with pytest.raises(StoreError, match='Timeout'), db.refreshing('alice'):
            pass
        with db.refreshing('bob'):
            pass


def test_one_refresh_at_a_time_over_threads_and_processes(db):
    program = """if True:
        import os, threading, time, users_db
        def refresh():
            for _ in range(40):
                with users_db.UsersDb('users.json').refreshing('alice'):
                    os.close(os.open('only-one', os.O_CREAT | os.O_EXCL))  # fails if somebody else is in here
                    time.sleep(0.0002)
                    os.unlink('only-one')
            done.append(True)
        done = []
        threads = [threading.Thread(target=refresh) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        raise SystemExit(len(done) != 4)
    """
    processes = [subprocess.Popen([sys.executable, '-c', program], env=environment()) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert list(Path().iterdir()) == []


def test_refreshes_leave_no_files_behind(db):
    def refresh(number):
        with db.refreshing(f'user{number % 5}'):
            return number

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(refresh, range(100))) == list(range(100))
    assert list(Path().iterdir()) == []


def test_a_key_is_used_once_even_by_many_at_once(db):
    with ThreadPoolExecutor(20) as pool:
        assert sorted(pool.map(lambda _: db.first_use('key', 600), range(20))) == [False] * 19 + [True]
    assert db.first_use('other', 600)


def test_markers_of_used_keys_go_when_their_time_is_over(db):
    assert db.first_use('key', 600)
    os.utime('users.json.used/key', (0, 0))
    assert db.first_use('other', 600)
    assert list(Path('users.json.used').iterdir()) == [Path('users.json.used/other')]


def test_markers_that_can_not_be_written_are_an_error(db):
    with pytest.raises(StoreError):
        UsersDb('no/such/folder/users.json').first_use('key', 600)
