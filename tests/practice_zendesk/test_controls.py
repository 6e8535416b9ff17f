"""The control page lists the experiments, the tokens and the requests."""

from __future__ import annotations

import html
import json
import re
from datetime import datetime
from pathlib import Path

import pytest

from practice_zendesk import clients, faults
from practice_zendesk.clients import USERS
from practice_zendesk.database import MAX_ENDED, database
from practice_zendesk.experiments import EXPERIMENTS, FAULTS
from practice_zendesk.faults import fingerprint

AGENT, ADMIN, END_USER = USERS


@pytest.fixture
def press(client):
    """Return a function that submits a form of the control page and then returns the control page."""

    def press(action: str, **form) -> str:
        response = client.post('/practice', data={'action': action, **form})
        assert response.status_code == 303
        return page_text(client)

    return press


def page_text(client, path: str = '/practice') -> str:
    """Return the page with single spaces, as a browser shows it."""
    return ' '.join(client.get(path).text.split())


# --- Tokens --- #


def test_step_5_expires_access_tokens(client, press):
    tokens = client.grant()
    page = press('expire_access')
    assert f'<del>access token {fingerprint(tokens["access_token"])}</del></span> expired,' in page
    assert f'>refresh token {fingerprint(tokens["refresh_token"])}</span> valid for 7 days' in page
    assert client.show_self(tokens).status_code == 401
    assert client.show_self(client.refresh(tokens).json).status_code == 200


def test_step_6_expires_both_tokens(client, press):
    tokens = client.grant()
    page = press('end_grants')
    assert 'There are no tokens.' in page
    assert '</del></span> expired in step 6 at ' in page
    assert client.show_self(tokens).status_code == 401
    assert client.refresh(tokens).json['error'] == 'invalid_grant'


def test_tokens_are_shown_with_user_and_remaining_lifetime(client):
    tokens = client.grant(user_id=ADMIN)
    page = page_text(client)
    access, refresh = fingerprint(tokens['access_token']), fingerprint(tokens['refresh_token'])
    assert f'Tomás Herrera: <span class="chip access">access token {access}</span> valid for 6 min, ' in page
    assert f'<span class="chip refresh">refresh token {refresh}</span> valid for 7 days' in page


@pytest.mark.parametrize(
    ('end', 'reason'),
    [
        (lambda client, tokens: client.refresh(tokens), 'replaced by a refresh'),
        (lambda client, tokens: client.revoke(tokens), 'revoked'),
        (lambda client, tokens: client.post('/practice', data={'action': 'end_grants'}), 'expired in step 6'),
        (lambda client, tokens: expire_refresh_tokens(), 'expired'),
    ],
)
def test_ended_tokens_are_shown_with_the_reason(client, end, reason):
    tokens = client.grant(user_id=ADMIN)
    end(client, tokens)
    page = page_text(client)
    access, refresh = fingerprint(tokens['access_token']), fingerprint(tokens['refresh_token'])
    ended = page.split('<h3>Invalid tokens</h3>')[1]
    assert f'Tomás Herrera: <span class="chip access ended"><del>access token {access}</del></span> ' in ended
    assert re.search(rf'<del>refresh token {refresh}</del></span> {reason} at \d\d:\d\d:\d\d </li>', ended)
    with database() as db:  # only fingerprints are kept
        assert not {*tokens.values()} & {value for row in db.execute('SELECT * FROM ended') for value in row}


def expire_refresh_tokens() -> None:
    with database() as db:
        db.execute('UPDATE tokens SET refresh_expires_at = 1')


def test_the_ended_tokens_use_limited_space(client):
    tokens = client.grant()
    for _ in range(MAX_ENDED + 20):
        tokens = client.refresh(tokens).json
    with database() as db:
        assert db.execute('SELECT count(*) FROM ended').fetchone()[0] == MAX_ENDED


def test_the_tokens_that_the_app_holds_are_marked(client):
    held, other = client.grant(), client.grant()
    Path('users.json').write_text(json.dumps({'user-1': held}))
    page = page_text(client)
    lines = re.findall('<li> (Amara Okafor: .*?) </li>', page)
    assert all(fingerprint(tokens['access_token']) in line for tokens, line in zip((other, held), lines, strict=True))
    assert ['in the app’s users.json' in line for line in lines] == [False, True]
    assert ['unknown to the app' in line for line in lines] == [True, False]
    client.refresh(held)
    assert 'still in the app’s users.json' in page_text(client).split('<h3>Invalid tokens</h3>')[1]


@pytest.mark.parametrize('content', ['', '[]', '{"a": 1}', '{"a": {}}', '{', '{"a": {"access_token": 5}}', b'\xff'])
def test_a_malformed_users_json_marks_nothing(client, content):
    client.grant()
    Path('users.json').write_bytes(content if isinstance(content, bytes) else content.encode())
    assert 'in the app’s users.json' not in page_text(client)


def test_the_twenty_newest_tokens_are_shown_newest_first(client, press):
    all_tokens = [client.grant() for _ in range(25)]
    page = press('expire_access')
    shown = re.findall(r'>refresh token (#\w{8})<', page)
    assert shown == [fingerprint(tokens['refresh_token']) for tokens in reversed(all_tokens[5:])]


# --- The OAuth client --- #


@pytest.mark.parametrize('kind', clients.KINDS)
def test_the_kind_of_oauth_client_can_be_selected(client, press, kind):
    press('use_kind', kind=kind)
    tokens = client.grant()
    assert ('refresh_token' in tokens) == (kind != 'old')
    assert ('.' in tokens['access_token']) == (kind == 'jwt')
    page = page_text(client)
    assert f'value="{kind}" required checked' in page
    assert ('does not expire, no refresh token' in page) == (kind == 'old')


@pytest.mark.parametrize('form', [{}, {'kind': 'other'}])
def test_an_unknown_kind_of_oauth_client_is_refused(client, form):
    assert client.post('/practice', data={'action': 'use_kind', **form}).status_code == 400


# --- Faults --- #


@pytest.mark.parametrize(('fault', 'status', 'retry_after'), [('500', 500, None), ('429', 429, '5')])
def test_the_next_request_gets_an_error_status(client, press, fault, status, retry_after):
    tokens = client.grant()
    page = press('fail_next', call='any', fault=fault)
    assert f'Pending failure: the next request gets {fault} (' in page
    response = client.show_self(tokens)
    assert response.status_code == status
    assert response.headers.get('Retry-After') == retry_after
    assert client.show_self(tokens).status_code == 200


def test_the_response_to_the_next_refresh_is_lost(client, press):
    client.grant()
    page = press('fail_next', call='refresh', fault='lost')
    assert 'Pending failure: the next refresh gets no response, although Zendesk processes the request.' in page
    assert faults.pending_faults() == [{'call': 'refresh', 'lost': True}]


def test_a_ticket_request_can_be_made_to_fail(client, press):
    tokens = client.grant(scope='tickets:read users:read')
    assert 'Pending failure: the next ticket request gets 500' in press('fail_next', call='tickets', fault='500')
    assert client.show_self(tokens).status_code == 200
    assert client.tickets(tokens).status_code == 500
    assert client.tickets(tokens).status_code == 200


def test_each_kind_of_request_can_be_selected(client):
    options = re.findall(r'<option value="([a-z]+)">', client.get('/practice').text)
    assert sorted(options) == sorted(set(faults.CALLS) - {'tickets'})  # the tutorial app has no tickets


def test_the_next_request_gets_no_response_until_the_app_times_out(client, press):
    client.grant()
    assert 'the next profile request gets no response.' in press('fail_next', call='profile', fault='silence')
    [fault] = faults.pending_faults()
    assert (fault['call'], fault['status'], fault['lost']) == ('profile', 500, True)
    assert fault['delay'] > 14


@pytest.mark.parametrize('fault', FAULTS)
def test_each_fault_on_the_page_is_valid(client, fault):
    response = client.post('/practice/faults', json=[{'call': 'any', **FAULTS[fault][1]}])
    assert response.status_code == 204


def test_a_new_fault_replaces_the_pending_fault(client, press):
    client.grant()
    press('fail_next', call='refresh', fault='500')
    press('fail_next', call='profile', fault='429')
    assert [fault['call'] for fault in faults.pending_faults()] == ['profile']


def test_a_pending_fault_can_be_canceled(client, press):
    client.grant()
    assert 'Cancel the failure' not in page_text(client)
    assert 'value="cancel_fault">Cancel the failure</button>' in press('fail_next', call='any', fault='500')
    page = press('cancel_fault')
    assert 'Pending' not in page
    assert faults.pending_faults() == []


@pytest.mark.parametrize('fault', [{'status': 503, 'times': 2}, {'status': 503, 'lost': True}, {'delay': 9}])
def test_other_pending_faults_are_shown_as_custom(client, fault):
    faults.set_faults([{'call': 'exchange', **fault}])
    assert 'the next code exchange gets a custom failure.' in page_text(client)


def test_a_pending_fault_keeps_its_label_if_used_several_times(client):
    faults.set_faults([{'call': 'refresh', 'times': 2, **FAULTS['500'][1]}])
    assert f'the next refresh gets {FAULTS["500"][0]}.' in page_text(client)


# --- Users --- #


def test_a_user_can_be_renamed(client, press):
    tokens, other = client.grant(user_id=ADMIN), client.grant(user_id=AGENT)
    name = '<b>Ana</b> & \'"Ünï\u202e🙂'
    page = press('rename', user_id=str(ADMIN), name=f'  {name}  ')
    assert client.show_self(tokens).json['user']['name'] == name
    assert client.show_self(other).json['user']['name'] == 'Amara Okafor'
    assert name in html.unescape(page)
    assert name not in page
    assert name in html.unescape(client.authorize().text)
    press('rename', user_id=str(ADMIN), name='Ana')
    assert client.show_self(tokens).json['user']['name'] == 'Ana'


@pytest.mark.parametrize(
    ('name', 'kept'),
    [('Eve\x1b[31m\r\nforged\u2028line\x85', 'Eve[31mforgedline'), ('x' * 100_000, 'x' * 200)],
)
def test_control_characters_are_removed_and_long_names_truncated(client, press, name, kept):
    client.grant()
    press('rename', user_id=str(AGENT), name=name)
    assert client.show_self(client.grant()).json['user']['name'] == kept


# --- Forms --- #


@pytest.mark.parametrize(
    'form',
    [
        {},
        {'action': 'nonsense'},
        {'action': 'fail_next'},
        {'action': 'fail_next', 'call': 'x', 'fault': '500'},
        {'action': 'fail_next', 'call': 'any', 'fault': 'y'},
        {'action': 'rename'},
        {'action': 'rename', 'user_id': 'x', 'name': 'x'},
        {'action': 'rename', 'user_id': str(AGENT), 'name': ' '},
    ],
)
def test_an_invalid_form_changes_nothing(client, form):
    client.grant()
    assert client.post('/practice', data=form).status_code == 400
    assert faults.pending_faults() == []
    assert client.show_self(client.grant()).json['user']['name'] == 'Amara Okafor'


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
def test_forms_from_other_sites_are_refused(client, headers):
    tokens = client.grant()
    assert client.post('/practice', data={'action': 'end_grants'}, headers=headers).status_code == 403
    assert client.show_self(tokens).status_code == 200


def test_forms_from_the_control_page_are_accepted(client):
    headers = {'Sec-Fetch-Site': 'same-origin', 'Origin': 'http://localhost'}
    assert client.post('/practice', data={'action': 'end_grants'}, headers=headers).status_code == 303
    # Without this header, browsers may send "Origin: null".
    assert client.get('/practice').headers['Referrer-Policy'] == 'same-origin'


def test_each_button_sends_its_form(client):
    page = client.get('/practice').text
    buttons = {}
    for form in re.findall('<form method="post" action="/practice">.*?</form>', page, re.DOTALL):
        fields = dict(re.findall(r'<select[^>]* name="(\w+)">\s*<option value="(\w+)"', form))
        fields |= dict(re.findall(r'type="radio" name="(\w+)" value="(\w+)" required checked', form))
        for attributes, label in re.findall('<button([^>]*)>(.*?)</button>', form):
            buttons[label] = fields | dict(re.findall(r'(?:name="(\w+)" )value="(\w+)"', attributes))
    assert [fields['action'] for fields in buttons.values()] == list(EXPERIMENTS)
    assert (
        buttons.items()
        >= {
            'Step 5: expire the access token': {'action': 'expire_access'},
            'Step 6: expire both tokens': {'action': 'end_grants'},
            'Make the next request fail': {'action': 'fail_next', 'call': 'any', 'fault': '500'},
            'Use this kind of client': {'action': 'use_kind', 'kind': 'new'},
            'Change the name': {'action': 'rename', 'user_id': str(AGENT)},
        }.items()
    )


# --- The request log --- #


def test_the_log_shows_requests_with_fingerprints_newest_first(client, press):
    code = client.code()
    first = client.exchange(code).json
    press('expire_access')
    client.show_self(first)
    second = client.refresh(first).json
    page = page_text(client)

    def issued(tokens: dict) -> str:
        access, refresh = fingerprint(tokens['access_token']), fingerprint(tokens['refresh_token'])
        return f'<strong>200</strong>, issued access token {access}, refresh token {refresh}'

    entries = re.findall('</time> (.*?) </li>', page)
    assert entries == [
        f'POST /oauth/tokens with refresh token {fingerprint(first["refresh_token"])} → {issued(second)}',
        f'GET /api/v2/users/me with access token {fingerprint(first["access_token"])} → <strong>401</strong>',
        f'POST /oauth/tokens with code {fingerprint(code)} → {issued(first)}',
    ]
    for secret in (code, *(tokens[name] for tokens in (first, second) for name in ('access_token', 'refresh_token'))):
        assert secret not in page


def test_the_log_shows_the_twenty_newest_requests(client):
    for _ in range(30):
        client.get('/api/v2/users/me')
    assert page_text(client).count('GET /api/v2/users/me') == 20


@pytest.mark.parametrize(
    ('entry', 'shown'),
    [
        ({'status': None, 'ended': None}, 'GET /api/v2/users/me → in progress </li>'),
        ({'status': None, 'lost': True}, 'GET /api/v2/users/me → <strong>no response</strong> </li>'),
        ({'lost': True}, 'GET /api/v2/users/me → <strong>200</strong> (response lost) </li>'),
        ({'request': 'GET /<b>'}, 'GET /&lt;b&gt; → <strong>200</strong> </li>'),
        ({'began': datetime(2026, 11, 24, 13, 14, 15).timestamp()}, '<time>13:14:15</time> GET'),
    ],
)
def test_the_log_shows_each_state_of_a_request(client, entry, shown):
    client.get('/api/v2/users/me')
    faults._request_log[-1].update(entry)
    assert shown in page_text(client)


# --- The page --- #


def test_the_page_links_to_the_app_and_is_not_cached(client):
    assert client.get('/').location == '/practice'
    page = client.get('/practice')
    assert 'href="http://localhost:3000"' in page.text
    assert page.headers['Cache-Control'] == 'no-store'
