"""What a store of tokens does, and how it fails: users_db.py is one, postgresql_db.py another, a product's a third."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from loguru import logger

from zendesk_oauth.errors import Problem

REFRESH_TIMEOUT = 10  # seconds to wait for another refresh of the same user's tokens
WRITE_TIMEOUT = 60  # seconds to try to write: whoever gives up loses a pair that Zendesk has just issued
GRACE = 24 * 3600  # seconds that a record outlives its refresh token: clocks differ

Record = dict[str, Any]


class StoreError(Problem):
    """The store can't be read or written; what it holds stays as it is."""

    status = 503
    title = 'The app cannot reach its stored data'
    advice = (
        'Please try again in a moment. If the app asks you for access then, grant it once more. '
        'Whoever runs the app finds the reason in its log.'
    )


class StoreBusy(StoreError):
    """Somebody else holds the lock, and does not let go in time."""

    title = 'The app is busy'
    advice = 'Please try again in a moment. If the app asks you for access then, grant it once more.'
    retry_after = 10


class Store(Protocol):
    """
    Who holds which tokens: user id to record, a record being at least `{'access_token': str, 'refresh_token': str}`.

    Each method is one step that happens as a whole or not at all, whatever other threads, processes and machines do at
    the same time; what it has written survives a crash. All of them raise StoreError. `str` names the store in the log.
    """

    def find(self, user_id: str) -> Record | None:
        """Return the user's record, or None where there is none that could be used."""

    def save(self, user_id: str, record: Record) -> None:
        """Set the user's record; and clear away those whose `refresh_token_expires_at` (seconds since 1970) is past."""

    def remove(self, user_id: str) -> Record | None:
        """Remove the user's record, and return it if it could have been used."""

    def replace(self, user_id: str, refresh_token: str, record: Record | None) -> Record | None:
        """
        Set the record (None removes it) if the stored one still has this refresh token; return what is there then.

        Whatever came in between stays: a removed grant does not come back, and a newer one is not overwritten.
        """

    def rehearse(self) -> None:
        """Fail if nothing could be written: better now than when Zendesk has deleted the old tokens."""

    def refreshing(self, user_id: str) -> AbstractContextManager[None]:
        """
        Let one refresh of this user's tokens happen at a time. Others' wait for nobody but their own.

        Raises:
            StoreBusy: another one is not over after REFRESH_TIMEOUT seconds.
        """

    def first_use(self, key: str, seconds: int) -> bool:
        """
        Tell whether nobody has called this with the same key in the last `seconds`.

        `key` may become part of a file's name, so it must be a safe one, and not a secret.
        """


def usable(record: Any) -> Record | None:
    """Return the record if it is one: somebody may have edited it by hand."""
    tokens = ('access_token', 'refresh_token')
    return record if isinstance(record, dict) and all(isinstance(record.get(name), str) for name in tokens) else None


def found(stored: Any, store: Store) -> Record | None:
    """Return what was looked up if it is a record; else say so in the log, if there was something."""
    record = usable(stored)
    if record is None and stored is not None:
        logger.warning(
            "A record in {} lacks a token, so it counts as none. Mend it before the user's next grant", store
        )
    return record


def dies_at(record: Any) -> int | None:
    """Return when the record can be cleared away, in seconds since 1970; None if nobody knows."""
    expires_at = record.get('refresh_token_expires_at') if isinstance(record, dict) else None
    return expires_at + GRACE if type(expires_at) is int else None
