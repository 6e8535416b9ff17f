"""Drive an installed Chromium, Chrome or Edge with Playwright."""

from __future__ import annotations

import shutil

from playwright.sync_api import Browser, Error, Page, Playwright

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
