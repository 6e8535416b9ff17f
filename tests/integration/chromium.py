"""A real Chromium, driven by Playwright: the one that is installed on this machine."""

from __future__ import annotations

import shutil

from playwright.sync_api import Browser, Error, Page, Playwright

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'microsoft-edge')


def launch(playwright: Playwright, *without: str) -> Browser | None:
    """
    Start a Chromium from the PATH, or Chrome or Edge from where they usually are, or Playwright's own; or return None.

    `without` names options that Playwright would start it with.
    """
    on_the_path = [{'executable_path': path} for name in NAMES if (path := shutil.which(name))]
    for which in (*on_the_path, {'channel': 'chrome'}, {'channel': 'msedge'}, {}):
        try:
            return playwright.chromium.launch(**which, ignore_default_args=list(without))
        except Error:
            continue
    return None


def click(page: Page, name: str) -> None:
    """Click the link or press the button of this name, and wait until the page that it opens is loaded."""
    page.get_by_role('link', name=name, exact=True).or_(page.get_by_role('button', name=name, exact=True)).click()
    # A click returns when the next page arrives, and there "Back" may still fail: "Not attached to an active page".
    page.wait_for_load_state()
