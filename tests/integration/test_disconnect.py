"""Disconnect over real HTTP: the tokens that Zendesk still accepts, and the page that the user sees."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from servers import ADMIN, HttpBrowser, Processes, request_profiles

REVOKED, NOT_CONFIRMED, NO_TOKENS = 'revoked at Zendesk', 'Zendesk did not confirm', 'No tokens are stored'


def open_profile(address: str) -> HttpBrowser:
    """Return a browser that has granted access and opened the profile."""
    browser = HttpBrowser(address)
    browser.grant()
    browser.click('Get my profile')
    return browser


def disconnect(browser: HttpBrowser, address: str) -> None:
    browser.page = browser.http.post(f'{address}disconnect', timeout=60)


def test_zendesk_accepts_no_token_after_disconnect(processes, address):
    disconnected, other = open_profile(address), open_profile(address)
    disconnect(disconnected, address)
    assert REVOKED in disconnected.text
    assert [call['status'] for call in processes.request_log('revoke')] == [204]
    disconnected.visit(f'{address}profile')
    assert disconnected.address == f'{address}grant_access'
    other.visit(f'{address}profile')
    assert other.greeting.startswith('👋 Hi')


def test_disconnect_revokes_the_refresh_token_if_the_access_token_expired(processes, address):
    browser = open_profile(address)
    processes.expire_access_tokens()
    disconnect(browser, address)
    assert REVOKED in browser.text
    assert [call['status'] for call in processes.request_log('revoke')] == [401, 204]
    assert processes.valid_grants() == 0


def test_three_grants_leave_one_valid_grant_which_disconnect_revokes(processes: Processes, address):
    browser = HttpBrowser(address)
    for _ in range(3):
        browser.visit(f'{address}zendesk/auth')
        browser.decide('allow')
        assert processes.valid_grants() == len(processes.users) == 1
    browser.http.post(f'{address}disconnect', timeout=60)
    assert (processes.valid_grants(), processes.users) == (0, {})


def test_disconnect_during_a_refresh_revokes_the_new_tokens(processes, address):
    browser = open_profile(address)
    processes.expire_access_tokens()
    processes.set_faults({'call': 'refresh', 'delay': 1})
    with ThreadPoolExecutor(1) as pool:
        visit = pool.submit(request_profiles, address, [browser], 1)
        processes.wait_until_faults_are_used()
        disconnect(browser, address)
        [page] = visit.result()
    assert page.status_code in (200, 502)  # with the new token, before or after its revocation
    assert REVOKED in browser.text
    assert processes.users == {}
    assert processes.valid_grants() == 0


def double_click_disconnect(browser: HttpBrowser, address: str) -> list[str]:
    cookies = browser.http.cookies.get_dict()
    with ThreadPoolExecutor(2) as pool:
        pages = pool.map(lambda _: requests.post(f'{address}disconnect', cookies=cookies, timeout=60), range(2))
    return [page.text for page in pages]


def test_a_double_click_never_reports_a_valid_token_as_revoked(processes, address):
    browser = open_profile(address)
    processes.expire_access_tokens()
    processes.set_faults({'call': 'refresh', 'status': 500, 'times': 2, 'delay': 0.5})
    pages = double_click_disconnect(browser, address)
    assert processes.valid_grants() == 1
    shown = [text for text in (REVOKED, NOT_CONFIRMED, NO_TOKENS) for page in pages if text in page]
    assert sorted(shown) == sorted([NOT_CONFIRMED, NO_TOKENS])
    assert processes.users == {}


def test_a_double_click_revokes_the_tokens_once(processes, address):
    pages = double_click_disconnect(open_profile(address), address)
    assert processes.valid_grants() == 0
    assert sum(REVOKED in page for page in pages) == 1
    assert len(processes.request_log('revoke')) == 1


def test_disconnect_is_not_confirmed_if_the_revocation_response_is_lost(processes, address):
    browser = open_profile(address)
    processes.set_faults({'call': 'revoke', 'lost': True})
    disconnect(browser, address)
    assert NOT_CONFIRMED in browser.text
    assert processes.valid_grants() == 0
    assert processes.users == {}


def test_disconnect_is_not_confirmed_after_a_lost_refresh_response(processes, address):
    browser = open_profile(address)
    processes.expire_access_tokens()
    processes.set_faults({'call': 'refresh', 'lost': True})
    browser.visit(f'{address}profile')
    assert browser.status == 502
    disconnect(browser, address)
    assert NOT_CONFIRMED in browser.text
    assert processes.valid_grants() == 1
    assert processes.users == {}


def test_a_grant_from_another_tab_stays_after_disconnect(processes: Processes, address):
    browser = open_profile(address)
    old_cookies = browser.http.cookies.get_dict()
    processes.set_faults({'call': 'revoke', 'delay': 1})
    with ThreadPoolExecutor(1) as pool:
        disconnecting = pool.submit(requests.post, f'{address}disconnect', cookies=old_cookies, timeout=60)
        processes.wait_until_faults_are_used()
        browser.visit(f'{address}zendesk/auth')
        browser.decide('allow', ADMIN)
        page = disconnecting.result()
    assert '_session=' not in page.headers['Set-Cookie']
    browser.visit(f'{address}profile')
    assert browser.greeting == f'👋 Hi, {ADMIN}!'
    assert len(processes.users) == 1


@pytest.mark.parametrize('site', ['cross-site', 'same-site'])
def test_disconnect_refuses_a_form_from_another_site(processes, address, site):
    browser = open_profile(address)
    response = browser.http.post(f'{address}disconnect', headers={'Sec-Fetch-Site': site}, timeout=60)
    assert response.status_code == 403
    assert len(processes.users) == 1
