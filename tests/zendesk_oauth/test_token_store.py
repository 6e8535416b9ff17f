"""What every store of tokens does, over each of the two: nobody's record lost, one refresh of a user's at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import records, store
from servers import environment

import backend_code
from settings import current_settings
from zendesk_oauth.token_store import GRACE, StoreBusy, StoreError

PAIR = {'access_token': 'a', 'refresh_token': 'r'}
NEW = {'access_token': 'a2', 'refresh_token': 'r2'}


@pytest.fixture
def run(db):
    """A function that runs a program, in which `db` is the store, in several processes at a time."""
    url = current_settings().database_url
    head = (
        f'from zendesk_oauth.postgresql_store import *; db = PostgresqlDb({url!r})\n'
        if url
        else 'from zendesk_oauth.stores import *; db = UsersDb("users.json")\n'
    )

    def run(program: str, processes: int = 1) -> list[int]:
        started = [
            subprocess.Popen([sys.executable, '-c', head + program, str(number)], env=environment())
            for number in range(processes)
        ]
        return [process.wait(60) for process in started]

    return run


# --- Records --- #


def test_a_record_comes_back(db):
    db.save('alice', PAIR)
    assert db.find('alice') == PAIR
    assert backend_code.users_db().find('alice') == PAIR
    assert db.find('bob') is None
    db.save('alice', NEW)
    assert records() == {'alice': NEW}


def test_a_record_comes_back_with_all_that_is_in_it(db):
    record = {**PAIR, 'refresh_token_expires_at': None, 'scope': 'users:read', 'of': {'name': 'Zoë 山田 "\\'}}
    db.save('Zoë 山田', record)
    assert db.find('Zoë 山田') == record


def test_an_edit_by_hand_counts_at_once(db):
    db.save('alice', PAIR)
    store(alice=NEW)
    assert db.find('alice') == NEW


def test_a_removed_record_is_gone_and_the_others_stay(db):
    db.save('alice', PAIR)
    db.save('bob', NEW)
    assert db.remove('alice') == PAIR
    assert db.remove('alice') is None
    assert records() == {'bob': NEW}


@pytest.mark.parametrize('record', ['text', {'access_token': 'a'}])
def test_a_record_that_cannot_be_used_is_removed_too(db, record):
    store(alice=record, bob=NEW)
    assert db.remove('alice') is None
    assert records() == {'bob': NEW}


def test_replacing_takes_the_refresh_token_that_was_read(db):
    db.save('alice', PAIR)
    db.save('bob', PAIR)
    assert db.replace('alice', 'r', NEW) == NEW
    assert records() == {'alice': NEW, 'bob': PAIR}


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
    db.save('bob', PAIR)
    assert db.replace('alice', 'r', None) is None
    assert records() == {'bob': PAIR}


def test_of_many_that_replace_the_same_record_at_once_one_does(db):
    db.save('alice', PAIR)
    new = [{'access_token': f'a{number}', 'refresh_token': f'r{number}'} for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        kept = list(pool.map(lambda record: db.replace('alice', 'r', record), new))
    assert kept == [db.find('alice')] * 20
    assert kept[0] in new


@pytest.mark.parametrize(
    'record', [None, 5, [], {}, {'access_token': 'a'}, {'access_token': 'a', 'refresh_token': None}]
)
def test_a_bad_record_costs_one_user_at_most(db, log, record):
    store(alice=record, bob=PAIR)
    assert db.find('alice') is None
    assert sum('lacks a token' in line for line in log) == (record is not None)
    assert db.replace('alice', 'r', NEW) is None
    db.save('alice', NEW)
    assert (db.find('alice'), db.find('bob')) == (NEW, PAIR)


def test_writers_in_several_processes_lose_nobodys_record(db, run):
    program = f"""if True:
        import sys
        for number in range(20):
            db.save(f'{{sys.argv[1]}}-{{number}}', {PAIR})
    """
    assert run(program, processes=4) == [0] * 4
    assert len(records()) == 80


def test_a_rehearsal_changes_nothing(db):
    db.rehearse()
    assert records() == {}
    db.save('alice', PAIR)
    db.rehearse()
    assert records() == {'alice': PAIR}


def test_where_nothing_can_be_written_nothing_is_lost(db, request):
    db.save('alice', PAIR)
    request.getfixturevalue('full_disk')
    for use in (
        db.rehearse,
        lambda: db.save('bob', PAIR),
        lambda: db.replace('alice', 'r', NEW),
        lambda: db.remove('alice'),
    ):
        with pytest.raises(StoreError):
            use()
    assert records() == {'alice': PAIR}


# --- Records whose refresh token has died --- #


def test_a_new_grant_clears_away_the_records_whose_refresh_token_has_died(db, clock, log):
    week = 7 * 24 * 3600
    clock.now = now = 1_800_000_000
    db.save('alice', {**PAIR, 'refresh_token_expires_at': now + week})
    db.save('bob', {**PAIR, 'refresh_token_expires_at': now + 2 * week})
    db.save('carol', {**PAIR, 'refresh_token_expires_at': None})
    db.save('dave', PAIR)
    clock.advance(week + GRACE - 1)
    db.save('erin', PAIR)
    assert set(records()) == {'alice', 'bob', 'carol', 'dave', 'erin'}
    clock.advance(2)
    log.clear()
    db.save('frank', PAIR)
    assert set(records()) == {'bob', 'carol', 'dave', 'erin', 'frank'}
    assert len(log) == 1
    assert 'records of 1 users' in log[0]


def test_the_time_of_a_record_is_that_of_its_last_refresh(db, clock):
    clock.now = 1_800_000_000
    db.save('alice', {**PAIR, 'refresh_token_expires_at': 1_800_000_000})
    db.replace('alice', 'r', {**NEW, 'refresh_token_expires_at': 1_900_000_000})
    clock.advance(2 * GRACE)
    db.save('bob', PAIR)
    assert set(records()) == {'alice', 'bob'}


def test_clocks_that_differ_by_some_hours_cost_no_record(db, clock):
    clock.now = 1_800_000_000
    db.save('alice', {**PAIR, 'refresh_token_expires_at': 1_800_000_000})
    clock.advance(23 * 3600)
    db.save('bob', PAIR)
    assert db.find('alice')


def test_a_refresh_clears_away_nothing_not_even_its_own_record(db):
    """Zendesk decides when a token has died; a clock that is wrong must not cost a pair that it has just issued."""
    dead = {**PAIR, 'refresh_token_expires_at': 5}
    store(alice=dead, bob=dead)
    db.rehearse()
    assert db.replace('alice', 'r', NEW) == NEW
    assert records() == {'alice': NEW, 'bob': dead}


@pytest.mark.parametrize('expires_at', ['5', None, [], {}, True, 5.0])
def test_a_record_with_a_nonsensical_time_stays(db, expires_at):
    store(alice={**PAIR, 'refresh_token_expires_at': expires_at}, bob=5)
    db.save('carol', {**PAIR, 'refresh_token_expires_at': expires_at})
    db.save('dave', PAIR)
    assert set(records()) == {'alice', 'bob', 'carol', 'dave'}


# --- One refresh at a time --- #


def test_a_lock_that_can_not_be_had_is_an_error_after_a_while(db, impatient):
    with db.refreshing('alice'):
        with pytest.raises(StoreBusy, match='Nothing to do but try again'), db.refreshing('alice'):
            pass
        with db.refreshing('bob'):
            pass
    with db.refreshing('alice'):
        pass


def test_a_failed_refresh_gives_the_lock_back(db, impatient):
    with pytest.raises(ZeroDivisionError) as kept, db.refreshing('alice'):  # an exception that is kept holds its frames
        1 / 0  # noqa: B018
    with db.refreshing('alice'):
        pass
    assert kept


@pytest.mark.parametrize('user_id', ['a/b', '../x', 'x' * 300, 'Zoë 山田', "'; DROP TABLE zendesk_tokens; --"])
def test_any_user_id_will_do(db, user_id):
    with db.refreshing(user_id):
        db.save(user_id, PAIR)
    assert db.find(user_id) == PAIR


def test_one_refresh_at_a_time_over_threads_and_processes(db, run):
    program = """if True:
        import os, threading, time
        def refresh():
            for _ in range(10):
                with db.refreshing('alice'):
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
    assert run(program, processes=4) == [0] * 4
    assert list(Path().iterdir()) == []


def test_the_lock_of_a_process_that_was_killed_is_free_before_anybody_gives_up(db, run):
    assert run('import os, signal\nwith db.refreshing("alice"): os.kill(os.getpid(), signal.SIGKILL)') == [-9]
    with db.refreshing('alice'):
        pass


# --- Keys that are used once --- #


def test_a_key_is_used_once_even_by_many_at_once(db):
    together = threading.Barrier(20)

    def use(_):
        together.wait()
        return db.first_use('key', 600)

    with ThreadPoolExecutor(20) as pool:
        assert sorted(pool.map(use, range(20))) == [False] * 19 + [True]
    assert db.first_use('other', 600)
    assert not db.first_use('key', 600)


def test_a_key_can_be_used_again_when_its_time_is_over(db):
    assert db.first_use('key', 600)
    assert db.first_use('key', -1)
    assert not db.first_use('key', 600)
