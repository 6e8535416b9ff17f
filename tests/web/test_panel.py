"""The panel "What just happened": the steps that led to a page."""

from __future__ import annotations

import threading
import time

import pytest
from flask import Flask, redirect, render_template_string
from loguru import logger

import app as app_module
from web import panel as what_happened

PAGE = """{% for visit in visits %}{{ visit.what }}{% for _, text in visit.steps %}; {{ text }}{% endfor %}
{% if visit.redirected_to %}-> {{ visit.redirected_to }}
{% endif %}{% endfor %}"""


@pytest.fixture
def app(monkeypatch):
    """A small app with the panel."""
    app = Flask(__name__)
    handlers = []
    monkeypatch.setattr(what_happened, '_waiting', type(what_happened._waiting)())
    with monkeypatch.context() as patch:
        add = logger.add
        patch.setattr(logger, 'add', lambda *args, **kwargs: handlers.append(add(*args, **kwargs)))
        what_happened.tell(app, controls='http://localhost:3001/practice')

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


def test_a_page_shows_the_steps_of_its_own_request(app):
    browser = app.test_client()
    for _ in range(2):
        assert lines(browser.get('/page')) == ['GET /page; showing the page']


def test_a_page_shows_the_redirects_that_led_to_it_first_and_only_once(app):
    browser = app.test_client()
    page = browser.get('/hop', follow_redirects=True)
    assert lines(page) == ['GET /hop; hopping', '-> /page', 'GET /page; showing the page']
    assert lines(browser.get('/page')) == ['GET /page; showing the page']
    assert not what_happened._waiting
    assert not browser.get_cookie(what_happened.COOKIE)


def test_the_story_goes_on_after_a_visit_to_zendesk(app):
    browser = app.test_client()
    browser.get('/leave/one')
    assert lines(browser.get('/come_back?state=one', follow_redirects=True)) == [
        'GET /leave/one; leaving with one',
        '-> https://zendesk.example/oauth',
        'GET /come_back; back',
        '-> /page',
        'GET /page; showing the page',
    ]


def test_two_tabs_keep_their_stories_apart(app):
    browser = app.test_client()
    browser.get('/leave/one')
    browser.get('/leave/two')
    for state in ('one', 'two'):
        page = browser.get(f'/come_back?state={state}', follow_redirects=True)
        assert lines(page)[0] == f'GET /leave/{state}; leaving with {state}'
        assert len(lines(page)) == 5


def test_a_state_that_stands_there_twice_does_no_harm(app):
    @app.get('/twice')
    def twice():
        return redirect('http://localhost:3000/come_back?state=one&state=two')

    browser = app.test_client()
    assert browser.get('/twice').status_code == 302
    assert lines(browser.get('/come_back?state=one', follow_redirects=True))[0] == 'GET /twice'


def test_two_browsers_do_not_see_each_others_steps(app):
    one, other = app.test_client(), app.test_client()
    one.get('/hop')
    assert lines(other.get('/page')) == ['GET /page; showing the page']
    assert len(lines(one.get('/page'))) == 3


def test_a_picture_on_the_way_does_not_take_the_story(app):
    browser = app.test_client()
    browser.get('/hop')
    browser.get('/static/nothing.css')
    assert len(lines(browser.get('/page'))) == 3


def test_what_is_logged_elsewhere_is_not_part_of_it(app):
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


def test_those_who_never_come_back_do_not_fill_the_memory(app):
    for number in range(what_happened.MAX_WAITING + 50):
        app.test_client().get(f'/leave/{number}')
    assert len(what_happened._waiting) == what_happened.MAX_WAITING
    assert '149' in what_happened._waiting


def test_two_browsers_that_are_redirected_at_once_keep_their_stories_apart(app):
    browsers = [app.test_client() for _ in range(3)]
    for browser in browsers:
        browser.get('/hop')
    for browser in browsers:
        assert lines(browser.get('/page')) == ['GET /hop; hopping', '-> /page', 'GET /page; showing the page']


def test_a_story_without_end_keeps_its_last_chapters(app):
    browser = app.test_client()
    for _ in range(50):
        browser.get('/hop')
    assert lines(browser.get('/page')).count('GET /hop; hopping') == what_happened.MAX_VISITS


def test_the_cookie_is_for_the_app_alone(app):
    cookie = app.test_client().get('/hop').headers['Set-Cookie']
    assert 'HttpOnly' in cookie
    assert 'SameSite=Lax' in cookie


def test_a_line_outside_of_any_request_is_no_trouble(app, capfd):
    logger.info('nobody asked')
    assert 'Logging error' not in capfd.readouterr().err


def test_the_panel_shows_what_it_is_given_as_text(app):
    with app.test_request_context():
        visits = [what_happened.Visit('GET /<b>', [('12:00:00', 'a line with <i>')], '/<u>')]
        panel = app_module.app.jinja_env.get_template('what_happened.html').render(
            visits=visits, practice_controls='http://localhost:3001/practice'
        )
    for text in ('GET /&lt;b&gt;', 'a line with &lt;i&gt;', 'Redirect to /&lt;u&gt;'):
        assert text in panel
    assert '<a href="http://localhost:3001/practice">' in panel
    assert '<details>' in panel


def test_each_step_has_the_time_of_day(app):
    @app.get('/time')
    def tell_time():
        logger.info('now')
        return render_template_string('{{ visits[0].steps[0][0] }}')

    assert time.strptime(app.test_client().get('/time').text, '%H:%M:%S')
