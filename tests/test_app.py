"""The five pages, with Zendesk mocked."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest
from conftest import NEW_PAIR, OTHER, PAIR, SHOW_SELF, TOKEN_ENDPOINT, USER, bearer, calls_to, store, stored
from responses.matchers import urlencoded_params_matcher

import app as app_module
from zendesk_oauth.fingerprints import fingerprint, fingerprints

# --- Home --- #


def test_home_links_to_the_profile_and_gives_a_new_visitor_an_id(browser):
    page = browser.get('/')
    assert page.status_code == 200
    assert 'href="/profile"' in page.text
    assert 'Get my profile' in page.text
    assert len(browser.user_id) >= 32


def test_home_keeps_the_id_that_a_visitor_has_and_sets_no_cookie_again(browser):
    browser.get('/')
    before = browser.user_id
    assert 'Set-Cookie' not in browser.get('/').headers
    assert browser.user_id == before


def test_each_browser_gets_an_id_of_its_own(app):
    one, other = app.test_client(), app.test_client()
    one.get('/')
    other.get('/')
    assert one.user_id != other.user_id


# --- Profile --- #


def test_without_tokens_the_profile_asks_for_access(browser, zendesk):
    browser.get('/')
    assert browser.get('/profile').location == '/grant_access'
    assert not zendesk.calls


def test_without_a_session_the_profile_asks_for_access(browser, zendesk):
    store(alice=PAIR)
    assert browser.get('/profile').location == '/grant_access'
    assert not zendesk.calls


def test_a_valid_token_shows_the_profile_with_one_call(browser, zendesk):
    browser.sign_in('alice')
    store(alice=PAIR)
    zendesk.get(SHOW_SELF, json=USER, match=[bearer('old-access')])

    page = browser.get('/profile')

    assert page.status_code == 200
    assert '👋 Hi, Jane Doe!' in page.text
    assert 'Your Zendesk user role is <strong>agent</strong>.' in page.text
    assert len(zendesk.calls) == 1
    assert 'old-access' not in zendesk.calls[0].request.url


def test_an_expired_token_is_refreshed_once_and_the_call_retried_once(browser, zendesk):
    browser.sign_in('alice')
    store(alice=PAIR, bob=OTHER)
    zendesk.get(SHOW_SELF, status=401, match=[bearer('old-access')])
    zendesk.get(SHOW_SELF, json=USER, match=[bearer('new-access')])
    zendesk.post(
        TOKEN_ENDPOINT,
        json=NEW_PAIR,
        match=[
            urlencoded_params_matcher(
                {
                    'grant_type': 'refresh_token',
                    'refresh_token': 'old-refresh',
                    'client_id': 'test_client',
                    'client_secret': 'canary-client-secret',
                    'scope': 'users:read',
                    'expires_in': '360',
                    'refresh_token_expires_in': '604800',
                }
            )
        ],
    )

    assert '👋 Hi, Jane Doe!' in browser.get('/profile').text

    assert calls_to(zendesk, TOKEN_ENDPOINT) == 1
    assert calls_to(zendesk, SHOW_SELF) == 2
    assert stored() == {'alice': {'access_token': 'new-access', 'refresh_token': 'new-refresh'}, 'bob': OTHER}


def test_the_log_tells_that_the_tokens_have_changed_and_not_what_they_are(browser, zendesk, log):
    browser.sign_in('alice')
    store(alice=PAIR)
    zendesk.get(SHOW_SELF, status=401, match=[bearer('old-access')])
    zendesk.get(SHOW_SELF, json=USER, match=[bearer('new-access')])
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    browser.get('/profile')
    old, new = fingerprints(PAIR), fingerprints(NEW_PAIR)
    story = [line.strip() for line in log if '#' in line]
    assert story == [
        f'users.json holds {old}',
        f'GET /api/v2/users/me with access token {fingerprint("old-access")}',
        f'POST /oauth/tokens with refresh token {fingerprint("old-refresh")}',
        f'Zendesk answers 200 with {new}',
        f'Storing the new pair: {new}',
        f'GET /api/v2/users/me with access token {fingerprint("new-access")}',
    ]
    assert not any(token in ''.join(log) for token in (*PAIR.values(), 'new-access', 'new-refresh'))


def test_a_second_401_stops_there(browser, zendesk):
    browser.sign_in('alice')
    store(alice=PAIR)
    zendesk.get(SHOW_SELF, status=401)
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)

    page = browser.get('/profile')

    assert page.status_code == 502
    assert 'href="/grant_access"' in page.text
    assert calls_to(zendesk, SHOW_SELF) == 2
    assert calls_to(zendesk, TOKEN_ENDPOINT) == 1
    assert stored()['alice']['access_token'] == 'new-access'


def test_a_refused_refresh_asks_for_access_again_and_leaves_others_alone(browser, zendesk):
    browser.sign_in('alice')
    store(alice=PAIR, bob=OTHER)
    zendesk.get(SHOW_SELF, status=401)
    zendesk.post(TOKEN_ENDPOINT, status=400, json={'error': 'invalid_grant'})

    assert browser.get('/profile').location == '/grant_access'
    assert calls_to(zendesk, TOKEN_ENDPOINT) == 1
    assert stored() == {'bob': OTHER}


def test_a_missing_permission_gets_a_page_and_no_refresh(browser, zendesk):
    browser.sign_in('alice')
    store(alice=PAIR)
    zendesk.get(SHOW_SELF, status=403, json={'error': 'Forbidden'})

    page = browser.get('/profile')

    assert page.status_code == 403
    assert 'permission is missing' in page.text
    assert len(zendesk.calls) == 1
    assert stored() == {'alice': PAIR}


@pytest.mark.parametrize(
    'user', [{'name': 'Anonymous user'}, {'id': None, 'name': 'Anonymous user', 'role': 'end-user'}]
)
def test_an_anonymous_answer_is_not_shown_as_signed_in(browser, zendesk, user):
    browser.sign_in('alice')
    store(alice=PAIR)
    zendesk.get(SHOW_SELF, json={'user': user})

    page = browser.get('/profile')

    assert page.status_code == 502
    assert 'Anonymous' not in page.text
    assert stored() == {'alice': PAIR}


@pytest.mark.parametrize(
    ('name', 'shown'),
    [
        ('<script>alert(1)</script>', '&lt;script&gt;alert(1)&lt;/script&gt;'),
        ('"quoted" & \'single\'', '&#34;quoted&#34; &amp; &#39;single&#39;'),
        ('\u202eevil', '\u202eevil'),
        ('Zoë 山田 🦄', 'Zoë 山田 🦄'),
        ('half of a pair \ud800', 'half of a pair ?'),
        ('x' * 1_000_000, 'x' * 1_000_000),
    ],
)
def test_any_name_is_shown_as_text(browser, zendesk, name, shown):
    browser.sign_in('alice')
    store(alice=PAIR)
    zendesk.get(SHOW_SELF, body=json.dumps({'user': {**USER['user'], 'name': name}}))
    page = browser.get('/profile')
    assert page.status_code == 200
    assert f'Hi, {shown}!' in page.text


@pytest.mark.parametrize(
    'body', ['', 'null', '[]', '<html>', '{"user":', '{}', '{"user": 1}', '{"user": {"id": 1, "name": 5, "role": "x"}}']
)
def test_a_nonsensical_profile_gets_a_502_page_and_keeps_the_grant(browser, zendesk, body):
    browser.sign_in('alice')
    store(alice=PAIR)
    zendesk.get(SHOW_SELF, body=body)
    page = browser.get('/profile')
    assert page.status_code == 502
    assert 'href="/profile"' in page.text
    assert stored() == {'alice': PAIR}


@pytest.mark.parametrize('user_id', [5, None, [], ['alice'], {'alice': 1}, True, ''])
def test_a_user_id_of_another_type_counts_as_none(browser, zendesk, user_id):
    browser.sign_in(user_id)
    store(alice=PAIR)
    assert browser.get('/profile').location == '/grant_access'
    browser.get('/')
    assert isinstance(browser.user_id, str)


# --- Grant access --- #


def test_grant_access_says_what_will_happen(browser):
    page = browser.get('/grant_access')
    assert page.status_code == 200
    assert 'needs to access your Zendesk account' in page.text
    assert '<a class="button" href="/zendesk/auth">Grant access</a>' in page.text
    assert 'home page' in page.text


# --- Authorization request --- #


def test_the_authorization_request_has_the_tutorials_parameters_state_and_pkce(browser):
    sent = browser.start()
    state, challenge = sent.pop('state'), sent.pop('code_challenge')
    assert sent == {
        'response_type': 'code',
        'client_id': 'test_client',
        'redirect_uri': 'http://localhost:3000/zendesk/oauth/callback',
        'scope': 'users:read',
        'expires_in': '360',
        'code_challenge_method': 'S256',
    }
    assert len(base64.urlsafe_b64decode(state + '=')) == 32
    assert len(challenge) == 43


def test_each_authorization_request_has_a_state_and_a_challenge_of_its_own(browser):
    requests = [browser.start() for _ in range(5)]
    assert len({sent['state'] for sent in requests}) == 5
    assert len({sent['code_challenge'] for sent in requests}) == 5


@pytest.mark.parametrize(
    'headers',
    [
        {'Sec-Fetch-Dest': 'image'},
        {'Sec-Fetch-Dest': 'iframe'},
        {'Sec-Fetch-Dest': 'empty'},
        {'Sec-Fetch-Dest': 'document', 'Sec-Purpose': 'prefetch;prerender'},
        {'Purpose': 'prefetch'},
        {'X-Moz': 'prefetch'},
        {'X-Purpose': 'preview'},
    ],
)
def test_pictures_frames_and_previews_make_no_authorization_request(browser, headers):
    response = browser.get('/zendesk/auth', headers=headers)
    assert response.location == '/grant_access'
    assert 'Set-Cookie' not in response.headers


def test_head_makes_no_authorization_request(browser):
    response = browser.head('/zendesk/auth')
    assert response.location == '/grant_access'
    assert 'Set-Cookie' not in response.headers


# --- Callback --- #


@pytest.mark.parametrize('status', [200, 201])
def test_a_grant_is_stored_under_a_fresh_id_and_leads_home(browser, zendesk, status):
    browser.get('/')
    before = browser.user_id
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR, status=status)

    response = browser.grant()

    assert response.location == '/'
    assert browser.user_id != before
    assert stored() == {browser.user_id: {'access_token': 'new-access', 'refresh_token': 'new-refresh'}}


def test_the_exchange_sends_this_form_and_the_verifier_of_the_challenge(browser, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    sent = browser.start()
    browser.come_back(code='the-code', state=sent['state'])

    form = dict(pair.split('=', 1) for pair in zendesk.calls[0].request.body.split('&'))
    verifier = form.pop('code_verifier')
    assert form == {
        'grant_type': 'authorization_code',
        'client_id': 'test_client',
        'client_secret': 'canary-client-secret',
        'redirect_uri': 'http%3A%2F%2Flocalhost%3A3000%2Fzendesk%2Foauth%2Fcallback',
        'code': 'the-code',
        'scope': 'users%3Aread',
        'expires_in': '360',
        'refresh_token_expires_in': '604800',
    }
    digest = hashlib.sha256(verifier.encode()).digest()
    assert base64.urlsafe_b64encode(digest).decode().rstrip('=') == sent['code_challenge']
    assert 43 <= len(verifier) <= 128


def test_a_new_grant_removes_the_old_ids_record_and_keeps_everybody_elses(browser, zendesk):
    store(alice=PAIR, bob=OTHER)
    browser.sign_in('alice')
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    browser.grant()
    assert set(stored()) == {browser.user_id, 'bob'}
    assert browser.user_id != 'alice'


def test_a_session_planted_before_the_grant_does_not_see_the_profile_afterwards(app, zendesk):
    attacker, victim = app.test_client(), app.test_client()
    attacker.get('/')
    victim.sign_in(attacker.user_id)
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    victim.grant()
    assert attacker.get('/profile').location == '/grant_access'


def test_a_denial_gets_a_page_with_a_way_on_and_keeps_the_tokens_there_are(browser, zendesk):
    store(alice=PAIR)
    browser.sign_in('alice')
    page = browser.come_back(error='access_denied', error_description='...', state=browser.start()['state'])
    assert page.status_code == 403
    assert 'Access was not granted' in page.text
    assert 'href="/grant_access"' in page.text
    assert not zendesk.calls
    assert stored() == {'alice': PAIR}
    assert browser.user_id == 'alice'


def test_a_spent_code_asks_to_start_again_after_one_call(browser, zendesk):
    store(alice=PAIR)
    browser.sign_in('alice')
    zendesk.post(TOKEN_ENDPOINT, status=400, json={'error': 'invalid_grant'})
    page = browser.grant()
    assert page.status_code == 400
    assert 'Start again' in page.text
    assert len(zendesk.calls) == 1
    assert stored() == {'alice': PAIR}
    assert browser.user_id == 'alice'


@pytest.mark.parametrize(
    'answer',
    [
        {**NEW_PAIR, 'access_token': 5},
        {**NEW_PAIR, 'access_token': None},
        {**NEW_PAIR, 'access_token': ''},
        {**NEW_PAIR, 'access_token': ['a']},
        {**NEW_PAIR, 'access_token': 'a\nb'},
        {**NEW_PAIR, 'refresh_token': 5},
        {**NEW_PAIR, 'refresh_token': None},
        {**NEW_PAIR, 'refresh_token': ''},
        {**NEW_PAIR, 'token_type': 'mac'},
        {},
        [],
        None,
    ],
)
def test_a_nonsensical_token_answer_stores_nothing_and_keeps_the_old_grant(browser, zendesk, answer):
    store(alice=PAIR)
    browser.sign_in('alice')
    zendesk.get(SHOW_SELF, status=401)
    zendesk.post(TOKEN_ENDPOINT, json=answer)
    assert browser.grant().status_code == 502
    assert browser.get('/profile').status_code == 502
    assert stored() == {'alice': PAIR}
    assert browser.user_id == 'alice'


def test_a_grant_without_a_refresh_token_works_until_the_next_401(browser, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json={'access_token': 'only-access', 'token_type': 'bearer', 'scope': 'users:read'})
    browser.grant()
    assert stored()[browser.user_id] == {'access_token': 'only-access', 'refresh_token': ''}
    zendesk.get(SHOW_SELF, status=401)
    assert browser.get('/profile').location == '/grant_access'
    assert calls_to(zendesk, TOKEN_ENDPOINT) == 1


def test_a_full_disk_gets_a_page_and_changes_nothing(browser, zendesk, full_disk):
    store(alice=PAIR)
    browser.sign_in('alice')
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)

    page = browser.grant()
    assert page.status_code == 503
    assert stored() == {'alice': PAIR}
    assert browser.user_id == 'alice'


# --- When something goes wrong --- #


@pytest.mark.parametrize(
    ('method', 'path', 'status'), [('GET', '/nope', 404), ('POST', '/profile', 405), ('GET', '/%E0%A4%A', 404)]
)
def test_flasks_own_errors_are_pages_of_ours(browser, log, method, path, status):
    page = browser.open(path, method=method)
    assert page.status_code == status
    assert log[-1].startswith(f'{status} ')
    assert page.content_type == 'text/html; charset=utf-8'
    assert 'href="/"' in page.text
    assert '<html lang="en">' in page.text


def test_an_exception_nobody_expected_is_a_page_of_ours(app, browser, monkeypatch):
    monkeypatch.setattr(app, 'testing', False)
    monkeypatch.setattr('backend_code.current_user_id', lambda: 1 / 0)
    page = browser.get('/')
    assert page.status_code == 500
    assert 'href="/"' in page.text
    assert 'ZeroDivision' not in page.text


def test_zendesk_being_busy_is_told_with_the_time_to_wait(browser, zendesk):
    browser.sign_in('alice')
    store(alice=PAIR)
    zendesk.get(SHOW_SELF, status=429, body='Number of allowed API requests exceeded', headers={'Retry-After': '7'})
    page = browser.get('/profile')
    assert page.status_code == 503
    assert page.headers['Retry-After'] == '7'
    assert 'in 7 s' in page.text


def test_the_profile_has_a_form_to_disconnect(browser, zendesk):
    browser.sign_in('alice')
    store(alice=PAIR)
    zendesk.get(SHOW_SELF, json=USER)
    [form] = re.findall('<form.*?</form>', browser.get('/profile').text, re.DOTALL)
    assert 'action="/disconnect" method="post"' in form
    assert '<button>Disconnect</button>' in form


def test_with_a_real_zendesk_there_is_no_panel(browser):
    for path in ('/', '/grant_access', '/nope'):
        page = browser.get(path)
        assert 'What just happened' not in page.text
        assert 'zendesk_oauth_what_happened' not in str(page.headers)


def test_only_practice_mode_says_that_it_is_one(app, browser):
    assert 'Practice mode' not in browser.get('/').text
    app.jinja_env.globals['practice_mode'] = True
    try:
        for path in ('/', '/grant_access', '/nope'):
            assert 'Practice mode' in browser.get(path).text
    finally:
        app.jinja_env.globals['practice_mode'] = app_module.settings.practice_mode
