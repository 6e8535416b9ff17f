"""Store codes, tokens, ended tokens and the tour's progress in a file, by default in the working directory."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from typing import Any

from practice_zendesk.clients import USERS, main_client
from practice_zendesk.faults import fingerprint

DATABASE = 'practice_zendesk.db'  # the default
MAX_ENDED = 100  # the oldest ended tokens are forgotten first

# `client_id` is last, where `ALTER TABLE` adds it to the tables of an earlier version. `ended` has fingerprints only.
SCHEMA = """
CREATE TABLE IF NOT EXISTS codes (
    code TEXT PRIMARY KEY, user_id INTEGER, redirect_uri TEXT, scope TEXT, code_challenge TEXT, expires_at REAL,
    client_id TEXT);
CREATE TABLE IF NOT EXISTS tokens (
    access_token TEXT PRIMARY KEY, refresh_token TEXT UNIQUE, user_id INTEGER, scope TEXT,
    access_expires_at REAL, refresh_expires_at REAL, client_id TEXT);
CREATE TABLE IF NOT EXISTS ended (
    id INTEGER PRIMARY KEY, access_token TEXT, refresh_token TEXT, user_id INTEGER, reason TEXT, ended_at REAL);
CREATE TABLE IF NOT EXISTS names (user_id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE IF NOT EXISTS tried (experiment TEXT PRIMARY KEY);
"""


_path: str | os.PathLike[str] = DATABASE


def use(path: str | os.PathLike[str]) -> None:
    """Use this file from now on."""
    global _path
    _path = path


@contextlib.contextmanager
def database() -> Iterator[sqlite3.Connection]:
    """Open the database for one transaction. Other writers wait. An exception rolls it back."""
    os.close(os.open(_path, os.O_CREAT | os.O_RDWR, 0o600))  # sqlite3 would create a file that others can read
    connection = sqlite3.connect(_path, timeout=30, isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        connection.executescript(SCHEMA)
        connection.execute('BEGIN IMMEDIATE')
        _add_client_ids(connection)
        now = time.time()
        connection.execute('DELETE FROM codes WHERE expires_at <= ?', (now,))
        end_tokens(
            connection, connection.execute('SELECT * FROM tokens WHERE refresh_expires_at <= ?', (now,)), 'expired'
        )
        yield connection
        connection.execute('COMMIT')
    finally:
        connection.close()  # rolls back an uncommitted transaction


def end_tokens(db: sqlite3.Connection, rows: Iterable[sqlite3.Row], reason: str) -> None:
    """Delete these rows of the table `tokens`, and keep the fingerprints with the reason."""
    for row in list(rows):
        found = [row[name] and fingerprint(row[name]) for name in ('access_token', 'refresh_token')]
        db.execute(
            'INSERT INTO ended (access_token, refresh_token, user_id, reason, ended_at) VALUES (?, ?, ?, ?, ?)',
            (*found, row['user_id'], reason, time.time()),
        )
        db.execute('DELETE FROM ended WHERE id <= last_insert_rowid() - ?', (MAX_ENDED,))
        db.execute('DELETE FROM tokens WHERE access_token = ?', (row['access_token'],))


def _add_client_ids(db: sqlite3.Connection) -> None:
    """Add the column `client_id` to the tables of an earlier version, which had only the main client."""
    if any(column['name'] == 'client_id' for column in db.execute('PRAGMA table_info(tokens)')):
        return
    db.execute('ALTER TABLE codes ADD COLUMN client_id TEXT')
    db.execute('ALTER TABLE tokens ADD COLUMN client_id TEXT')
    db.execute('UPDATE codes SET client_id = ?', (main_client()[0],))
    db.execute('UPDATE tokens SET client_id = ?', (main_client()[0],))


def users(db: sqlite3.Connection) -> dict[int, dict[str, Any]]:
    """Return the practice users by id, with their current names."""
    names = {row['user_id']: row['name'] for row in db.execute('SELECT * FROM names')}
    return {user_id: {**user, 'name': names.get(user_id, user['name'])} for user_id, user in USERS.items()}
