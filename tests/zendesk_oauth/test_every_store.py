"""The tests that each store must pass, with users.json and in memory."""

from __future__ import annotations

import pytest
from store_suite import *  # noqa: F403 - the tests

from zendesk_oauth import JsonFileStore, MemoryStore, Store


@pytest.fixture(params=['users.json', 'memory'])
def db(request, tmp_path, monkeypatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return JsonFileStore('users.json') if request.param == 'users.json' else MemoryStore()
