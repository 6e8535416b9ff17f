"""The end of a grant: "Disconnect", with Zendesk mocked, and over real HTTP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from conftest import NEW_PAIR, OTHER, PAIR, REVOKE, SHOW_SELF, TOKEN_ENDPOINT, USER, calls_to, store, stored
from responses.matchers import header_matcher
from servers import Visitor, profiles

from users_db import UsersDb

REVOKED, NOT_CONFIRMED = 'Zendesk has revoked them, too', 'Zendesk did not confirm'


@pytest.fixture
def alice(browser, zendesk):
    """Alice, whose profile page is open; its call to Zendesk has been answered."""
    browser.sign_in('alice')
    store(alice=PAIR, bob=OTHER)
    zendesk.get(SHOW_SELF, json=USER)
    return browser


def bearer(token: str):
    return header_matcher({'Authorization': f'Bearer {token}'})


def csrf_token(page) -> str:
    return page.text.split('name="csrf_token" value="')[1].split('"')[0]


def press(browser):
    """Open the profile page, and press "Disconnect" there."""
    return browser.post('/disconnect', data={'csrf_token': csrf_token(browser.get('/profile'))})


def disconnected(browser) -> str:
    """Press "Disconnect", and return the page that one comes to."""
    answer = press(browser)
    assert answer.location == '/'
    return browser.get('/').text


def test_it_revokes_at_zendesk_checks_it_and_deletes_the_tokens_here(alice, zendesk, log):
    zendesk.delete(REVOKE, status=204, match=[bearer('old-access')])
    zendesk.get(SHOW_SELF, status=401, match=[bearer('old-access')])
    assert REVOKED in disconnected(alice)
    assert stored() == {'bob': OTHER}
    assert calls_to(zendesk, REVOKE) == 1
    assert any('Asking Zendesk to revoke' in line for line in log)


def test_the_news_is_told_once(alice, zendesk):
    zendesk.delete(REVOKE, status=204)
    zendesk.get(SHOW_SELF, status=401)
    assert 'Disconnected' in disconnected(alice)
    assert 'Disconnected' not in alice.get('/').text


def test_an_expired_access_token_is_refreshed_to_revoke_the_refresh_token(alice, zendesk):
    zendesk.delete(REVOKE, status=401, match=[bearer('old-access')])
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    zendesk.get(SHOW_SELF, status=401, match=[bearer('new-access')])
    assert REVOKED in disconnected(alice)
    assert stored() == {'bob': OTHER}
    assert calls_to(zendesk, REVOKE) == 2


def test_tokens_that_are_both_dead_are_revoked(alice, zendesk):
    zendesk.delete(REVOKE, status=401)
    zendesk.post(TOKEN_ENDPOINT, status=400, json={'error': 'invalid_grant'})
    assert REVOKED in disconnected(alice)
    assert stored() == {'bob': OTHER}


@pytest.mark.parametrize(
    'answer',
    [
        {'status': 500},
        {'status': 503},
        {'status': 429},
        {'status': 403, 'json': {'error': 'Forbidden'}},
        {'status': 404},
        {'status': 301, 'headers': {'Location': 'https://evil.example/'}},
        {'body': requests.ConnectionError()},
        {'body': requests.Timeout()},
    ],
)
def test_the_tokens_go_even_when_zendesk_does_not_answer_and_the_page_says_so(alice, zendesk, log, answer):
    zendesk.delete(REVOKE, **answer)
    page = disconnected(alice)
    assert NOT_CONFIRMED in page
    assert REVOKED not in page
    assert 'Devices &amp; Apps' in page
    assert stored() == {'bob': OTHER}
    assert any('not certain that the tokens are revoked' in line for line in log)


def test_a_204_after_which_the_token_still_works_is_not_believed(alice, zendesk, log):
    zendesk.delete(REVOKE, status=204)
    zendesk.get(SHOW_SELF, json=USER)
    assert NOT_CONFIRMED in disconnected(alice)
    assert stored() == {'bob': OTHER}
    assert any('still works' in line for line in log)


def test_a_check_that_fails_is_no_confirmation(alice, zendesk):
    zendesk.delete(REVOKE, status=204)
    zendesk.get(SHOW_SELF, status=500)
    assert NOT_CONFIRMED in disconnected(alice)
    assert stored() == {'bob': OTHER}


def test_a_refresh_that_fails_is_no_confirmation(alice, zendesk):
    zendesk.delete(REVOKE, status=401)
    zendesk.post(TOKEN_ENDPOINT, status=500)
    assert NOT_CONFIRMED in disconnected(alice)
    assert stored() == {'bob': OTHER}


def test_a_refresh_under_way_that_takes_too_long_does_not_keep_the_tokens_here(alice, zendesk, monkeypatch):
    monkeypatch.setattr('users_db.REFRESH_TIMEOUT', 0.1)
    zendesk.delete(REVOKE, status=401)
    with UsersDb('users.json').refreshing('alice'):
        assert NOT_CONFIRMED in disconnected(alice)
    assert stored() == {'bob': OTHER}


def test_the_session_is_another_one_afterwards(alice, zendesk):
    zendesk.delete(REVOKE, status=204)
    zendesk.get(SHOW_SELF, status=401)
    disconnected(alice)
    assert alice.user_id not in ('alice', None)
    assert alice.get('/profile').location == '/grant_access'


def test_without_tokens_there_is_nothing_to_revoke(alice, zendesk):
    token = csrf_token(alice.get('/profile'))
    store(bob=OTHER)
    assert alice.post('/disconnect', data={'csrf_token': token}).location == '/'
    page = alice.get('/').text
    assert 'no tokens of yours' in page
    assert REVOKED not in page
    assert calls_to(zendesk, REVOKE) == 0
    assert stored() == {'bob': OTHER}


def test_a_disk_that_fails_is_a_page_and_not_a_lie(alice, zendesk, full_disk):
    zendesk.delete(REVOKE, status=204)
    zendesk.get(SHOW_SELF, status=401)
    page = press(alice)
    assert page.status_code == 503
    assert stored() == {'alice': PAIR, 'bob': OTHER}
    assert alice.user_id == 'alice'


@pytest.mark.parametrize('form', [{}, {'csrf_token': ''}, {'csrf_token': 'x' * 27}, {'csrf_token': 'ä\ud800'}])
def test_a_form_of_another_site_does_nothing(alice, zendesk, form):
    form = {name: value.encode('utf-8', 'surrogatepass') for name, value in form.items()}
    page = alice.post('/disconnect', data=form)
    assert page.status_code == 400
    assert 'Nothing was changed' in page.text
    assert stored() == {'alice': PAIR, 'bob': OTHER}
    assert not zendesk.calls


def test_the_token_of_another_session_does_not_do(alice, app, zendesk):
    mallory = app.test_client()
    mallory.sign_in('bob')
    token = csrf_token(mallory.get('/profile'))
    assert alice.post('/disconnect', data={'csrf_token': token}).status_code == 400
    assert stored() == {'alice': PAIR, 'bob': OTHER}


def test_without_a_session_a_form_does_nothing(browser, zendesk):
    assert browser.post('/disconnect', data={'csrf_token': ''}).status_code == 400


def test_a_link_or_a_picture_can_not_disconnect(alice, zendesk):
    assert alice.get('/disconnect').status_code == 405
    assert stored() == {'alice': PAIR, 'bob': OTHER}


# --- Over real HTTP --- #


def press_disconnect(visitor: Visitor, home: str) -> None:
    """Press the button on the profile page that the visitor has open."""
    visitor.page = visitor.http.post(f'{home}disconnect', visitor.form, timeout=60)


def test_zendesk_really_has_no_tokens_left(processes, home):
    gone, other = Visitor(home), Visitor(home)
    for visitor in (gone, other):
        visitor.grant()
        visitor.click('Get my profile')
    press_disconnect(gone, home)
    assert REVOKED in gone.text
    assert [call['status'] for call in processes.journal('revoke')] == [204]
    gone.click('Get my profile')
    assert gone.address == f'{home}grant_access'
    other.visit(f'{home}profile')
    assert other.greeting.startswith('👋 Hi')


def test_an_access_token_that_expired_meanwhile_does_not_leave_a_refresh_token_behind(processes, home):
    visitor = Visitor(home)
    visitor.grant()
    visitor.click('Get my profile')
    processes.expire_access_tokens()
    press_disconnect(visitor, home)
    assert REVOKED in visitor.text
    assert [call['status'] for call in processes.journal('revoke')] == [401, 204]
    assert processes.living_tokens() == 0


def test_disconnected_while_a_refresh_is_under_way_nothing_comes_back(processes, home):
    visitor = Visitor(home)
    visitor.grant()
    visitor.click('Get my profile')
    processes.expire_access_tokens()
    processes.script({'call': 'refresh', 'delay': 1})
    with ThreadPoolExecutor(1) as pool:
        pool.submit(profiles, home, [visitor], 1)
        processes.wait_for_the_script_to_end()
        press_disconnect(visitor, home)
    assert REVOKED in visitor.text
    assert processes.users == {}
    assert processes.living_tokens() == 0
