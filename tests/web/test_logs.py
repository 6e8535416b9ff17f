"""The log: one line per event, no queries, no secrets."""

from __future__ import annotations

import logging
import re

import pytest
from helpers import NEW_TOKENS, OLD, SHOW_SELF, TOKEN_ENDPOINT, USER, bearer, store

import app as app_module
import backend_code
from web import logs
from zendesk_oauth.endpoints import fingerprint, fingerprints
from zendesk_oauth.errors import ZendeskError

CALLBACK = '/zendesk/oauth/callback?error_description=a\u3000b\xa0c&code=canary&state=canary'


@pytest.mark.parametrize(
    ('name', 'message', 'arguments', 'logged'),
    [
        ('werkzeug', '"%s" %s', (f'GET {CALLBACK} HTTP/1.1', '302'), '"GET /zendesk/oauth/callback HTTP/1.1" 302'),
        ('gunicorn.error', 'Error handling request %s', (CALLBACK,), 'Error handling request /zendesk/oauth/callback'),
        (
            'werkzeug',  # about a line that is not a request
            'code %d, message %s',
            (400, f"Bad request syntax ('GET {CALLBACK} HTTP/1.1 &code=canary HTTP/1.1')"),
            "code 400, message Bad request syntax ('GET /zendesk/oauth/callback HTTP/1.1')",
        ),
        (
            'gunicorn.access',  # in gunicorn's own format, without our settings
            '%(h)s "%(r)s" %(s)s "%(f)s"',
            ({'h': '::1', 'r': f'GET {CALLBACK} HTTP/1.1', 's': '302', 'f': f'http://localhost{CALLBACK}'},),
            '::1 "GET /zendesk/oauth/callback HTTP/1.1" 302 "http://localhost/zendesk/oauth/callback',
        ),
        ('gunicorn.error', '%s', ('/callback?a=\ncode=canary HTTP/1.1',), '/callback HTTP/1.1'),
        ('gunicorn.access', '"%s %s"', ('GET', '/a\n\x1b[31m"GET /'), r'"GET /a\n\x1b[31m"GET /"'),
    ],
)
def test_the_servers_logs_have_paths_without_queries(caplog, name, message, arguments, logged):
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
def test_an_event_is_one_line_whatever_is_in_it(alice, monkeypatch, log, text, logged):
    def fail(*args, **kwargs):
        raise ZendeskError(text)

    monkeypatch.setattr(backend_code.oauth, 'api_request', fail)
    alice.get('/profile')
    assert log[-1] == f'The request to Zendesk failed: {logged}\n'
    logging.getLogger('zendesk_oauth').warning(text)  # a text of the package
    assert log[-1] == f'{logged}\n'


def test_the_log_shows_fingerprints_of_tokens_that_change(alice, zendesk, log):
    zendesk.get(SHOW_SELF, status=401, match=[bearer('old-access')])
    zendesk.get(SHOW_SELF, json=USER, match=[bearer('new-access')])
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    alice.get('/profile')
    old, new = fingerprints(OLD), fingerprints(NEW_TOKENS)
    assert [line.strip() for line in log if '#' in line] == [
        f'users.json has {old}',
        f'GET /api/v2/users/me with access token {fingerprint("old-access")}: 401',
        f'POST /oauth/tokens with refresh token {fingerprint("old-refresh")}: 200, issued {new}',
        f'GET /api/v2/users/me with access token {fingerprint("new-access")}: 200',
        f'users.json has {new}',
    ]


def test_no_query_is_logged_if_a_proxy_encodes_it_in_the_path(browser, log):
    browser.get('/zendesk/oauth/callback%3Fcode=canary&state=canary')
    assert log == ['404 Not Found\n']


def test_no_secret_is_in_the_log_or_a_page(browser, zendesk, log, capfd, caplog):
    secret_tokens = {'access_token': 'canary-access', 'refresh_token': 'canary-refresh'}
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS | secret_tokens)
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


@pytest.mark.parametrize(
    'broken', ['app.user_from', 'zendesk_oauth.endpoints._token', 'zendesk_oauth.stores.JsonFileStore.replace']
)
def test_an_unexpected_exception_is_logged_without_values(app, browser, zendesk, monkeypatch, capfd, caplog, broken):
    monkeypatch.setattr(app, 'testing', False)
    store(alice={'access_token': 'canary-access', 'refresh_token': 'canary-refresh'})
    browser.sign_in('alice')
    zendesk.get(SHOW_SELF, status=200 if broken == 'app.user_from' else 401, json=USER)
    zendesk.post(TOKEN_ENDPOINT, json={**NEW_TOKENS, 'access_token': 'canary-new'})
    monkeypatch.setattr(broken, lambda *args: 1 / 0)
    with caplog.at_level(logging.DEBUG):
        page = browser.get('/profile')
    logged = caplog.text + ''.join(capfd.readouterr())
    assert page.status_code == 500
    assert 'ZeroDivisionError' in logged
    assert 'canary' not in logged + page.text


def test_setting_up_the_log_twice_adds_nothing(log):
    before = len(logging.getLogger('werkzeug').filters)
    logs.init()
    assert len(logging.getLogger('werkzeug').filters) == before
    logging.getLogger('zendesk_oauth').warning('once')
    assert log == ['once\n']


@pytest.mark.parametrize(('level', 'logged'), [('DEBUG', True), ('INFO', False)])
def test_the_packages_details_are_logged_at_debug_only(monkeypatch, log, level, logged):
    monkeypatch.setenv('LOGURU_LEVEL', level)
    logs.init()
    try:
        logging.getLogger('zendesk_oauth.exchange').debug('a detail')
    finally:
        monkeypatch.undo()
        logs.init()
    assert bool(log) == logged


@pytest.fixture
def terminal():
    """The lines that the app writes to a terminal."""
    lines: list[str] = []
    handler = app_module.logger.add(lines.append, level='DEBUG', format=logs.terminal_format)
    yield lines
    app_module.logger.remove(handler)


def test_the_terminal_shows_a_refresh_in_short_lines(alice, zendesk, terminal):
    zendesk.get(SHOW_SELF, status=401, json={'error': 'invalid_token'}, match=[bearer('old-access')])
    zendesk.get(SHOW_SELF, json=USER, match=[bearer('new-access')])
    zendesk.post(TOKEN_ENDPOINT, json=NEW_TOKENS)
    alice.get('/profile')
    assert all(re.match(r'\d\d:\d\d:\d\d (app    |Zendesk) \S', line) for line in terminal)
    lines = ''.join(terminal).splitlines()
    assert [line[9:] for line in lines] == [
        "app     Retrieving the user's access and refresh tokens",
        f'app     users.json has {fingerprints(OLD)}',
        'app     Making the API request',
        f'app     GET /api/v2/users/me with access token {fingerprint("old-access")}',
        'Zendesk 401 invalid_token',
        "app     The access token has expired: refreshing the user's tokens",
        'app     Locked the stored tokens after 0.0 s',
        'app     Using the refresh token to get new access and refresh tokens',
        f'app     POST /oauth/tokens with refresh token {fingerprint("old-refresh")}',
        f'Zendesk 200, issued {fingerprints(NEW_TOKENS)}',
        'app     Packaging, storing, and returning the new tokens',
        'app     Retrying the API request with the new token',
        f'app     GET /api/v2/users/me with access token {fingerprint("new-access")}',
        'Zendesk 200',
        f'app     users.json has {fingerprints(NEW_TOKENS)}',
        'app     Using the response data',
    ]
    assert max(map(len, lines)) <= 80


def test_the_terminal_shows_the_practice_zendesk_as_zendesk(terminal):
    app_module.logger.patch(lambda record: record.update(name='practice_zendesk.server')).info('Serving')
    app_module.logger.patch(lambda record: record.update(name=None)).info('')
    assert [line[9:] for line in terminal] == ['Zendesk Serving\n', 'app     \n']


def test_the_terminal_shows_warnings_in_color():
    lines: list[str] = []
    handler = app_module.logger.add(lines.append, format=logs.terminal_format, colorize=True)
    app_module.logger.warning('one')
    app_module.logger.info('two')
    app_module.logger.remove(handler)
    assert '\x1b[33m' in lines[0]
    assert '\x1b[33m' not in lines[1]


def test_the_terminal_wraps_long_messages(terminal):
    app_module.logger.warning('one two three {{}} <red> ' * 10)
    lines = ''.join(terminal).splitlines()
    assert lines[0][9:].startswith('app     WARNING: one two three {{}} <red> one')
    assert all(line.startswith(' ' * 17) for line in lines[1:])
    assert len(lines) > 2
    assert max(map(len, lines)) <= 80
    assert ' '.join(''.join(terminal).split()).count('three {{}} <red>') == 10


def test_the_terminal_keeps_a_path_in_one_piece(terminal):
    path = '/a-long-folder-name' * 5 + '/users.json'
    app_module.logger.error('{} cannot be written', path)
    assert path in ''.join(terminal)


def test_the_terminal_has_no_access_log(monkeypatch):
    werkzeug = logging.getLogger('werkzeug')
    monkeypatch.setattr(werkzeug, 'level', werkzeug.level)
    logs.init(terminal=True)
    assert not werkzeug.isEnabledFor(logging.INFO)
    assert werkzeug.isEnabledFor(logging.ERROR)


def test_an_exception_passed_to_the_packages_log_keeps_its_traceback(log, terminal):
    try:
        app_module.missing  # noqa: B018
    except AttributeError:
        logging.getLogger('zendesk_oauth').exception('failed')
    assert 'AttributeError' in ''.join(log)
    assert 'ERROR: failed' in ''.join(terminal)
    assert 'AttributeError' in ''.join(terminal)
