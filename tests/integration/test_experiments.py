"""Every experiment of the practice Zendesk, in a browser and against the running app."""

from __future__ import annotations

import contextlib
import sqlite3
from urllib.parse import parse_qs, urlsplit

import pytest
from servers import AGENT, Processes

from practice_zendesk.experiments import EXPERIMENTS

pytest.importorskip('playwright.sync_api', reason='Playwright is not installed: pip install -r requirements-dev.txt')
axe = pytest.importorskip(
    'axe_playwright_python.sync_playwright', reason='axe-core is not installed: pip install -r requirements-dev.txt'
)

from chromium import APP, CONTROLS, HOME, allow, click, grant, in_order, panel_is_open, panel_steps  # noqa: E402


def grant_again(page) -> None:
    click(page, 'Grant access')
    allow(page)


# What the reader does after the button, the beginning of the summary, and the steps that must be drawn.
TOUR = {
    'grant': (
        grant_again,
        'Zendesk gave the app a code',
        ['You clicked Allow', '200, the first tokens', 'users.json: stored'],
    ),
    'profile': (None, 'The access token was valid', ['GET /api/v2/users/me', '200']),
    'expire_access': (
        None,
        'Your access token was no longer valid',
        ['401 invalid_token', '200, new tokens', 'replaced'],
    ),
    'visit_at_once': (
        None,
        '20 visits at once: one of them refreshed',
        [
            '20 visits at once',
            '20 × GET /profile',
            '20 × GET /api/v2/users/me',
            '20 × 401 invalid_token',
            'refresh token? Yes.',
            'POST /oauth/tokens',
            '200, new tokens',
            'users.json: replaced',
            '19 × Locked. Is this still the stored refresh token? No.',
            '20 × GET /api/v2/users/me',
            '20 × 200',
        ],
    ),
    'end_grants': (None, 'Zendesk rejected the access token and', ['401', '400 invalid_grant', 'users.json: deleted']),
    'fail_next': (None, 'Zendesk responded with an error', ['500 Internal Server Error', '502, the page']),
    'lose_refresh': (None, 'No response to the refresh arrived', ['401', 'POST /oauth/tokens', 'no response', '502']),
    'rename': (None, 'The access token was valid', ['200']),
    'use_kind': (grant_again, 'Zendesk gave the app a code', ['200, the first tokens', 'users.json: replaced']),
    'send_foreign_link': (
        None,
        'The app refused this callback',
        ['You opened a callback link', 'GET /zendesk/oauth/callback code', 'browser? No.', '400, the page'],
    ),
    'forge_callback': (
        None,
        'The app refused this callback',
        ['You opened a callback link', 'GET /zendesk/oauth/callback code', 'browser? No.', '400, the page'],
    ),
    'inject_code': (
        grant_again,
        'An attacker replaced your code',
        [
            'You clicked Allow',
            'Attacker: replaced code',
            'browser? Yes.',
            'POST /oauth/tokens code',
            '400 invalid_grant',
            '400, the page',
        ],
    ),
    'steal_code': (
        grant_again,
        'A thief sent your code to Zendesk first',
        ['302 to the app', 'POST /oauth/tokens code', '400 invalid_grant', '200, the first tokens', 'users.json'],
    ),
    'steal_refresh_token': (
        None,
        'A thief used your refresh token first',
        [
            'POST /oauth/tokens',
            '200, new tokens',
            'current tokens',
            '401 invalid_token',
            '400 invalid_grant',
            'deleted',
        ],
    ),
}
# The steps without a sentence that says why they are there.
UNEXPLAINED = '.steps > li:has(> details):not(:has(.why)):not(:has(.open > p:not(.sources)))'
# Before these experiments the reader grants access, because the previous one has ended the grant.
GRANT_BEFORE = {'fail_next', 'rename'}


class Secrets:
    """The secrets that a browser or the practice Zendesk has had, and the pages that were shown."""

    def __init__(self, page, practice: Processes) -> None:
        self._page, self._practice = page, practice
        self.values: set[str] = set()
        self.pages: list[str] = []
        page.on('request', lambda request: self._collect_url(request.url))
        page.on('response', lambda response: self._collect_url(response.headers.get('location', '')))

    def _collect_url(self, url: str) -> None:
        query = parse_qs(urlsplit(url).query)
        self.values |= {value for name in ('code', 'state') for value in query.get(name, [])}

    def collect(self) -> None:
        with contextlib.closing(sqlite3.connect(self._practice.folder / 'practice_zendesk.db', timeout=60)) as db:
            for query in ('SELECT access_token, refresh_token FROM tokens', 'SELECT code FROM codes'):
                self.values |= {value for row in db.execute(query) for value in row if value}
        self.values |= {
            cookie['value'] for cookie in self._page.context.cookies() if cookie['name'] != 'zendesk_oauth_panel'
        }
        self.values |= {'practice_secret', (self._practice.folder / '.secret_key').read_text().strip()}
        self.pages.append(self._page.content())

    def shown(self) -> list[str]:
        return [secret for secret in self.values for page in self.pages if secret in page]


def check_page(page, name: str) -> list:
    """Return the violations of accessibility rules in both color schemes. Check that the page fits any width."""
    found = []
    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        found += [(name, scheme, violation['id']) for violation in axe.Axe().run(page).response['violations']]
    for width in (320, 1920):
        page.set_viewport_size({'width': width, 'height': 800})
        assert page.evaluate('document.documentElement.scrollWidth') <= width, name
    page.set_viewport_size({'width': 1280, 'height': 720})
    return found


def test_the_tour_leads_through_every_experiment(practice, page, figure):
    assert TOUR.keys() == EXPERIMENTS.keys()
    secrets, violations = Secrets(page, practice), []
    page.goto(CONTROLS)
    click(page, 'Start the tour')
    for name, (then, summary, steps) in TOUR.items():
        if name in GRANT_BEFORE:
            page.goto(f'{APP}/grant_access')
            grant_again(page)
            click(page, 'Next experiment')
        assert page.url == f'{CONTROLS}/experiments/{name}'
        secrets.collect()
        violations += check_page(page, name)
        if name == 'rename':
            page.get_by_label('User').select_option(label=f'{AGENT} (agent)')
            page.get_by_label('New name').fill(f'{AGENT} Junior')
        if name == 'use_kind':
            page.get_by_label('JSON Web Tokens').check()
        click(page, EXPERIMENTS[name].button)
        if then:
            then(page)
        assert page.locator('header .summary').inner_text().startswith(summary), name
        assert panel_is_open(page), name
        drawn = panel_steps(page)
        assert in_order(drawn, *steps), (name, drawn)
        assert page.locator(UNEXPLAINED).all_inner_texts() == [], name
        for closed in page.locator('.steps details:not([open]) > summary').all()[::-1]:
            closed.click()
        secrets.collect()
        violations += check_page(page, f'{name}, in the app')
        if name == 'lose_refresh':
            click(page, 'Try again')
            assert page.url.startswith(f'{APP}/grant_access')
        click(page, 'Next experiment')
    assert page.url == CONTROLS
    assert page.get_by_text('14 of 14 tried').is_visible()
    secrets.collect()
    violations += check_page(page, 'all experiments')
    figure(f'tour: {len(TOUR)} experiments, {len(secrets.pages)} pages, {len(violations)} accessibility violations')
    assert violations == []
    assert len(secrets.values) > 40
    assert secrets.shown() == []


def test_twenty_visits_leave_the_grant_of_the_reader_alone(practice, page):
    grant(page)
    before = practice.users
    page.goto(CONTROLS)
    click(page, 'Make twenty visits at once')
    assert page.locator('.waits li').count() == 19
    assert practice.users == before  # the experiment has disconnected its own user
    page.goto(f'{APP}/profile')
    assert page.get_by_role('heading', level=1).inner_text() == f'👋 Hi, {AGENT}!'


def test_an_attack_does_not_change_the_grant_of_the_reader(practice, page):
    grant(page)
    before = practice.users
    for button in ('Open the attacker’s link', 'Open the forged callback'):
        page.goto(CONTROLS)
        click(page, button)
        assert practice.users == before
    page.goto(CONTROLS)
    click(page, 'Replace the next code')
    grant_again(page)
    assert practice.users == before


def test_the_tokens_of_the_app_are_marked(page):
    grant(page)
    page.goto(CONTROLS)
    click(page, 'Lose the response to a refresh')
    page.goto(CONTROLS)
    # Zendesk has new tokens, but the app still holds the old ones.
    assert page.get_by_text('still in the app’s users.json').count() == 1
    assert page.get_by_text('← in the app’s users.json').count() == 0
    page.goto(HOME)
    assert panel_is_open(page)
