"""Practice mode in Chromium: pages, clicks, "Back", and accessibility."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import pytest
from servers import ADMIN, AGENT, END_USER, Processes, listens

playwright = pytest.importorskip(
    'playwright.sync_api', reason='Playwright is not installed: pip install -r requirements-dev.txt'
)
axe = pytest.importorskip(
    'axe_playwright_python.sync_playwright', reason='axe-core is not installed: pip install -r requirements-dev.txt'
)

from chromium import click, launch  # noqa: E402 - needs Playwright

APP, ZENDESK = 'http://localhost:3000', 'http://localhost:3001'
HOME, GRANT_ACCESS, PROFILE, CONTROLS = f'{APP}/', f'{APP}/grant_access', f'{APP}/profile', f'{ZENDESK}/practice'


@pytest.fixture(scope='module')
def start_chromium():
    """A function that starts a Chromium. All are closed after the last test."""
    with playwright.sync_playwright() as engine, contextlib.ExitStack() as browsers:

        def start(*without: str):
            browser = launch(engine, *without)
            if browser is None:
                pytest.skip('there is no Chromium: install it, Chrome or Edge, or run "playwright install chromium"')
            return browsers.enter_context(browser)

        yield start


@pytest.fixture(scope='module')
def chromium(start_chromium):
    return start_chromium()


@pytest.fixture
def practice(processes) -> Processes:
    """Start the app in practice mode."""
    for port in (3000, 3001):
        if listens(port):
            pytest.skip(f'port {port}, which practice mode uses, is taken on this machine')
    processes.start('app.py', port=3000)
    return processes


@pytest.fixture
def new_browser(chromium) -> Iterator[Callable]:
    """A function that opens a new browser with one tab. Console errors and requests to other hosts fail the test."""
    problems, contexts = [], []

    def collect(message) -> None:
        # Chromium logs the status of each error page, which is expected. It logs a missing stylesheet or picture in the
        # same words, but with another URL.
        for_the_page = message.location['url'] == message.page.url
        if message.type in ('error', 'warning') and not (for_the_page and ' with a status of ' in message.text):
            problems.append(f'{message.type}: {message.text} ({message.location["url"]})')

    def check_host(request) -> None:
        if not request.url.startswith((APP, ZENDESK, 'http://127.0.0.1:3000')):
            problems.append(f'a request to another host: {request.url}')

    def new_browser(chromium=chromium):
        context = chromium.new_context()
        context.set_default_timeout(30_000)
        context.on('console', collect)
        context.on('weberror', lambda error: problems.append(f'exception: {error.error}'))
        context.on('request', check_host)
        contexts.append(context)
        return context.new_page()

    yield new_browser
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def page(practice, new_browser):
    """A browser tab with the home page."""
    page = new_browser()
    page.goto(HOME)
    return page


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


def panel_steps(page) -> list[str]:
    """Open the panel, and return its steps without the times."""
    panel = page.get_by_role('complementary', name='What just happened')
    if not panel.locator('details').evaluate('details => details.open'):
        panel.get_by_text('What just happened').click()
    steps = panel.locator('h2, li span').all_inner_texts()
    assert steps
    return steps


def in_order(steps: list[str], *expected: str) -> bool:
    """Return True if the steps contain these texts in this order."""
    rest = iter(steps)
    return all(any(text in step for step in rest) for text in expected)


def greets(page, user: str) -> bool:
    return heading(page) == f'👋 Hi, {user}!'


# --- The flow --- #


def test_a_user_can_click_through_the_whole_flow(page):
    click(page, 'Get my profile')
    assert page.url == GRANT_ACCESS
    click(page, 'Grant access')
    assert page.url.startswith(f'{ZENDESK}/oauth/authorizations/new?')
    allow(page, END_USER)
    assert page.url == HOME
    click(page, 'Get my profile')
    assert greets(page, END_USER)
    assert page.get_by_text('Your Zendesk user role is').inner_text() == 'Your Zendesk user role is end-user.'


def test_a_user_can_grant_access_after_a_denial(page):
    click(page, 'Get my profile')
    click(page, 'Grant access')
    click(page, 'Deny')
    assert heading(page) == 'Access was not granted'
    click(page, 'Start again')
    assert page.url == GRANT_ACCESS
    click(page, 'Grant access')
    allow(page)
    click(page, 'Get my profile')
    assert greets(page, AGENT)


def test_two_tabs_can_finish_in_reverse_order(page):
    other = page.context.new_page()
    for tab in (page, other):
        tab.goto(PROFILE)
        click(tab, 'Grant access')
    allow(other, ADMIN)
    allow(page, END_USER)
    assert in_order(panel_steps(page), 'GET /zendesk/auth', 'GET /zendesk/oauth/callback', 'GET /')
    for tab in (page, other):
        tab.goto(PROFILE)
        assert greets(tab, END_USER)


def test_the_grant_stays_after_back_and_reload(practice, page):
    grant(page)
    page.go_back()  # to the consent page, which has been submitted
    assert page.url.startswith(ZENDESK)
    page.go_forward()
    assert page.url == HOME
    page.reload()
    click(page, 'Get my profile')
    assert greets(page, AGENT)
    page.reload()
    assert greets(page, AGENT)
    page.go_back()
    assert page.url == HOME
    # Allow the same authorization request again: its state has been consumed.
    page.go_back()
    allow(page)
    assert heading(page) == 'This link cannot be used'
    page.goto(PROFILE)
    assert greets(page, AGENT)
    assert len(practice.users) == 1


def test_two_browsers_can_have_different_users(practice, page, new_browser):
    other = new_browser()
    other.goto(HOME)
    grant(page, ADMIN)
    grant(other, END_USER)
    for _ in range(2):
        page.goto(PROFILE)
        other.goto(PROFILE)
        assert greets(page, ADMIN)
        assert greets(other, END_USER)
        practice.edit_users('access_token')
    assert practice.refreshes() == 2  # one per user, in the second round


@pytest.mark.parametrize('path', ['/', '/profile', '/grant_access'])
def test_a_user_can_grant_access_after_opening_127_0_0_1(practice, new_browser, path):
    page = new_browser()
    page.goto(f'http://127.0.0.1:3000{path}')
    assert page.url.startswith(APP)
    if path == '/':
        click(page, 'Get my profile')
    click(page, 'Grant access')
    allow(page)
    click(page, 'Get my profile')
    assert greets(page, AGENT)


def test_back_from_zendesk_shows_no_setup_help_in_practice_mode(page):
    page.goto(GRANT_ACCESS)
    click(page, 'Grant access')
    page.go_back()
    assert page.url == GRANT_ACCESS
    assert page.get_by_text('ZENDESK_CLIENT_ID').count() == 0


def test_the_grant_page_explains_a_zendesk_error_after_back(home, start_chromium):
    page = start_chromium().new_page()
    page.goto(f'{home}grant_access')
    click(page, 'Grant access')
    page.goto(page.url.replace('flow_client', '12345'))
    assert page.get_by_text('No such client').is_visible()
    page.go_back()
    page.go_back()
    assert page.url == f'{home}grant_access'
    advice = page.get_by_role('main').get_by_text('ZENDESK_CLIENT_ID')
    assert not advice.is_visible()
    page.get_by_text('Did Zendesk show an error?').click()
    assert advice.is_visible()


# --- Steps 5 and 6 of the tutorial, and failures --- #


def test_the_panel_is_closed_until_the_user_opens_it(page):
    assert not page.get_by_text('Opening the home page').is_visible()
    panel_steps(page)
    assert page.get_by_text('Opening the home page').is_visible()


def test_the_panel_shows_the_steps_of_a_grant_across_redirects(page):
    click(page, 'Get my profile')
    assert panel_steps(page) == [
        'GET /profile',
        "Retrieving the user's access and refresh tokens",
        'The user has not granted access: redirecting to /grant_access',
        'Redirect to /grant_access',
        'GET /grant_access',
        'Asking the user to grant access',
    ]
    click(page, 'Grant access')
    allow(page)
    steps = panel_steps(page)
    assert in_order(
        steps,
        'GET /zendesk/auth',
        'Kicking off the authorization code flow',
        f'Redirect to {ZENDESK}/oauth/authorizations/new',
        'GET /zendesk/oauth/callback',
        'State #',
        'Exchanging the authorization code for access and refresh tokens',
        'POST /oauth/tokens with code #',
        'Storing the access and refresh tokens in users.json',
        'Redirect to /',
        'GET /',
        'Opening the home page',
    )


def test_step_5_the_app_refreshes_an_expired_access_token(practice, page):
    grant(page)
    click(page, 'Get my profile')
    [before] = practice.users.values()
    panel_steps(page)
    click(page, 'practice Zendesk’s control page')
    assert page.url == CONTROLS
    click(page, 'Step 5: expire the access token')
    assert page.get_by_role('status').inner_text() == 'All access tokens have expired.'
    click(page, 'Get my profile in the app')

    assert greets(page, AGENT)
    steps = panel_steps(page)
    assert in_order(
        steps,
        'users.json has access token #',
        'Making the API request',
        ': 401',
        'Using the refresh token',
        'POST /oauth/tokens with refresh token #',
        'Packaging, storing, and returning the new tokens',
        'Retrying the API request with the new token',
        ': 200',
        'Using the response data',
    )
    # The panel shows new fingerprints of both tokens, but no token.
    [after] = practice.users.values()
    pairs = re.findall(r'access token (#\w{8}), refresh token (#\w{8})', ' '.join(steps))
    assert len(set(pairs)) == 2
    for secret in (*tokens_of(before), *tokens_of(after)):
        assert secret not in page.content()


def tokens_of(record: dict) -> list[str]:
    return [record['access_token'], record['refresh_token']]


def test_step_6_the_app_requests_access_again_after_both_tokens_expire(page):
    grant(page)
    page.goto(CONTROLS)
    click(page, 'Step 6: expire both tokens')
    click(page, 'Get my profile in the app')
    assert page.url == f'{GRANT_ACCESS}?ended=1'
    assert page.get_by_text('access to your account has ended').is_visible()
    steps = panel_steps(page)
    assert in_order(steps, ': 401', ': 400', 'The refresh token is invalid', 'Redirect')
    click(page, 'Grant access')
    allow(page)
    click(page, 'Get my profile')
    assert greets(page, AGENT)


def fail_next(page, call: str, fault: str) -> None:
    page.goto(CONTROLS)
    page.get_by_label('The next').select_option(call)
    page.get_by_label(fault).first.check()
    click(page, 'Make the next request fail')
    assert page.get_by_role('status').inner_text() == 'The next request will fail.'


@pytest.mark.parametrize(
    ('fault', 'title'),
    [
        ('500', 'The request to Zendesk failed'),
        ('429', 'Too many requests to Zendesk'),
        ('no response, although', 'The request to Zendesk failed'),
    ],
)
def test_a_failed_request_shows_an_error_page_and_the_next_click_works(page, fault, title):
    grant(page)
    fail_next(page, 'any', fault)
    click(page, 'Get my profile in the app')
    assert heading(page) == title
    assert in_order(panel_steps(page), 'GET /profile', 'Making the API request', title)
    click(page, 'Try again')
    assert greets(page, AGENT)


def test_a_failed_refresh_keeps_the_grant(page):
    grant(page)
    page.goto(CONTROLS)
    click(page, 'Step 5: expire the access token')
    fail_next(page, 'refresh', '500')
    click(page, 'Get my profile in the app')
    assert heading(page) == 'The request to Zendesk failed'
    click(page, 'Try again')
    assert greets(page, AGENT)


@pytest.mark.slow
def test_a_timeout_shows_an_error_page_and_the_next_click_works(page):
    grant(page)
    fail_next(page, 'any', 'no response')
    click(page, 'Get my profile in the app')
    assert heading(page) == 'Zendesk did not respond in time'
    page.goto(CONTROLS)
    assert page.get_by_text('in progress').is_visible()
    page.goto(PROFILE)
    assert greets(page, AGENT)


def test_the_profile_shows_a_changed_name(page):
    grant(page, ADMIN)
    page.goto(CONTROLS)
    page.get_by_label('User').select_option(label=f'{ADMIN} (admin)')
    page.get_by_label('New name').fill('<i>Ana</i> O’Neil 🙂')
    click(page, 'Change the name')
    click(page, 'Get my profile in the app')
    assert greets(page, '<i>Ana</i> O’Neil 🙂')


def test_the_control_page_lists_the_requests(page):
    grant(page)
    click(page, 'Get my profile')
    page.goto(CONTROLS)
    calls = page.locator('.request-log li').all_inner_texts()
    assert len(calls) == 2
    assert 'GET /api/v2/users/me with access token #' in calls[0]
    assert calls[0].endswith('→ 200')
    assert 'POST /oauth/tokens with code #' in calls[1]
    # The app's panel shows the same fingerprints.
    page.goto(PROFILE)
    [fingerprint] = set(re.findall(r'access token (#\w{8})', ' '.join(panel_steps(page))))
    assert f'access token {fingerprint}' in calls[0]


# --- The end of a grant --- #


def test_back_shows_no_profile_after_disconnect(practice, start_chromium, new_browser):
    # Playwright disables the back/forward cache that ordinary browsers have.
    chromium = start_chromium('--disable-back-forward-cache')
    page = new_browser(chromium)
    page.goto(HOME)
    grant(page)
    click(page, 'Get my profile')
    assert greets(page, AGENT)
    click(page, 'Disconnect from Zendesk')
    assert heading(page) == 'Disconnected'
    assert page.get_by_text('revoked at Zendesk').is_visible()
    assert in_order(panel_steps(page), 'POST /disconnect', 'DELETE /api/v2/oauth/tokens/current', ': 401')
    assert practice.users == {}
    page.go_back(wait_until='commit')  # a cached page fires no load event
    page.wait_for_url(GRANT_ACCESS)
    assert AGENT not in page.content()
    page.goto(PROFILE)
    assert page.url == GRANT_ACCESS


def test_back_shows_no_profile_after_disconnect_without_practice_mode(home, start_chromium):
    """Check the app without the panel, whose cookie changes with each redirect."""
    page = start_chromium('--disable-back-forward-cache').new_page()
    page.goto(home)
    grant(page, home=home)
    click(page, 'Get my profile')
    assert greets(page, AGENT)
    click(page, 'Disconnect from Zendesk')
    assert heading(page) == 'Disconnected'
    page.go_back(wait_until='commit')
    page.wait_for_url(f'{home}grant_access')
    assert AGENT not in page.content()


def test_disconnect_reports_an_unconfirmed_revocation_if_zendesk_fails(practice, page):
    grant(page)
    fail_next(page, 'revoke', '500')
    click(page, 'Get my profile in the app')
    click(page, 'Disconnect from Zendesk')
    assert page.get_by_text('Zendesk did not confirm').is_visible()
    assert practice.users == {}


# --- Accessibility and layout --- #


def every_page(page) -> Iterator[str]:
    """Open each page with its panel open, and yield the name of the page."""

    def at(name: str) -> str:
        # Open the last one first: Playwright finds each by its position among the closed ones.
        for closed in page.locator('details:not([open]) > summary').all()[::-1]:
            closed.click()
        return name

    page.goto(CONTROLS)
    yield at('control page, no requests')
    page.goto(HOME)
    yield at('home')
    click(page, 'Get my profile')
    yield at('grant access')
    click(page, 'Grant access')
    yield at('consent')
    page.goto(GRANT_ACCESS)
    yield at('grant access, without a response from Zendesk')
    click(page, 'Grant access')
    invalid = page.url.replace('practice_client', '12345')
    click(page, 'Deny')
    yield at('denied')
    page.goto(invalid)
    yield at('no such client')
    page.goto(f'{APP}/zendesk/oauth/callback?code=x&state=y')
    yield at('callback refused')
    page.goto(f'{APP}/nothing')
    yield at('no such page')
    page.goto(HOME)
    grant(page)
    yield at('home, after a grant')
    click(page, 'Get my profile')
    yield at('profile')
    fail_next(page, 'any', '429')
    yield at('control page')
    click(page, 'Get my profile in the app')
    yield at('busy')
    fail_next(page, 'revoke', '500')
    click(page, 'Get my profile in the app')
    click(page, 'Disconnect from Zendesk')
    yield at('disconnected, not confirmed')
    click(page, 'Home')
    grant(page)
    click(page, 'Get my profile')
    click(page, 'Disconnect from Zendesk')
    yield at('disconnected')
    click(page, 'Home')
    grant(page)
    click(page, 'Get my profile')
    other = page.context.new_page()
    other.goto(PROFILE)
    click(other, 'Disconnect from Zendesk')
    other.close()
    click(page, 'Disconnect from Zendesk')
    yield at('disconnected, no tokens left')
    page.goto(f'{ZENDESK}/nothing')
    yield at('no such page of the practice Zendesk')


def test_axe_core_finds_no_violations_in_either_color_scheme(page, figure):
    found, pages = [], 0
    for name in every_page(page):
        pages += 1
        for scheme in ('light', 'dark'):
            page.emulate_media(color_scheme=scheme)
            result = axe.Axe().run(page)
            assert result.response['passes']
            found += [
                (name, scheme, violation['id'], [node['html'] for node in violation['nodes']])
                for violation in result.response['violations']
            ]
    version = result.response['testEngine']['version']
    figure(f'axe-core {version}: {len(found)} violations on {pages} pages in 2 color schemes')
    assert found == []


def test_every_page_has_a_valid_structure_and_fits_any_width(page):
    titles = set()
    for name in every_page(page):
        assert page.locator('html').get_attribute('lang') == 'en', name
        assert page.get_by_role('heading', level=1).count() == 1, name
        assert page.get_by_role('main').count() == 1, name
        assert page.get_by_role('banner').count() == 1, name
        titles.add(page.title())
        shift = page.evaluate(LAYOUT_SHIFT)
        assert shift == 0, name
        for width in (320, 1920):
            page.set_viewport_size({'width': width, 'height': 800})
            assert page.evaluate('document.documentElement.scrollWidth') <= width, name
        page.set_viewport_size({'width': 1280, 'height': 720})
    assert len(titles) >= 9
    assert all(re.fullmatch(r'.+ · (Zendesk OAuth in a web app|Practice Zendesk)', title) for title in titles)


# The page's cumulative layout shift since it began to load, apart from shifts after user input.
LAYOUT_SHIFT = """() => new Promise(resolve => {
  let sum = 0;
  new PerformanceObserver(list => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) sum += entry.value;
  }).observe({type: 'layout-shift', buffered: true});
  setTimeout(() => resolve(sum), 50);
})"""


def test_the_flow_works_by_keyboard_with_a_visible_focus(page):
    def go_to(name: str) -> None:
        for _ in range(20):
            page.keyboard.press('Tab')
            focused = page.locator(':focus')
            if focused.count() and focused.inner_text() == name:
                assert focused.evaluate('element => getComputedStyle(element).outlineStyle') == 'solid'
                return
        raise AssertionError(f'{name} cannot be reached')

    for name in ('Get my profile', 'Grant access', 'Allow', 'Get my profile', 'What just happened'):
        go_to(name)
        opens_a_page = name != 'What just happened'
        with page.expect_navigation() if opens_a_page else contextlib.nullcontext():
            page.keyboard.press('Enter')
    assert greets(page, AGENT)
    assert page.get_by_text('Using the response data').is_visible()


def test_the_app_and_the_practice_zendesk_look_different(page):
    def looks() -> tuple[str, ...]:
        return tuple(
            page.evaluate(f'getComputedStyle(document.body).{name}')
            for name in ('backgroundColor', 'color', 'borderTopWidth')
        )

    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        page.goto(HOME)
        app = looks()
        page.goto(CONTROLS)
        assert all(one != other for one, other in zip(app, looks(), strict=True))


def test_the_app_and_the_practice_zendesk_send_a_strict_policy(page):
    """The browser must block styles, scripts and pictures from other hosts."""
    for address in (HOME, CONTROLS):
        policy = page.goto(address).headers['content-security-policy']
        assert policy.startswith("default-src 'none'; style-src 'self'; img-src 'self';")
        assert 'unsafe' not in policy
