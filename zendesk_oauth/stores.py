"""Token stores: the interface, and JsonFileStore, which keeps the records in users.json."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
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
GRACE = 24 * 3600  # seconds that a record outlives its refresh token: clocks differ
HOUR = 3600  # seconds
SWEEP = 100  # files to look at in one sweep
SPARE = 4096  # bytes by which the file can grow between the check and the real write

Record = dict[str, Any]

log = logging.getLogger('zendesk_oauth')


class Store(Protocol):
    """
    A token store: user id to record, a record being at least `{'access_token': str, 'refresh_token': str}`.

    Each method is atomic over threads, processes and machines, and its changes survive a crash. Each of them can raise
    StoreError. `str(store)` is its name in the log.
    """

    def find(self, user_id: str) -> Record | None:
        """Return the user's record, or None if there is no valid one."""

    def save(self, user_id: str, record: Record) -> None:
        """
        Set the user's record.

        Delete records whose `refresh_token_expires_at` (seconds since 1970) is more than GRACE seconds ago.
        """

    def remove(self, user_id: str) -> Record | None:
        """Delete the user's record, and return it if it was valid."""

    def replace(self, user_id: str, refresh_token: str, record: Record | None) -> Record | None:
        """Set the record (None deletes it) if the stored one has this refresh token; return what is stored now."""

    def check_writable(self) -> None:
        """Raise StoreError if the store is not writable. Call it just before a request for tokens."""

    def refresh_lock(self, user_id: str) -> AbstractContextManager[Record | None]:
        """
        Hold the lock for refreshing this user's tokens, and no other user's; yield the record as it is now, or None.

        Raises:
            LockTimeout: another refresh held the lock for REFRESH_TIMEOUT seconds.
        """

    def consume_once(self, key: str, expires_at: int) -> bool:
        """
        Return True for the first call with this key, then False until `expires_at` (seconds since 1970).

        `key` consists of letters, digits, `-` and `_`, because it may become part of a file name. It is not a secret.
        """


def valid_record(record: Any, store: Store) -> Record | None:
    """Return a copy of the record, or None if a token is missing, for example after an edit by hand."""
    tokens = ('access_token', 'refresh_token')
    if isinstance(record, dict) and all(isinstance(record.get(name), str) for name in tokens):
        return dict(record)
    if record is not None:
        log.warning('Ignoring a record in %s that lacks a token. Repair it before the user grants access again', store)
    return None


def purge_at(record: Any) -> int | None:
    """Return when the record can be deleted, in seconds since 1970; None if its refresh token's lifetime is unknown."""
    expires_at = record.get('refresh_token_expires_at') if isinstance(record, dict) else None
    return expires_at + GRACE if type(expires_at) is int else None


class JsonFileStore(Store):
    """
    Store records as plain text in one JSON file, for all threads and processes of one machine.

    `path` is the file, or a function that returns it. Edits by hand take effect at the next request. Writers lock the
    file while they read, change and replace it. A file that is not a JSON object is renamed, never overwritten. The
    folder `users.json.d` beside it holds the locks and a marker for each consumed key.
    """

    def __init__(self, path: str | Callable[[], str]) -> None:
        self._path = path
        self._last_read: tuple[tuple[int, ...], dict[str, Any]] = (), {}  # a version of the file, and its records

    def __str__(self) -> str:
        return self._path() if callable(self._path) else self._path

    def find(self, user_id: str) -> Record | None:
        return valid_record(self._current().get(user_id), self)

    def save(self, user_id: str, record: Record) -> None:
        self._sweep_locks()
        with self._changing() as records:
            now = time.time()
            expired = [user_id for user_id, record in records.items() if (purge_at(record) or now) < now]
            if expired:
                log.info('Deleting the records of %s users: their refresh tokens expired long ago', len(expired))
            for expired_id in expired:
                del records[expired_id]
            records[user_id] = record

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
                records[user_id] = record
            return record

    def check_writable(self) -> None:
        """Write the file unchanged, in the normal way and with room to grow: it fails if the real write would fail."""
        with self._changing(spare=SPARE):
            pass

    @contextlib.contextmanager
    def refresh_lock(self, user_id: str) -> Iterator[Record | None]:
        """Hold a lock file of this user. The operating system releases it if the process is killed."""
        name = hashlib.sha256(user_id.encode()).hexdigest()[:32]
        with self._locked(name, REFRESH_TIMEOUT):
            # Past the cache: within one tick of the file system's clock, a changed file can look unchanged.
            yield valid_record(self._current(cached=False).get(user_id), self)

    def consume_once(self, key: str, expires_at: int) -> bool:
        """Create a marker file, in a folder of the hour in which it expires. Only one thread or process can succeed."""
        self._sweep_markers()
        folder = self._folder(f'used-{expires_at // HOUR}')
        with _or_store_error(f"{folder} can't be written"), contextlib.suppress(FileExistsError):
            (folder / key).touch(mode=0o600, exist_ok=False)
            return True
        return False

    # --- Reading --- #

    def _current(self, cached: bool = True) -> dict[str, Any]:
        """Return the records, not to be changed. While the file stays the same, it is not read again."""
        with _or_store_error(f"{self} can't be read"):
            try:
                status = Path(str(self)).stat()
            except FileNotFoundError:
                return {}
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        last_version, last_records = self._last_read
        if cached and last_version == version:
            return last_records
        try:
            records = self._read()
        except _NotJson:
            with self._locked('write', WRITE_TIMEOUT):
                return self._read_or_rename()
        self._last_read = version, records
        return records

    def _read(self) -> dict[str, Any]:
        with _or_store_error(f"{self} can't be read"):
            try:
                records = json.loads(Path(str(self)).read_text(encoding='utf-8-sig'))
            except FileNotFoundError:
                return {}
            except (ValueError, RecursionError) as error:
                raise _NotJson from error
        if not isinstance(records, dict):
            raise _NotJson
        return records

    def _read_or_rename(self) -> dict[str, Any]:
        """Return the records; rename a file that is not a JSON object, unless an editor is just writing it."""
        deadline = time.monotonic() + EDIT_TIMEOUT
        while True:
            try:
                return self._read()
            except _NotJson:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
        renamed = f'{self}.unreadable-{time.time_ns()}'
        with _or_store_error(f"{self} is not JSON, and can't be renamed"):
            Path(str(self)).chmod(0o600)
            Path(str(self)).rename(renamed)
        log.error(
            '%s is not a JSON object: renamed to %s. Repair it and restore its name (or, if there is a new file of '
            'that name, copy the records into it), or its users must grant access again',
            self,
            renamed,
        )
        return {}

    # --- Writing --- #

    @contextlib.contextmanager
    def _changing(self, spare: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the records to be changed. Write them if they were changed, or to see if there are `spare` bytes."""
        with self._locked('write', WRITE_TIMEOUT):
            records = self._read_or_rename()
            before = dict(records)
            yield records
            if spare or records != before:
                with _or_store_error(f"{self} can't be written"):
                    write_private_file(str(self), json.dumps(records, sort_keys=True, indent=2) + '\n', spare)

    # --- Locks and markers --- #

    def _folder(self, name: str) -> Path:
        """Return this folder in `users.json.d`, creating both if needed."""
        folder = Path(f'{self}.d') / name
        with _or_store_error(f"{folder} can't be created"):
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def _locked(self, name: str, timeout: float) -> Iterator[None]:
        """Hold the lock file of this name; wait for it up to `timeout` seconds."""
        path = self._folder('locks') / f'{name}.lock'
        lock = FileLock(path, timeout=timeout, mode=0o600)
        with _or_store_error(f"the lock {path} can't be acquired"):
            try:
                lock.acquire()
            except Timeout as error:
                raise LockTimeout(f'The lock {path} was not released within {timeout} s. Try again later') from error
        try:
            yield
        finally:
            lock.release()

    def _sweep_locks(self) -> None:
        """Delete lock files that nobody holds, looking at no more than SWEEP files."""
        with contextlib.suppress(OSError), os.scandir(self._folder('locks')) as files:
            for file in itertools.islice(files, SWEEP):
                # Under the lock: filelock (4 and newer) notices that its file was deleted while it waited.
                with contextlib.suppress(OSError, Timeout), FileLock(file.path, timeout=0, mode=0o600):
                    Path(file.path).unlink()

    def _sweep_markers(self) -> None:
        """Delete expired markers, no more than SWEEP, so that strangers who leave many cannot slow anybody down."""
        for folder in Path(f'{self}.d').glob('used-*'):
            # Suppressed: another process sweeps the same folder, or somebody has made a folder of such a name.
            with contextlib.suppress(OSError, ValueError):
                if (int(folder.name.removeprefix('used-')) + 1) * HOUR < time.time():
                    for marker in itertools.islice(folder.iterdir(), SWEEP):
                        marker.unlink()
                    folder.rmdir()  # fails if more markers are left


class _NotJson(Exception):
    """The file is not a JSON object."""


@contextlib.contextmanager
def _or_store_error(what: str) -> Iterator[None]:
    """Turn an error of the disk into a StoreError, whose log line names what failed, the cause and the remedy."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f'{what}: {error.strerror}. Check the disk, and the permissions of the folder and the file'
        ) from error


def write_private_file(path: str, text: str, spare: int = 0) -> None:
    """
    Replace the file at `path` with `text` (UTF-8), atomically, readable by its owner only.

    Readers see either the old or the new file, because a rename within a folder is atomic. `fsync` puts the new one on
    the disk before the old one goes. The temporary file always has the same name, so that the next write deletes what
    a killed one has left behind; for that the caller holds a lock. The disk must have `spare` bytes more.

    Raises:
        OSError: the disk is full, or the folder is not writable. The old file is untouched.
    """
    target = Path(path).resolve()  # a link stays, and the file that it leads to is replaced
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
        temporary.replace(target)
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
