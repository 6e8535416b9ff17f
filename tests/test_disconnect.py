"""The end of a grant: "Disconnect", with Zendesk mocked, and over real HTTP."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urljoin

import pytest
import requests
from conftest import (
    NEW,
    NEW_PAIR,
    OTHER,
    PAIR,
    REVOKE,
    SHOW_SELF,
    TOKEN_ENDPOINT,
    USER,
    bearer,
    calls_to,
    records,
    store,
    stored,
)
from servers import ADMIN, Processes, Visitor, profiles, wait_until

import app as app_module
import backend_code
import web as security

REVOKED, NOT_CONFIRMED, NO_TOKENS = 'Zendesk has revoked them, too', 'Zendesk did not confirm', 'has no tokens of yours'


@pytest.fixture
def alice(db, browser, zendesk):
    """Alice, whose profile page is open; its call to Zendesk has been answered."""
    browser.sign_in('alice')
    store(alice=PAIR, bob=OTHER)
    zendesk.get(SHOW_SELF, json=USER)
    return browser


def holds(token: str):
    return lambda request: (f'refresh_token={token}&' in request.body, 'another refresh token')


def csrf_token(page) -> str:
    return page.text.split('name="csrf_token" value="')[1].split('"')[0]


def press(browser):
    """Open the profile page, and press "Disconnect" there."""
    return browser.post('/disconnect', data={'csrf_token': csrf_token(browser.get('/profile'))})


def page_after(browser, answer) -> str:
    """Return the page that one comes to."""
    assert answer.location == '/disconnected'
    return browser.get('/disconnected').text


def disconnected(browser) -> str:
    """Press "Disconnect", and return the page that one comes to."""
    return page_after(browser, press(browser))


def refuse(zendesk, pair: dict) -> None:
    """Let Zendesk accept neither of these tokens."""
    zendesk.get(SHOW_SELF, status=401, match=[bearer(pair['access_token'])])
    zendesk.post(TOKEN_ENDPOINT, status=400, json={'error': 'invalid_grant'}, match=[holds(pair['refresh_token'])])


def test_it_revokes_at_zendesk_checks_it_and_deletes_the_tokens_here(alice, zendesk, log):
    zendesk.delete(REVOKE, status=204, match=[bearer('old-access')])
    refuse(zendesk, PAIR)
    assert REVOKED in disconnected(alice)
    assert stored() == {'bob': OTHER}
    assert [calls_to(zendesk, url) for url in (REVOKE, SHOW_SELF, TOKEN_ENDPOINT)] == [1, 2, 1]
    story = [
        'Disconnecting',
        f'Deleted from {backend_code.users_db()}',
        'Asking Zendesk to revoke',
        'Checking',
        'accepts neither',
        'Showing what came',
    ]
    positions = [next(number for number, line in enumerate(log) if words in line) for words in story]
    assert positions == sorted(positions)


def test_an_expired_access_token_is_refreshed_to_revoke_the_refresh_token(alice, zendesk):
    zendesk.delete(REVOKE, status=401, match=[bearer('old-access')])
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR, match=[holds('old-refresh')])
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    refuse(zendesk, NEW)
    assert REVOKED in disconnected(alice)
    assert stored() == {'bob': OTHER}
    assert calls_to(zendesk, REVOKE) == 2


@pytest.mark.parametrize('token', ['', 'ä日', 'a\nb'])
def test_an_access_token_that_could_not_even_be_sent_is_refreshed_to_revoke_the_refresh_token(alice, zendesk, token):
    form = {'csrf_token': csrf_token(alice.get('/profile'))}
    store(alice={**PAIR, 'access_token': token}, bob=OTHER)
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR, match=[holds('old-refresh')])
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    refuse(zendesk, NEW)
    assert REVOKED in page_after(alice, alice.post('/disconnect', data=form))
    assert stored() == {'bob': OTHER}


def test_any_success_will_do(alice, zendesk):
    zendesk.delete(REVOKE, json={})
    refuse(zendesk, PAIR)
    assert REVOKED in disconnected(alice)


def test_that_zendesk_accepts_neither_token_is_no_confirmation(alice, zendesk, log):
    """They may be dead; or a refresh has been done whose answer was lost, and its new pair is alive."""
    zendesk.delete(REVOKE, status=401)
    zendesk.post(TOKEN_ENDPOINT, status=400, json={'error': 'invalid_grant'})
    assert NOT_CONFIRMED in disconnected(alice)
    assert stored() == {'bob': OTHER}
    assert any('accepts neither token' in line for line in log)


def test_a_new_token_that_cannot_be_revoked_is_no_confirmation(alice, zendesk):
    zendesk.delete(REVOKE, status=401, match=[bearer('old-access')])
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    zendesk.delete(REVOKE, status=500, match=[bearer('new-access')])
    assert NOT_CONFIRMED in disconnected(alice)
    assert stored() == {'bob': OTHER}


def test_a_204_after_which_the_refresh_token_still_works_is_not_believed(alice, zendesk, log):
    """The access token is refused because it has run out meanwhile; and what the refresh token brings must go, too."""
    zendesk.delete(REVOKE, status=204, match=[bearer('old-access')])
    zendesk.get(SHOW_SELF, status=401)
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR, match=[holds('old-refresh')])
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    assert NOT_CONFIRMED in disconnected(alice)
    assert stored() == {'bob': OTHER}
    assert calls_to(zendesk, REVOKE) == 2
    assert any('the refresh token still worked' in line for line in log)


def test_a_grant_without_a_refresh_token_can_be_revoked(alice, zendesk):
    store(alice={**PAIR, 'refresh_token': ''}, bob=OTHER)
    zendesk.delete(REVOKE, status=204)
    zendesk.get(SHOW_SELF, status=401)
    assert REVOKED in disconnected(alice)
    assert calls_to(zendesk, TOKEN_ENDPOINT) == 0


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


def test_a_refresh_under_way_that_takes_too_long_does_not_keep_the_tokens_here(alice, zendesk, impatient):
    zendesk.delete(REVOKE, status=401)
    with backend_code.users_db().refreshing('alice'):
        assert NOT_CONFIRMED in disconnected(alice)
    assert stored() == {'bob': OTHER}


def test_with_a_refresh_under_way_nothing_is_certain(alice, zendesk, impatient, log):
    """Whatever Zendesk says of these tokens: others may be on their way."""
    zendesk.delete(REVOKE, status=204)
    refuse(zendesk, PAIR)
    with backend_code.users_db().refreshing('alice'):
        assert NOT_CONFIRMED in disconnected(alice)
    assert any('A refresh is under way' in line for line in log)


def test_nobody_waits_while_zendesk_is_asked(alice, zendesk, impatient):

    def answer(request):
        with backend_code.users_db().refreshing('alice'):
            return 204, {}, ''

    zendesk.add_callback('DELETE', REVOKE, answer)
    refuse(zendesk, PAIR)
    assert REVOKED in disconnected(alice)


def test_without_a_new_refresh_token_the_old_one_is_checked(alice, zendesk):
    zendesk.delete(REVOKE, status=401, match=[bearer('old-access')])
    zendesk.post(TOKEN_ENDPOINT, json={'access_token': 'new-access', 'token_type': 'bearer'})
    zendesk.delete(REVOKE, status=204, match=[bearer('new-access')])
    refuse(zendesk, {'access_token': 'new-access', 'refresh_token': 'old-refresh'})
    assert REVOKED in disconnected(alice)


def test_afterwards_the_profile_asks_for_access(alice, zendesk):
    zendesk.delete(REVOKE, status=204)
    refuse(zendesk, PAIR)
    disconnected(alice)
    assert alice.get('/profile').location == '/grant_access'


def test_the_session_is_left_alone_because_another_tab_may_have_a_new_one(alice, zendesk):
    zendesk.delete(REVOKE, status=204)
    refuse(zendesk, PAIR)
    [cookie] = press(alice).headers.getlist('Set-Cookie')
    assert cookie.startswith(f'{app_module.OUTCOME}=')
    for attribute in ('HttpOnly', 'SameSite=Lax', 'Max-Age=600'):
        assert attribute in cookie


def revoked(browser, zendesk) -> str:
    """Disconnect, and return the cookie by which the page says that all is revoked."""
    zendesk.delete(REVOKE, status=204)
    refuse(zendesk, PAIR)
    assert REVOKED in disconnected(browser)
    return browser.get_cookie(app_module.OUTCOME).value


def test_the_page_can_be_opened_again(alice, zendesk):
    revoked(alice, zendesk)
    assert REVOKED in alice.get('/disconnected').text


def test_the_page_says_nothing_of_a_later_grant(alice, zendesk):
    revoked(alice, zendesk)
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    alice.grant()
    assert alice.get('/disconnected').location == '/profile'


def test_the_page_says_nothing_of_tokens_that_have_come_under_the_same_id(alice, zendesk):
    """As they would where the id is that of an account."""
    revoked(alice, zendesk)
    store(alice=NEW)
    assert alice.get('/disconnected').location == '/profile'


def test_the_page_says_nothing_to_another_visitor(alice, app, zendesk):
    outcome = revoked(alice, zendesk)
    for user_id in ('bob', 'carol', None):
        other = app.test_client()
        other.set_cookie(app_module.OUTCOME, outcome)
        if user_id:
            other.sign_in(user_id)
        assert other.get('/disconnected').location == '/profile'


@pytest.mark.parametrize('outcome', ['', 'revoked', 'revoked.', 'revoked.x', '.', '<script>', 'ä\x00', 'x' * 4000])
def test_a_forged_outcome_claims_nothing(alice, outcome):
    alice.set_cookie(app_module.OUTCOME, outcome)
    assert alice.get('/disconnected').location == '/profile'


def test_the_page_cannot_be_had_by_a_link(alice):
    assert alice.get('/disconnected').location == '/profile'


def test_the_token_of_a_form_is_no_outcome_and_an_outcome_no_token(alice, app, zendesk):
    with app.app_context():
        form = security.csrf_token('alice')
    outcome = revoked(alice, zendesk)
    alice.set_cookie(app_module.OUTCOME, form)
    assert REVOKED not in alice.get('/disconnected').text
    store(alice=PAIR)
    assert alice.post('/disconnect', data={'csrf_token': outcome}).status_code == 400
    assert stored() == {'alice': PAIR}


def test_a_grant_made_meanwhile_under_the_same_id_stays(alice, zendesk):
    """As it can be where the id is that of an account."""

    def grant_anew(request):
        store(alice=NEW, bob=OTHER)
        return 204, {}, ''

    zendesk.add_callback('DELETE', REVOKE, grant_anew)
    refuse(zendesk, PAIR)
    press(alice)
    assert stored() == {'alice': NEW, 'bob': OTHER}


@pytest.mark.parametrize('record', [{'refresh_token': 'old-refresh'}, {**PAIR, 'access_token': None}, 'text'])
def test_a_record_that_cannot_be_used_goes_too(alice, zendesk, record):
    token = csrf_token(alice.get('/profile'))
    store(alice=record, bob=OTHER)
    assert NO_TOKENS in page_after(alice, alice.post('/disconnect', data={'csrf_token': token}))
    assert records() == {'bob': OTHER}


def test_without_tokens_there_is_nothing_to_revoke(alice, zendesk):
    token = csrf_token(alice.get('/profile'))
    store(bob=OTHER)
    page = page_after(alice, alice.post('/disconnect', data={'csrf_token': token}))
    assert NO_TOKENS in page
    assert 'Devices &amp; Apps' in page
    assert REVOKED not in page
    assert calls_to(zendesk, REVOKE) == 0
    assert stored() == {'bob': OTHER}


def test_a_disk_that_fails_is_a_page_and_nothing_is_done(alice, zendesk, full_disk):
    page = press(alice)
    assert page.status_code == 503
    assert calls_to(zendesk, REVOKE) == 0
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


def test_without_a_session_a_form_does_nothing(app, browser, zendesk):
    with app.app_context():
        for token in ('', security.csrf_token(None)):
            assert browser.post('/disconnect', data={'csrf_token': token}).status_code == 400


def test_a_link_or_a_picture_can_not_disconnect(alice, zendesk):
    assert alice.get('/disconnect').status_code == 405
    assert stored() == {'alice': PAIR, 'bob': OTHER}


# --- Over real HTTP --- #


@pytest.fixture(params=['home', pytest.param('gunicorn_home', marks=pytest.mark.gunicorn)])
def address(request) -> str:
    """The app's home page, with the built-in server and under gunicorn with four processes."""
    return request.getfixturevalue(request.param)


def at_the_profile(address: str) -> Visitor:
    """A visitor who has granted access, with the profile page open."""
    visitor = Visitor(address)
    visitor.grant()
    visitor.click('Get my profile')
    return visitor


def press_disconnect(visitor: Visitor, address: str) -> None:
    visitor.page = visitor.http.post(f'{address}disconnect', visitor.form, timeout=60)


def test_zendesk_really_has_no_tokens_left(processes, address):
    gone, other = at_the_profile(address), at_the_profile(address)
    press_disconnect(gone, address)
    assert REVOKED in gone.text
    assert [call['status'] for call in processes.journal('revoke')] == [204]
    gone.visit(f'{address}profile')
    assert gone.address == f'{address}grant_access'
    other.visit(f'{address}profile')
    assert other.greeting.startswith('👋 Hi')


def test_an_access_token_that_expired_meanwhile_does_not_leave_a_refresh_token_behind(processes, address):
    visitor = at_the_profile(address)
    processes.expire_access_tokens()
    press_disconnect(visitor, address)
    assert REVOKED in visitor.text
    assert [call['status'] for call in processes.journal('revoke')] == [401, 204]
    assert processes.living_tokens() == 0


@pytest.mark.parametrize(
    'step',
    [pytest.param({'delay': 1}, id='before it is done'), pytest.param({'trickle': 0.002}, id='while the answer comes')],
)
def test_disconnected_while_a_refresh_is_under_way_nothing_comes_back(processes, address, step):
    visitor = at_the_profile(address)
    processes.expire_access_tokens()
    processes.script({'call': 'refresh', **step})
    with ThreadPoolExecutor(1) as pool:
        visit = pool.submit(profiles, address, [visitor], 1)
        processes.wait_for_the_script_to_end()
        if 'trickle' in step:
            wait_until(lambda: processes.refreshes() == 1)
        press_disconnect(visitor, address)
        [page] = visit.result()
    assert page.status_code in (200, 502)  # it came in time with its new token, or too late
    assert REVOKED in visitor.text
    assert processes.users == {}
    assert processes.living_tokens() == 0


def twice_at_once(visitor: Visitor, address: str) -> list[str]:
    cookies, form = visitor.http.cookies.get_dict(), visitor.form

    def press(_) -> str:
        answer = requests.post(f'{address}disconnect', form, cookies=cookies, timeout=60, allow_redirects=False)
        assert answer.status_code == 302
        outcome = answer.cookies.get_dict()
        return requests.get(urljoin(address, 'disconnected'), cookies={**cookies, **outcome}, timeout=60).text

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(press, range(2)))


def test_pressed_twice_nobody_is_told_that_a_living_token_is_revoked(processes, address):
    visitor = at_the_profile(address)
    processes.expire_access_tokens()
    processes.script({'call': 'refresh', 'status': 500, 'times': 2, 'delay': 0.5})
    pages = twice_at_once(visitor, address)
    assert processes.living_tokens() == 1
    assert sorted(words for words in (REVOKED, NOT_CONFIRMED, NO_TOKENS) for page in pages if words in page) == [
        NOT_CONFIRMED,
        NO_TOKENS,
    ]
    assert processes.users == {}


def test_pressed_twice_the_tokens_are_revoked_once(processes, address):
    pages = twice_at_once(at_the_profile(address), address)
    assert processes.living_tokens() == 0
    assert sum(REVOKED in page for page in pages) == 1
    assert len(processes.journal('revoke')) == 1
    assert processes.users == {}


def test_a_revocation_whose_answer_was_lost_is_not_confirmed(processes, address):
    visitor = at_the_profile(address)
    processes.script({'call': 'revoke', 'cut': 0})
    press_disconnect(visitor, address)
    assert NOT_CONFIRMED in visitor.text
    assert processes.living_tokens() == 0
    assert processes.users == {}


def test_a_refresh_whose_answer_was_lost_is_not_called_revoked(processes, address):
    visitor = at_the_profile(address)
    form = visitor.form
    processes.expire_access_tokens()
    processes.script({'call': 'refresh', 'cut': 0})
    visitor.visit(f'{address}profile')
    assert visitor.status == 502
    visitor.page = visitor.http.post(f'{address}disconnect', form, timeout=60)
    assert NOT_CONFIRMED in visitor.text
    assert processes.living_tokens() == 1
    assert processes.users == {}


def test_a_grant_that_another_tab_got_meanwhile_stays(processes: Processes, address):
    visitor = at_the_profile(address)
    old_cookies, form = visitor.http.cookies.get_dict(), visitor.form
    processes.script({'call': 'revoke', 'delay': 1})
    with ThreadPoolExecutor(1) as pool:
        pressed = pool.submit(
            requests.post, f'{address}disconnect', form, cookies=old_cookies, allow_redirects=False, timeout=60
        )
        processes.wait_for_the_script_to_end()
        visitor.visit(f'{address}zendesk/auth')
        visitor.answer('allow', ADMIN)
        answer = pressed.result()
    visitor.http.cookies.update(answer.cookies)
    visitor.visit(f'{address}profile')
    assert visitor.greeting == f'👋 Hi, {ADMIN}!'
    assert len(processes.users) == 1


def test_a_form_that_breaks_off_is_a_page(processes, address):
    """In chunks, of which one is none."""
    port = int(address.split(':')[2].strip('/'))
    visitor = at_the_profile(address)
    cookies = '; '.join(f'{name}={value}' for name, value in visitor.http.cookies.get_dict().items())
    with socket.create_connection(('127.0.0.1', port), timeout=30) as connection:
        connection.sendall(
            f'POST /disconnect HTTP/1.1\r\nHost: localhost:{port}\r\nCookie: {cookies}\r\nConnection: close\r\n'
            'Content-Type: application/x-www-form-urlencoded\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n'.encode()
        )
        answer = b''.join(iter(lambda: connection.recv(65536), b''))
    assert answer.startswith((b'HTTP/1.1 400 ', b'HTTP/1.0 400 '))
    assert 'Traceback' not in processes.output
    assert len(processes.users) == 1
