"""Practice mode's panel: which steps an exchange has, and on which page it is drawn."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from flask import Flask, g, session
from helpers import NEW_TOKENS, OLD, PROJECT, SHOW_SELF, TOKEN_ENDPOINT, USER, Browser, bearer, store, stored

import app as app_module
import web
from web import drawing, explanations, panel
from zendesk_oauth.endpoints import fingerprint
from zendesk_oauth.errors import StoreError

PAGES = ('index', 'show_profile', 'grant_access', 'auth', 'auth_callback', 'disconnect')
REVOKE = 'https://mondocam.zendesk.com/api/v2/oauth/tokens/current'


@pytest.fixture
def app(tmp_path, monkeypatch) -> Flask:
    """Return the tutorial's app with the panel, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ('_browsers', '_exchanges', '_pending'):
        monkeypatch.setattr(panel, name, type(panel._browsers)())
    monkeypatch.setattr(panel, '_attacks', [])
    loggers = [logging.getLogger(name) for name in ('zendesk_oauth', 'practice_zendesk.exchange')]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    settings = dataclasses.replace(app_module.settings, practice_mode=True)
    app = Flask('panel', template_folder=PROJECT / 'templates', static_folder=PROJECT / 'static')
    app.secret_key = settings.secret_key
    app.test_client_class = Browser
    app.testing = True
    web.init_app(app, settings, app_module.oauth.store)
    for rule in app_module.app.url_map.iter_rules():
        if rule.endpoint in PAGES:
            view = app_module.app.view_functions[rule.endpoint]
            app.add_url_rule(rule.rule, rule.endpoint, view, methods=rule.methods)
    yield app
    for logger, handlers, level in before:
        logger.handlers = handlers
        logger.setLevel(level)


def shown(browser: Browser) -> panel.Exchange:
    """Return the exchange on the pages of this browser."""
    return panel._browsers[browser.get_cookie(panel.COOKIE).value].shown


def names(browser: Browser) -> list[str]:
    return [step.name for step in shown(browser).steps]


def words(page) -> str:
    """Return the text of the panel with single spaces."""
    text = re.sub('<[^>]*>', ' ', page.text.split('<aside')[1].replace('<wbr>', ''))
    return ' '.join(text.split())


def grant(browser: Browser, zendesk, code: str = 'canary-code') -> dict[str, str]:
    """Grant access, and return the authorization request."""
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    query = start(browser)
    browser.get(f'/zendesk/oauth/callback?code={code}&state={query["state"]}', follow_redirects=True)
    return query


def start(browser: Browser) -> dict[str, str]:
    """Begin a grant, and return the parameters of the authorization request."""
    location = browser.get('/zendesk/auth').location
    return {name: value for name, [value] in parse_qs(urlsplit(location).query).items()}


REFRESH = [
    'action', 'profile', 'holds', 'API request', 'access token rejected', 'lock', 'refresh', 'new tokens', 'replaces',
    'API request', 'API response', 'page',
]  # fmt: skip


@pytest.fixture
def refreshing(zendesk):
    """Let Zendesk reject the old access token, and accept the old refresh token and the new access token."""
    zendesk.get(SHOW_SELF, status=401, json={'error': 'invalid_token'}, match=[bearer('old-access')])
    zendesk.get(SHOW_SELF, json=USER, match=[bearer('new-access')])
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    return zendesk


# --- The steps of each exchange --- #


def test_a_grant_is_one_exchange_across_the_redirects(browser, zendesk):
    query = grant(browser, zendesk)
    assert names(browser) == [
        'action', 'auth', 'authorization request', 'consent',
        'consent page', 'action', 'decision', 'code',
        'callback', 'state accepted', 'code exchange', 'first tokens', 'stores', 'redirect', 'page request', 'page',
    ]  # fmt: skip
    steps = {step.name: step for step in shown(browser).steps}
    state, code = ('state', fingerprint(query['state'])), ('code', fingerprint('canary-code'))
    [verifier] = [secret for secret in steps['code exchange'].secrets if secret[0] == 'verifier']
    assert steps['authorization request'].secrets == (state, ('challenge', verifier[1]))
    assert steps['code'].secrets == steps['callback'].secrets == (code, state)
    assert steps['code exchange'].secrets == (code, verifier)
    tokens = (('access token', fingerprint('new-access')), ('refresh token', fingerprint('new-refresh')))
    assert steps['first tokens'].secrets == steps['stores'].secrets == tokens


def test_a_challenge_has_the_fingerprint_and_the_color_of_its_verifier(browser, zendesk):
    grant(browser, zendesk)
    form = parse_qs(zendesk.calls[0].request.body)
    [challenge] = [secret for secret in shown(browser).steps[2].secrets if secret[0] == 'challenge']
    assert challenge[1] == fingerprint(form['code_verifier'][0])
    assert drawing.color(challenge) == drawing.color(('verifier', challenge[1]))


def test_a_refresh_shows_the_lock_and_the_replaced_tokens(browser, refreshing):
    store(alice=OLD)
    browser.sign_in('alice')
    page = browser.get('/profile')
    assert names(browser) == REFRESH
    replaced = next(step for step in shown(browser).steps if step.name == 'replaces')
    assert [secret[1] for secret in replaced.ended] == [fingerprint('old-access'), fingerprint('old-refresh')]
    assert [secret[1] for secret in replaced.secrets] == [fingerprint('new-access'), fingerprint('new-refresh')]
    assert 'Your access token was no longer valid: the app refreshed it and called Zendesk again.' in page.text
    assert '<details class="panel" open>' in page.text


def test_a_valid_access_token_takes_one_request(browser, zendesk):
    zendesk.get(SHOW_SELF, json=USER)
    store(alice=OLD)
    browser.sign_in('alice')
    page = browser.get('/profile')
    assert names(browser) == ['action', 'profile', 'holds', 'API request', 'API response', 'page']
    assert '<details class="panel">' in page.text


def test_a_rejected_refresh_token_shows_the_deleted_tokens(browser, zendesk):
    zendesk.get(SHOW_SELF, status=401, json={'error': 'invalid_token'})
    zendesk.post(TOKEN_ENDPOINT, status=400, json={'error': 'invalid_grant'})
    store(alice=OLD)
    browser.sign_in('alice')
    browser.get('/profile', follow_redirects=True)
    assert names(browser) == [
        *REFRESH[:7], 'refresh token rejected', 'deletes', 'redirect', 'page request', 'page',
    ]  # fmt: skip


def test_without_tokens_the_exchange_ends_on_the_grant_page(browser):
    page = browser.get('/profile', follow_redirects=True)
    assert names(browser) == ['action', 'profile', 'holds nothing', 'redirect', 'page request', 'page']
    assert 'The app holds no tokens for you' in page.text


def test_tokens_without_a_refresh_token_are_deleted_by_the_visit(browser, zendesk):
    zendesk.get(SHOW_SELF, status=401, json={'error': 'invalid_token'})
    store(alice={**OLD, 'refresh_token': ''})
    browser.sign_in('alice')
    page = browser.get('/profile', follow_redirects=True)
    assert names(browser)[5:] == ['lock', 'deletes', 'redirect', 'page request', 'page']
    assert 'it has no valid refresh token' in page.text


def test_a_denial_is_drawn(browser):
    state = start(browser)['state']
    browser.get(f'/zendesk/oauth/callback?error=access_denied&state={state}')
    assert names(browser)[4:] == ['consent page', 'action', 'decision', 'denial', 'callback', 'state accepted', 'page']


@pytest.mark.parametrize(
    ('response', 'name', 'outcome'),
    [
        ({'status': 500, 'body': '<h1>'}, 'failure', 'bad'),
        ({'status': 429, 'body': ''}, 'failure', 'bad'),
        ({'body': requests.ConnectionError()}, 'no response', 'lost'),
    ],
)
@pytest.mark.parametrize('during_refresh', [False, True])
def test_a_failure_is_drawn_and_opens_the_panel(browser, zendesk, response, name, outcome, during_refresh):
    if during_refresh:
        zendesk.get(SHOW_SELF, status=401, json={'error': 'invalid_token'})
        zendesk.post(TOKEN_ENDPOINT, **response)
    else:
        zendesk.get(SHOW_SELF, **response)
    store(alice=OLD)
    browser.sign_in('alice')
    page = browser.get('/profile')
    failed = shown(browser).steps[-2]
    name += ' to a refresh' if during_refresh and name == 'no response' else ''
    assert (failed.name, failed.outcome, failed.source) == (name, outcome, 'zendesk')
    assert '<details class="panel" open>' in page.text
    assert stored()['alice'] == OLD


def test_a_disconnect_shows_the_revocation_and_its_check(browser, zendesk):
    zendesk.delete(REVOKE, status=204)
    zendesk.get(SHOW_SELF, status=401, json={'error': 'invalid_token'})
    store(alice=OLD)
    browser.sign_in('alice')
    browser.post('/disconnect')
    assert names(browser) == [
        'action', 'disconnect', 'holds', 'deletes', 'revocation', 'revocation confirmed', 'API request',
        'revocation verified', 'page',
    ]  # fmt: skip


def test_a_grant_that_replaces_expired_tokens_is_a_success(browser, zendesk):
    zendesk.delete(REVOKE, status=401, json={'error': 'invalid_token'})
    store(alice=OLD)
    browser.sign_in('alice')
    grant(browser, zendesk)
    assert 'revocation rejected' in names(browser)
    assert 'Zendesk gave the app a code' in browser.get('/').text


def test_a_revocation_that_fails_is_not_reported_as_a_success(browser, zendesk):
    zendesk.delete(REVOKE, status=500)
    store(alice=OLD)
    browser.sign_in('alice')
    assert 'Zendesk did not confirm that it revoked them.' in browser.post('/disconnect').text.split('<main>')[0]


def test_a_revocation_that_zendesk_has_not_carried_out_is_drawn(browser, zendesk):
    zendesk.delete(REVOKE, status=204)
    zendesk.get(SHOW_SELF, json=USER)
    store(alice=OLD)
    browser.sign_in('alice')
    assert 'Zendesk did not confirm that it revoked them.' in browser.post('/disconnect').text.split('<main>')[0]
    assert names(browser)[-2:] == ['revocation not verified', 'page']


def test_a_second_disconnect_has_nothing_to_delete(browser):
    browser.sign_in('alice')
    assert 'The app had no tokens to delete.' in browser.post('/disconnect').text


def test_another_error_of_the_authorization_request_is_not_a_denial(browser):
    state = start(browser)['state']
    browser.get(f'/zendesk/oauth/callback?error=server_error&state={state}')
    assert names(browser)[4:] == ['authorization error', 'callback', 'state accepted', 'page']


@pytest.mark.parametrize(
    ('refreshes', 'line'),
    [
        (1, '3 visits at once: one of them refreshed the tokens, and the others used its result.'),
        (0, '3 visits at once, with 0 refreshes.'),
        (2, '3 visits at once, with 2 refreshes.'),
    ],
)
def test_the_summary_counts_the_refreshes_of_concurrent_visits(refreshes, line):
    steps = [drawing.Step('profile', '')] * 3
    steps += [drawing.Step('refresh', ''), drawing.Step('new tokens', '')] * refreshes
    assert drawing.summary(steps) == line


def test_an_unusual_error_code_is_not_part_of_the_label(browser, zendesk):
    zendesk.get(SHOW_SELF, status=403, json={'error': 'Some <b>words</b>'})
    store(alice=OLD)
    browser.sign_in('alice')
    browser.get('/profile')
    label = shown(browser).steps[-2].label
    assert label == '403 Forbidden'
    assert shown(browser).steps[-1].outcome == 'bad'


def test_a_new_grant_shows_the_tokens_that_it_replaces(browser, zendesk):
    zendesk.delete(REVOKE, status=204)
    store(alice=OLD)
    browser.sign_in('alice')
    grant(browser, zendesk)
    assert names(browser)[11:15] == ['first tokens', 'replaces', 'revocation', 'revocation confirmed']


@pytest.mark.usefixtures('full_disk')
def test_a_store_failure_is_drawn(browser, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    zendesk.delete(REVOKE, status=204)
    state = start(browser)['state']
    page = browser.get(f'/zendesk/oauth/callback?code=c&state={state}')
    assert page.status_code == 503
    assert 'users.json: not available' in words(page)


# --- Refused callbacks --- #


def test_a_callback_of_another_browser_is_refused_and_explained(app, browser):
    state = start(app.test_client())['state']
    page = browser.get(f'/zendesk/oauth/callback?code=c&state={state}')
    assert names(browser) == ['foreign callback', 'callback', 'state refused', 'page']
    assert 'it does not belong to a request of this browser' in page.text
    assert 'pending request of this browser? No.' in words(page)


def test_a_foreign_callback_does_not_consume_the_exchange_of_its_owner(app, browser, zendesk):
    owner = app.test_client()
    state = start(owner)['state']
    browser.get(f'/zendesk/oauth/callback?code=c&state={state}')
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    owner.get(f'/zendesk/oauth/callback?code=c&state={state}', follow_redirects=True)
    assert names(owner)[:4] == ['action', 'auth', 'authorization request', 'consent']


@pytest.mark.parametrize('query', ['', '?code=c', '?code=c&state=', '?state=a&state=b&code=c', '?code=c&state=%00'])
def test_a_callback_without_a_valid_state_is_refused_and_explained(browser, query):
    browser.get(f'/zendesk/oauth/callback{query}')
    assert names(browser) == ['foreign callback', 'callback', 'state refused', 'page']


def test_a_repeated_callback_is_an_exchange_of_its_own(browser, zendesk):
    query = grant(browser, zendesk)
    browser.get(f'/zendesk/oauth/callback?code=canary-code&state={query["state"]}')
    assert names(browser) == ['repeated callback', 'callback', 'state no longer valid', 'page']


# --- Several tabs, browsers and visits --- #


def test_two_tabs_have_their_own_exchange(browser, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    states = [start(browser)['state'] for _ in range(2)]
    for state in states:
        browser.get(f'/zendesk/oauth/callback?code=c&state={state}', follow_redirects=True)
        [sent] = {secret for step in shown(browser).steps for secret in step.secrets if secret[0] == 'state'}
        assert sent[1] == fingerprint(state)


def test_browsers_do_not_share_an_exchange(app, browser, zendesk):
    grant(browser, zendesk)
    page = app.test_client().get('/')
    assert 'There are no messages yet.' in page.text


def test_home_keeps_the_last_exchange(browser, refreshing):
    store(alice=OLD)
    browser.sign_in('alice')
    browser.get('/profile')
    for path in ('/', '/grant_access', '/nothing'):
        assert 'the app refreshed it' in browser.get(path).text
        assert names(browser) == REFRESH


def test_a_static_file_does_not_continue_an_exchange(browser):
    browser.get('/profile')
    browser.get('/static/app.css').close()
    browser.get('/grant_access')
    assert names(browser)[-2:] == ['page request', 'page']


def test_visits_at_once_are_drawn_as_one_exchange(app, browser, refreshing, monkeypatch):
    store(alice=OLD)
    browser.sign_in('alice')
    browser.get('/')
    cookies = {cookie.key: cookie.value for cookie in browser._cookies.values()}
    started, request_tokens = threading.Barrier(5), app_module.oauth.request_tokens

    def slow(form):
        assert started.wait(30) is not None  # until the other visits wait for the lock
        return request_tokens(form)

    class Waiting(logging.Handler):
        """Count the visits whose access token was rejected."""

        def emit(self, record):
            if getattr(record, 'response', None) and record.response['status'] == 401 and next(rejected) > 0:
                threading.Thread(target=started.wait, args=(30,)).start()

    rejected = iter(range(100))
    monkeypatch.setattr(app_module.oauth, 'request_tokens', slow)
    handler = Waiting()
    logging.getLogger('zendesk_oauth').addHandler(handler)

    def visit(_) -> str:
        client = app.test_client()
        for name, value in cookies.items():
            client.set_cookie(name, value)
        return client.get('/profile').text

    try:
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(visit, range(5)))
    finally:
        logging.getLogger('zendesk_oauth').removeHandler(handler)
    assert [call.request.url for call in refreshing.calls].count(TOKEN_ENDPOINT) == 1
    rows = drawing.rows(shown(browser).steps, merged=True)
    assert [(row.step.name, row.count) for row in rows if row.step.name not in ('lock, tokens replaced', 'page')] == [
        ('action', 5), ('profile', 5), ('holds', 5), ('API request', 5), ('access token rejected', 5), ('lock', 1),
        ('refresh', 1), ('new tokens', 1), ('replaces', 1), ('holds', 4), ('API request', 5), ('API response', 5),
    ]  # fmt: skip
    [waited] = [row for row in rows if row.step.name == 'lock, tokens replaced']
    assert waited.count == 4
    text = words(browser.get('/'))
    assert '5 visits at once' in text
    assert '5 × GET /profile' in text
    assert '4 × Locked. Is this still the stored refresh token? No.' in text


def test_the_new_tokens_are_stored_before_another_visit_finds_them():
    """The panel of the first visit looks at the store only before its next request."""
    old, new = (('access token', '#00000001'),), (('access token', '#00000002'),)
    visits = {
        1: [drawing.held(old), drawing.lock_check(0, same=True)],
        2: [drawing.held(old), drawing.held(new), drawing.lock_check(1, same=False)],
        3: [drawing.changed(old, new)],
    }
    steps = [dataclasses.replace(step, visit=number) for number in (1, 2) for step in visits[number]]
    steps += [dataclasses.replace(step, visit=1) for step in visits[3]]
    merged = [(row.step.name, row.count, row.waits) for row in drawing.rows(steps, merged=True)]
    assert merged == [
        ('holds', 2, ()), ('lock', 1, ()), ('replaces', 1, ()), ('holds', 1, ()),
        ('lock, tokens replaced', 1, ((2, 1),)),
    ]  # fmt: skip


# --- Failures of the panel itself --- #


def test_a_name_that_is_not_utf_8_does_not_break_later_pages(browser, zendesk):
    zendesk.get(SHOW_SELF, body='{"user": {"id": 1, "name": "x\\ud800", "role": "agent"}}')
    store(alice=OLD)
    browser.sign_in('alice')
    for path in ('/profile', '/', '/profile'):
        assert browser.get(path).status_code == 200
    assert shown(browser).running == 0


def test_an_error_in_the_panel_does_not_break_the_request(browser, refreshing, monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(drawing, 'exchange_with_zendesk', broken)
    monkeypatch.setattr(logging, 'raiseExceptions', False)
    store(alice=OLD)
    browser.sign_in('alice')
    assert browser.get('/profile').status_code == 200
    assert stored()['alice']['access_token'] == 'new-access'


def test_a_store_that_cannot_be_read_does_not_break_the_panel(browser, monkeypatch):
    def broken(user_id):
        raise StoreError('broken')

    monkeypatch.setattr(app_module.oauth.store, 'find', broken)
    browser.sign_in('alice')
    assert browser.get('/').status_code == 200
    assert 'users.json: not available' in words(browser.get('/profile'))


def test_a_page_that_cannot_be_drawn_does_not_break_the_next_one(app, browser, monkeypatch):
    def broken():
        raise ZeroDivisionError

    app.testing = False
    browser.get('/')
    with monkeypatch.context() as patch:
        patch.setattr(panel, '_panel', broken)
        assert browser.get('/profile', follow_redirects=True).status_code == 500
    assert shown(browser).running == 0
    assert browser.get('/profile').status_code == 302


@pytest.mark.usefixtures('app')
def test_a_log_record_outside_a_request_is_ignored(capfd):
    logging.getLogger('zendesk_oauth').info('outside', extra={'waited': 1.0})
    assert 'Logging error' not in capfd.readouterr().err


def test_a_thread_can_log_while_the_panel_reads_the_store(app, monkeypatch):
    """With a lock in the handler, a thread that logs under the lock of users.json would wait for this one."""
    started, done = threading.Event(), threading.Event()

    class SlowStore:
        def find(self, user_id):
            started.set()
            assert done.wait(30)

    recorder = panel.Recorder(SlowStore())
    record = logging.makeLogRecord({'name': 'zendesk_oauth', 'waited': 0.0})

    def read() -> None:
        with app.test_request_context('/profile'):
            session['user_id'] = 'alice'
            g.visit = panel.Visit(panel.Browser(), panel.Exchange('/profile'), 1, False)
            recorder.handle(record)

    reader = threading.Thread(target=read)
    reader.start()
    assert started.wait(30)
    other = threading.Thread(target=recorder.handle, args=(logging.makeLogRecord({'name': 'zendesk_oauth'}),))
    other.start()
    other.join(30)
    blocked = other.is_alive()
    done.set()
    reader.join()
    assert not blocked


# --- Memory --- #


def test_a_request_without_a_cookie_is_remembered_only_with_a_page(app, browser):
    start(browser)
    for _ in range(panel.MAX_REMEMBERED + 10):
        app.test_client().get('/panel/open')
        app.test_client().get('/static/nothing.css')
    assert len(panel._browsers) == 1


def test_a_browser_that_comes_back_is_not_forgotten(app, browser):
    browser.get('/profile')
    for _ in range(panel.MAX_REMEMBERED - 1):
        app.test_client().get('/')
    browser.get('/')
    app.test_client().get('/')
    assert names(browser)


def test_long_messages_are_shortened(browser, zendesk):
    zendesk.get(SHOW_SELF, json={**USER, 'numbers': [1] * 4000})
    for number in range(30):
        browser.set_cookie(f'cookie-{number}', 'x')
    store(alice=OLD)
    browser.sign_in('alice')
    browser.get('/profile')
    texts = {step.name: step.text for step in shown(browser).steps}
    assert len(texts['API response']) == panel.MAX_TEXT
    assert texts['profile'].count('=#') == drawing.MAX_COOKIES


def test_a_callback_with_many_parameters_is_shortened(browser):
    browser.get(f'/zendesk/oauth/callback?{"&".join(f"state={number}" for number in range(1000))}')
    assert max(len(step.secrets) for step in shown(browser).steps) == drawing.MAX_PARAMETERS


def test_abandoned_grants_use_limited_memory(app):
    for _ in range(panel.MAX_REMEMBERED + 10):
        start(app.test_client())
    for remembered in (panel._browsers, panel._exchanges, panel._pending):
        assert len(remembered) == panel.MAX_REMEMBERED


def test_an_exchange_has_a_limited_number_of_steps():
    exchange = panel.Exchange('/')
    for _ in range(panel.MAX_STEPS):
        exchange.add([drawing.lock_check(0, same=True)] * 3, 1)
    assert len(exchange.steps) == panel.MAX_STEPS


def test_secrets_that_are_no_longer_shown_lose_their_color(monkeypatch):
    monkeypatch.setattr(drawing, '_colors', type(drawing._colors)())
    for number in range(drawing.MAX_COLORED + 10):
        drawing.color(('code', fingerprint(str(number))))
    assert len(drawing._colors) == drawing.MAX_COLORED


# --- Whether the panel is open --- #


def test_the_panel_stays_as_the_user_left_it(browser, zendesk):
    zendesk.get(SHOW_SELF, json=USER)
    store(alice=OLD)
    browser.sign_in('alice')
    assert '<details class="panel">' in browser.get('/profile').text
    assert browser.get('/panel/open').status_code == 204
    assert '<details class="panel" open>' in browser.get('/profile').text
    browser.get('/panel/closed')
    assert '<details class="panel">' in browser.get('/').text
    assert browser.get('/panel/other').status_code == 404
    browser.get('/panel/open', headers={'Sec-Fetch-Site': 'same-site'})  # from another port of localhost
    assert '<details class="panel">' in browser.get('/').text


def test_the_style_sheet_requests_the_two_addresses():
    style = (PROJECT / 'static' / 'panel.css').read_text()
    assert re.findall(r'url\("([^"]+)"\)', style) == ['/panel/open', '/panel/closed']


# --- An exchange of another browser --- #


def test_a_response_links_to_its_exchange(app, browser, refreshing):
    store(alice=OLD)
    browser.sign_in('alice')
    address = re.fullmatch('<(/exchange/[^>]+)>; rel="describedby"', browser.get('/profile').headers['Link'])[1]
    page = app.test_client().get(address)
    assert 'the app refreshed it' in page.text
    assert '<details class="panel" open>' in page.text
    assert app.test_client().get('/exchange/unknown').status_code == 404


# --- Thefts --- #


def theft(form: dict, status: int, body: dict) -> None:
    request = {'method': 'POST', 'path': '/oauth/tokens', 'headers': {'Host': 'localhost'}, 'form': form}
    response = {'status': status, 'headers': {}, 'body': body}
    extra = {'request': request, 'response': response}
    logging.getLogger('practice_zendesk.exchange').info('A thief', extra=extra)


def test_the_theft_of_a_refresh_token_is_drawn_where_it_happened(browser, refreshing):
    form = {'grant_type': 'refresh_token', 'refresh_token': fingerprint('old-refresh')}
    store(alice=OLD)
    browser.sign_in('alice')
    theft(form, 200, {'access_token': '#00000001', 'refresh_token': '#00000002'})
    theft({**form, 'refresh_token': fingerprint('another')}, 200, {})
    page = browser.get('/profile')
    assert re.findall('(?:Thief|Zendesk) → (?:Thief|Zendesk)', words(page)) == ['Thief → Zendesk', 'Zendesk → Thief']
    assert words(page).index('Thief →') < words(page).index('You opened the profile page')
    assert 'A thief used your refresh token first.' in page.text


def test_the_theft_of_a_code_is_drawn_where_the_code_appears(browser, zendesk):
    query = start(browser)
    theft({'grant_type': 'authorization_code', 'code': fingerprint('the-code')}, 400, {'error': 'invalid_grant'})
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    browser.get(f'/zendesk/oauth/callback?code=the-code&state={query["state"]}')
    text = words(browser.get('/'))
    assert text.index('302 to the app') < text.index('Thief →') < text.index('GET /zendesk/oauth/callback')


def test_a_replaced_code_is_drawn_before_the_browser_brings_it_back(browser, zendesk):
    query = start(browser)
    extra = {'replaced_code': (fingerprint('my-code'), fingerprint('the-code'))}
    logging.getLogger('practice_zendesk.exchange').info('An attacker', extra=extra)
    zendesk.post(TOKEN_ENDPOINT, status=400, json={'error': 'invalid_grant'})
    page = browser.get(f'/zendesk/oauth/callback?code=the-code&state={query["state"]}')
    replaced = f'Attacker: replaced code {fingerprint("my-code")[:5]} with code {fingerprint("the-code")[:5]}'
    assert words(page).index(replaced) < words(page).index('302 to the app')
    assert 'An attacker replaced your code with their own.' in page.text


def test_the_attacks_use_limited_memory(app):
    for _ in range(panel.MAX_ATTACKS + 5):
        theft({'code': '#00000001'}, 400, {})
    assert len(panel._attacks) == panel.MAX_ATTACKS


def test_a_notice_survives_a_redirect(browser):
    logging.getLogger('practice_zendesk.exchange').info('notice', extra={'notice': 'Click “Disconnect”.'})
    assert browser.get('/profile').status_code == 302
    assert 'Click “Disconnect”.' in browser.get('/grant_access').text


def test_a_notice_is_shown_once_and_instead_of_the_last_exchange(browser, refreshing):
    store(alice=OLD)
    browser.sign_in('alice')
    browser.get('/profile')
    notice = 'A <thief> waits. Click “Grant access”.'
    logging.getLogger('practice_zendesk.exchange').info('notice', extra={'notice': notice})
    for path in ('/', '/nothing', '/exchange/unknown'):  # only the page to which the experiment leads shows it
        assert 'waits' not in browser.get(path).text
    page = browser.get('/grant_access').text
    assert 'A &lt;thief&gt; waits. Click “Grant access”.' in page
    assert 'There are no messages yet.' in page
    page = browser.get('/grant_access').text
    assert 'waits' not in page
    assert 'the app refreshed it' in page


# --- Secrets, and the page --- #


def test_no_page_contains_a_secret(browser, zendesk):
    zendesk.delete(REVOKE, status=204)
    zendesk.get(SHOW_SELF, json={**USER, 'authenticity_token': 'canary-authenticity'})
    query = grant(browser, zendesk)
    pages = [browser.get('/').text, browser.get('/profile').text]
    zendesk.get(SHOW_SELF, status=401, json={'error': 'invalid_token'})
    pages.append(browser.post('/disconnect').text)
    cookies = [cookie.value for cookie in browser._cookies.values() if cookie.key != panel.COOKIE]
    verifier = parse_qs(zendesk.calls[0].request.body)['code_verifier'][0]
    secrets = [query['state'], query['code_challenge'], verifier, 'canary', 'new-access', 'new-refresh', *cookies]
    assert drawing.color(('client secret', fingerprint('canary-client-secret'))) is None
    for page in pages:
        assert not [secret for secret in secrets if secret in page]
        assert fingerprint('canary-client-secret') in page or 'POST /oauth/tokens' not in page


def test_the_panel_escapes_html(browser, zendesk):
    zendesk.get(SHOW_SELF, json={'user': {**USER['user'], 'name': '<b>', 'note': '<!-- panel -->'}})
    store(alice=OLD)
    browser.sign_in('alice')
    page = browser.get('/profile').text
    assert '<b>' not in page
    assert '&lt;b&gt;' in page
    browser.get('/zendesk/oauth/callback?code=<i>&state=<i>&<i>=<i>&error=<i>')
    browser.get('/zendesk/oauth/callback?code=c&other=canary-parameter')
    page = browser.get('/').text
    assert '<i>' not in page
    assert 'canary' not in page


def test_the_cookie_is_http_only_and_same_site(browser):
    [cookie] = [value for value in browser.get('/').headers.getlist('Set-Cookie') if value.startswith(panel.COOKIE)]
    assert 'HttpOnly' in cookie
    assert 'SameSite=Lax' in cookie


def test_each_step_is_explained():
    explained = explanations.TEXTS.keys()
    assert explanations.SUMMARIES.keys() <= explained | {'holds nothing', 'store failure'}
    assert explained | {'store failure'} >= explanations.NOTABLE
    for text in explanations.TEXTS.values():
        assert not text.specification or text.url.startswith('https://')
        if text.code:
            function, _, path = text.code.partition(' in ')
            assert f'def {function}(' in (PROJECT / path).read_text(encoding='utf-8')


def test_outside_practice_mode_a_page_has_no_panel(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    page = app_module.app.test_client().get('/')
    for word in ('panel', 'exchange', 'summary', '<!--'):
        assert word not in page.text
    assert 'Link' not in page.headers
    assert not any('panel' in cookie for cookie in page.headers.getlist('Set-Cookie'))
    assert not any('exchange' in rule.rule or 'panel' in rule.rule for rule in app_module.app.url_map.iter_rules())
    handlers = logging.getLogger('zendesk_oauth').handlers
    assert not any(isinstance(handler, panel.Recorder) for handler in handlers)


def test_the_full_messages_are_http(browser, refreshing):
    store(alice=OLD)
    browser.sign_in('alice')
    browser.get('/')
    browser.get('/profile')
    texts = {step.name: step.text for step in shown(browser).steps}
    assert texts['refresh'].startswith('POST /oauth/tokens HTTP/1.1\nHost: mondocam.zendesk.com\nContent-Type: ')
    assert f'\n\ngrant_type=refresh_token\nrefresh_token={fingerprint("old-refresh")}\n' in texts['refresh']
    assert texts['new tokens'].startswith('HTTP/1.1 200 OK\nContent-Type: application/json\n\n{')
    assert json.loads(texts['new tokens'].split('\n\n')[1])['access_token'] == fingerprint('new-access')
    assert texts['profile'].startswith('GET /profile HTTP/1.1\nHost: localhost\nCookie: zendesk_oauth_3000_session=#')
    assert panel.COOKIE not in texts['profile']
    assert 'Authorization: Bearer #' in texts['API request']
    assert 'Set-Cookie: ' not in texts['page'] or 'session' in texts['page']
