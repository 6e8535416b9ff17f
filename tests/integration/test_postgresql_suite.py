"""The tests that each store must pass, with PostgreSQL."""

from __future__ import annotations

import pytest
from store_suite import *  # noqa: F403 - the tests

pytestmark = pytest.mark.parametrize('db', ['PostgreSQL'], indirect=True)
