"""An OAuth client with an empty store, and the log records of the package."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest
from helpers import ZENDESK

from zendesk_oauth import JsonFileStore, ZendeskOAuth


@pytest.fixture
def db(tmp_path) -> JsonFileStore:
    """Return an empty store."""
    return JsonFileStore(str(tmp_path / 'users.json'))


@pytest.fixture
def oauth(db) -> ZendeskOAuth:
    return ZendeskOAuth(
        zendesk_url=ZENDESK,
        client_id='test_client',
        client_secret='canary-client-secret',
        redirect_uri='http://localhost:3000/zendesk/oauth/callback',
        scope='users:read',
        store=db,
    )


@pytest.fixture
def package_log() -> Iterator[list[logging.LogRecord]]:
    """Collect the records of the logger `zendesk_oauth`, without the exchanges."""
    with _records_of('zendesk_oauth') as records:
        yield records


@pytest.fixture
def exchanges() -> Iterator[list[logging.LogRecord]]:
    """Collect the records of the logger `zendesk_oauth.exchange`."""
    with _records_of('zendesk_oauth.exchange') as records:
        yield records


@contextlib.contextmanager
def _records_of(name: str) -> Iterator[list[logging.LogRecord]]:
    logger, handler, records = logging.getLogger(name), logging.Handler(), []
    handler.emit = lambda record: records.append(record) if record.name == name else None
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)
