"""The practice Zendesk's control page, and its journal."""

from __future__ import annotations

import html
import re
from datetime import datetime

import pytest
from test_server import ADMIN, AGENT, AUTHORIZE, EXCHANGE, REQUEST, allow, grant, refresh, refused, show_self

from practice_zendesk import faults as simulator_script
from practice_zendesk import server as zendesk_simulator
from zendesk_oauth.fingerprints import fingerprint


@pytest.fixture(autouse=True)
def nothing_left_over():
    simulator_script._journal.clear()
    yield
    simulator_script._script.clear()


@pytest.fixture
def controls(http):
    """Press a button on the control page, and return the page that one comes to."""

    def press(action: str, **form) -> str:
        answer = http.post('/practice', data={'action': action, **form})
        assert answer.status_code == 303
        return http.get(answer.location).text

    return press


def test_an_access_token_expires_at_a_click_and_can_be_refreshed(http, controls):
    pair = grant(http)
    assert 'All access tokens have expired' in controls('expire_access')
    assert show_self(http, pair).status_code == 401
    assert show_self(http, refresh(http, pair).json).status_code == 200


def test_a_refresh_token_dies_at_a_click(http, controls):
    pair = grant(http)
    assert 'None: nobody' in controls('end_grants')
    assert show_self(http, pair).status_code == 401
    assert refused(refresh(http, pair), 'invalid_grant')


@pytest.mark.parametrize(('fault', 'status'), [('500', 500), ('429', 429)])
def test_the_next_call_gets_an_error_and_the_one_after_it_an_answer(http, controls, fault, status):
    pair = grant(http)
    page = controls('fail_next', call='any', fault=fault)
    assert f'Waiting for the next call, of any kind. It gets: {fault}, ' in page
    answer = show_self(http, pair)
    assert answer.status_code == status
    assert answer.headers.get('Retry-After') == ('5' if status == 429 else None)
    assert show_self(http, pair).status_code == 200


def test_an_answer_can_be_lost_after_all_is_done(controls):
    page = controls('fail_next', call='refresh', fault='lost')
    assert simulator_script.script() == [{'call': 'refresh', 'cut': 0}]
    assert 'Waiting for the next refresh. It gets: its answer lost on the way' in page


def test_a_fault_can_wait_for_a_call_of_a_kind(http, controls):
    pair = grant(http)
    controls('fail_next', call='refresh', fault='500')
    assert show_self(http, pair).status_code == 200
    assert refresh(http, pair).status_code == 500
    assert refresh(http, pair).status_code == 201


def test_silence_lasts_longer_than_the_app_waits(controls):
    assert 'It gets: no answer at all' in controls('fail_next', call='profile', fault='silence')
    [step] = simulator_script.script()
    assert (step['call'], step['cut']) == ('profile', 0)
    assert step['delay'] > 14


def test_a_fault_can_be_taken_back(http, controls):
    pair = grant(http)
    controls('fail_next', call='any', fault='500')
    assert 'Waiting' not in controls('forget_script')
    assert show_self(http, pair).status_code == 200


def test_a_user_gets_another_name(http, controls):
    pair, other = grant(http, user_id=ADMIN), grant(http, user_id=AGENT)
    name = '<b>Ana</b> & \'"Ünï\u202e🙂'
    page = controls('rename', user_id=str(ADMIN), name=f'  {name}  ')
    assert show_self(http, pair).json['user']['name'] == name
    assert show_self(http, other).json['user']['name'] == 'Amara Okafor'
    assert name in html.unescape(page)
    assert name not in page
    assert name in html.unescape(http.get(AUTHORIZE, query_string=REQUEST).text)
    controls('rename', user_id=str(ADMIN), name='Ana')
    assert show_self(http, pair).json['user']['name'] == 'Ana'


def test_a_name_cannot_forge_a_line_of_the_log(http, controls):
    controls('rename', user_id=str(AGENT), name='Eve\x1b[31m\r\nforged\u2028line\x85')
    assert show_self(http, grant(http)).json['user']['name'] == 'Eve[31mforgedline'


@pytest.mark.parametrize('form', [{}, {'user_id': 'x', 'name': 'x'}, {'user_id': str(AGENT), 'name': ' '}])
def test_a_name_that_is_none_changes_nothing(http, form):
    assert http.post('/practice', data={'action': 'rename', **form}).status_code == 400
    assert show_self(http, grant(http)).json['user']['name'] == 'Amara Okafor'


def test_a_name_has_an_end(http, controls):
    controls('rename', user_id=str(AGENT), name='x' * 100_000)
    assert show_self(http, grant(http)).json['user']['name'] == 'x' * 200


@pytest.mark.parametrize(
    'form',
    [
        {},
        {'action': 'nonsense'},
        {'action': 'fail_next'},
        {'action': 'fail_next', 'call': 'x', 'fault': '500'},
        {'action': 'fail_next', 'call': 'any', 'fault': 'y'},
    ],
)
def test_nonsense_does_nothing(http, form):
    assert http.post('/practice', data=form).status_code == 400
    assert simulator_script.script() == []


@pytest.mark.parametrize(
    'headers',
    [
        {'Sec-Fetch-Site': 'cross-site'},
        {'Sec-Fetch-Site': 'same-site'},
        {'Sec-Fetch-Site': 'none'},
        {'Sec-Fetch-Site': 'same-origin', 'Origin': 'https://evil.example'},
        {'Origin': 'https://evil.example'},
        {'Origin': 'http://localhost:3000'},
        {'Origin': 'null'},
    ],
)
def test_a_page_of_another_site_cannot_press_a_button(http, headers):
    pair = grant(http)
    answer = http.post('/practice', data={'action': 'end_grants'}, headers=headers)
    assert answer.status_code == 403
    assert show_self(http, pair).status_code == 200


def test_its_own_page_can_press_a_button(http):
    headers = {'Sec-Fetch-Site': 'same-origin', 'Origin': 'http://localhost'}
    assert http.post('/practice', data={'action': 'end_grants'}, headers=headers).status_code == 303
    # A browser tells so only if the page lets it.
    assert http.get('/practice').headers['Referrer-Policy'] == 'same-origin'


def test_the_forms_of_the_page_do_what_their_buttons_say(http):
    """As they stand there: each button's form, with its hidden fields and its first choices."""
    page = http.get('/practice').text
    forms = re.findall('<form method="post">.*?</form>', page, re.DOTALL)
    buttons = {}
    for form in forms:
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="(\w+)"', form))
        fields |= {
            name: re.search(f'name="{name}".*?<option value="(.+?)"', form, re.DOTALL)[1] for name in selects(form)
        }
        fields |= dict(re.findall(r'type="radio" name="(\w+)" value="(\w+)" required checked', form))
        for attributes, label in re.findall('<button([^>]*)>(.*?)</button>', form):
            buttons[label] = fields | dict(re.findall(r'(?:name="(\w+)" )value="(\w+)"', attributes))
    assert buttons == {
        'Let the access token expire now': {'action': 'expire_access'},
        'Let the refresh token die, too': {'action': 'end_grants'},
        'Let it go wrong': {'action': 'fail_next', 'call': 'any', 'fault': '500'},
        'Change the name': {'action': 'rename', 'user_id': str(AGENT)},
    }


def selects(form: str) -> list[str]:
    return re.findall(r'<select[^>]* name="(\w+)"', form)


def test_a_fault_that_waits_can_be_taken_back_on_the_page(http, controls):
    page = controls('fail_next', call='refresh', fault='500')
    assert 'Waiting for the next refresh' in page
    assert 'value="forget_script">Let it go right</button>' in page
    # A second one takes its place.
    controls('fail_next', call='profile', fault='429')
    assert [step['call'] for step in simulator_script.script()] == ['profile']


def test_under_another_name_there_is_no_control_page(http):
    for method in (http.get, http.post):
        assert method('/practice', headers={'Host': 'evil.example:3001'}).status_code == 400


def test_the_journal_shows_the_calls_and_fingerprints_and_no_secret(http, controls):
    code = allow(http)
    first = http.post('/oauth/tokens', data={**EXCHANGE, 'code': code}).json
    controls('expire_access')
    show_self(http, first)
    second = refresh(http, first).json
    show_self(http, second)
    page = http.get('/practice').text

    lines = [
        f'POST /oauth/tokens with code {fingerprint(code)} → 201 with access token '
        f'{fingerprint(first["access_token"])}, refresh token {fingerprint(first["refresh_token"])}',
        f'GET /api/v2/users/me with access token {fingerprint(first["access_token"])} → 401',
        f'POST /oauth/tokens with refresh token {fingerprint(first["refresh_token"])} → 201 with access token '
        f'{fingerprint(second["access_token"])}, refresh token {fingerprint(second["refresh_token"])}',
        f'GET /api/v2/users/me with access token {fingerprint(second["access_token"])} → 200',
    ]
    text = ' '.join(page.replace('<strong>', '').replace('</strong>', '').split())
    assert text.index(lines[3]) < text.index(lines[2]) < text.index(lines[1]) < text.index(lines[0])
    for secret in (code, *(pair[name] for pair in (first, second) for name in ('access_token', 'refresh_token'))):
        assert secret not in page


def test_the_journal_is_not_endless(http, controls):
    for _ in range(30):
        show_self(http, {'access_token': 'x'})
    assert http.get('/practice').text.count('GET /api/v2/users/me') == 20


def test_a_call_that_waits_for_its_answer_is_shown_as_such(http):
    pair = grant(http)
    show_self(http, pair)
    simulator_script._journal[-1].update(status=None, ended=None)
    assert 'not answered yet' in http.get('/practice').text


def test_an_answer_that_did_not_arrive_is_shown_as_such(http):
    pair = grant(http)
    assert 'did not arrive' not in http.get('/practice').text
    show_self(http, pair)
    simulator_script._journal[-1].update(cut=True)
    assert '200</strong>, which did not arrive' in http.get('/practice').text
    simulator_script._journal[-1].update(status=None)
    assert '→ <strong>no answer</strong>' in ' '.join(http.get('/practice').text.split())


def test_what_the_journal_shows_is_escaped(http):
    show_self(http, {'access_token': 'x'})
    simulator_script._journal[-1].update(what='GET /<b>')
    assert 'GET /&lt;b&gt;' in http.get('/practice').text


def test_the_journal_tells_the_time_of_day(http):
    show_self(http, {'access_token': 'x'})
    simulator_script._journal[-1].update(began=datetime(2026, 11, 24, 13, 14, 15).timestamp())
    assert '<time>13:14:15</time>' in http.get('/practice').text


def test_a_step_of_a_script_of_ones_own_is_shown_too(http):
    for step in ({'trickle': 1, 'times': 2}, {'status': 503, 'cut': 0}, {'cut': 0, 'hold': 9}):
        simulator_script.set_script([{'call': 'exchange', **step}])
        assert 'Waiting for the next exchange of a code. It gets: what the script says' in http.get('/practice').text


def test_what_was_done_is_said_once(http, controls):
    assert 'All access tokens have expired' in controls('expire_access')
    assert 'All access tokens have expired' not in http.get('/practice').text


def test_nobody_elses_link_can_say_that_something_was_done(http):
    assert 'role="status"' not in http.get('/practice?done=end_grants').text


def test_the_message_waits_in_a_cookie_of_its_own_that_no_other_key_can_sign(http):
    pressed = http.post('/practice', data={'action': 'expire_access'})
    cookie = pressed.headers['Set-Cookie']
    assert cookie.startswith('practice_zendesk=')
    assert 'HttpOnly' in cookie
    assert 'SameSite=Lax' in cookie
    assert len(zendesk_simulator.app.secret_key) >= 32


def test_no_page_is_to_be_kept(http):
    assert http.get('/practice').headers['Cache-Control'] == 'no-store'


def test_the_newest_tokens_are_the_first_even_when_all_have_expired(http, controls):
    pairs = [grant(http) for _ in range(3)]
    page = controls('expire_access')
    positions = [page.index(fingerprint(pair['access_token'])) for pair in pairs]
    assert positions == sorted(positions, reverse=True)


def test_the_list_of_tokens_is_not_endless(http):
    pairs = [grant(http) for _ in range(25)]
    page = http.get('/practice').text
    assert page.count('refresh token <code>') == 20
    assert fingerprint(pairs[-1]['refresh_token']) in page


def test_an_address_without_a_page_has_one_that_leads_back_to_the_app(http):
    page = http.get('/nothing')
    assert page.status_code == 404
    assert '<h1>Not Found</h1>' in page.text
    assert 'href="http://localhost:3000"' in page.text
    assert 'POST' in http.get('/oauth/tokens').headers['Allow']


def test_an_expired_token_is_shown_as_such_and_the_newest_is_the_first(http, controls):
    grant(http)
    assert controls('expire_access').count('(expired)') == 1
    pair = grant(http)
    page = http.get('/practice').text
    assert page.index(fingerprint(pair['access_token'])) < page.index('(expired)')


def test_the_tokens_alive_are_shown_by_user(http):
    pair = grant(http, user_id=ADMIN)
    page = ' '.join(http.get('/practice').text.split())
    assert f'Tomás Herrera: access token <code>{fingerprint(pair["access_token"])}</code> (for 6 min)' in page
    assert f'refresh token <code>{fingerprint(pair["refresh_token"])}</code> (for 7 days)' in page


def test_the_page_leads_back_to_the_app(http):
    assert http.get('/').location == '/practice'
    assert 'href="http://localhost:3000/profile"' in http.get('/practice').text
