"""Connections and transactions of SqlStore, with retries after temporary errors."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    ExceptionContext,
    Float,
    MetaData,
    bindparam,
    cast,
    create_engine,
    event,
    extract,
    func,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from zendesk_oauth.errors import StoreError
from zendesk_oauth.stores import refuse_planted

FORK_TIMEOUT = 10  # seconds to wait for running transactions before a fork
MAX_CONNECTIONS = 5  # per process; a transaction takes about a millisecond
CONNECT_TIMEOUT = 3  # seconds
STATEMENT_TIMEOUT = 5  # seconds for a statement, or to get a connection from the pool
BUSY_TIMEOUT = 10  # seconds to wait for other writers of an SQLite file
RETRY_TIMEOUT = 1  # seconds to retry after a connection error, for example during a restart of the database
RETRY_INTERVAL = 0.05  # seconds between two attempts

# Parameters of libpq. Parameters in the URL take precedence.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
POSTGRESQL_OPTIONS = {
    'connect_timeout': CONNECT_TIMEOUT,
    'tcp_user_timeout': STATEMENT_TIMEOUT * 1000,
    # Check an idle connection after 3 seconds. The default is two hours on most systems.
    'keepalives_idle': 3,
    'keepalives_interval': 1,
    'keepalives_count': 3,
    'application_name': 'zendesk_oauth',
    'client_encoding': 'utf8',
}
# Behind a pooler such as PgBouncer, each transaction can get another server connection, so it sets its own limits. The
# second limit ends a transaction whose process has stopped.
BEGIN_POSTGRESQL = (
    'BEGIN ISOLATION LEVEL READ COMMITTED; '
    f'SET LOCAL statement_timeout = {STATEMENT_TIMEOUT * 1000}; '
    f'SET LOCAL idle_in_transaction_session_timeout = {STATEMENT_TIMEOUT * 1000}'
)
BEGIN_SQLITE = 'BEGIN IMMEDIATE'  # waits for other writers here, not at a later statement
READ_ONLY = '25006'  # the SQLSTATE of a write to a standby server
TRY_AGAIN = (5, 6, 10, 13, 14, 15)  # SQLite's result codes BUSY, LOCKED, IOERR, FULL, CANTOPEN and PROTOCOL
FREE_SPACE = 2**20  # bytes on the disk of an SQLite file: enough for tokens of the maximum length

T = TypeVar('T')

log = logging.getLogger('zendesk_oauth')


class _Forks:
    """
    No transaction runs, and no connection is open, during a fork.

    A child inherits the locks of SQLite and libpq, and would wait for them forever. When the parent closes its SQLite
    connections, it could also delete the child's changes.
    """

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.running = self.waiting = 0  # transactions, and threads that fork
        self.databases: weakref.WeakSet[Database] = weakref.WeakSet()
        if hasattr(os, 'register_at_fork'):
            os.register_at_fork(before=self.before, after_in_parent=self.after, after_in_child=self.reset)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        with self.condition:
            self.condition.wait_for(lambda: not self.waiting)
            self.running += 1
        try:
            yield
        finally:
            with self.condition:
                self.running -= 1
                self.condition.notify_all()

    def before(self) -> None:
        self.condition.acquire()  # until after the fork
        self.waiting += 1
        if not self.condition.wait_for(lambda: not self.running, FORK_TIMEOUT):
            log.warning('A transaction has not ended before a fork: the new process may not work')
        for database in list(self.databases):
            database.engine.dispose()

    def after(self) -> None:
        self.waiting -= 1
        self.condition.notify_all()
        self.condition.release()

    def reset(self) -> None:
        self.condition = threading.Condition()
        self.running = self.waiting = 0
        for database in list(self.databases):
            database.engine.dispose(close=False)  # some servers fork without calling `before`


_forks = _Forks()


class Database:
    """
    A database with the tables in `metadata`.

    `url` and `engine_options` are documented in SqlStore. If `create_tables` is true, the first transaction creates
    missing tables.
    """

    def __init__(
        self, url: str, metadata: MetaData, create_tables: bool, engine_options: Mapping[str, Any] | None
    ) -> None:
        database_url, connect_args = parse_url('url', url)
        self.path = database_url.database  # None for PostgreSQL
        self._metadata, self._create_tables = metadata, create_tables
        options = dict(engine_options or {})
        pool = {'pool_size': MAX_CONNECTIONS, 'max_overflow': 0, 'pool_timeout': STATEMENT_TIMEOUT}
        arguments = {
            'hide_parameters': True,  # keeps tokens out of error messages
            **({} if 'poolclass' in options else pool),
            **options,
            'connect_args': {**connect_args, **options.get('connect_args', {})},
        }
        self.engine = create_engine(database_url, **arguments)
        event.listen(self.engine, 'handle_error', _reconnect_if_read_only)
        if self.path:
            event.listen(self.engine, 'connect', _write_through)
        self._checked = False  # whether the tables have been checked
        with _forks.condition:
            _forks.databases.add(self)
        self.insert: Any = sqlite.insert if self.path else postgresql.insert  # both have on_conflict_do_update

    def __str__(self) -> str:
        return self.path or 'PostgreSQL'

    @property
    def now(self) -> ColumnElement[float]:
        """
        The time in seconds since 1970, as an expression.

        It is PostgreSQL's time, because the clocks of the app's machines can differ. SQLite has only one machine.
        """
        if self.path:
            return bindparam('now', callable_=lambda: time.time(), type_=Float)
        return cast(extract('epoch', func.now()), Float)

    def run(
        self,
        work: Callable[[Connection], T],
        *,
        writes: bool = True,
        retry_timeout: float = RETRY_TIMEOUT,
        prepare: bool = True,
    ) -> T:
        """
        Call `work` in a transaction and return its result. Retry it after an error that may be temporary.

        `work` must be repeatable: if the connection breaks, it is unknown whether the transaction was committed. If
        `prepare` is true, the first transaction checks and creates the tables.

        Raises:
            StoreError: `retry_timeout` seconds have passed, or the error is permanent (`retry_after` is None).
        """
        deadline = time.monotonic() + retry_timeout
        while True:
            try:
                with _forks.transaction():
                    if prepare:
                        self._check_once()
                    with self.engine.connect() as db:
                        self._begin(db, writes)
                        result = work(db)
                        db.commit()
                        return result
            except StoreError:
                raise
            except Exception as error:  # drivers also raise other errors if a database only resembles PostgreSQL
                problem = error
            # The errors have no cause: its text can contain a row.
            if not _is_temporary(problem):
                remedy = 'Check the database URL, the tables, and the permissions of the account'
                raise permanent_error(f'{self} cannot be used: {_cause(problem)}. {remedy}')
            if time.monotonic() > deadline:
                raise StoreError(f'{self} cannot be accessed: {_cause(problem)}. {self._remedy}')
            time.sleep(RETRY_INTERVAL)

    def check_readable(self, statement: Any, values: Mapping[str, Any]) -> None:
        """
        Execute the statement once. Only connect if the tables may not exist yet, or do nothing if the file does not.

        Raises:
            StoreError: the database cannot be read.
        """
        if self.path and not os.access(self.path, os.R_OK):
            if self._checked:
                raise StoreError(f'{self} was deleted or cannot be read. Restore it, and restart the app')
            return
        query: Any = statement if self._checked else text('SELECT 1')
        self.run(lambda db: db.execute(query, values).all(), writes=False, retry_timeout=0, prepare=False)

    def is_missing(self) -> bool:
        """
        Return True if the SQLite file does not exist yet. Do not create it: if root calls this, root would own it.

        Raises:
            StoreError: the file cannot be created in this folder.
        """
        if self.path is None or Path(self.path).exists():
            return False
        try:
            tempfile.TemporaryFile(dir=Path(self.path).parent).close()
        except OSError as error:
            cause = f'{self} cannot be created: {error.strerror}'
            raise permanent_error(f'{cause}. Check the folder and its permissions') from error
        return True

    def check_space(self) -> None:
        """Raise StoreError if the disk of the SQLite file is almost full."""
        if self.path:
            with contextlib.suppress(OSError):  # the next statement fails with the cause
                if shutil.disk_usage(Path(self.path).parent).free < FREE_SPACE:
                    raise StoreError(f'The disk of {self} is full. Delete other files')

    def _begin(self, db: Connection, writes: bool) -> None:
        """Begin a transaction, because the driver is in autocommit mode. A read from SQLite needs none."""
        if self.path is None:
            db.exec_driver_sql(BEGIN_POSTGRESQL)
        elif writes:
            db.exec_driver_sql(BEGIN_SQLITE)

    @property
    def _remedy(self) -> str:
        if self.path:
            return 'Check the disk and the folder, and stop other programs that use the file'
        return 'Check that PostgreSQL runs and is reachable, and check its URL. The app reconnects automatically'

    def _check_once(self) -> None:
        """At the first use, check the file and the tables, and create what is missing."""
        if self._checked:
            return
        if self.path:
            refuse_planted(Path(self.path))
            with contextlib.suppress(OSError):  # SQLite itself would let other accounts read the file
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, 0o600))
        with self.engine.connect() as db:
            self._prepare(db)
            db.commit()
        self._checked = True

    def _prepare(self, db: Connection) -> None:
        present, ours = set(inspect(db).get_table_names()), set(self._metadata.tables)
        if self.path:
            # Tools such as Litestream add tables whose name starts with an underscore.
            foreign = [name for name in present - ours - {'alembic_version'} if not name.startswith('_')]
            if self._create_tables and foreign:
                raise permanent_error(f'{self} contains other tables. Use a separate file for the tokens')
            db.exec_driver_sql('PRAGMA journal_mode = WAL')  # readers do not wait for writers
        if self._create_tables and not ours <= present:
            log.info('Creating the database tables')
            self._begin(db, writes=True)
            if not self.path:  # concurrent "create table if not exists" statements can fail
                db.execute(select(func.pg_advisory_xact_lock(func.hashtext('zendesk_oauth'))))
            self._metadata.create_all(db)


def parse_url(name: str, url: str) -> tuple[URL, dict[str, Any]]:
    """
    Return the SQLAlchemy URL and the driver's arguments, which contain the host and the account of PostgreSQL.

    Raises:
        ValueError: `url` is not the URL of a database. The message calls it `name`.
        ImportError: psycopg is not installed, or does not find libpq.
    """
    problem = (
        f'{name} is not a database URL of the form postgresql://user:password@host/database or sqlite:///tokens.db. '
        'Percent-encode special characters in the password, such as %40 for @'
    )
    if not isinstance(url, str) or not url.isprintable():
        raise ValueError(problem)
    if re.match(r'sqlite(\+pysqlite)?:', url):
        with contextlib.suppress(ArgumentError):
            file = make_url(url)
            if file.database and not file.database.startswith((':memory:', 'file:')) and not (file.host or file.query):
                file = file.set(database=str(Path(file.database).absolute()))  # the process may change its folder
                return file, {'timeout': BUSY_TIMEOUT, 'isolation_level': None}
        raise ValueError(problem)
    if not re.fullmatch(r'postgres(ql)?(\+psycopg)?://[!-~]*', url):
        raise ValueError(problem)

    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        options = conninfo_to_dict(url.replace('+psycopg://', '://', 1))
    except (psycopg.ProgrammingError, ValueError) as error:
        # Other messages of libpq can contain the password.
        unknown = re.match('invalid URI query parameter: "[A-Za-z_-]+"', str(error))
        raise ValueError(f'{name} has an {unknown[0]}' if unknown else problem) from None
    if '@' in f'{options.get("host")}{options.get("dbname")}' or not re.fullmatch(
        '[0-9,]*', str(options.get('port', ''))
    ):
        raise ValueError(problem)
    arguments = {**POSTGRESQL_OPTIONS, **options, 'autocommit': True, 'prepare_threshold': None}
    return URL.create('postgresql+psycopg'), arguments


def permanent_error(message: str) -> StoreError:
    """Return a StoreError that a retry cannot fix."""
    return StoreError(message, retry_after=None, advice="The app's log has the cause.")


def _reconnect_if_read_only(context: ExceptionContext) -> None:
    """Replace all connections if the server is read-only, such as the old primary after a failover."""
    if getattr(context.original_exception, 'sqlstate', None) == READ_ONLY:
        context.is_disconnect = True


def _write_through(connection: Any, record: Any) -> None:
    """Write each commit to the disk: by default, some builds of SQLite do not in WAL mode."""
    connection.execute('PRAGMA synchronous = FULL')


def _is_temporary(problem: Exception) -> bool:
    """Return True if the same transaction can succeed later, for example after a connection error."""
    if isinstance(problem, DBAPIError):
        sqlite_code = getattr(problem.orig, 'sqlite_errorcode', None)
        if sqlite_code is not None:
            return sqlite_code & 0xFF in TRY_AGAIN
        return problem.connection_invalidated or isinstance(problem, (InterfaceError, OperationalError))
    return isinstance(problem, PoolTimeout)


def _cause(problem: Exception) -> str:
    """Return the cause in one line, without the SQL statement that SQLAlchemy adds."""
    cause = problem.orig if isinstance(problem, DBAPIError) else problem
    return str(cause).strip().partition('\n')[0] or type(cause).__name__
