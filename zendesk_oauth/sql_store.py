"""
Store encrypted tokens in PostgreSQL or in an SQLite file.

The refresh lock is a lease: a row that expires. No transaction is open during a request to Zendesk.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cryptography.fernet import Fernet, MultiFernet
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Float,
    MetaData,
    String,
    Table,
    Text,
    bindparam,
    delete,
    false,
    or_,
    select,
    update,
)

from zendesk_oauth.database import Database, permanent_error
from zendesk_oauth.endpoints import CALL_TIMEOUT
from zendesk_oauth.errors import LockTimeout, StoreError
from zendesk_oauth.stores import HOUR, REFRESH_TIMEOUT, SWEEP, WRITE_TIMEOUT, Record, Store, purge_at, valid_record

LEASE = 16  # seconds until a refresh lock expires: CALL_TIMEOUT, and 2 seconds for the database
TAKEOVER_DELAY = 3  # seconds to wait after a lock expired: its holder may reconnect and store new tokens
LOCK_RETRY_INTERVAL = 0.05  # seconds between two attempts to acquire a lock
ATTEMPTS = 10  # to change a record that other processes change at the same time
NOT_CHANGED = 'Check whether a trigger or a row security policy prevents it'

METADATA = MetaData()
TOKENS = Table(
    'zendesk_oauth_tokens',
    METADATA,
    Column('user_id', String(255), primary_key=True),
    Column('version', String(32), nullable=False),  # random: a new record changes it, `reencrypt` does not
    Column('record', Text, nullable=False),  # encrypted: the user id and the record, as JSON
    Column('purge_at', Float, index=True),  # seconds since 1970; null if unknown
)
# A row locks a name until it expires: "user ..." during a refresh, "key ..." after the key was consumed.
LOCKS = Table(
    'zendesk_oauth_locks',
    METADATA,
    Column('name', Text, primary_key=True),
    Column('holder', String(32), nullable=False),
    Column('expires_at', Float, nullable=False, index=True),  # seconds since 1970
)

# Building a statement takes longer than executing it on SQLite, so these are built once.
IS_USER = TOKENS.c.user_id == bindparam('user')
IS_VERSION = TOKENS.c.version == bindparam('seen')
FIND = select(TOKENS.c.version, TOKENS.c.record).where(IS_USER)
REPLACE = update(TOKENS).where(IS_USER, IS_VERSION)
DELETE = delete(TOKENS).where(IS_USER, IS_VERSION)
CHECK_WRITABLE = update(TOKENS).where(false()).values(purge_at=None)
NEXT = select(TOKENS).where(TOKENS.c.user_id > bindparam('user')).order_by(TOKENS.c.user_id).limit(SWEEP)
IS_MINE = LOCKS.c.name == bindparam('locked'), LOCKS.c.holder == bindparam('mine')
RELEASE = delete(LOCKS).where(*IS_MINE)

log = logging.getLogger('zendesk_oauth')


class SqlStore(Store):
    """
    Store encrypted records in PostgreSQL or in a separate SQLite file, shared by all processes that use it.

    `url` is `postgresql://user:password@host/database`, with the options of libpq, or `sqlite:///path`. An SQLite file
    must be on a local disk. The first of the `encryption_keys` encrypts, and all of them decrypt. Create one with
    `cryptography.fernet.Fernet.generate_key()`. `create_tables` creates missing tables at the first use.
    `engine_options` are passed to SQLAlchemy's `create_engine`.

    The methods raise StoreError if the database is unavailable, or if no key decrypts a record. A record that no key
    decrypts is never overwritten.

    Raises:
        ValueError: the URL or a key is malformed.
        ImportError: the driver of the database is not installed.
    """

    metadata = METADATA  # the tables, for Alembic

    def __init__(
        self,
        url: str,
        *,
        encryption_keys: Sequence[str | bytes],
        create_tables: bool = True,
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._keys = parse_keys('encryption_keys', encryption_keys)
        self._cipher = MultiFernet(self._keys)
        self._database = Database(url, METADATA, create_tables, engine_options)
        self._innermost = threading.local()  # `lock` is this thread's innermost lock, as parameters of IS_MINE
        insert, self._now = self._database.insert, self._database.now
        save = insert(TOKENS)
        self._save = save.on_conflict_do_update(
            index_elements=['user_id'], set_={name: save.excluded[name] for name in ('version', 'record', 'purge_at')}
        )
        # An expiry far in the future means that the clock was set back: ignore the lock.
        seconds = bindparam('seconds', type_=Float)
        is_held = LOCKS.c.expires_at.between(self._now, self._now + 2 * seconds)
        may_store = LOCKS.c.expires_at > self._now - WRITE_TIMEOUT  # its holder may still store new tokens
        self._find_lock = select(is_held.label('is_held')).where(LOCKS.c.name == bindparam('name'), may_store)
        self._renew = update(LOCKS).where(*IS_MINE).values(expires_at=self._now + LEASE)
        take = insert(LOCKS).values(expires_at=self._now + seconds)
        self._take = take.on_conflict_do_update(
            index_elements=['name'],
            set_={'holder': take.excluded.holder, 'expires_at': take.excluded.expires_at},
            where=or_(~is_held, LOCKS.c.holder == take.excluded.holder),
        ).returning(LOCKS.c.name)

    def __str__(self) -> str:
        return str(self._database)

    def check_setup(self) -> None:
        """
        Raise StoreError if the tables cannot be used, or if no key decrypts the first record.

        If PostgreSQL is unavailable, only log a warning, because it may become available later.
        """
        if self._database.is_missing():
            return
        try:
            self.check_writable()
            for row in self._read(select(TOKENS).limit(1)):
                self._decrypt(row.user_id, row)
        except StoreError as error:
            if error.retry_after is None or self._database.path:
                raise
            log.warning('Starting without the database. %s', error)
        finally:
            self._database.engine.dispose()  # a process that is forked later must not inherit connections

    def check_readable(self) -> None:
        """Raise StoreError if the database cannot be read now. Create neither a file nor a table."""
        self._database.check_readable(NEXT.limit(1), {'user': ''})

    # --- Records --- #

    def find(self, user_id: str) -> Record | None:
        return valid_record(self._decrypt(user_id, self._row(user_id)), self)

    def save(self, user_id: str, record: Record) -> None:
        new = {'user_id': user_id, **self._encrypt(user_id, record)}
        seen = []  # the versions of the stored record, at each attempt

        def work(db: Connection) -> int:
            row = db.execute(FIND, {'user': user_id}).one_or_none()
            self._decrypt(user_id, row)  # raises before an overwrite
            seen.append(row and row.version)
            if seen[-1] not in (seen[0], new['version']):
                raise StoreError(
                    f'A record in {self} was changed by another request while the database was unavailable'
                )
            self._sweep(db, LOCKS.c.name, LOCKS.c.expires_at, WRITE_TIMEOUT)
            deleted = self._sweep(db, TOKENS.c.user_id, TOKENS.c.purge_at)
            db.execute(self._save, new)
            return deleted

        if deleted := self._database.run(work, retry_timeout=WRITE_TIMEOUT):
            log.info('Deleting records with expired refresh tokens: %s', deleted)

    def remove(self, user_id: str) -> Record | None:
        removed = None
        for _ in range(ATTEMPTS):
            row = self._row(user_id)
            if row is None:
                return valid_record(removed, self)
            removed = self._decrypt(user_id, row)
            if self._change(DELETE, {'user': user_id, 'seen': row.version}):
                return valid_record(removed, self)
        raise StoreError(f'A row in {self} cannot be deleted. {NOT_CHANGED}')

    def replace(self, user_id: str, refresh_token: str, record: Record | None) -> Record | None:
        new = record and self._encrypt(user_id, record)

        def work(db: Connection) -> Any:
            for _ in range(ATTEMPTS):
                row = db.execute(FIND, {'user': user_id}).one_or_none()
                stored = self._decrypt(user_id, row)
                if row is None or not isinstance(stored, dict) or stored.get('refresh_token') != refresh_token:
                    return stored
                seen = {'user': user_id, 'seen': row.version}
                change = db.execute(REPLACE, {**seen, **new}) if new else db.execute(DELETE, seen)
                if change.rowcount:  # else another process has just changed it
                    return record
            raise StoreError(f'A row in {self} cannot be changed. {NOT_CHANGED}')

        return valid_record(self._database.run(work, retry_timeout=WRITE_TIMEOUT), self)

    def _row(self, user_id: str) -> Any:
        return next(iter(self._read(FIND, {'user': user_id})), None)

    def _read(self, statement: Any, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        return self._database.run(lambda db: db.execute(statement, values).all(), writes=False)

    def _change(self, statement: Any, values: Mapping[str, Any] | None = None) -> int:
        """Execute the statement and return the number of rows."""
        return self._database.run(lambda db: db.execute(statement, values).rowcount)

    def _sweep(self, db: Connection, key: Column[str], expiry: ColumnElement[float], seconds: float = 0) -> int:
        """Delete up to SWEEP rows that expired `seconds` ago, and return their number. The limit saves time."""
        expired = expiry < self._now - seconds
        # Two statements, because PostgreSQL would not always use the index for one.
        keys = db.scalars(select(key).where(expired).order_by(expiry).limit(SWEEP)).all()
        return db.execute(delete(key.table).where(key.in_(keys), expired)).rowcount if keys else 0

    # --- Locks --- #

    @contextlib.contextmanager
    def refresh_lock(self, user_id: str, timeout: float | None = None) -> Iterator[Record | None]:
        """
        Hold the user's lock: a row that expires after LEASE seconds if the process is killed.

        After another lock expires, wait for TAKEOVER_DELAY seconds. Its holder may have lost only its connection, and
        then stores its new tokens in this time. Without the wait, a second refresh with the old tokens could end the
        grant.

        PostgreSQL's own locks end if the connection breaks, so a second refresh could start before the first one ends.
        They would also occupy a connection for each waiting request.
        """
        timeout = REFRESH_TIMEOUT if timeout is None else timeout
        name, holder = f'user {user_id}', secrets.token_hex(16)
        deadline = time.monotonic() + timeout
        while True:
            # Waiting requests only read: a write, even without effect, would delay the holder.
            others = self._read(self._find_lock, {'name': name, 'seconds': LEASE})
            is_free = not any(other.is_held for other in others) and (timeout > 0 or not others)
            if is_free and self._try_lock(name, holder, LEASE):
                break
            if time.monotonic() > deadline:
                raise LockTimeout(f'Another refresh of the same tokens did not end within {timeout} s. Try again later')
            time.sleep(LOCK_RETRY_INTERVAL)
        outer, self._innermost.lock = self._lock(), {'locked': name, 'mine': holder}
        try:
            if others:  # a lock that has expired
                time.sleep(TAKEOVER_DELAY)
            yield self.find(user_id)
        finally:
            self._innermost.lock = outer
            with contextlib.suppress(StoreError):  # the lock expires after LEASE seconds
                self._change(RELEASE, {'locked': name, 'mine': holder})

    def check_writable(self) -> None:
        """
        Raise StoreError if the table is not writable.

        Also renew this thread's lock. Raise LockTimeout if it was lost, or if it could expire during a request to
        Zendesk.
        """
        self._database.check_space()
        began = time.monotonic()
        lock = self._lock()

        def work(db: Connection) -> bool:
            db.execute(CHECK_WRITABLE)
            return lock is None or db.execute(self._renew, lock).rowcount == 1

        if not self._database.run(work) or time.monotonic() - began > LEASE - CALL_TIMEOUT:
            raise LockTimeout('The database is too slow: the lock could expire during the request. Try again later')

    def consume_once(self, key: str, expires_at: int) -> bool:
        seconds = max(expires_at - time.time(), 0) + HOUR  # the clocks of the machines can differ
        self._database.run(lambda db: self._sweep(db, LOCKS.c.name, LOCKS.c.expires_at, WRITE_TIMEOUT))
        return self._try_lock(f'key {key}', secrets.token_hex(16), seconds)

    def _lock(self) -> dict[str, Any] | None:
        return getattr(self._innermost, 'lock', None)

    def _try_lock(self, name: str, holder: str, seconds: float) -> bool:
        """Lock the name for some seconds. Return False if another holder has locked it."""
        lock = {'name': name, 'holder': holder, 'seconds': seconds}
        return self._database.run(lambda db: db.scalar(self._take, lock)) is not None

    # --- Encryption --- #

    def reencrypt(self) -> int:
        """
        Encrypt all records with the first key and return the number of changed records.

        Call it after all processes have the new key as their first key. They can keep running.

        Raises:
            StoreError: no key decrypts some of the records. The others are encrypted with the first key.
        """
        changed = unreadable = 0
        last = ''
        while rows := self._read(NEXT, {'user': last}):
            last = rows[-1].user_id
            for row in rows:
                if _decrypts(self._keys[0], row.record):
                    continue
                if not _decrypts(self._cipher, row.record):
                    unreadable += 1
                    continue
                record = self._cipher.rotate(row.record.encode()).decode()
                # If the version has changed, the app has just stored a new record, encrypted with the first key.
                changed += self._change(REPLACE, {'user': row.user_id, 'seen': row.version, 'record': record})
        if unreadable:
            raise permanent_error(
                f'None of the encryption keys decrypts {unreadable} of the records in {self}. Add their keys'
            )
        return changed

    def _encrypt(self, user_id: str, record: Record) -> dict[str, Any]:
        """Return the columns of a record. The encrypted text contains the user id, so a copied row is rejected."""
        content = self._cipher.encrypt(json.dumps([user_id, record]).encode()).decode()
        return {'version': secrets.token_hex(16), 'record': content, 'purge_at': purge_at(record)}

    def _decrypt(self, user_id: str, row: Any) -> Any:
        if row is None:
            return None
        try:
            owner, record = json.loads(self._cipher.decrypt(row.record.encode()))
        except Exception:  # InvalidToken, or any other error if the row was edited
            raise permanent_error(f'None of the encryption keys decrypts a record in {self}. Add its key') from None
        if owner != user_id:
            raise permanent_error(f'A row in {self} was copied from another user. Delete the row')
        return record


def parse_keys(name: str, keys: Sequence[str | bytes]) -> list[Fernet]:
    """Return the Fernet keys, or raise a ValueError about the argument `name`."""
    if isinstance(keys, Sequence) and not isinstance(keys, (str, bytes)):
        texts = [key.decode('latin-1') if isinstance(key, bytes) else str(key) for key in keys]
        # Fernet would ignore what follows a key, such as a comma and the next key.
        if texts and all(re.fullmatch('[A-Za-z0-9_-]{43}=', text) for text in texts):
            return [Fernet(text) for text in texts]
    raise ValueError(f'{name} must be a list of keys. Create one with cryptography.fernet.Fernet.generate_key()')


def _decrypts(key: Fernet | MultiFernet, content: str) -> bool:
    with contextlib.suppress(Exception):
        key.decrypt(content.encode())
        return True
    return False
