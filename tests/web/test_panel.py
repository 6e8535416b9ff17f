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
    """A small app with the panel."""
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


def test_a_page_shows_the_lines_of_its_own_request(app):
    browser = app.test_client()
    for _ in range(2):
        assert lines(browser.get('/page')) == ['GET /page; showing the page']


def test_a_page_shows_the_redirects_before_it_first_and_once(app):
    browser = app.test_client()
    page = browser.get('/hop', follow_redirects=True)
    assert lines(page) == ['GET /hop; hopping', '-> /page', 'GET /page; showing the page']
    assert lines(browser.get('/page')) == ['GET /page; showing the page']
    assert not panel._waiting
    assert not browser.get_cookie(panel.COOKIE)


def test_the_lines_continue_after_a_redirect_to_zendesk(app):
    browser = app.test_client()
    browser.get('/leave/one')
    assert lines(browser.get('/come_back?state=one', follow_redirects=True)) == [
        'GET /leave/one; leaving with one',
        '-> https://zendesk.example/oauth',
        'GET /come_back; back',
        '-> /page',
        'GET /page; showing the page',
    ]


def test_two_tabs_do_not_mix(app):
    browser = app.test_client()
    browser.get('/leave/one')
    browser.get('/leave/two')
    for state in ('one', 'two'):
        page = browser.get(f'/come_back?state={state}', follow_redirects=True)
        assert lines(page)[0] == f'GET /leave/{state}; leaving with {state}'
        assert len(lines(page)) == 5


def test_a_repeated_state_does_no_harm(app):
    @app.get('/twice')
    def twice():
        return redirect('http://localhost:3000/come_back?state=one&state=two')

    browser = app.test_client()
    assert browser.get('/twice').status_code == 302
    assert lines(browser.get('/come_back?state=one', follow_redirects=True))[0] == 'GET /twice'


def test_two_browsers_do_not_see_each_others_lines(app):
    one, other = app.test_client(), app.test_client()
    one.get('/hop')
    assert lines(other.get('/page')) == ['GET /page; showing the page']
    assert len(lines(one.get('/page'))) == 3


def test_a_static_file_does_not_take_the_lines(app):
    browser = app.test_client()
    browser.get('/hop')
    browser.get('/static/nothing.css')
    assert len(lines(browser.get('/page'))) == 3


def test_lines_of_another_app_are_not_shown(app):
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


def test_abandoned_redirects_do_not_fill_the_memory(app):
    for number in range(panel.MAX_WAITING + 50):
        app.test_client().get(f'/leave/{number}')
    assert len(panel._waiting) == panel.MAX_WAITING
    assert '149' in panel._waiting


def test_browsers_redirected_at_once_do_not_mix(app):
    browsers = [app.test_client() for _ in range(3)]
    for browser in browsers:
        browser.get('/hop')
    for browser in browsers:
        assert lines(browser.get('/page')) == ['GET /hop; hopping', '-> /page', 'GET /page; showing the page']


def test_an_endless_redirect_keeps_its_last_requests(app):
    browser = app.test_client()
    for _ in range(50):
        browser.get('/hop')
    assert lines(browser.get('/page')).count('GET /hop; hopping') == panel.MAX_REQUESTS


def test_the_cookie_is_closed_to_scripts_and_other_sites(app):
    cookie = app.test_client().get('/hop').headers['Set-Cookie']
    assert 'HttpOnly' in cookie
    assert 'SameSite=Lax' in cookie


def test_a_line_outside_of_any_request_is_ignored(app, capfd):
    logger.info('nobody asked')
    assert 'Logging error' not in capfd.readouterr().err


def test_the_panel_shows_what_is_logged_as_text(app):
    with app.test_request_context():
        request_logs = [panel.RequestLog('GET /<b>', [('12:00:00', 'a line with <i>')], '/<u>')]
        shown = app_module.app.jinja_env.get_template('panel.html').render(
            request_logs=request_logs, practice_controls='http://localhost:3001/practice'
        )
    for text in ('GET /&lt;b&gt;', 'a line with &lt;i&gt;', 'Redirect to /&lt;u&gt;'):
        assert text in shown
    assert '<a href="http://localhost:3001/practice">' in shown
    assert '<details>' in shown


def test_each_line_has_the_time_of_day(app):
    @app.get('/time')
    def tell_time():
        logger.info('now')
        return render_template_string('{{ request_logs[0].lines[0][0] }}')

    assert time.strptime(app.test_client().get('/time').text, '%H:%M:%S')
