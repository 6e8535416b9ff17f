"""What holds for every page: session cookie, headers, host, log."""

from __future__ import annotations

import dataclasses
import importlib
import io
import logging
import os
import re
import subprocess
import sys
from urllib.parse import unquote_to_bytes

import pytest
from conftest import NEW_PAIR, PAIR, SHOW_SELF, TOKEN_ENDPOINT, USER, store
from flask import Flask, request
from servers import SETTINGS, environment

import app as app_module
import web as security
from settings import current_settings
from zendesk_oauth.endpoints import ZendeskError


@pytest.fixture
def https_app(app, monkeypatch):
    """The app as it would be with an https redirect URI."""
    monkeypatch.setenv('REDIRECT_URI', 'https://app.example.com/zendesk/oauth/callback')
    yield importlib.reload(app_module).app
    monkeypatch.undo()
    importlib.reload(app_module)


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
def test_every_answer_has_the_headers(browser, method, path):
    with browser.open(path, method=method) as response:
        headers = response.headers
    assert "default-src 'none'" in headers['Content-Security-Policy']
    assert "frame-ancestors 'none'" in headers['Content-Security-Policy']
    assert 'unsafe' not in headers['Content-Security-Policy']
    assert headers['X-Content-Type-Options'] == 'nosniff'
    assert headers['X-Frame-Options'] == 'DENY'
    assert headers['Referrer-Policy'] == 'no-referrer'
    assert headers['Cross-Origin-Opener-Policy'] == 'same-origin'
    assert headers['Cross-Origin-Resource-Policy'] == 'same-origin'
    assert "form-action 'self';" in headers['Content-Security-Policy']
    assert 'Strict-Transport-Security' not in headers
    assert (headers['Cache-Control'] == 'no-store') == (path != '/static/app.css')


def test_an_unexpected_error_has_the_headers_too(app, browser, monkeypatch):
    monkeypatch.setattr(app, 'testing', False)
    monkeypatch.setattr('backend_code.current_user_id', lambda: 1 / 0)
    response = browser.get('/')
    assert response.status_code == 500
    assert response.headers['Cache-Control'] == 'no-store'
    assert 'Content-Security-Policy' in response.headers


def test_pages_hold_no_inline_style_or_script_and_reach_no_other_host(browser):
    for path in ('/', '/grant_access', '/nope'):
        page = browser.get(path).text
        assert not re.search(r'<script|<style|style=|\son\w+=|javascript:', page)
        assert not re.search(r'(src|href)="(https?:)?//', page)


def test_the_session_cookie_has_a_name_of_its_own_and_is_closed_to_scripts(browser):
    cookie = browser.get('/').headers['Set-Cookie']
    assert cookie.startswith('zendesk_oauth_session=')
    assert '; HttpOnly' in cookie
    assert '; SameSite=Lax' in cookie
    assert '; Secure' not in cookie


def test_with_an_https_redirect_uri_cookies_are_secure(https_app):
    browser = https_app.test_client()
    base_url = 'https://app.example.com'
    for path, name in (('/', '__Host-zendesk_oauth_session='), ('/zendesk/auth', '__Host-zendesk_oauth_request_')):
        response = browser.get(path, base_url=base_url)
        assert response.headers['Set-Cookie'].startswith(name)
        assert '; Secure' in response.headers['Set-Cookie']
        assert '; Path=/' in response.headers['Set-Cookie']
        assert 'Domain' not in response.headers['Set-Cookie']
        assert response.headers['Strict-Transport-Security']


def test_over_https_a_grant_works_with_those_cookies(https_app, zendesk):
    browser = https_app.test_client()
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR)
    base_url = 'https://app.example.com'
    state = re.search('state=([^&]+)', browser.get('/zendesk/auth', base_url=base_url).location)[1]
    answer = browser.get(f'/zendesk/oauth/callback?code=c&state={state}', base_url=base_url)
    assert answer.location == '/'
    deleted = next(header for header in answer.headers.getlist('Set-Cookie') if 'oauth_request' in header)
    assert 'Max-Age=0' in deleted
    assert '; Secure' in deleted


def test_behind_a_proxy_that_says_127_0_0_1_nobody_is_sent_round_in_circles(https_app):
    assert https_app.test_client().get('/', base_url='http://127.0.0.1:3000').status_code == 200


# --- The session cookie as others may send it --- #


def signed(app: Flask, payload) -> str:
    return app.session_interface.get_signing_serializer(app).dumps(payload)


@pytest.mark.parametrize('payload', [[1, 2], 'text', 5, None, {'user_id': ['alice']}, {'user_id': 5}, {'other': 1}])
def test_a_session_of_wrong_types_counts_as_none(app, browser, payload):
    store(alice=PAIR)
    browser.set_cookie('zendesk_oauth_session', signed(app, payload))
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
def test_a_tampered_session_counts_as_none(app, browser, tamper):
    store(alice=PAIR)
    browser.set_cookie('zendesk_oauth_session', tamper(signed(app, {'user_id': 'alice'})))
    assert browser.get('/profile').location == '/grant_access'
    assert browser.get('/').status_code == 200


def test_a_session_signed_with_another_key_counts_as_none(app, browser, monkeypatch):
    store(alice=PAIR)
    with monkeypatch.context() as patch:
        patch.setattr(app, 'secret_key', 'another key')
        forged = signed(app, {'user_id': 'alice'})
    browser.set_cookie('zendesk_oauth_session', forged)
    assert browser.get('/profile').location == '/grant_access'


def test_a_session_signed_with_a_former_key_counts_and_is_signed_anew(app, browser, monkeypatch):
    store(alice=PAIR)
    browser.set_cookie('zendesk_oauth_session', signed(app, {'user_id': 'alice'}))
    monkeypatch.setattr(app, 'secret_key', 'the new key')
    monkeypatch.setitem(app.config, 'SECRET_KEY_FALLBACKS', ['canary-secret-key-canary-secret-key', 'an older one'])
    # Not on a page that may take long: it could overwrite the session of a grant made meanwhile.
    assert [bool(browser.get(path).headers.getlist('Set-Cookie')) for path in ('/grant_access', '/')] == [False, True]
    assert not browser.get('/').headers.getlist('Set-Cookie')  # that one was signed with the new key
    monkeypatch.setitem(app.config, 'SECRET_KEY_FALLBACKS', [])
    assert browser.user_id == 'alice'


def test_with_former_keys_no_other_key_counts(app, browser, monkeypatch):
    monkeypatch.setitem(app.config, 'SECRET_KEY_FALLBACKS', ['a former key'])
    test_a_session_signed_with_another_key_counts_as_none(app, browser, monkeypatch)


# --- The canonical host --- #


@pytest.mark.parametrize('host', ['127.0.0.1:3000', '[::1]:3000', '127.0.0.1'])
@pytest.mark.parametrize('path', ['/', '/profile', '/zendesk/auth?x=1'])
def test_a_visit_on_another_name_of_this_machine_goes_to_the_canonical_one(browser, host, path):
    response = browser.get(path, headers={'Host': host})
    assert response.location == f'http://localhost:3000{path}'
    assert 'Set-Cookie' not in response.headers


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
def test_an_odd_path_stays_a_path_on_its_way_to_the_canonical_host(app, path, location):
    status, headers = raw_get(app, '127.0.0.1:3000', path)
    assert status == '302 FOUND'
    assert headers['Location'] == 'http://localhost:3000' + location
    assert 'X-Injected' not in headers


@pytest.mark.parametrize('path', ['/zendesk//auth', '/zendesk//oauth/callback?code=c', '/static//app.css'])
def test_a_doubled_slash_is_no_reason_to_redirect_to_the_host_in_the_request(app, path):
    status, _ = raw_get(app, 'evil.example', path)
    assert status == '404 NOT FOUND'


def raw_get(app, host: str, target: str):
    """Send a request with exactly this target, which the test client would tidy up."""
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
    answer = []
    app(environ, lambda status, headers, *_: answer.extend((status, dict(headers)))).close()
    return answer


def test_only_a_get_is_sent_to_the_canonical_host(browser):
    assert browser.post('/', base_url='http://127.0.0.1:3000').status_code == 405
    assert browser.head('/', base_url='http://127.0.0.1:3000').status_code == 200


def test_what_comes_to_the_canonical_host_stays_there(browser):
    for host in ('localhost:3000', 'localhost'):
        assert browser.get('/', headers={'Host': host}).status_code == 200


@pytest.mark.parametrize(
    'headers',
    [
        {'Host': 'evil.example'},
        {'X-Forwarded-Host': 'evil.example', 'X-Forwarded-Proto': 'https', 'X-Forwarded-For': '1.2.3.4'},
        {'Forwarded': 'host=evil.example'},
    ],
)
def test_a_foreign_host_changes_no_address(browser, headers):
    assert browser.start(headers=headers)['redirect_uri'] == 'http://localhost:3000/zendesk/oauth/callback'
    assert browser.get('/profile', headers=headers).location == '/grant_access'
    assert 'evil' not in browser.get('/grant_access', headers=headers).text


@pytest.mark.parametrize(
    ('hops', 'address', 'host'), [(0, '127.0.0.1', 'behind'), (1, '3.3.3.3', 'b'), (2, '2.2.2.2', 'a')]
)
def test_what_proxies_say_is_believed_as_far_as_there_are_proxies(hops, address, host):
    app = Flask('app')
    security.protect(app, dataclasses.replace(current_settings(), proxy_hops=hops))
    app.add_url_rule('/', view_func=lambda: f'{request.remote_addr} {request.host} {request.scheme}')
    headers = {
        'Host': 'behind',
        'X-Forwarded-For': '1.1.1.1, 2.2.2.2, 3.3.3.3',
        'X-Forwarded-Host': 'evil.example, a, b',
        'X-Forwarded-Proto': 'https, https, https',
    }
    assert app.test_client().get('/', headers=headers).text == f'{address} {host} {"https" if hops else "http"}'


@pytest.mark.parametrize('host', ['[', '[::1', ']:3000', 'a b', '127.0.0.1:x', 'ä', ''])
def test_a_host_that_is_none_is_no_500(browser, host):
    assert browser.get('/', headers={'Host': host}).status_code in (200, 302, 400)


def test_a_redirect_repeats_no_address_in_its_body(browser):
    assert browser.get('/zendesk/auth').data == b''


# --- The log --- #


CALLBACK = '/zendesk/oauth/callback?error_description=a\u3000b\xa0c&code=canary&state=canary'


@pytest.mark.parametrize(
    ('name', 'message', 'arguments', 'logged'),
    [
        ('werkzeug', '"%s" %s', (f'GET {CALLBACK} HTTP/1.1', '302'), '"GET /zendesk/oauth/callback HTTP/1.1" 302'),
        ('gunicorn.error', 'Error handling request %s', (CALLBACK,), 'Error handling request /zendesk/oauth/callback'),
        (
            'werkzeug',  # what it says of a line that is no request
            'code %d, message %s',
            (400, f"Bad request syntax ('GET {CALLBACK} HTTP/1.1 &code=canary HTTP/1.1')"),
            "code 400, message Bad request syntax ('GET /zendesk/oauth/callback HTTP/1.1')",
        ),
        (
            'gunicorn.access',  # in gunicorn's own format, where somebody starts it without our settings
            '%(h)s "%(r)s" %(s)s "%(f)s"',
            ({'h': '::1', 'r': f'GET {CALLBACK} HTTP/1.1', 's': '302', 'f': f'http://localhost{CALLBACK}'},),
            '::1 "GET /zendesk/oauth/callback HTTP/1.1" 302 "http://localhost/zendesk/oauth/callback',
        ),
        ('gunicorn.error', '%s', ('/callback?a=\ncode=canary HTTP/1.1',), '/callback HTTP/1.1'),
        ('gunicorn.access', '"%s %s"', ('GET', '/a\n\x1b[31m"GET /'), r'"GET /a\n\x1b[31m"GET /"'),
    ],
)
def test_the_servers_logs_show_paths_without_queries(caplog, name, message, arguments, logged):
    with caplog.at_level(logging.INFO, logger=name):
        logging.getLogger(name).info(message, *arguments)
    assert caplog.messages == [logged]


@pytest.mark.parametrize(
    ('text', 'logged'),
    [
        ('two\nlines', r'two\nlines'),
        ('\x1b[31mred\x1b[0m <red>red</red>', r'\x1b[31mred\x1b[0m <red>red</red>'),
        ('{} {0} {text} {{ %s %(text)s', '{} {0} {text} {{ %s %(text)s'),
        ('a\r\u2028\x85b', r'a\r\u2028\x85b'),
        ('Zoë 山田 \u202e', 'Zoë 山田 \u202e'),
    ],
)
def test_an_event_is_one_line_whatever_stands_in_it(browser, zendesk, monkeypatch, log, text, logged):
    browser.sign_in('alice')
    store(alice=PAIR)

    def fail(access_token):
        raise ZendeskError(text)

    monkeypatch.setattr('zendesk_oauth.endpoints.show_self', fail)
    page = browser.get('/profile')
    assert page.status_code == 502
    assert log[-1] == f'Zendesk could not answer: {logged}\n'


def test_no_secret_is_in_the_log_or_a_page(browser, zendesk, log, capfd, caplog):
    zendesk.post(TOKEN_ENDPOINT, json=NEW_PAIR | {'access_token': 'canary-access', 'refresh_token': 'canary-refresh'})
    zendesk.get(SHOW_SELF, json=USER)
    sent = browser.start()
    with caplog.at_level(logging.DEBUG):
        pages = [browser.come_back(code='canary-code', state=sent['state']), browser.get('/'), browser.get('/profile')]
        pages.append(browser.come_back(code='canary-code', state=sent['state']))
        pages.append(browser.come_back(error='canary-error', state=browser.start()['state']))
    seen = ''.join([*log, *capfd.readouterr(), caplog.text, *(page.text + str(page.headers) for page in pages)])
    assert 'Jane Doe' in seen
    assert 'canary' not in seen
    assert sent['state'] not in seen
    assert re.search('code_verifier=([^&]+)', zendesk.calls[0].request.body)[1] not in seen


def test_an_exception_is_logged_without_the_values_of_variables(tmp_path):
    program = tmp_path / 'program.py'  # a file: loguru shows values only where it finds the source
    program.write_text("""if True:
        import app
        token = 'canary' + '-token'
        try:
            print(token.missing_attribute)
        except AttributeError:
            app.logger.exception('failed')
    """)
    settings = {name: os.environ[name] for name in (*SETTINGS, 'SECRET_KEY')}
    ended = subprocess.run(
        [sys.executable, program], env=environment(**settings), capture_output=True, text=True, check=True
    )
    assert 'print(token.missing_attribute)' in ended.stderr
    assert 'canary-token' not in ended.stderr


@pytest.mark.parametrize(
    'broken',
    ['zendesk_oauth.endpoints._printable', 'zendesk_oauth.endpoints._token', 'zendesk_oauth.stores.UsersDb.replace'],
)
def test_an_exception_nobody_expected_shows_no_values_where_it_is_logged(
    app, browser, zendesk, monkeypatch, capfd, caplog, broken
):
    monkeypatch.setattr(app, 'testing', False)
    browser.sign_in('alice')
    store(alice={'access_token': 'canary-access', 'refresh_token': 'canary-refresh'})
    zendesk.get(SHOW_SELF, status=200 if broken == 'zendesk_oauth.endpoints._printable' else 401, json=USER)
    zendesk.post(TOKEN_ENDPOINT, json={**NEW_PAIR, 'access_token': 'canary-new'})
    monkeypatch.setattr(broken, lambda *args: 1 / 0)
    with caplog.at_level(logging.DEBUG):
        page = browser.get('/profile')
    logged = caplog.text + ''.join(capfd.readouterr())
    assert page.status_code == 500
    assert 'ZeroDivisionError' in logged
    assert 'canary' not in logged + page.text


def test_setting_up_the_log_twice_adds_nothing():
    before = len(logging.getLogger('werkzeug').filters)
    handlers = dict(app_module.logger._core.handlers)
    security.keep_secrets_out_of_the_log()
    assert len(logging.getLogger('werkzeug').filters) == before
    assert dict(app_module.logger._core.handlers) == handlers
