"""Disconnect over real HTTP: what Zendesk still accepts afterwards, and what the page says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from servers import ADMIN, Processes, Visitor, profiles

REVOKED, NOT_CONFIRMED, NO_TOKENS = 'revoked at Zendesk', 'Zendesk did not confirm', 'No tokens are stored'


def at_the_profile(address: str) -> Visitor:
    """Return a user who has granted access, with the profile page open."""
    visitor = Visitor(address)
    visitor.grant()
    visitor.click('Get my profile')
    return visitor


def press_disconnect(visitor: Visitor, address: str) -> None:
    visitor.page = visitor.http.post(f'{address}disconnect', timeout=60)


def test_zendesk_has_no_tokens_left(processes, address):
    gone, other = at_the_profile(address), at_the_profile(address)
    press_disconnect(gone, address)
    assert REVOKED in gone.text
    assert [call['status'] for call in processes.request_log('revoke')] == [204]
    gone.visit(f'{address}profile')
    assert gone.address == f'{address}grant_access'
    other.visit(f'{address}profile')
    assert other.greeting.startswith('👋 Hi')


def test_an_expired_access_token_leaves_no_refresh_token_behind(processes, address):
    visitor = at_the_profile(address)
    processes.expire_access_tokens()
    press_disconnect(visitor, address)
    assert REVOKED in visitor.text
    assert [call['status'] for call in processes.request_log('revoke')] == [401, 204]
    assert processes.valid_grants() == 0


def test_a_refresh_that_is_under_way_brings_nothing_back(processes, address):
    visitor = at_the_profile(address)
    processes.expire_access_tokens()
    processes.set_faults({'call': 'refresh', 'delay': 1})
    with ThreadPoolExecutor(1) as pool:
        visit = pool.submit(profiles, address, [visitor], 1)
        processes.wait_until_faults_are_used()
        press_disconnect(visitor, address)
        [page] = visit.result()
    assert page.status_code in (200, 502)  # it came in time with its new token, or too late
    assert REVOKED in visitor.text
    assert processes.users == {}
    assert processes.valid_grants() == 0


def press_twice_at_once(visitor: Visitor, address: str) -> list[str]:
    cookies = visitor.http.cookies.get_dict()
    with ThreadPoolExecutor(2) as pool:
        pages = pool.map(lambda _: requests.post(f'{address}disconnect', cookies=cookies, timeout=60), range(2))
    return [page.text for page in pages]


def test_a_double_click_never_reports_a_valid_token_as_revoked(processes, address):
    visitor = at_the_profile(address)
    processes.expire_access_tokens()
    processes.set_faults({'call': 'refresh', 'status': 500, 'times': 2, 'delay': 0.5})
    pages = press_twice_at_once(visitor, address)
    assert processes.valid_grants() == 1
    shown = [words for words in (REVOKED, NOT_CONFIRMED, NO_TOKENS) for page in pages if words in page]
    assert sorted(shown) == sorted([NOT_CONFIRMED, NO_TOKENS])
    assert processes.users == {}


def test_a_double_click_revokes_the_tokens_once(processes, address):
    pages = press_twice_at_once(at_the_profile(address), address)
    assert processes.valid_grants() == 0
    assert sum(REVOKED in page for page in pages) == 1
    assert len(processes.request_log('revoke')) == 1


def test_a_lost_response_to_the_revocation_is_not_confirmed(processes, address):
    visitor = at_the_profile(address)
    processes.set_faults({'call': 'revoke', 'lost': True})
    press_disconnect(visitor, address)
    assert NOT_CONFIRMED in visitor.text
    assert processes.valid_grants() == 0
    assert processes.users == {}


def test_a_lost_response_to_a_refresh_is_not_called_revoked(processes, address):
    visitor = at_the_profile(address)
    processes.expire_access_tokens()
    processes.set_faults({'call': 'refresh', 'lost': True})
    visitor.visit(f'{address}profile')
    assert visitor.status == 502
    press_disconnect(visitor, address)
    assert NOT_CONFIRMED in visitor.text
    assert processes.valid_grants() == 1
    assert processes.users == {}


def test_a_grant_that_another_tab_gets_stays(processes: Processes, address):
    visitor = at_the_profile(address)
    old_cookies = visitor.http.cookies.get_dict()
    processes.set_faults({'call': 'revoke', 'delay': 1})
    with ThreadPoolExecutor(1) as pool:
        pressed = pool.submit(requests.post, f'{address}disconnect', cookies=old_cookies, timeout=60)
        processes.wait_until_faults_are_used()
        visitor.visit(f'{address}zendesk/auth')
        visitor.answer('allow', ADMIN)
        page = pressed.result()
    assert 'oauth_session' not in page.headers['Set-Cookie']
    visitor.visit(f'{address}profile')
    assert visitor.greeting == f'👋 Hi, {ADMIN}!'
    assert len(processes.users) == 1


@pytest.mark.parametrize('site', ['cross-site', 'same-site'])
def test_a_form_of_another_site_is_refused(processes, address, site):
    visitor = at_the_profile(address)
    response = visitor.http.post(f'{address}disconnect', headers={'Sec-Fetch-Site': site}, timeout=60)
    assert response.status_code == 403
    assert len(processes.users) == 1
