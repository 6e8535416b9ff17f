"""All pages: headers, session cookie, canonical host, cross-site checks, error pages."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import socket
import sys
from pathlib import Path
from urllib.parse import unquote_to_bytes

import click
import pytest
from flask import Flask, Response, request
from helpers import NEW_TOKENS, OLD, OTHER, SHOW_SELF, TOKEN_ENDPOINT, USER, bearer, store, stored

import backend_code
import web
from settings import load_settings
from zendesk_oauth.errors import StoreError, ZendeskError

# --- Headers --- #


@pytest.mark.parametrize(
    ('method', 'path'),
    [
        ('GET', '/'),
        ('GET', '/profile'),
        ('GET', '/grant_access'),
        ('GET', '/zendesk/auth'),
        ('GET', '/zendesk/oauth/callback?state=x'),
        ('GET', '/nope'),
        ('POST', '/'),
        ('HEAD', '/zendesk/auth'),
        ('OPTIONS', '/'),
        ('GET', '/static/app.css'),
        ('GET', '/static/nope'),
    ],
)
def test_every_response_has_the_security_headers(browser, method, path):
    with browser.open(path, method=method) as response:
        headers = response.headers
    policy = headers['Content-Security-Policy']
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'self';" in policy
    assert 'unsafe' not in policy
    assert headers['X-Content-Type-Options'] == 'nosniff'
    assert headers['X-Frame-Options'] == 'DENY'
    assert headers['Referrer-Policy'] == 'strict-origin'
    assert headers['Cross-Origin-Opener-Policy'] == 'same-origin'
    assert headers['Cross-Origin-Resource-Policy'] == 'same-origin'
    assert 'Strict-Transport-Security' not in headers
    assert (headers['Cache-Control'] == 'no-store') == (path != '/static/app.css')


def test_there_is_no_hsts_header_on_localhost(app):
    """Browsers would apply the restriction to the servers on all ports of localhost."""
    local = dataclasses.replace(load_settings(), redirect_uri='https://localhost:8443/zendesk/oauth/callback')
    with app.test_request_context():
        assert 'Strict-Transport-Security' not in web.add_headers(local, Response()).headers


def test_pages_have_no_inline_code_and_no_external_links(browser):
    for path in ('/', '/grant_access', '/nope'):
        page = browser.get(path).text
        assert not re.search(r'<script|<style|style=|\son\w+=|javascript:', page)
        assert not re.search(r'(src|href)="(https?:)?//', page)


def test_a_redirect_has_an_empty_body(browser):
    assert browser.get('/zendesk/auth').data == b''


# --- The session cookie --- #


def session_cookies(response) -> list[str]:
    return [header for header in response.headers.getlist('Set-Cookie') if '_session=' in header]


def signed(app: Flask, payload) -> str:
    return app.session_interface.get_signing_serializer(app).dumps(payload)


def test_the_session_cookie_is_http_only_and_persistent(browser):
    [cookie] = session_cookies(browser.get('/'))
    assert cookie.startswith('zendesk_oauth_3000_session=')
    for attribute in ('; HttpOnly', '; SameSite=Lax', '; Path=/', '; Expires='):
        assert attribute in cookie
    assert '; Secure' not in cookie
    assert browser.get_cookie('zendesk_oauth_3000_session').expires is not None


def test_only_a_new_id_or_refresh_sends_the_session_cookie(app, alice, zendesk):
    zendesk.get(SHOW_SELF, status=401, match=[bearer('old-access')])
    zendesk.get(SHOW_SELF, json=USER, match=[bearer('new-access')])
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    paths = ('/', '/grant_access', '/zendesk/auth', '/profile', '/profile')
    assert [bool(session_cookies(alice.get(path))) for path in paths] == [False, False, False, True, False]
    assert session_cookies(app.test_client().get('/'))
    assert not session_cookies(app.test_client().get('/profile'))


def test_a_failed_retry_sends_no_session_cookie(alice, zendesk):
    zendesk.get(SHOW_SELF, status=401, match=[bearer('old-access')])
    zendesk.get(SHOW_SELF, status=500, match=[bearer('new-access')])
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    assert not session_cookies(alice.get('/profile'))


def test_a_slow_profile_does_not_overwrite_a_newer_session(alice, zendesk):
    def grant_in_another_tab(request):
        store(bob=OTHER)  # the callback has deleted the tokens of the old id
        return 200, {}, json.dumps(USER)

    zendesk.get(SHOW_SELF, status=401, match=[bearer('old-access')])
    zendesk.add_callback('GET', SHOW_SELF, grant_in_another_tab, match=[bearer('new-access')])
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    assert not session_cookies(alice.get('/profile'))


@pytest.mark.parametrize('response', [{'status': 500}, {'status': 400, 'json': {'error': 'invalid_grant'}}])
def test_a_failed_refresh_sends_no_session_cookie(alice, zendesk, response):
    zendesk.get(SHOW_SELF, status=401)
    zendesk.post(TOKEN_ENDPOINT, **response)
    assert not session_cookies(alice.get('/profile'))


def test_a_failed_grant_sends_no_session_cookie(alice, zendesk):
    zendesk.post(TOKEN_ENDPOINT, status=500)
    assert not session_cookies(alice.grant())


@pytest.mark.parametrize('payload', [[1, 2], 'text', 5, None, {'user_id': ['alice']}, {'user_id': 5}, {'other': 1}])
def test_a_session_with_wrong_types_opens_an_empty_session(app, browser, payload):
    store(alice=OLD)
    browser.set_cookie('zendesk_oauth_3000_session', signed(app, payload))
    assert browser.get('/profile').location == '/grant_access'
    assert browser.get('/').status_code == 200
    assert browser.user_id.startswith('user-')


@pytest.mark.filterwarnings('ignore:The .* cookie is too large')
@pytest.mark.parametrize(
    'tamper',
    [
        lambda value: value[:-1],
        lambda value: value[: len(value) // 2],
        lambda value: 'x' + value,
        lambda value: 'x' * 8192,
        lambda value: '..',
        lambda value: 'ä',
    ],
)
def test_a_tampered_session_opens_an_empty_session(app, browser, tamper):
    store(alice=OLD)
    browser.set_cookie('zendesk_oauth_3000_session', tamper(signed(app, {'user_id': 'alice'})))
    assert browser.get('/profile').location == '/grant_access'
    assert browser.get('/').status_code == 200


@pytest.mark.parametrize('fallbacks', [[], ['a former key']])
def test_a_session_signed_with_an_unknown_key_opens_an_empty_session(app, browser, monkeypatch, fallbacks):
    store(alice=OLD)
    monkeypatch.setitem(app.config, 'SECRET_KEY_FALLBACKS', fallbacks)
    with monkeypatch.context() as patch:
        patch.setattr(app, 'secret_key', 'another key')
        patch.setitem(app.config, 'SECRET_KEY_FALLBACKS', [])
        forged = signed(app, {'user_id': 'alice'})
    browser.set_cookie('zendesk_oauth_3000_session', forged)
    assert browser.get('/profile').location == '/grant_access'


def test_a_refresh_signs_the_session_with_the_new_key(app, alice, zendesk, monkeypatch):
    monkeypatch.setitem(app.config, 'SECRET_KEY_FALLBACKS', [app.secret_key, 'an older one'])
    monkeypatch.setattr(app, 'secret_key', 'the new key')
    zendesk.get(SHOW_SELF, status=401, match=[bearer('old-access')])
    zendesk.get(SHOW_SELF, json=USER, match=[bearer('new-access')])
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    assert alice.get('/profile').status_code == 200
    monkeypatch.setitem(app.config, 'SECRET_KEY_FALLBACKS', [])
    assert alice.user_id == 'alice'


@pytest.mark.parametrize(('age', 'valid'), [(-59, True), (-61, False), (0, True), (604_799, True), (604_801, False)])
def test_a_session_is_valid_for_a_week_despite_clock_skew(app, browser, clock, age, valid):
    store(alice=OLD)
    now = clock.now
    clock.now = now - age
    cookie = signed(app, {'user_id': 'alice'})
    clock.now = now
    with app.test_request_context(headers={'Cookie': f'zendesk_oauth_3000_session={cookie}'}):
        assert (backend_code.current_user_id() == 'alice') == valid


def test_a_session_of_the_previous_version_is_accepted(app, browser):
    """Accept a cookie signed by Flask's default session interface."""
    serializer = Flask.session_interface.get_signing_serializer(app)
    browser.set_cookie('zendesk_oauth_3000_session', serializer.dumps({'user_id': 'alice'}))
    assert browser.user_id == 'alice'


# --- https --- #

HTTPS = {'base_url': 'https://app.example.com'}


def test_cookies_are_secure_and_bound_to_the_host_over_https(https_app):
    response = https_app.test_client().get('/', **HTTPS)
    [cookie] = session_cookies(response)
    assert cookie.startswith('__Host-zendesk_oauth_session=')
    for attribute in ('; Secure', '; Path=/'):
        assert attribute in cookie
    assert 'Domain' not in cookie
    assert response.headers['Strict-Transport-Security']


@pytest.mark.parametrize('place', ['before', 'after'])
def test_no_other_name_is_read_as_a_host_cookie(https_app, place):
    """Otherwise another subdomain, which can set the other name, could sign the user in to another account."""
    name = '__Host-zendesk_oauth_session'
    for character in map(chr, range(256)):
        header = f'a=b; {character}{name}=forged' if place == 'before' else f'a=b; {name}{character}=forged'
        with https_app.test_request_context(environ_overrides={'HTTP_COOKIE': header}):
            # Browsers remove spaces and tabs when they set a cookie. The characters ";" and "=" are separators.
            assert (name in request.cookies) == (character in ' \t;' or (place, character) == ('after', '='))


def test_no_host_is_redirected_over_https(https_app):
    assert https_app.test_client().get('/', base_url='http://127.0.0.1:3000').status_code == 200


# --- Cookies of pending authorization requests --- #


def pending_cookies(browser) -> list[str]:
    return sorted(name for name in (cookie.key for cookie in browser._cookies.values()) if '_request_' in name)


def test_the_oldest_pending_authorization_requests_are_dropped(browser, zendesk, clock):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    states = []
    for _ in range(20):
        states.append(browser.start()['state'])
        clock.advance(1)
    kept = len(pending_cookies(browser))
    assert 8 <= kept < 20
    assert sum(len(f'{cookie.key}={cookie.value}; ') for cookie in browser._cookies.values()) <= 4096
    assert browser.come_back(code='the-code', state=states[-kept - 1]).status_code == 400
    assert browser.come_back(code='the-code', state=states[-kept]).location == '/'


def test_two_tabs_can_finish_in_reverse_order(browser, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    zendesk.delete(re.compile('.*/oauth/tokens/current'), status=204)
    first, second = browser.start()['state'], browser.start()['state']
    assert browser.come_back(code='two', state=second).location == '/'
    assert browser.come_back(code='one', state=first).location == '/'
    assert list(stored()) == [browser.user_id]


def test_a_repeated_callback_shows_an_error_and_keeps_the_tokens(browser, zendesk):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    state = browser.start()['state']
    browser.come_back(code='the-code', state=state)
    page = browser.come_back(code='the-code', state=state)
    assert page.status_code == 400
    assert 'already used' in page.text
    assert '<a href="/">Home</a>' in page.text
    assert len(zendesk.calls) == 1
    assert list(stored()) == [browser.user_id]


# --- Prefetches and other sites --- #


@pytest.mark.parametrize(
    'headers',
    [
        {'Sec-Fetch-Dest': 'image'},
        {'Sec-Fetch-Dest': 'iframe'},
        {'Sec-Fetch-Dest': 'empty'},
        {'Sec-Fetch-Dest': 'document', 'Sec-Purpose': 'prefetch;prerender'},
        {'Sec-Purpose': 'prefetch'},
        'HEAD',
    ],
)
def test_only_page_navigation_can_start_or_complete_a_grant(browser, zendesk, headers):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    state = browser.start()['state']
    before = pending_cookies(browser)
    how = {'method': 'HEAD'} if headers == 'HEAD' else {'headers': headers}
    for path in ('/zendesk/auth', f'/zendesk/oauth/callback?code=the-code&state={state}'):
        response = browser.open(path, **how)
        assert response.status_code == 503
        assert 'Set-Cookie' not in response.headers
    assert pending_cookies(browser) == before
    assert not zendesk.calls
    assert browser.come_back(code='the-code', state=state).location == '/'


@pytest.mark.parametrize('site', ['cross-site', 'same-site'])
def test_another_site_cannot_start_a_grant(browser, site):
    response = browser.get('/zendesk/auth', headers={'Sec-Fetch-Site': site, 'Sec-Fetch-Dest': 'document'})
    assert response.location == '/grant_access'
    assert 'Set-Cookie' not in response.headers


@pytest.mark.parametrize('site', ['same-origin', 'none'])
def test_this_site_and_the_address_bar_can_start_a_grant(browser, site):
    assert browser.start(headers={'Sec-Fetch-Site': site, 'Sec-Fetch-Dest': 'document'})


ORIGIN = 'http://localhost:3000'


@pytest.mark.parametrize(
    ('headers', 'accepted'),
    [
        ({'Sec-Fetch-Site': 'same-origin', 'Origin': ORIGIN}, True),
        ({'Sec-Fetch-Site': 'none'}, True),
        ({'Sec-Fetch-Site': 'same-site', 'Origin': 'http://localhost:4000'}, False),
        ({'Sec-Fetch-Site': 'cross-site', 'Origin': ORIGIN}, False),
        ({'Origin': ORIGIN}, True),
        ({'Origin': 'http://localhost:4000'}, False),
        ({'Origin': 'https://evil.example'}, False),
        ({'Origin': 'null'}, False),
        ({}, True),  # not sent by a browser
    ],
)
def test_only_a_form_on_this_site_can_disconnect(alice, zendesk, headers, accepted):
    zendesk.delete(re.compile('.*'), status=500)
    page = alice.post('/disconnect', headers=headers)
    assert page.status_code == (200 if accepted else 403)
    assert stored() == ({'bob': OTHER} if accepted else {'alice': OLD, 'bob': OTHER})
    assert ('came from another site' in page.text) != accepted


def test_a_form_changes_a_cookie_to_disable_the_bfcache(alice):
    cookies = [alice.post('/disconnect').headers['Set-Cookie'] for _ in range(2)]
    assert cookies[0] != cookies[1]
    for cookie in cookies:
        assert cookie.startswith('zendesk_oauth_3000_changed=')
        assert '; HttpOnly' in cookie


# --- The canonical host --- #


@pytest.mark.parametrize('host', ['127.0.0.1:3000', '[::1]:3000', '127.0.0.1'])
@pytest.mark.parametrize('path', ['/', '/profile', '/zendesk/auth?x=1'])
def test_a_loopback_address_is_redirected_to_the_canonical_host(browser, host, path):
    response = browser.get(path, headers={'Host': host})
    assert response.location == f'http://localhost:3000{path}'
    assert 'Set-Cookie' not in response.headers


@pytest.mark.parametrize('host', ['127.0.0.1:8000', '[::1]:8000', 'localhost:8000', '127.0.0.1:30000'])
def test_a_host_with_another_port_is_not_redirected(browser, host):
    """A proxy has changed it, so the redirect would lead back here."""
    assert browser.get('/', headers={'Host': host}).status_code == 200


@pytest.mark.parametrize(
    ('path', 'location'),
    [
        ('/%0d%0aX-Injected:%20y', '/%0D%0AX-Injected%3A%20y'),
        ('/%3Fx=1', '/%3Fx%3D1'),
        ('/%23x', '/%23x'),
        ('//evil.example/', '/evil.example/'),
        ('/\\evil.example', '/%5Cevil.example'),
        ('/a%FFb', '/a%EF%BF%BDb'),
        ('/?a=b&c=%26%0d%0a', '/?a=b&c=%26%0d%0a'),
    ],
)
def test_the_redirect_escapes_special_characters_in_the_path(app, path, location):
    status, headers = raw_get(app, '127.0.0.1:3000', path)
    assert status == '302 FOUND'
    assert headers['Location'] == 'http://localhost:3000' + location
    assert 'X-Injected' not in headers


@pytest.mark.parametrize('path', ['/zendesk//auth', '/zendesk//oauth/callback?code=c', '/static//app.css'])
def test_a_double_slash_is_not_redirected_to_the_request_host(app, path):
    status, _ = raw_get(app, 'evil.example', path)
    assert status == '404 NOT FOUND'


def raw_get(app, host: str, target: str):
    """Send a request with exactly this target: the test client would normalize it."""
    path, _, query = target.partition('?')
    environ = {
        'REQUEST_METHOD': 'GET',
        'PATH_INFO': unquote_to_bytes(path).decode('latin-1'),
        'QUERY_STRING': query,
        'HTTP_HOST': host,
        'SERVER_NAME': '127.0.0.1',
        'SERVER_PORT': '3000',
        'wsgi.url_scheme': 'http',
        'wsgi.input': io.BytesIO(),
        'wsgi.errors': sys.stderr,
    }
    response = []
    app(environ, lambda status, headers, *_: response.extend((status, dict(headers)))).close()
    return response


def test_only_a_get_is_redirected_to_the_canonical_host(browser):
    assert browser.post('/', base_url='http://127.0.0.1:3000').status_code == 405
    assert browser.head('/', base_url='http://127.0.0.1:3000').status_code == 200


@pytest.mark.parametrize(
    'headers',
    [
        {'Host': 'evil.example'},
        {'X-Forwarded-Host': 'evil.example', 'X-Forwarded-Proto': 'https', 'X-Forwarded-For': '1.2.3.4'},
        {'Forwarded': 'host=evil.example'},
    ],
)
def test_a_foreign_host_header_changes_no_url(browser, headers):
    assert browser.start(headers=headers)['redirect_uri'] == 'http://localhost:3000/zendesk/oauth/callback'
    assert browser.get('/profile', headers=headers).location == '/grant_access'
    assert 'evil' not in browser.get('/grant_access', headers=headers).text


@pytest.mark.parametrize(
    ('hops', 'address', 'host'), [(0, '127.0.0.1', 'behind'), (1, '3.3.3.3', 'b'), (2, '2.2.2.2', 'a')]
)
def test_forwarded_headers_are_trusted_for_the_configured_proxies(app, hops, address, host):
    app = Flask('app')
    web.init_app(app, dataclasses.replace(load_settings(), proxy_hops=hops), backend_code.store)
    app.add_url_rule('/', view_func=lambda: f'{request.remote_addr} {request.host} {request.scheme}')
    headers = {
        'Host': 'behind',
        'X-Forwarded-For': '1.1.1.1, 2.2.2.2, 3.3.3.3',
        'X-Forwarded-Host': 'evil.example, a, b',
        'X-Forwarded-Proto': 'https, https, https',
    }
    assert app.test_client().get('/', headers=headers).text == f'{address} {host} {"https" if hops else "http"}'


@pytest.mark.parametrize('host', ['[', '[::1', ']:3000', 'a b', '127.0.0.1:x', 'ä', ''])
def test_a_malformed_host_does_not_cause_a_500(browser, host):
    assert browser.get('/', headers={'Host': host}).status_code in (200, 302, 400)


# --- Error pages --- #


@pytest.mark.parametrize(
    ('method', 'path', 'status'), [('GET', '/nope', 404), ('POST', '/profile', 405), ('GET', '/%E0%A4%A', 404)]
)
def test_flask_errors_use_the_error_page_of_the_app(browser, log, method, path, status):
    page = browser.open(path, method=method)
    assert page.status_code == status
    assert log[-1].startswith(f'{status} ')
    assert page.content_type == 'text/html; charset=utf-8'
    assert '<html lang="en">' in page.text
    assert re.findall('href="(/[^"s]*)"', page.text) == ['/']


def test_an_unexpected_exception_shows_a_page_with_the_security_headers(app, browser, monkeypatch):
    monkeypatch.setattr(app, 'testing', False)
    monkeypatch.setattr('backend_code.current_user_id', lambda: 1 / 0)
    page = browser.get('/')
    assert page.status_code == 500
    assert 'href="/"' in page.text
    assert 'ZeroDivision' not in page.text
    assert page.headers['Cache-Control'] == 'no-store'
    assert 'Content-Security-Policy' in page.headers


@pytest.mark.parametrize(('reauthorize', 'link'), [(True, '/grant_access'), (False, '/profile')])
def test_an_error_page_links_to_the_next_step(alice, monkeypatch, log, reauthorize, link):
    def fail(*args, **kwargs):
        raise ZendeskError('the cause, for the log', reauthorize=reauthorize, title='What happened', retry_after=5)

    monkeypatch.setattr(backend_code.oauth, 'api_request', fail)
    page = alice.get('/profile')
    assert (page.status_code, page.headers['Retry-After']) == (502, '5')
    assert '<h1>What happened</h1>' in page.text
    assert f'class="button" href="{link}"' in page.text
    assert 'the cause' not in page.text
    assert log[-1] == 'What happened: the cause, for the log\n'


def test_the_app_does_not_start_with_an_unusable_store(app, log):
    Path('users.json').mkdir()
    with pytest.raises(SystemExit) as raised:
        web.init_app(Flask('app'), load_settings(), backend_code.store)
    assert raised.value.code == 4
    assert re.search(r'/users\.json is not a file\. Delete it', log[-1])


# --- /health --- #


@pytest.mark.parametrize('method', ['GET', 'HEAD'])
@pytest.mark.parametrize('host', ['localhost:3000', '127.0.0.1:3000', '10.0.0.5', 'app.example.com'])
def test_health_is_ok_for_any_host_without_a_session(alice, zendesk, method, host):
    response = alice.open('/health', method=method, headers={'Host': host})
    assert (response.status_code, response.text) == (200, 'ok\n' if method == 'GET' else '')
    assert response.mimetype == 'text/plain'
    assert 'Set-Cookie' not in response.headers
    assert 'Vary' not in response.headers
    assert stored() == {'alice': OLD, 'bob': OTHER}
    assert not zendesk.calls


def test_health_is_ok_before_the_first_grant(browser):
    assert browser.get('/health').status_code == 200
    assert list(Path().iterdir()) == []


def test_health_returns_503_if_the_store_cannot_be_read(browser, monkeypatch, log):
    def fail():
        raise StoreError('PostgreSQL is down. Start it')

    monkeypatch.setattr(backend_code.store, 'check_readable', fail)
    response = browser.get('/health')
    assert (response.status_code, response.text) == (503, 'unavailable\n')
    assert log[-1] == 'The app cannot access its stored data: PostgreSQL is down. Start it\n'


def test_health_does_not_rename_a_damaged_file(browser):
    Path('users.json').write_text('{"alice": ')
    assert browser.get('/health').status_code == 503
    assert [path.name for path in Path().iterdir()] == ['users.json']
    Path('users.json').write_text('{}')
    assert browser.get('/health').status_code == 200


# --- Practice mode --- #


def test_only_practice_mode_has_a_banner_and_a_panel(app, browser):
    for path in ('/', '/grant_access', '/nope'):
        page = browser.get(path)
        assert 'Practice mode' not in page.text
        assert 'What just happened' not in page.text
    practice = Flask('practice', template_folder=app.root_path + '/templates')
    web.init_app(practice, dataclasses.replace(load_settings(), practice_mode=True), backend_code.store)
    page = practice.test_client().get('/nope').text
    assert 'Practice mode' in page
    assert 'What just happened' in page


def test_practice_mode_shows_no_help_for_the_real_zendesk(app, browser, monkeypatch):
    assert 'Did Zendesk show an error?' in browser.get('/grant_access').text
    assert 'Devices &amp; Apps' in browser.post('/disconnect').text
    monkeypatch.setitem(app.jinja_env.globals, 'practice_mode', True)
    monkeypatch.setitem(app.jinja_env.globals, 'practice_controls', 'http://localhost:3001/practice')
    assert 'Did Zendesk show an error?' not in browser.get('/grant_access').text
    page = browser.post('/disconnect').text
    assert 'Devices &amp; Apps' not in page
    assert 'href="http://localhost:3001/practice"' in page.split('</main>')[0]


# --- Start-up --- #


@pytest.mark.parametrize(
    ('options', 'changes', 'message'),
    [
        ({'port': 5000}, {}, 'The server would listen on port 5000 instead of 3000. Use --port 3000'),
        ({'port': 5000}, {'port': 8000}, 'The server would listen on port 5000 instead of 8000. Use --port 8000'),
        ({'port': 3000, 'interface': 'auto'}, {}, 'This is a WSGI app. Use uvicorn --interface wsgi --no-access-log'),
        ({'port': 3000, 'interface': 'wsgi'}, {}, None),
        ({'port': 3000}, {}, None),
        ({'port': 8000}, {'port': 8000}, None),
        ({'port': 3000}, {'port': 8000}, None),
        ({'port': 80}, {'redirect_uri': 'http://localhost/zendesk/oauth/callback'}, None),
        ({'port': 8000, 'uds': '/run/app.sock'}, {}, None),
        ({'port': 8000, 'fd': 3}, {}, None),
        ({'port': 0}, {}, None),
        ({'port': 5000}, {'redirect_uri': 'https://localhost:8443/zendesk/oauth/callback'}, None),
        ({'port': 5000}, {'redirect_uri': 'https://app.example.com/zendesk/oauth/callback'}, None),
        ({}, {}, None),
    ],
)
def test_wrong_options_of_the_server_end_the_start(log, options, changes, message):
    settings = dataclasses.replace(load_settings(), **changes)
    context = click.Context(click.Command('run'))
    context.params = options
    with context.scope():
        if message is None:
            web.stop_if_server_options_are_wrong(settings)
        else:
            with pytest.raises(SystemExit) as ended:
                web.stop_if_server_options_are_wrong(settings)
            assert ended.value.code == 4
    assert log == ([f'{message}\n'] if message else [])


@pytest.mark.parametrize('host', ['127.0.0.1', '::1'])
def test_the_process_exits_if_the_port_is_taken(log, host):
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            web.stop_if_port_is_taken(port)
    assert ended.value.code == 1
    [line] = log
    assert f'Port {port} is in use' in line


def test_a_free_port_is_accepted_and_stays_free(log):
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    web.stop_if_port_is_taken(port)
    web.stop_if_port_is_taken(port)
    assert log == []
