"""The tests that each store must pass, with SQLite and PostgreSQL, and with PostgreSQL through PgBouncer."""

from __future__ import annotations

import pytest
from store_suite import *  # noqa: F403 - the tests

pytestmark = pytest.mark.parametrize('store_url', ['SQLite', 'PostgreSQL', 'PgBouncer'], indirect=True)
