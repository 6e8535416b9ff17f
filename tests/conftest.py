"""Shared fixtures: settings that no .env can change, a browser, a mocked Zendesk, a clock."""

from __future__ import annotations

import os
import time
from pathlib import Path

import settings

# The app reads its settings on import, but not the developer's .env.
settings.ENV_FILE = Path('no-such-file')
os.environ.update(
    ZENDESK_CLIENT_ID='test_client',
    ZENDESK_CLIENT_SECRET='canary-client-secret',
    ZENDESK_SUBDOMAIN='mondocam',
    REDIRECT_URI='http://localhost:3000/zendesk/oauth/callback',
    SECRET_KEY='canary-secret-key-canary-secret-key',
)
for name in set(settings.OPTIONAL) - {'SECRET_KEY'}:
    os.environ.pop(name, None)

import pytest
import responses
from helpers import OLD, OTHER, Browser, store

import app as app_module

pytest.register_assert_rewrite('store_suite')


def pytest_addoption(parser):
    parser.addoption('--no-skips', action='store_true', help='fail if any test is skipped')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and item.config.getoption('no_skips'):
        report.outcome = 'failed'
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.skipped and collector.config.getoption('no_skips'):  # a whole file was skipped
        report.outcome = 'failed'
    return report


@pytest.fixture
def app(tmp_path, monkeypatch):
    """Return the app, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(app_module.app, 'testing', True)
    monkeypatch.setattr(app_module.app, 'test_client_class', Browser)
    return app_module.app


@pytest.fixture
def browser(app) -> Browser:
    return app.test_client()


@pytest.fixture
def zendesk():
    """Mock Zendesk. A request without a registered response fails the test."""
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that moves only when the test advances it."""

    class Clock:
        now = time.time()

        def advance(self, seconds: float) -> None:
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(time, 'time', lambda: clock.now)
    return clock


@pytest.fixture
def log():
    """Collect the lines that the app logs at level DEBUG and above."""
    lines: list[str] = []
    handler = app_module.logger.add(lines.append, level='DEBUG', format='{message}')
    yield lines
    app_module.logger.remove(handler)


@pytest.fixture
def full_disk(monkeypatch) -> None:
    """Make every write to users.json fail because the disk is full."""

    def no_space(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('zendesk_oauth.stores.write_private_file', no_space)


@pytest.fixture
def alice(browser) -> Browser:
    """Return the browser of alice. She and bob have granted access."""
    store(alice=OLD, bob=OTHER)
    browser.sign_in('alice')
    return browser
