"""State and PKCE: bound to one browser, used once, ten minutes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import NEW_PAIR, TOKEN_ENDPOINT
from itsdangerous import TimestampSigner

from zendesk_oauth import authorization as authorization_requests


@pytest.fixture
def token_endpoint(zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    return zendesk.calls


def cookies_of(browser) -> dict[str, str]:
    return {
        cookie.key: cookie.value
        for cookie in browser._cookies.values()
        if cookie.key.startswith(authorization_requests.COOKIE_PREFIX)
    }


def test_the_challenge_is_that_of_rfc_7636_appendix_b():
    verifier = 'dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk'
    assert authorization_requests.code_challenge(verifier) == 'E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM'


def test_the_cookie_holds_neither_state_nor_verifier_nor_challenge(browser):
    sent = browser.start()
    [cookie] = cookies_of(browser).items()
    assert sent['state'] not in str(cookie)
    assert sent['code_challenge'] not in str(cookie)


def test_nobody_without_the_apps_key_can_compute_the_verifier(app, monkeypatch):
    state = 'A' * 43
    with app.app_context():
        verifier = authorization_requests._code_verifier(state)
        monkeypatch.setattr(app, 'secret_key', 'another key')
        assert authorization_requests._code_verifier(state) != verifier
    assert verifier != authorization_requests.code_challenge(state)


def test_a_hundred_requests_do_not_get_into_each_others_way(app, token_endpoint):
    for _ in range(100):
        assert app.test_client().grant().location == '/'


def test_the_cookies_of_requests_do_not_share_a_name(browser):
    browser.start()
    [name] = cookies_of(browser)
    assert len(name) >= len(authorization_requests.COOKIE_PREFIX) + 16


def test_the_cookie_is_http_only_and_lax_and_outlives_the_request(browser):
    header = browser.get('/zendesk/auth').headers['Set-Cookie']
    assert '; HttpOnly' in header
    assert '; SameSite=Lax' in header
    assert '; Secure' not in header
    assert '; Path=/' in header
    assert f'; Max-Age={authorization_requests.COOKIE_LIFETIME}' in header


def test_an_answer_without_any_session_is_refused(browser, token_endpoint):
    page = browser.come_back(code='the-code', state='A' * 43)
    assert page.status_code == 400
    assert 'class="button" href="http://localhost:3000"' in page.text
    assert not token_endpoint


def test_a_browser_with_a_session_or_a_request_has_cookies(app, browser, token_endpoint):
    browser.start()
    assert 'This answer cannot be used' in browser.come_back(code='the-code', state='A' * 43).text
    other = app.test_client()
    other.get('/')
    assert 'This answer cannot be used' in other.come_back(code='the-code', state='A' * 43).text
    assert not token_endpoint


@pytest.mark.parametrize(
    'query',
    [
        'code=c',
        'code=c&state=',
        'code=c&state=wrong',
        'code=c&state=%C3%A4%F0%9F%A6%84',
        'code=c&state=%FF%00',
        'code=c&state={state}x',
        'code=c&state={state}&state={state}',
        'code=c&state={state}&state=other',
        'code=c&state=' + 'x' * 100_000,
    ],
)
def test_a_malformed_state_is_refused_and_the_request_stays_open(browser, token_endpoint, query):
    state = browser.start()['state']
    page = browser.get('/zendesk/oauth/callback?' + query.format(state=state))
    assert page.status_code == 400
    assert not token_endpoint
    assert browser.come_back(code='the-code', state=state).location == '/'


def test_the_state_of_another_browser_is_refused(app, token_endpoint):
    attacker, victim = app.test_client(), app.test_client()
    victim.grant()
    before = Path('users.json').read_text()

    page = victim.come_back(code='attackers-code', state=attacker.start()['state'])

    assert page.status_code == 400
    assert len(token_endpoint) == 1
    assert Path('users.json').read_text() == before
    assert victim.user_id in json.loads(before)


def test_the_same_answer_works_once(browser, token_endpoint):
    state = browser.start()['state']
    assert browser.come_back(code='the-code', state=state).location == '/'
    user_id = browser.user_id
    assert browser.come_back(code='the-code', state=state).status_code == 400
    assert len(token_endpoint) == 1
    assert browser.user_id == user_id
    assert user_id in json.loads(Path('users.json').read_text())


def test_the_same_answer_ten_times_at_once_works_once(app, browser, token_endpoint):
    state = browser.start()['state']
    cookie = '; '.join(f'{name}={value}' for name, value in cookies_of(browser).items())

    def come_back(_):
        return app.test_client(use_cookies=False).get(
            '/zendesk/oauth/callback', query_string={'code': 'c', 'state': state}, headers={'Cookie': cookie}
        )

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(come_back, range(10)))

    assert sorted(answer.status_code for answer in answers) == [302] + [400] * 9
    assert len(token_endpoint) == 1
    assert len(json.loads(Path('users.json').read_text())) == 1
    # Those that come too late do not overwrite the session that the first one has set.
    losers = [
        header for answer in answers if answer.status_code == 400 for header in answer.headers.getlist('Set-Cookie')
    ]
    assert not [header for header in losers if header.startswith('zendesk_oauth_session')]


def test_a_kept_cookie_does_not_open_the_request_again(browser, token_endpoint, clock):
    state = browser.start()['state']
    [(name, value)] = cookies_of(browser).items()
    assert browser.come_back(code='the-code', state=state).location == '/'
    clock.advance(599)
    browser.set_cookie(name, value)
    assert browser.come_back(code='the-code', state=state).status_code == 400
    assert len(token_endpoint) == 1


def test_the_cookie_goes_with_the_answer_good_or_late(browser, token_endpoint, clock):
    state = browser.start()['state']
    assert cookies_of(browser)
    browser.come_back(code='the-code', state=state)
    assert not cookies_of(browser)
    state = browser.start()['state']
    clock.advance(601)
    browser.come_back(code='the-code', state=state)
    assert not cookies_of(browser)


def test_a_failed_exchange_uses_the_state_up_too(browser, zendesk):
    zendesk.post(TOKEN_ENDPOINT, status=500)
    state = browser.start()['state']
    assert browser.come_back(code='the-code', state=state).status_code == 502
    assert browser.come_back(code='the-code', state=state).status_code == 400
    assert len(zendesk.calls) == 1


def test_an_answer_after_ten_minutes_took_too_long(browser, token_endpoint, clock):
    state = browser.start()['state']
    clock.advance(601)
    page = browser.come_back(code='the-code', state=state)
    assert page.status_code == 400
    assert 'took too long' in page.text
    assert not token_endpoint


def test_an_answer_within_ten_minutes_is_in_time(browser, token_endpoint, clock):
    state = browser.start()['state']
    clock.advance(599)
    assert browser.come_back(code='the-code', state=state).location == '/'


def test_two_tabs_end_well_in_reverse_order(browser, token_endpoint):
    first, second = browser.start()['state'], browser.start()['state']
    assert browser.come_back(code='two', state=second).location == '/'
    assert browser.come_back(code='one', state=first).location == '/'
    assert list(json.loads(Path('users.json').read_text())) == [browser.user_id]


def test_of_many_abandoned_starts_the_oldest_are_dropped(browser, token_endpoint, clock):
    states = []
    for _ in range(20):
        states.append(browser.start()['state'])
        clock.advance(1)
    cookies = cookies_of(browser)
    assert len(cookies) == authorization_requests.MAX_PENDING
    assert sum(len(name) + len(value) + 3 for name, value in cookies.items()) < 2048
    assert browser.come_back(code='the-code', state=states[0]).status_code == 400
    assert browser.come_back(code='the-code', state=states[-authorization_requests.MAX_PENDING]).location == '/'
    assert browser.come_back(code='the-code', state=states[-1]).location == '/'


def test_forged_cookies_are_the_first_to_be_dropped(browser, token_endpoint):
    state = browser.start()['state']
    for number in range(authorization_requests.MAX_PENDING - 1):
        browser.set_cookie(f'{authorization_requests.COOKIE_PREFIX}forged{number}', 'junk')
    browser.start()
    assert browser.come_back(code='the-code', state=state).location == '/'


@pytest.mark.filterwarnings('ignore:The .* cookie is too large')
@pytest.mark.parametrize(
    'tamper',
    [
        lambda value: '',
        lambda value: value[:-1],
        lambda value: value[:20],
        lambda value: ('y' if value[0] == 'x' else 'x') + value[1:],
        lambda value: 'x' * 8192,
        lambda value: value.split('.')[0],
        lambda value: TimestampSigner('another key', salt='authorization request').sign(value.split('.')[0]).decode(),
    ],
)
def test_a_tampered_cookie_counts_as_none(browser, token_endpoint, tamper):
    state = browser.start()['state']
    [(name, value)] = cookies_of(browser).items()
    browser.set_cookie(name, tamper(value))
    assert browser.come_back(code='the-code', state=state).status_code == 400
    assert not token_endpoint


def test_the_cookie_of_one_request_does_not_open_another(browser, token_endpoint):
    first = browser.start()['state']
    [(first_name, _)] = cookies_of(browser).items()
    second = browser.start()['state']
    second_value = next(value for name, value in cookies_of(browser).items() if name != first_name)
    browser.set_cookie(first_name, second_value)
    assert browser.come_back(code='the-code', state=first).status_code == 400
    assert browser.come_back(code='the-code', state=second).location == '/'


def test_an_error_with_a_wrong_state_leaves_the_request_open(browser, token_endpoint):
    state = browser.start()['state']
    assert browser.come_back(error='access_denied', state='wrong').status_code == 400
    assert browser.come_back(code='the-code', state=state).location == '/'


@pytest.mark.parametrize(
    ('error', 'status', 'words'),
    [
        ('access_denied', 403, 'Access was not granted'),
        ('temporarily_unavailable', 503, 'busy'),
        ('server_error', 502, 'could not answer'),
        ('invalid_scope', 502, 'not allowed the permission'),
        ('invalid_request', 502, 'does not fit'),
        ('unauthorized_client', 502, 'does not fit'),
        ('unsupported_response_type', 502, 'does not fit'),
        ('invalid_client', 400, 'Access was not granted'),  # an error of the token endpoint, which Zendesk never sent
        ('unsupported_grant_type', 400, 'Access was not granted'),
        ('', 400, 'Access was not granted'),
        ('<script>alert(1)</script>', 400, 'Access was not granted'),
        ('a\r\nSet-Cookie: b=c\x1b[31m{}', 400, 'Access was not granted'),
        ('x' * 1_000_000, 400, 'Access was not granted'),
    ],
)
def test_each_error_is_told_in_our_own_words(browser, zendesk, log, error, status, words):
    state = browser.start()['state']
    log.clear()
    page = browser.come_back(error=error, error_description=f'<b>{error}</b>', state=state)
    assert page.status_code == status
    assert words in page.text
    assert 'class="button" href="/' in page.text
    assert '<script>' not in page.text
    assert 'Set-Cookie: b' not in page.text
    assert len(page.text) < 5000
    [_, line] = log
    assert line.count('\n') == 1
    assert len(line) < 500
    assert not zendesk.calls


@pytest.mark.parametrize(
    'query', ['', 'code=', 'code=a&code=b', 'code=a%0Ab', 'code=%C3%A4', 'code=' + 'x' * 1_000_000]
)
def test_a_code_that_can_not_be_one_is_not_sent_anywhere(browser, token_endpoint, query):
    state = browser.start()['state']
    assert browser.get(f'/zendesk/oauth/callback?state={state}&{query}').status_code == 400
    assert not token_endpoint


@pytest.mark.parametrize('issuer', ['iss=https://evil.example', 'iss=', 'iss=https://mondocam.zendesk.com&iss=x'])
def test_another_issuer_is_refused(browser, token_endpoint, issuer):
    state = browser.start()['state']
    assert browser.get(f'/zendesk/oauth/callback?code=c&state={state}&{issuer}').status_code == 400
    assert not token_endpoint


def test_an_error_of_another_issuer_is_not_told_as_zendesks(browser, zendesk):
    page = browser.come_back(error='access_denied', state=browser.start()['state'], iss='https://evil.example')
    assert page.status_code == 400
    assert 'not granted' not in page.text


def test_the_right_issuer_and_unknown_parameters_are_fine(browser, token_endpoint):
    state = browser.start()['state']
    answer = browser.come_back(code='c', state=state, iss='https://mondocam.zendesk.com', session_state='x', lang='en')
    assert answer.location == '/'
