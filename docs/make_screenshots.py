"""
Create the pictures for the README and the documentation: docs/*.png.

    .venv/bin/python docs/make_screenshots.py

It needs requirements-dev.txt, Chromium, an emoji font, and the ports 3000 and 3001.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent / 'tests' / 'integration'), str(DOCS.parent)]

from chromium import click, launch  # noqa: E402
from servers import Processes  # noqa: E402

HOME = 'http://localhost:3000/'
WIDTH = 640  # CSS pixels


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        processes, browser = Processes(Path(folder)), launch(playwright)
        if browser is None:
            raise SystemExit('Chromium is not installed')
        try:
            processes.start('app.py', port=3000)
            take_all(browser.new_page(viewport={'width': WIDTH, 'height': 300}, device_scale_factor=1.25))
        finally:
            browser.close()
            processes.stop_all()


def take_all(page: Page) -> None:
    """Follow the steps of the README and take the pictures."""

    def open_panel() -> None:
        page.locator('summary').click()

    page.goto(HOME)
    take(page, '1-home')
    click(page, 'Get my profile')
    take(page, '2-grant-access')
    click(page, 'Grant access')
    take(page, '3-consent')
    click(page, 'Allow')
    open_panel()
    take(page, '4-back-home')
    click(page, 'Get my profile')
    take(page, '5-profile')
    page.goto('http://localhost:3001/practice')
    click(page, 'Step 5: expire the access token')
    take(page, '6-controls')
    click(page, 'Get my profile in the app')
    open_panel()
    take(page, '7-refreshed')
    take(page, '7-refreshed-dark', 'dark')
    page.goto('http://localhost:3001/practice')
    click(page, 'Make the next request fail')
    click(page, 'Get my profile in the app')
    take(page, '8-problem')


def take(page: Page, name: str, scheme: str = 'light') -> None:
    page.mouse.move(0, 0)
    page.emulate_media(color_scheme=scheme)
    page.screenshot(path=DOCS / f'{name}.png', full_page=True)


if __name__ == '__main__':
    main()
