"""Drive an installed Chromium, Chrome or Edge with Playwright, and click through the pages of practice mode."""

from __future__ import annotations

import shutil

from playwright.sync_api import Browser, Error, Page, Playwright
from servers import AGENT

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'microsoft-edge')


def launch(playwright: Playwright, *without: str) -> Browser | None:
    """
    Start a Chromium from the PATH, an installed Chrome or Edge, or Playwright's Chromium. Return None if there is none.

    `without` lists default options of Playwright to leave out.
    """
    on_the_path = [{'executable_path': path} for name in NAMES if (path := shutil.which(name))]
    for which in (*on_the_path, {'channel': 'chrome'}, {'channel': 'msedge'}, {}):
        try:
            return playwright.chromium.launch(**which, ignore_default_args=list(without))
        except Error:
            continue
    return None


def click(page: Page, name: str) -> None:
    """Click the link or button with this name, and wait until the next page is loaded."""
    page.get_by_role('link', name=name, exact=True).or_(page.get_by_role('button', name=name, exact=True)).click()
    # A click returns before the page is loaded, and "Back" may then fail with "Not attached to an active page".
    page.wait_for_load_state()


# --- Practice mode --- #

APP, ZENDESK = 'http://localhost:3000', 'http://localhost:3001'
HOME, GRANT_ACCESS, PROFILE, CONTROLS = f'{APP}/', f'{APP}/grant_access', f'{APP}/profile', f'{ZENDESK}/practice'


def allow(page, user: str = AGENT) -> None:
    page.get_by_label(user).check()
    click(page, 'Allow')


def grant(page, user: str = AGENT, home: str = HOME) -> None:
    """Grant access, from the home page and back to it."""
    click(page, 'Get my profile')
    click(page, 'Grant access')
    allow(page, user)
    assert page.url == home


def heading(page) -> str:
    return page.get_by_role('heading', level=1).inner_text()


def panel_is_open(page) -> bool:
    return page.locator('.panel').evaluate('details => details.open')


def panel_steps(page) -> list[str]:
    """Open the panel, and return its steps, with the secrets that they carry."""
    panel = page.get_by_role('complementary', name='What just happened')
    if not panel_is_open(page):
        panel.get_by_text('What just happened').click()
    steps = panel.locator('.action, .arrow, .check, .box').all_inner_texts()
    assert steps
    return [' '.join(step.split()) for step in steps]


def in_order(steps: list[str], *expected: str) -> bool:
    """Return True if the steps contain these texts in this order."""
    rest = iter(steps)
    return all(any(text in step for step in rest) for text in expected)


def greets(page, user: str) -> bool:
    return heading(page) == f'👋 Hi, {user}!'


def fail_next(page, call: str, fault: str) -> None:
    """Let the next request fail, and get the profile."""
    page.goto(CONTROLS)
    page.get_by_label('The next').select_option(call)
    page.get_by_label(fault).first.check()
    click(page, 'Make the next request fail')
    assert page.url == PROFILE
