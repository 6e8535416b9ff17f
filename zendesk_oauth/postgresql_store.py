"""
PostgresqlStore keeps the tokens in PostgreSQL, for several machines or for many users.

Each method executes one statement, or several independent ones, so no transaction stays open. Repeating a statement is
safe, so it is retried if the connection breaks.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Engine,
    MetaData,
    Table,
    Text,
    any_,
    create_engine,
    delete,
    false,
    func,
    literal_column,
    make_url,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from zendesk_oauth.errors import LockTimeout, StoreError
from zendesk_oauth.stores import HOUR, REFRESH_TIMEOUT, SWEEP, WRITE_TIMEOUT, Record, Store, purge_at, valid_record

MAX_CONNECTIONS = 5  # per process, plus one to renew locks; a statement takes about a millisecond
CONNECT_TIMEOUT = 3  # seconds
STATEMENT_TIMEOUT = 5  # seconds

RETRY_TIMEOUT = 1  # seconds to retry after a connection error, for example during a restart of the database
RETRY_INTERVAL = 0.05  # seconds between two attempts

LEASE = 5  # seconds until a refresh lock expires after its last renewal
RENEWAL_INTERVAL = 1  # seconds between two renewals of a lock
LOCK_RETRY_INTERVAL = 0.05  # seconds between two attempts to acquire a lock
TAKEOVER_DELAY = 0.5  # seconds to wait for the holder of an expired lock to store new tokens

REMEDY = 'Check that PostgreSQL runs and is reachable, and check DATABASE_URL. The app reconnects automatically'

# Connection parameters of libpq. Parameters in DATABASE_URL take precedence.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
LIMITS = {
    'connect_timeout': CONNECT_TIMEOUT,
    'tcp_user_timeout': STATEMENT_TIMEOUT * 1000,
    # Check an idle connection after 3 seconds. The default is two hours on most systems.
    'keepalives_idle': 3,
    'keepalives_interval': 1,
    'keepalives_count': 3,
    'options': f'-c statement_timeout={STATEMENT_TIMEOUT}s -c lock_timeout={STATEMENT_TIMEOUT}s',
    'application_name': 'zendesk_oauth',
}

_metadata = MetaData()
TOKENS = Table(
    'zendesk_tokens',
    _metadata,
    Column('user_id', Text, primary_key=True),
    Column('record', JSONB, nullable=False),  # the same record as in users.json
    Column('dies_at', BigInteger, index=True),  # seconds since 1970; null if unknown
)
LOCKS = Table(
    'zendesk_refreshes',
    _metadata,
    Column('user_id', Text, primary_key=True),
    Column('holder', Text, nullable=False),
    Column('held_until', DateTime(timezone=True), nullable=False),
)
USED_KEYS = Table(
    'zendesk_used_keys',
    _metadata,
    Column('key', Text, primary_key=True),
    Column('used_at', DateTime(timezone=True), nullable=False, server_default=func.now(), index=True),
)

T = TypeVar('T')

log = logging.getLogger('zendesk_oauth')


class PostgresqlStore(Store):
    """
    Store records in the table zendesk_tokens of the database at `url`, for all machines that use it.

    Missing tables are created when they are first needed. While the database is unavailable, all methods raise
    StoreError.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def __str__(self) -> str:
        return TOKENS.name

    def find(self, user_id: str) -> Record | None:
        return valid_record(self._execute(lambda db: _stored(db, user_id)), self)

    def save(self, user_id: str, record: Record) -> None:
        new = {'user_id': user_id, 'record': record, 'dies_at': purge_at(record)}

        def work(db: Connection) -> int:
            db.execute(insert(TOKENS).values(new).on_conflict_do_update(index_elements=['user_id'], set_=new))
            return db.execute(
                delete(TOKENS).where(TOKENS.c.dies_at < time.time(), TOKENS.c.user_id != user_id)
            ).rowcount

        deleted = self._execute(work, retry_timeout=WRITE_TIMEOUT)
        if deleted:
            log.info('Deleting records with expired refresh tokens: %s', deleted)

    def remove(self, user_id: str) -> Record | None:
        before = None

        def work(db: Connection) -> Any:
            nonlocal before
            # In a retry, the record may be gone already: the first attempt deleted it, and then the connection broke.
            removed, before = before, before or _stored(db, user_id)
            return db.scalar(delete(TOKENS).where(TOKENS.c.user_id == user_id).returning(TOKENS.c.record)) or removed

        return valid_record(self._execute(work), self)

    def replace(self, user_id: str, refresh_token: str, record: Record | None) -> Record | None:
        unchanged = (TOKENS.c.user_id == user_id, TOKENS.c.record['refresh_token'].astext == refresh_token)

        def work(db: Connection) -> Any:
            if record is None:
                db.execute(delete(TOKENS).where(*unchanged))
            else:
                db.execute(update(TOKENS).where(*unchanged).values(record=record, dies_at=purge_at(record)))
            return _stored(db, user_id)

        return valid_record(self._execute(work, retry_timeout=WRITE_TIMEOUT), self)

    def check_writable(self) -> None:
        """Raise StoreError if the table is not writable."""
        self._execute(lambda db: db.execute(update(TOKENS).where(false()).values(dies_at=None)))

    @contextlib.contextmanager
    def refresh_lock(self, user_id: str, timeout: float | None = None) -> Iterator[Record | None]:
        """
        Hold the user's lock: a row with an expiry time.

        The holder renews the lock. If the holder crashes, the lock expires after LEASE seconds. An advisory lock
        (pg_advisory_lock) would be released as soon as the connection breaks, so a second refresh could start before
        the first one ends. It would also occupy a connection for each waiting request.
        """
        holder = secrets.token_hex(16)
        timeout = REFRESH_TIMEOUT if timeout is None else timeout
        deadline = time.monotonic() + timeout
        while (was_free := self._try_lock(user_id, holder)) is None:
            if time.monotonic() > deadline:
                raise LockTimeout(f'Another refresh of the same tokens did not end within {timeout} s. Try again later')
            time.sleep(LOCK_RETRY_INTERVAL)

        released = threading.Event()
        threading.Thread(target=self._renew_lock, args=(user_id, holder, released), daemon=True).start()
        try:
            if not was_free:
                # After a database outage, give the previous holder time to store its new tokens.
                time.sleep(TAKEOVER_DELAY)
            yield self.find(user_id)
        finally:
            released.set()
            with contextlib.suppress(StoreError):  # the lock expires after LEASE seconds
                self._execute(lambda db: db.execute(delete(LOCKS).where(*_held_by(user_id, holder))))

    def consume_once(self, key: str, expires_at: int) -> bool:
        expired = select(USED_KEYS.c.key).where(USED_KEYS.c.used_at < _from_now(-HOUR)).order_by(USED_KEYS.c.used_at)
        batch = func.array(expired.limit(SWEEP).scalar_subquery())

        def work(db: Connection) -> bool:
            db.execute(delete(USED_KEYS).where(USED_KEYS.c.key == any_(batch)))
            mark = insert(USED_KEYS).values(key=key).on_conflict_do_nothing().returning(USED_KEYS.c.key)
            return db.scalar(mark) is not None

        return self._execute(work)

    def _try_lock(self, user_id: str, holder: str) -> bool | None:
        """Acquire the lock. Return True if it was free, False if it had expired, None if another holder has it."""
        mine = {'user_id': user_id, 'holder': holder, 'held_until': _from_now(LEASE)}
        free = or_(LOCKS.c.held_until < func.now(), LOCKS.c.holder == holder)
        take = insert(LOCKS).values(mine).on_conflict_do_update(index_elements=['user_id'], set_=mine, where=free)
        was_free = literal_column('xmax = 0', Boolean)  # true if the row was inserted, false if it was updated
        return self._execute(lambda db: db.scalar(take.returning(was_free)))

    def _renew_lock(self, user_id: str, holder: str, released: threading.Event) -> None:
        longer = update(LOCKS).where(*_held_by(user_id, holder)).values(held_until=_from_now(LEASE))
        while not released.wait(RENEWAL_INTERVAL):
            with contextlib.suppress(StoreError):  # the next attempt may succeed
                self._execute(lambda db: db.execute(longer), connections=1)  # the main pool may be exhausted

    def _execute(
        self, work: Callable[[Connection], T], retry_timeout: float = RETRY_TIMEOUT, connections: int = MAX_CONNECTIONS
    ) -> T:
        """
        Call `work` with a connection and return its result. Retry for `retry_timeout` seconds after connection errors.

        Raises:
            StoreError: the database is unavailable, or rejects the statement.
        """
        deadline = time.monotonic() + retry_timeout
        tables_missed = False
        while True:
            try:
                with _engine(self._url, os.getpid(), connections).connect() as db:
                    return work(db)
            except (SQLAlchemyError, UnicodeError) as error:  # UnicodeError: the host name is invalid
                problem: Exception = error
            if _is_missing_table(problem) and not tables_missed:
                tables_missed = True
                self._make_tables()
            elif _is_transient(problem) and time.monotonic() < deadline:
                time.sleep(RETRY_INTERVAL)
            else:
                raise StoreError(f'The table {self} cannot be accessed: {_cause(problem)}. {REMEDY}') from problem

    def _make_tables(self) -> None:
        """Create the tables, under a lock: concurrent "create table if not exists" statements can fail."""
        log.info('Creating the database tables')
        try:
            engine = _engine(self._url, os.getpid(), MAX_CONNECTIONS)
            with engine.execution_options(isolation_level='READ COMMITTED').begin() as db:
                db.execute(select(func.pg_advisory_xact_lock(func.hashtext(TOKENS.name))))
                _metadata.create_all(db)
        except SQLAlchemyError as error:
            raise StoreError(
                f'The tables cannot be created: {_cause(error)}. Allow the user in DATABASE_URL to create tables'
            ) from error


@functools.cache
def _engine(url: str, process_id: int, connections: int) -> Engine:
    """Return the connection pool of this process: a forked process must not use its parent's connections."""
    address = make_url(url).set(drivername='postgresql+psycopg')
    return create_engine(
        address,
        isolation_level='AUTOCOMMIT',
        pool_size=connections,
        max_overflow=0,
        pool_timeout=STATEMENT_TIMEOUT,
        hide_parameters=True,  # keeps tokens out of error messages
        connect_args={name: value for name, value in LIMITS.items() if name not in address.query},
    )


def _stored(db: Connection, user_id: str) -> Any:
    return db.scalar(select(TOKENS.c.record).where(TOKENS.c.user_id == user_id))


def _held_by(user_id: str, holder: str) -> tuple[ColumnElement[bool], ...]:
    return LOCKS.c.user_id == user_id, LOCKS.c.holder == holder


def _from_now(seconds: float) -> ColumnElement[Any]:
    """Return a time by the database's clock: the clocks of the app's machines can differ."""
    return func.now() + timedelta(seconds=seconds)


def _is_missing_table(problem: Exception) -> bool:
    return isinstance(problem, DBAPIError) and getattr(problem.orig, 'sqlstate', None) == '42P01'


def _is_transient(problem: Exception) -> bool:
    """Return True for a connection error, False for an error in the statement."""
    return not isinstance(problem, DBAPIError) or isinstance(problem, (InterfaceError, OperationalError))


def _cause(problem: Exception) -> str:
    """Return the cause in one line, without the SQL statement that SQLAlchemy adds."""
    cause = problem.orig if isinstance(problem, DBAPIError) else problem
    return str(cause).strip().partition('\n')[0] or type(cause).__name__
