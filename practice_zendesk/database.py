"""Store users, codes and tokens in `practice_zendesk.db` in the working directory."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

from practice_zendesk.clients import CLIENT_ID

DATABASE = 'practice_zendesk.db'

PEOPLE: tuple[dict[str, Any], ...] = (
    {'id': 9130907993101, 'name': 'Amara Okafor', 'role': 'agent', 'email': 'amara@practice.example'},
    {'id': 9130907993102, 'name': 'Tomás Herrera', 'role': 'admin', 'email': 'tomas@practice.example'},
    {'id': 9130907993103, 'name': 'Zoë Żółkiewska', 'role': 'end-user', 'email': 'zoe@practice.example'},
)
USERS = {user['id']: user for user in PEOPLE}

# `client_id` is last, where `ALTER TABLE` adds it to the tables of an earlier version.
SCHEMA = """
CREATE TABLE IF NOT EXISTS codes (
    code TEXT PRIMARY KEY, user_id INTEGER, redirect_uri TEXT, scope TEXT, code_challenge TEXT, expires_at REAL,
    client_id TEXT);
CREATE TABLE IF NOT EXISTS tokens (
    access_token TEXT PRIMARY KEY, refresh_token TEXT UNIQUE, user_id INTEGER, scope TEXT,
    access_expires_at REAL, refresh_expires_at REAL, client_id TEXT);
CREATE TABLE IF NOT EXISTS names (user_id INTEGER PRIMARY KEY, name TEXT);
"""


@contextlib.contextmanager
def database() -> Iterator[sqlite3.Connection]:
    """Open the database for one transaction. Other writers wait. An exception rolls it back."""
    os.close(os.open(DATABASE, os.O_CREAT | os.O_RDWR, 0o600))  # sqlite3 would create a file that others can read
    connection = sqlite3.connect(DATABASE, timeout=30, isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        connection.executescript(SCHEMA)
        connection.execute('BEGIN IMMEDIATE')
        _add_client_ids(connection)
        now = time.time()
        connection.execute('DELETE FROM codes WHERE expires_at <= ?', (now,))
        connection.execute('DELETE FROM tokens WHERE refresh_expires_at <= ?', (now,))
        yield connection
        connection.execute('COMMIT')
    finally:
        connection.close()  # rolls back an uncommitted transaction


def _add_client_ids(db: sqlite3.Connection) -> None:
    """Add the column `client_id` to the tables of an earlier version, which had only the main client."""
    if any(column['name'] == 'client_id' for column in db.execute('PRAGMA table_info(tokens)')):
        return
    db.execute('ALTER TABLE codes ADD COLUMN client_id TEXT')
    db.execute('ALTER TABLE tokens ADD COLUMN client_id TEXT')
    db.execute('UPDATE codes SET client_id = ?', (CLIENT_ID,))
    db.execute('UPDATE tokens SET client_id = ?', (CLIENT_ID,))


def users(db: sqlite3.Connection) -> dict[int, dict[str, Any]]:
    """Return the practice users by id, with their current names."""
    names = {row['user_id']: row['name'] for row in db.execute('SELECT * FROM names')}
    return {user_id: {**user, 'name': names.get(user_id, user['name'])} for user_id, user in USERS.items()}
