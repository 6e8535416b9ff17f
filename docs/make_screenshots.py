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

from chromium import APP, CONTROLS, HOME, click, launch  # noqa: E402
from servers import Processes  # noqa: E402

PAGE, DRAWING = 640, 900  # the widths of a page and of a page with a drawing, in CSS pixels


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        processes, browser = Processes(Path(folder)), launch(playwright)
        if browser is None:
            raise SystemExit('Chromium is not installed')
        try:
            processes.start('app.py', port=3000)
            take_all(browser.new_page(device_scale_factor=1.25))
        finally:
            browser.close()
            processes.stop_all()


def take_all(page: Page) -> None:
    """Follow the steps of the README and of docs/tutorial.md, and take the pictures."""

    def experiment(name: str) -> None:
        page.goto(f'{CONTROLS}/experiments/{name}')
        page.locator('form button').click()
        page.wait_for_load_state()

    def grant() -> None:
        click(page, 'Grant access')
        click(page, 'Allow')

    page.goto(HOME)
    take(page, '1-home')
    click(page, 'Get my profile')
    take(page, '2-grant-access')
    click(page, 'Grant access')
    take(page, '3-consent')
    click(page, 'Allow')
    draw(page, '4-grant')
    click(page, 'Get my profile')
    draw(page, '5-profile-request')
    page.locator('.panel > summary').click()
    take(page, '5-profile')

    page.goto(CONTROLS)
    take(page, '6-experiments', height=900)
    experiment('expire_access')
    draw(page, '7-refresh')
    draw(page, '7-refresh-dark', 'dark')
    experiment('visit_at_once')
    draw(page, '8-twenty-visits')
    experiment('end_grants')
    draw(page, '9-both-expired')
    grant()
    experiment('fail_next')
    draw(page, '10-failure')
    experiment('lose_refresh')
    draw(page, '11-lost-response')
    take(page, '17-problem', height=400)
    click(page, 'Try again')
    grant()
    experiment('send_foreign_link')
    draw(page, '12-foreign-link')
    experiment('forge_callback')
    draw(page, '13-forged-callback')
    experiment('inject_code')
    grant()
    draw(page, '14-replaced-code')
    experiment('steal_code')
    page.goto(f'{APP}/grant_access')
    grant()
    draw(page, '15-stolen-code')
    experiment('steal_refresh_token')
    draw(page, '16-refresh-token-used-twice')


def take(page: Page, name: str, height: int = 0) -> None:
    """Save a screenshot of the page, up to this height."""
    page.set_viewport_size({'width': PAGE, 'height': height or 300})
    page.mouse.move(0, 0)
    page.screenshot(path=DOCS / f'{name}.png', full_page=not height)


def draw(page: Page, name: str, scheme: str = 'light') -> None:
    """Save a screenshot of the panel."""
    page.set_viewport_size({'width': DRAWING, 'height': 3000})  # the lanes stay at the top while the page scrolls
    page.emulate_media(color_scheme=scheme)
    page.mouse.move(0, 0)
    page.locator('.panel').screenshot(path=DOCS / f'{name}.png')
    page.emulate_media(color_scheme='light')


if __name__ == '__main__':
    main()
