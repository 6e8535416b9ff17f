"""Practice mode in Chromium: pages, clicks, "Back", and accessibility."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from servers import ADMIN, AGENT, END_USER

pytest.importorskip('playwright.sync_api', reason='Playwright is not installed: pip install -r requirements-dev.txt')
axe = pytest.importorskip(
    'axe_playwright_python.sync_playwright', reason='axe-core is not installed: pip install -r requirements-dev.txt'
)

from chromium import (  # noqa: E402 - needs Playwright
    APP,
    CONTROLS,
    GRANT_ACCESS,
    HOME,
    PROFILE,
    ZENDESK,
    allow,
    click,
    fail_next,
    grant,
    greets,
    heading,
    in_order,
    panel_is_open,
    panel_steps,
)  # fmt: skip

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
    assert in_order(panel_steps(page), 'GET /zendesk/auth', 'GET /zendesk/oauth/callback', '200, the page')
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


def test_the_panel_stays_as_the_user_left_it(page):
    assert not panel_is_open(page)
    click(page, 'Get my profile')
    assert not panel_is_open(page)
    with page.expect_response(f'{APP}/panel/open'):
        page.get_by_text('What just happened').click()
    page.goto(HOME)
    assert panel_is_open(page)
    with page.expect_response(f'{APP}/panel/closed'):
        page.get_by_text('What just happened').click()
    page.goto(HOME)
    assert not panel_is_open(page)


def test_the_panel_opens_after_a_grant_and_keeps_it_at_home(page):
    click(page, 'Get my profile')
    assert panel_steps(page) == [
        'You opened the profile page',
        'GET /profile',
        'users.json: no tokens of this user',
        '302 to /grant_access',
        'GET /grant_access',
        '200, the page',
    ]
    page.get_by_text('What just happened').click()
    click(page, 'Grant access')
    allow(page)
    for _ in range(2):
        assert panel_is_open(page)
        assert page.locator('header .summary').inner_text().startswith('Zendesk gave the app a code')
        assert in_order(
            panel_steps(page),
            'You clicked Grant access',
            'GET /zendesk/auth',
            '302 to Zendesk state #',
            'GET /oauth/authorizations/new state #',
            '200, the consent page',
            'You clicked Allow',
            'POST /oauth/authorizations/new',
            '302 to the app code #',
            'GET /zendesk/oauth/callback code #',
            'Does the callback have the state of a pending request of this browser? Yes.',
            'POST /oauth/tokens code #',
            '200, the first tokens access token #',
            'users.json: stored access token #',
            '302 to /',
            'GET /',
            '200, the page',
        )
        page.goto(HOME)


def test_an_arrow_opens_the_message_in_full(page):
    grant(page)
    step = page.locator('.steps > li', has_text='POST /oauth/tokens')
    assert not step.locator('pre').is_visible()
    step.locator('summary').click()
    message = step.locator('pre').inner_text()
    assert message.startswith('POST /oauth/tokens HTTP/1.1\nHost: localhost:3001\n')
    assert 'grant_type=authorization_code' in message
    assert re.search('code_verifier=#[0-9a-f]{8}', message)
    assert step.get_by_role('link').get_attribute('href') == 'https://www.rfc-editor.org/rfc/rfc7636#section-4.5'
    assert step.get_by_text('auth_callback in app.py').is_visible()


def test_step_5_the_app_refreshes_an_expired_access_token(practice, page):
    grant(page)
    click(page, 'Get my profile')
    [before] = practice.users.values()
    click(page, 'All experiments')
    assert page.url == CONTROLS
    click(page, 'Step 5: expire the access token')
    assert page.url == PROFILE

    assert greets(page, AGENT)
    assert panel_is_open(page)
    steps = panel_steps(page)
    assert in_order(
        steps,
        'users.json: current tokens access token #',
        'GET /api/v2/users/me access token #',
        '401 invalid_token',
        'Locked. Is this still the stored refresh token? Yes.',
        'POST /oauth/tokens refresh token #',
        '200, new tokens access token #',
        'users.json: replaced access token #',
        'GET /api/v2/users/me access token #',
        '200',
        '200, the page',
    )
    # The panel shows new fingerprints of both tokens, but no token.
    [after] = practice.users.values()
    [replaced] = [step for step in steps if 'replaced' in step]
    assert len(set(re.findall('#[0-9a-f]{4}', replaced))) == 4
    assert page.locator('.box del').all_inner_texts() == re.findall(r'(?:access|refresh) token #\w{4}', replaced)[:2]
    for secret in (*tokens_of(before), *tokens_of(after)):
        assert secret not in page.content()


def tokens_of(record: dict) -> list[str]:
    return [record['access_token'], record['refresh_token']]


def test_step_6_the_app_requests_access_again_after_both_tokens_expire(page):
    grant(page)
    page.goto(CONTROLS)
    click(page, 'Step 6: expire both tokens')
    assert page.url == f'{GRANT_ACCESS}?ended=1'
    assert page.get_by_text('access to your account has ended').is_visible()
    steps = panel_steps(page)
    assert in_order(steps, '401 invalid_token', '400 invalid_grant', 'users.json: deleted', '302 to /grant_access')
    click(page, 'Grant access')
    allow(page)
    click(page, 'Get my profile')
    assert greets(page, AGENT)


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
    assert heading(page) == title
    assert panel_is_open(page)
    assert in_order(panel_steps(page), 'GET /profile', 'GET /api/v2/users/me', fault.partition(',')[0], 'the page')
    click(page, 'Try again')
    assert greets(page, AGENT)


def test_a_failed_refresh_keeps_the_grant(page):
    grant(page)
    fail_next(page, 'refresh', '500')
    assert heading(page) == 'The request to Zendesk failed'
    click(page, 'Try again')
    assert greets(page, AGENT)


@pytest.mark.slow
def test_a_timeout_shows_an_error_page_and_the_next_click_works(page):
    grant(page)
    fail_next(page, 'any', 'no response')
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
    [fingerprint] = set(re.findall(r'access token (#\w{4})', ' '.join(panel_steps(page))))
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
    assert in_order(panel_steps(page), 'POST /disconnect', 'DELETE /api/v2/oauth/tokens/current', '401 invalid_token')
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
    click(page, 'Disconnect from Zendesk')
    assert page.get_by_role('main').get_by_text('Zendesk did not confirm').is_visible()
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
    yield at('busy')
    page.goto(CONTROLS)
    yield at('control page')
    click(page, 'Continue the tour')
    yield at('experiment')
    fail_next(page, 'revoke', '500')
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

    for name in ('Get my profile', 'Grant access', 'Allow', 'Get my profile'):
        go_to(name)
        with page.expect_navigation():
            page.keyboard.press('Enter')
    assert greets(page, AGENT)
    # The steps of the panel come in order, and each one opens.
    go_to('What just happened')
    focused = []
    for _ in range(5):
        page.keyboard.press('Tab')
        page.keyboard.press('Enter')
        focused.append(page.locator(':focus .label, :focus .box').inner_text())
        page.keyboard.press('Enter')
    focused = [re.sub(r' (access|refresh) token #\w+', '', ' '.join(text.split())) for text in focused]
    assert focused == ['GET /profile', 'users.json: current tokens', 'GET /api/v2/users/me', '200', '200, the page']


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
