"""Practice mode's panel: the log lines of a request and of the redirects before it."""

from __future__ import annotations

import threading
import time

import pytest
from flask import Flask, redirect, render_template_string
from loguru import logger

import app as app_module
from web import panel

PAGE = """{% for log in request_logs %}{{ log.title }}{% for _, text in log.lines %}; {{ text }}{% endfor %}
{% if log.redirected_to %}-> {{ log.redirected_to }}
{% endif %}{% endfor %}"""


@pytest.fixture
def app(monkeypatch):
    """Yield a small app with the panel."""
    app = Flask(__name__)
    handlers = []
    monkeypatch.setattr(panel, '_waiting', type(panel._waiting)())
    with monkeypatch.context() as patch:
        add = logger.add
        patch.setattr(logger, 'add', lambda *args, **kwargs: handlers.append(add(*args, **kwargs)))
        panel.init_app(app, controls='http://localhost:3001/practice')

    @app.get('/page')
    def page():
        logger.info('showing the page')
        return render_template_string(PAGE)

    @app.get('/hop')
    def hop():
        logger.debug('hopping')
        return redirect('/page?secret=1')

    @app.get('/leave/<state>')
    def leave(state):
        logger.info('leaving with {}', state)
        return redirect(f'https://zendesk.example/oauth?state={state}&client_id=1')

    @app.get('/come_back')
    def come_back():
        logger.info('back')
        return redirect('/page')

    yield app
    for handler in handlers:
        logger.remove(handler)


def lines(page) -> list[str]:
    return page.text.replace('\n\n', '\n').strip().split('\n')


def test_a_page_shows_the_log_lines_of_its_request(app):
    browser = app.test_client()
    for _ in range(2):
        assert lines(browser.get('/page')) == ['GET /page; showing the page']


def test_a_page_shows_earlier_redirects_first_and_only_once(app):
    browser = app.test_client()
    page = browser.get('/hop', follow_redirects=True)
    assert lines(page) == ['GET /hop; hopping', '-> /page', 'GET /page; showing the page']
    assert lines(browser.get('/page')) == ['GET /page; showing the page']
    assert not panel._waiting
    assert not browser.get_cookie(panel.COOKIE)


def test_log_lines_are_kept_during_a_redirect_to_zendesk(app):
    browser = app.test_client()
    browser.get('/leave/one')
    assert lines(browser.get('/come_back?state=one', follow_redirects=True)) == [
        'GET /leave/one; leaving with one',
        '-> https://zendesk.example/oauth',
        'GET /come_back; back',
        '-> /page',
        'GET /page; showing the page',
    ]


def test_tabs_do_not_share_log_lines(app):
    browser = app.test_client()
    browser.get('/leave/one')
    browser.get('/leave/two')
    for state in ('one', 'two'):
        page = browser.get(f'/come_back?state={state}', follow_redirects=True)
        assert lines(page)[0] == f'GET /leave/{state}; leaving with {state}'
        assert len(lines(page)) == 5


def test_the_first_value_of_a_repeated_state_is_used(app):
    @app.get('/twice')
    def twice():
        return redirect('http://localhost:3000/come_back?state=one&state=two')

    browser = app.test_client()
    assert browser.get('/twice').status_code == 302
    assert lines(browser.get('/come_back?state=one', follow_redirects=True))[0] == 'GET /twice'


def test_browsers_do_not_share_log_lines(app):
    one, other = app.test_client(), app.test_client()
    one.get('/hop')
    assert lines(other.get('/page')) == ['GET /page; showing the page']
    assert len(lines(one.get('/page'))) == 3


def test_a_static_file_does_not_consume_the_log_lines(app):
    browser = app.test_client()
    browser.get('/hop')
    browser.get('/static/nothing.css')
    assert len(lines(browser.get('/page'))) == 3


def test_the_panel_omits_log_lines_of_another_app(app):
    other = Flask('other')

    @other.get('/')
    def log_something():
        logger.info('somewhere else')
        return ''

    @app.get('/both')
    def both():
        thread = threading.Thread(target=other.test_client().get, args=('/',))
        thread.start()
        thread.join()
        return render_template_string(PAGE)

    logger.info('outside of any request')
    assert lines(app.test_client().get('/both')) == ['GET /both']


def test_abandoned_redirects_use_limited_memory(app):
    for number in range(panel.MAX_WAITING + 50):
        app.test_client().get(f'/leave/{number}')
    assert len(panel._waiting) == panel.MAX_WAITING
    assert '149' in panel._waiting


def test_concurrent_redirects_do_not_share_log_lines(app):
    browsers = [app.test_client() for _ in range(3)]
    for browser in browsers:
        browser.get('/hop')
    for browser in browsers:
        assert lines(browser.get('/page')) == ['GET /hop; hopping', '-> /page', 'GET /page; showing the page']


def test_an_endless_redirect_keeps_only_the_last_requests(app):
    browser = app.test_client()
    for _ in range(50):
        browser.get('/hop')
    assert lines(browser.get('/page')).count('GET /hop; hopping') == panel.MAX_REQUESTS


def test_the_cookie_is_http_only_and_same_site(app):
    cookie = app.test_client().get('/hop').headers['Set-Cookie']
    assert 'HttpOnly' in cookie
    assert 'SameSite=Lax' in cookie


def test_a_log_line_outside_a_request_is_ignored(app, capfd):
    logger.info('outside of any request')
    assert 'Logging error' not in capfd.readouterr().err


def test_the_panel_escapes_html_in_log_lines(app):
    with app.test_request_context():
        request_logs = [panel.RequestLog('GET /<b>', [('12:00:00', 'a line with <i>')], '/<u>')]
        shown = app_module.app.jinja_env.get_template('panel.html').render(
            request_logs=request_logs, practice_controls='http://localhost:3001/practice'
        )
    for text in ('GET /&lt;b&gt;', 'a line with &lt;i&gt;', 'Redirect to /&lt;u&gt;'):
        assert text in shown
    assert '<a href="http://localhost:3001/practice">' in shown
    assert '<details>' in shown


def test_each_log_line_has_a_time(app):
    @app.get('/time')
    def show_time():
        logger.info('now')
        return render_template_string('{{ request_logs[0].lines[0][0] }}')

    assert time.strptime(app.test_client().get('/time').text, '%H:%M:%S')
