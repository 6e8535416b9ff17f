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

import private_file
from problems import Problem

WRITE_TIMEOUT = 10  # seconds to wait for another write
REFRESH_TIMEOUT = 20  # seconds to wait for another refresh of the same user's tokens

Record = dict[str, Any]


class StoreError(Problem):
    """The file can't be read or written; what it holds stays as it is."""

    status = 503
    title = 'The app can not reach its stored data'
    advice = 'Nothing is lost. Please try again in a moment; whoever runs the app finds the reason in its log.'


class UsersDb:
    """
    The records in the JSON file at `path`: user id to record, a record being at least
    `{'access_token': str, 'refresh_token': str}`.

    Each method reads the file anew, so an edit by hand counts at once. Those that write hold a lock from the reading
    to the writing, so that nobody's record is lost between two writers. All raise StoreError.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def find(self, user_id: str) -> Record | None:
        """Return the user's record, or None where there is none that could be used."""
        return _usable(self._read().get(user_id))

    def save(self, user_id: str, record: Record) -> None:
        """Set the user's record."""
        with self._changing() as records:
            records[user_id] = record

    def remove(self, user_id: str) -> None:
        """Remove the user's record, if there is one."""
        with self._changing() as records:
            records.pop(user_id, None)

    def replace(self, user_id: str, refresh_token: str, record: Record | None) -> Record | None:
        """
        Set the record (None removes it) if the one in the file still has this refresh token; return what is there then.

        Whatever came in between stays: a removed grant does not come back, and a newer one is not overwritten.
        """
        with self._changing() as records:
            stored = _usable(records.get(user_id))
            if stored is None or stored['refresh_token'] != refresh_token:
                return stored
            if record is None:
                del records[user_id]
            else:
                records[user_id] = record
            return record

    @contextlib.contextmanager
    def refreshing(self, user_id: str) -> Iterator[None]:
        """
        Let one refresh of this user's tokens happen at a time, over all threads and processes on this machine.

        The system gives the lock back when its holder dies. The file is unlinked while the lock is still held, so that
        no lock files pile up: filelock (4 and newer) notices that it has locked a file without a name, and takes the
        new one.
        """
        path = f'{self.path}.{hashlib.sha256(user_id.encode()).hexdigest()[:32]}.lock'
        with _locked(path, REFRESH_TIMEOUT):
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # Windows does not unlink an open file
                    Path(path).unlink()

    def first_use(self, key: str, seconds: int) -> bool:
        """
        Tell whether nobody has called this with the same key in the last `seconds`.

        A marker file that can be created only once is what all threads and processes agree on. `key` is part of its
        name, so it must be a safe one, and not a secret.
        """
        folder = Path(f'{self.path}.used')
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            for marker in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # swept by another process
                    if marker.stat().st_mtime < time.time() - seconds:
                        marker.unlink()
            (folder / key).touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            return False
        except OSError as error:
            raise StoreError(f"{folder} can't be written: {error.strerror}") from error
        return True

    def _read(self) -> dict[str, Any]:
        try:
            records = json.loads(Path(self.path).read_text(encoding='utf-8-sig'))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StoreError(f"{self.path} can't be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise StoreError(f'{self.path} is not JSON: mend it, or move it away to start anew') from error
        if not isinstance(records, dict):
            raise StoreError(f'{self.path} is not a JSON object: mend it, or move it away to start anew')
        return records

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """Lend the records for a change, and write them if there was one."""
        with _locked(f'{self.path}.lock', WRITE_TIMEOUT):
            records = self._read()
            before = dict(records)
            yield records
            if records != before:
                try:
                    private_file.write(self.path, json.dumps(records, sort_keys=True, indent=2) + '\n')
                except OSError as error:
                    raise StoreError(f"{self.path} can't be written: {error.strerror}") from error


@contextlib.contextmanager
def _locked(path: str, timeout: float) -> Iterator[None]:
    lock = FileLock(path, timeout=timeout, mode=0o600)
    try:
        lock.acquire()
    except (OSError, Timeout) as error:
        raise StoreError(f"the lock {path} can't be had: {type(error).__name__}") from error
    try:
        yield
    finally:
        lock.release()


def _usable(record: Any) -> Record | None:
    """Return the record if it is one: somebody may have edited it by hand."""
    tokens = ('access_token', 'refresh_token')
    return record if isinstance(record, dict) and all(isinstance(record.get(name), str) for name in tokens) else None
