"""The simulated database, users.json: who holds which tokens. Whole at any moment, private, one record per user."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from loguru import logger

from zendesk_oauth import private_file
from zendesk_oauth.token_store import (
    REFRESH_TIMEOUT,
    WRITE_TIMEOUT,
    Record,
    Store,
    StoreBusy,
    StoreError,
    dies_at,
    found,
    usable,
)

EDIT_TIMEOUT = 1  # seconds for an editor, or a copy, to finish writing the file
CLOCK_TICK, COARSE_CLOCK_TICK = 0.1, 3  # seconds; changes that are further apart have different times

REMEDY = 'Check the disk, and the permissions of the folder and the file'


class _NotJson(Exception):
    """The file is not one that the app could have written."""


class UsersDb(Store):
    """
    The records in the JSON file at `path`, for all threads and processes of one machine.

    An edit by hand counts at once. Those that write hold a lock from the reading to the writing, so that nobody's
    record is lost between two writers. A file that is no store is set aside, under another name.
    """

    _last_read: tuple[tuple[int, ...], dict[str, Any]] = (), {}  # a version of a file, and what it held

    def __init__(self, path: str) -> None:
        self.path = path

    def __str__(self) -> str:
        return self.path

    def find(self, user_id: str) -> Record | None:
        record = found(self._current().get(user_id), self)
        return None if record is None else dict(record)

    def save(self, user_id: str, record: Record) -> None:
        """Set the user's record; and clear away dead ones, and the locks of processes that were killed."""
        target = Path(self.path)
        for leftover in target.parent.glob(f'{target.name}.*.lock'):
            with contextlib.suppress(StoreError), _locked(str(leftover), timeout=0, unlink=True):
                pass
        with self._changing() as records:
            now = time.time()
            dead = [user_id for user_id, record in records.items() if (dies_at(record) or now) < now]
            if dead:
                logger.info('Dropping the records of {} users: their refresh tokens died long ago', len(dead))
            for dead_id in dead:
                del records[dead_id]
            records[user_id] = record

    def remove(self, user_id: str) -> Record | None:
        with self._changing() as records:
            return usable(records.pop(user_id, None))

    def replace(self, user_id: str, refresh_token: str, record: Record | None) -> Record | None:
        with self._changing() as records:
            stored = usable(records.get(user_id))
            if stored is None or stored['refresh_token'] != refresh_token:
                return stored
            if record is None:
                del records[user_id]
            else:
                records[user_id] = record
            return record

    def rehearse(self) -> None:
        """Fail if the file could not be written, with some more in it."""
        with _or_store_error(f"{self.path} can't be written"):
            private_file.rehearse(self.path)

    @contextlib.contextmanager
    def refreshing(self, user_id: str) -> Iterator[None]:
        """Hold a lock file of this user's own. The system gives the lock back when its holder dies."""
        path = f'{self.path}.{hashlib.sha256(user_id.encode()).hexdigest()[:32]}.lock'
        with _locked(path, REFRESH_TIMEOUT, unlink=True):
            yield

    def first_use(self, key: str, seconds: int) -> bool:
        """Make a marker file, which can be created only once: that is what all threads and processes agree on."""
        folder = Path(f'{self.path}.used')
        with _or_store_error(f"{folder} can't be written"):
            folder.mkdir(mode=0o700, exist_ok=True)
            for marker in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # swept by another process
                    if marker.stat().st_mtime < time.time() - seconds:
                        marker.unlink()
            with contextlib.suppress(FileExistsError):
                (folder / key).touch(mode=0o600, exist_ok=False)
                return True
        return False

    def _current(self) -> dict[str, Any]:
        """Return the records, not to be changed. As long as the file is the same one, it is not read again."""
        with _or_store_error(f"{self.path} can't be read"):
            try:
                now, status = time.time(), Path(self.path).stat()
            except FileNotFoundError:
                return {}
        version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        last_version, last_records = UsersDb._last_read
        if last_version == version:
            return last_records
        try:
            records = self._read()
        except _NotJson:
            with _locked(f'{self.path}.lock', WRITE_TIMEOUT):
                return self._read_or_set_aside()
        # Right after a change, another one could still leave the file with the same times and size. Times without a
        # fraction come from a disk that counts in seconds.
        tick = CLOCK_TICK if status.st_mtime_ns % 10**9 else COARSE_CLOCK_TICK
        if max(status.st_mtime, status.st_ctime) < now - tick:
            UsersDb._last_read = version, records
        return records

    def _read(self) -> dict[str, Any]:
        with _or_store_error(f"{self.path} can't be read"):
            try:
                records = json.loads(Path(self.path).read_text(encoding='utf-8-sig'))
            except FileNotFoundError:
                return {}
            except (ValueError, RecursionError) as error:
                raise _NotJson from error
        if not isinstance(records, dict):
            raise _NotJson
        return records

    def _read_or_set_aside(self) -> dict[str, Any]:
        """Return the records; a file that is no store goes out of the way, unless somebody is just writing it."""
        deadline = time.monotonic() + EDIT_TIMEOUT
        while True:
            try:
                return self._read()
            except _NotJson:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
        aside = f'{self.path}.unreadable-{time.time_ns()}'
        with _or_store_error(f"{self.path} is not JSON, and can't be moved away"):
            Path(self.path).chmod(0o600)
            Path(self.path).rename(aside)
        logger.error(
            '{} is not a JSON object any more, so it is now called {}. Mend it and call it {} again (or, if there is a '
            'new one by then, copy the records into that); else everybody in it has to grant access anew',
            self.path,
            aside,
            self.path,
        )
        return {}

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """Lend the records for a change, and write them if there was one."""
        with _locked(f'{self.path}.lock', WRITE_TIMEOUT):
            records = self._read_or_set_aside()
            before = dict(records)
            yield records
            if records != before:
                with _or_store_error(f"{self.path} can't be written"):
                    private_file.write(self.path, json.dumps(records, sort_keys=True, indent=2) + '\n')


@contextlib.contextmanager
def _or_store_error(what: str) -> Iterator[None]:
    """Turn an error of the disk into one with a page, whose log line tells what failed, why, and the remedy."""
    try:
        yield
    except OSError as error:
        raise StoreError(f'{what}: {error.strerror}. {REMEDY}') from error


@contextlib.contextmanager
def _locked(path: str, timeout: float, unlink: bool = False) -> Iterator[None]:
    """
    Hold the lock file at `path`; wait for it up to `timeout` seconds.

    With `unlink` the file goes while the lock is still held, so that no lock files pile up: filelock (4 and newer)
    notices that it has locked a file without a name, and takes the new one.
    """
    lock = FileLock(path, timeout=timeout, mode=0o600)
    with _or_store_error(f"the lock {path} can't be had"):
        try:
            lock.acquire()
        except Timeout as error:
            raise StoreBusy(f'the lock {path} is still held after {timeout} s. Nothing to do but try again') from error
    try:
        yield
    finally:
        if unlink:
            with contextlib.suppress(OSError):  # Windows does not unlink an open file
                Path(path).unlink()
        lock.release()
