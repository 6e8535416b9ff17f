"""The token store interface, JsonFileStore, which stores the tokens in a JSON file, and MemoryStore for tests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from zendesk_oauth.errors import LockTimeout, StoreError

REFRESH_TIMEOUT = 10  # seconds to wait for another refresh of the same user's tokens
WRITE_TIMEOUT = 60  # seconds to try to write: giving up loses tokens that Zendesk has just issued
EDIT_TIMEOUT = 1  # seconds for an editor, or a copy, to finish writing the file
GRACE = 24 * 3600  # seconds to keep a record after its refresh token expires, because clocks differ
HOUR = 3600  # seconds
SWEEP = 100  # files or rows to look at in one sweep
SPARE = 32 * 1024  # bytes by which the file may grow after `check_writable`: two tokens of the maximum length, escaped
IN_USE_TIMEOUT = 3 if os.name == 'nt' else 0  # seconds to retry while another program has the file open (Windows)

# What to do about an error of the operating system.
MOUNT_REMEDY = 'Mount its folder instead, and use that folder as the working directory'
REMEDIES = {
    errno.EBUSY: f'The file may be a mount, which cannot be replaced. {MOUNT_REMEDY}',
    **dict.fromkeys((errno.ENOLCK, errno.EOPNOTSUPP), 'The file system has no locks. Use a folder on a local disk'),
}

Record = dict[str, Any]

log = logging.getLogger('zendesk_oauth')


class Store(Protocol):
    """
    A token store. It maps a user id to a record, at least `{'access_token': str, 'refresh_token': str}`. The values of
    other keys are strings, integers or None. Store them unchanged.

    Each method is atomic across threads, processes and machines, and its changes survive a crash. Each method can raise
    StoreError. `str(store)` is the name of the store in the log.
    """

    def find(self, user_id: str) -> Record | None:
        """Return the user's record, or None if there is no valid one."""

    def save(self, user_id: str, record: Record) -> None:
        """
        Set the user's record.

        Delete all records whose `refresh_token_expires_at` (seconds since 1970) is more than GRACE seconds ago.
        """

    def remove(self, user_id: str) -> Record | None:
        """Delete the user's record. Return it if it was valid, else None."""

    def replace(self, user_id: str, refresh_token: str, record: Record | None) -> Record | None:
        """
        If the stored record has this refresh token, replace it with `record`, or delete it if `record` is None.

        Return the record that is stored afterward.
        """

    def check_setup(self) -> None:
        """Raise StoreError if the store is not usable in its current location. Call it once, when the app starts."""
        return

    def check_readable(self) -> None:
        """Raise StoreError if the records cannot be read. Change nothing."""
        return

    def check_writable(self) -> None:
        """Raise StoreError if the store is not writable. Call it under the lock, before a request."""

    def refresh_lock(self, user_id: str, timeout: float | None = None) -> AbstractContextManager[Record | None]:
        """
        Hold the lock for refreshing this user's tokens, and yield the current record or None.

        Raises:
            LockTimeout: another refresh held the lock for `timeout` seconds, by default REFRESH_TIMEOUT.
        """

    def consume_once(self, key: str, expires_at: int) -> bool:
        """
        Return True for the first call with this key, then False until `expires_at` (seconds since 1970).

        `key` consists of letters, digits, `-` and `_`, because it may be part of a file name. It is not a secret.
        """


def valid_record(record: Any, store: Store) -> Record | None:
    """Return a copy of the record, or None if it lacks a token, for example after an edit by hand."""
    tokens = ('access_token', 'refresh_token')
    if isinstance(record, dict) and all(isinstance(record.get(name), str) for name in tokens):
        return dict(record)
    if record is not None:
        log.warning('Ignoring a record without tokens in %s. Repair it before the user grants access again', store)
    return None


def purge_at(record: Any) -> int | None:
    """Return when to delete the record (seconds since 1970), or None if its refresh token's expiry is unknown."""
    expires_at = record.get('refresh_token_expires_at') if isinstance(record, dict) else None
    return expires_at + GRACE if type(expires_at) is int else None


def has_expired(expires_at: Any) -> bool:
    """Return whether the time (seconds since 1970) is in the past. None is unknown, so False."""
    return type(expires_at) is int and expires_at < time.time()


class _DictStore(Store):
    """A store whose records are in one dictionary. A subclass defines how to read and how to change it."""

    def _current(self) -> dict[str, Any]:
        """Return the records; do not change them."""
        raise NotImplementedError

    def _changing(self) -> AbstractContextManager[dict[str, Any]]:
        """Yield the records to change, while no other thread or process can change them."""
        raise NotImplementedError

    def find(self, user_id: str) -> Record | None:
        return valid_record(self._current().get(user_id), self)

    def save(self, user_id: str, record: Record) -> None:
        with self._changing() as records:
            now = time.time()
            expired = [user_id for user_id, record in records.items() if (purge_at(record) or now) < now]
            if expired:
                log.info('Deleting records with expired refresh tokens: %s', len(expired))
            for expired_id in expired:
                del records[expired_id]
            records[user_id] = dict(record)

    def remove(self, user_id: str) -> Record | None:
        with self._changing() as records:
            return valid_record(records.pop(user_id, None), self)

    def replace(self, user_id: str, refresh_token: str, record: Record | None) -> Record | None:
        with self._changing() as records:
            stored = valid_record(records.get(user_id), self)
            if stored is None or stored['refresh_token'] != refresh_token:
                return stored
            if record is None:
                del records[user_id]
            else:
                records[user_id] = dict(record)
            return record


class MemoryStore(_DictStore):
    """A store for tests: the records are in this object, and only the threads of this process share them."""

    def __init__(self) -> None:
        self._records: dict[str, Any] = {}
        self._used: set[str] = set()
        self._lock = threading.Lock()
        self._refresh_locks: dict[str, threading.Lock] = {}

    def __str__(self) -> str:
        return 'memory'

    def check_writable(self) -> None:
        """Do nothing: memory is always writable."""

    @contextlib.contextmanager
    def refresh_lock(self, user_id: str, timeout: float | None = None) -> Iterator[Record | None]:
        lock = self._refresh_locks.setdefault(user_id, threading.Lock())
        if not lock.acquire(timeout=REFRESH_TIMEOUT if timeout is None else timeout):
            raise LockTimeout('Another refresh of the same tokens did not end in time. Try again later')
        try:
            yield self.find(user_id)
        finally:
            lock.release()

    def consume_once(self, key: str, expires_at: int) -> bool:
        with self._lock:
            is_new = key not in self._used
            self._used.add(key)
            return is_new

    def _current(self) -> dict[str, Any]:
        return self._records

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        with self._lock:
            yield self._records


class JsonFileStore(_DictStore):
    """
    A plain-text JSON file, shared by all threads and processes of one machine.

    `path` is the file, or a function that returns it. Edits by hand take effect at the next request. Writers lock the
    file while they read, change and replace it. A mount cannot be replaced, and a symbolic link would be lost, so both
    are rejected. A file that is not a JSON object is renamed, never overwritten. A folder next to it, such as
    `users.json.d`, holds the lock files and a marker for each consumed key.
    """

    def __init__(self, path: str | Path | Callable[[], str]) -> None:
        self._path = path
        self._last_read: tuple[tuple[int, ...], dict[str, Any]] = (), {}  # a version of the file, and its records

    def __str__(self) -> str:
        return str(self._path() if callable(self._path) else self._path)

    def save(self, user_id: str, record: Record) -> None:
        self._sweep_locks()
        super().save(user_id, record)

    def check_setup(self) -> None:
        """Raise StoreError if the file cannot be read or replaced."""
        path, lock_folder = Path(str(self)).absolute(), Path(f'{self}.d').absolute()
        with _or_store_error(f'{path} cannot be read or replaced'):
            refuse_planted(path)
            # Do not replace the file here: if root runs this check, the new file would belong to root.
            probe = tempfile.TemporaryDirectory(dir=path.parent, prefix=f'{path.name}.', ignore_cleanup_errors=True)
            with probe as folder, FileLock(Path(folder, 'lock')):
                try:
                    Path(folder, 'link').hardlink_to(path)
                except OSError as error:
                    if error.errno == errno.EXDEV:  # a mount counts as another device
                        raise StoreError(f'{path} is a mount, which cannot be replaced. {MOUNT_REMEDY}') from error
            if path.exists() and not path.is_file():
                raise StoreError(f'{path} is not a file. Delete it. The app creates the file when it needs it')
            with contextlib.suppress(FileNotFoundError):
                path.open('rb').close()
        with _or_store_error(f'{lock_folder} cannot be written'):
            refuse_planted(lock_folder)
            if lock_folder.exists():
                tempfile.TemporaryFile(dir=lock_folder).close()

    def check_readable(self) -> None:
        """Raise StoreError if the file cannot be read, or if it is not a JSON object. Do not rename it."""
        try:
            self._read_if_changed()
        except _NotJson:
            raise StoreError(
                f'{self} is not a JSON object. Repair it, or the app renames it at the next request'
            ) from None

    def check_writable(self) -> None:
        """Rewrite the file unchanged, with room to grow, in the normal way. It fails if the real write would fail."""
        with self._changing(spare=SPARE):
            pass

    @contextlib.contextmanager
    def refresh_lock(self, user_id: str, timeout: float | None = None) -> Iterator[Record | None]:
        """Hold a lock file of this user. The operating system releases it if the process is killed."""
        name = hashlib.sha256(user_id.encode()).hexdigest()[:32]
        with self._locked(name, REFRESH_TIMEOUT if timeout is None else timeout):
            # Skip the cache: a file that changes twice within one tick of the file system's clock can look unchanged.
            yield valid_record(self._current(cached=False).get(user_id), self)

    def consume_once(self, key: str, expires_at: int) -> bool:
        """Create a marker file, in a folder for the hour of its expiry. Only one thread or process can succeed."""
        folder = self._folder(f'used-{expires_at // HOUR}')
        self._sweep_markers()
        with _or_store_error(f'{folder} cannot be written'), contextlib.suppress(FileExistsError):
            (folder / key).touch(mode=0o600, exist_ok=False)
            return True
        return False

    # --- Reading --- #

    def _current(self, cached: bool = True) -> dict[str, Any]:
        """Return the records, which callers must not change. If the file is not a JSON object, rename it first."""
        with contextlib.suppress(_NotJson):
            return self._read_if_changed(cached)
        with self._locked('write', WRITE_TIMEOUT):
            return self._read_or_rename()

    def _read_if_changed(self, cached: bool = True) -> dict[str, Any]:
        """Return the records, or raise _NotJson. Use the cache if `cached` is true and the file has not changed."""
        with _or_store_error(f'{self} cannot be read'):
            try:
                status = Path(str(self)).stat()
            except FileNotFoundError:
                return {}
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        last_version, last_records = self._last_read
        if cached and last_version == version:
            return last_records
        records = self._read()
        self._last_read = version, records  # another thread may replace it before this one returns
        return records

    def _read(self) -> dict[str, Any]:
        with _or_store_error(f'{self} cannot be read'):
            try:
                text = _retry_while_in_use(lambda: Path(str(self)).read_text(encoding='utf-8-sig'))
                records = json.loads(text)
            except FileNotFoundError:
                return {}
            except (ValueError, RecursionError):
                records = None
        if not isinstance(records, dict):
            raise _NotJson
        return records

    def _read_or_rename(self) -> dict[str, Any]:
        """Return the records. Rename the file if it is not JSON after EDIT_TIMEOUT: an editor may be writing it."""
        refuse_planted(Path(str(self)))
        deadline = time.monotonic() + EDIT_TIMEOUT
        while True:
            try:
                return self._read()
            except _NotJson:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
        renamed = f'{self}.unreadable-{time.time_ns()}'
        with _or_store_error(f'{self} is not JSON, and cannot be renamed'):
            Path(str(self)).rename(renamed).chmod(0o600)
        log.error(
            '%s is not a JSON object: renamed to %s. Repair it, then rename it back or copy its records into the new '
            '%s. Otherwise its users must grant access again',
            self,
            renamed,
            self,
        )
        return {}

    # --- Writing --- #

    @contextlib.contextmanager
    def _changing(self, spare: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the records to change. Write them if they changed, or if `spare` bytes must be available."""
        with self._locked('write', WRITE_TIMEOUT):
            records = self._read_or_rename()
            before = dict(records)
            yield records
            if spare or records != before:
                with _or_store_error(f'{self} cannot be written'):
                    write_private_file(str(self), json.dumps(records, sort_keys=True, indent=2) + '\n', spare)

    # --- Locks and markers --- #

    def _folder(self, name: str) -> Path:
        """Return this folder in `users.json.d`, creating both if needed."""
        folder = Path(f'{self}.d') / name
        with _or_store_error(f'{folder} cannot be created'):
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            refuse_planted(folder.parent)
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def _locked(self, name: str, timeout: float) -> Iterator[None]:
        """Hold the lock file with this name. Wait for it up to `timeout` seconds."""
        path = self._folder('locks') / f'{name}.lock'
        lock = FileLock(path, timeout=timeout, mode=0o600)
        # The messages do not contain the name of the file, which is a hash of the user id.
        with _or_store_error(f'a lock in {path.parent} cannot be acquired'):
            try:
                lock.acquire()
            except Timeout:
                raise LockTimeout(
                    f'A lock in {path.parent} was not released within {timeout} s. Try again later'
                ) from None
        try:
            yield
        finally:
            lock.release()

    def _sweep_locks(self) -> None:
        """Delete unused lock files. Look at no more than SWEEP files."""
        with contextlib.suppress(OSError), os.scandir(self._folder('locks')) as files:
            for file in itertools.islice(files, SWEEP):
                # Delete it while holding the lock: filelock (4 and newer) checks whether its file was deleted.
                with contextlib.suppress(OSError, Timeout), FileLock(file.path, timeout=0, mode=0o600):
                    Path(file.path).unlink()

    def _sweep_markers(self) -> None:
        """Delete up to SWEEP expired markers per folder. Without the limit, a flood of markers would slow a request."""
        for folder in Path(f'{self}.d').glob('used-*'):
            # Another process may sweep the same folder, and a folder may have an unexpected name.
            with contextlib.suppress(OSError, ValueError):
                if (int(folder.name.removeprefix('used-')) + 1) * HOUR < time.time():
                    with os.scandir(folder) as markers:  # Path.iterdir would read the whole folder
                        for marker in itertools.islice(markers, SWEEP):
                            Path(marker.path).unlink()
                    folder.rmdir()  # fails if more markers are left


class _NotJson(Exception):
    """The file is not a JSON object."""


@contextlib.contextmanager
def _or_store_error(what: str) -> Iterator[None]:
    """Convert an OSError to a StoreError whose message has the failed step, the cause and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, 'Check the disk, and the permissions of the folder and the file')
        raise StoreError(f'{what}: {error.strerror}. {remedy}') from error


def owner_is_trusted(path: Path, owner: int) -> bool:
    """Return True if the account can replace the file anyway: the app's account, root and the owner of the folder."""
    return os.name != 'posix' or owner in {0, os.geteuid(), path.parent.stat().st_uid}


def refuse_planted(path: Path) -> None:
    """Refuse a link, and a file of an account that is not trusted: in a shared folder, anyone can create them."""
    if path.is_symlink():
        raise StoreError(f'{path.absolute()} is a symbolic link. Remove it, or replace it with its target')
    if path.exists() and not owner_is_trusted(path, path.stat().st_uid):
        remedy = "Check its content, then use chown to give it to the app's account"
        raise StoreError(f'{path.absolute()} belongs to another account. {remedy}')


def _retry_while_in_use(operation: Callable[[], Any]) -> Any:
    """
    Call `operation` and return its result. Retry it after a PermissionError for IN_USE_TIMEOUT seconds.

    Windows raises this error while a virus scanner, an editor or another thread has the file open.
    """
    deadline = time.monotonic() + IN_USE_TIMEOUT
    while True:
        try:
            return operation()
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def write_private_file(path: str, text: str, spare: int = 0) -> None:
    """
    Replace the file at `path` with `text` (UTF-8), atomically, readable by its owner only.

    Readers see either the old or the new file, because a rename within a folder is atomic. `fsync` writes the new file
    to the disk before the rename. The temporary file always has the same name, so the next write deletes it if a killed
    process left it behind. Therefore the caller must hold a lock. The disk must have room for `spare` more bytes.

    Raises:
        OSError: the disk is full or the folder is not writable. The old file is unchanged.
    """
    target = Path(path)
    temporary = target.with_name(f'{target.name}.tmp')
    try:
        temporary.unlink(missing_ok=True)
        # Created with mode 0600, so it is never readable by others.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, 'w', encoding='utf-8') as file:
            file.write(text + ' ' * spare)
            file.flush()
            file.truncate(len(text.encode()))
            os.fsync(file.fileno())
        _retry_while_in_use(lambda: temporary.replace(target))
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # Windows and some network disks cannot sync a folder
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
