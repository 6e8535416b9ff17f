"""
The tests that each store must pass.

A test module imports them with `from store_suite import *`, and defines the fixture `db`: an empty store, in an empty
working directory.
"""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import LATER, NEW, OLD, OTHER

from zendesk_oauth import JsonFileStore, MemoryStore, Store
from zendesk_oauth.errors import LockTimeout
from zendesk_oauth.stores import GRACE

WEEK = 7 * 24 * 3600


def records(db: Store) -> dict:
    """Return all records in the store."""
    if isinstance(db, MemoryStore):
        return db._records
    if isinstance(db, JsonFileStore):
        return json.loads(Path('users.json').read_text()) if Path('users.json').exists() else {}
    from zendesk_oauth.sql_store import TOKENS

    return {row.user_id: db._decrypt(row.user_id, row) for row in db._read(TOKENS.select())}


def set_records(db: Store, **records) -> None:
    """Replace all records in the store, as with an editor."""
    if isinstance(db, MemoryStore):
        db._records = records
        return
    if isinstance(db, JsonFileStore):
        Path('users.json').write_text(json.dumps(records))
        return
    from zendesk_oauth.sql_store import TOKENS

    db._change(TOKENS.delete())
    for user_id, record in records.items():
        db._change(TOKENS.insert(), {'user_id': user_id, **db._encrypt(user_id, record)})


@pytest.fixture
def short_lock_timeout(db, monkeypatch) -> None:
    """Wait at most 0.1 s for a refresh lock."""
    monkeypatch.setattr(f'{type(db).__module__}.REFRESH_TIMEOUT', 0.1)


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


def test_concurrent_writers_lose_no_record(db):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: db.save(f'user-{number}', OLD), range(40)))
    assert len(records(db)) == 40


def test_a_record_without_a_refresh_token_is_valid(db):
    record = {'access_token': 'a', 'refresh_token': ''}
    db.save('alice', record)
    assert db.find('alice') == record


def test_changing_a_record_outside_does_not_change_the_store(db):
    saved, replaced = dict(OLD), dict(NEW)
    db.save('alice', saved)
    saved['access_token'] = 'changed'
    db.find('alice')['access_token'] = 'changed'
    with db.refresh_lock('alice') as stored:
        stored['access_token'] = 'changed'
    assert db.find('alice') == OLD
    db.replace('alice', 'old-refresh', replaced)
    replaced['access_token'] = 'changed'
    assert db.find('alice') == NEW


# --- Records whose refresh token has expired --- #


def test_a_grant_deletes_records_that_expired_a_day_ago(db, log):
    a_day_ago = int(time.time()) - GRACE
    expiries = {'alice': a_day_ago - 1, 'bob': a_day_ago + 60, 'carol': a_day_ago + WEEK, 'dave': None}
    set_records(db, **{user: {**OLD, 'refresh_token_expires_at': expiry} for user, expiry in expiries.items()})
    log.clear()
    db.save('erin', OLD)
    assert set(records(db)) == {'bob', 'carol', 'dave', 'erin'}
    assert log == ['Deleting records with expired refresh tokens: 1\n']


def test_a_refresh_extends_the_expiry_of_its_record(db):
    set_records(db, alice={**OLD, 'refresh_token_expires_at': 5})
    db.replace('alice', 'old-refresh', {**NEW, 'refresh_token_expires_at': LATER})
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


# --- Health --- #


def test_check_readable_changes_nothing(db):
    db.check_readable()
    assert records(db) == {}
    set_records(db, alice=OLD, bob=5)
    db.check_readable()
    assert set(records(db)) == {'alice', 'bob'}


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


@pytest.mark.parametrize('user_id', ['a/b', '../x', '山' * 255, 'Zoë 山田', "'; DROP TABLE zendesk_oauth_tokens; --"])
def test_any_user_id_can_have_a_lock_and_a_record(db, user_id):
    with db.refresh_lock(user_id):
        db.save(user_id, OLD)
    assert db.find(user_id) == OLD


# --- Keys that can be consumed once --- #


def test_a_key_is_consumed_once_by_twenty_concurrent_callers(db):
    barrier = threading.Barrier(20)

    def consume(_) -> bool:
        barrier.wait()
        return db.consume_once('key', LATER)

    with ThreadPoolExecutor(20) as pool:
        assert sorted(pool.map(consume, range(20))) == [False] * 19 + [True]
    assert db.consume_once('other', LATER)
    assert not db.consume_once('key', LATER)
