"""The snippets of docs/use-in-your-product.md: all of them run, one after the other."""

from __future__ import annotations

import logging
import re
import sys
from types import ModuleType, SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import flask
import pytest
from helpers import INVALID_GRANT, KEY, PROJECT, bearer
from product import TOKENS

import zendesk_oauth
from zendesk_oauth import MemoryStore, errors

MONDOCAM = 'https://mondocam.zendesk.com'
TICKETS = f'{MONDOCAM}/api/v2/tickets.json'
PAGE = (PROJECT / 'docs' / 'use-in-your-product.md').read_text(encoding='utf-8')
SNIPPETS = re.findall(r'^```python\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def product(tmp_path, monkeypatch):
    """The namespace of a product that consists of all snippets, with a stand-in for Flask-Login."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('ZENDESK_CLIENT_SECRET', 'canary-client-secret')
    monkeypatch.setenv('TOKEN_ENCRYPTION_KEYS', KEY)
    # SQLAlchemy may be missing here. tests/integration/test_sql_store.py runs the snippets with the real SqlStore.
    monkeypatch.setitem(vars(zendesk_oauth), 'SqlStore', lambda url, encryption_keys: MemoryStore())
    user = SimpleNamespace(id='alice')
    flask_login = ModuleType('flask_login')
    flask_login.current_user = SimpleNamespace(get_id=lambda: user.id)
    flask_login.login_required = lambda view: view
    monkeypatch.setitem(sys.modules, 'flask_login', flask_login)
    app = flask.Flask(__name__)
    monkeypatch.setattr(flask, 'render_template', lambda name, error: f'{name}: {error.title}')
    saved, notified = [], []
    monkeypatch.setattr(logging, 'basicConfig', lambda: None)
    monkeypatch.setattr(logging.getLogger('zendesk_oauth'), 'setLevel', lambda level: None)
    namespace = {
        'app': app,
        'user': user,
        'saved': saved,
        'notified': notified,
        'save': lambda user_id, tickets: saved.append((user_id, tickets)),
        'notify': lambda user_id, text: notified.append(user_id),
    }
    for snippet in SNIPPETS:
        snippet = snippet.replace('/var/lib/my-product/', f'{tmp_path.as_posix()}/')
        exec(compile(snippet, 'docs/use-in-your-product.md', 'exec'), namespace)  # noqa: S102
    return SimpleNamespace(**namespace)


@pytest.fixture
def browser(product):
    return product.app.test_client()


def state_of(url: str) -> str:
    return parse_qs(urlsplit(url).query)['state'][0]


@pytest.fixture
def connected(product, browser, zendesk):
    """The product after alice has connected."""
    location = browser.post('/zendesk/connect').location
    zendesk.post(f'{MONDOCAM}/oauth/tokens', json=TOKENS)
    page = browser.get('/zendesk/callback', query_string={'code': 'the-code', 'state': state_of(location)})
    assert page.location == '/tickets'
    return product


def test_a_user_connects_and_sees_tickets(connected, zendesk):
    zendesk.get(TICKETS, json={'tickets': [{'subject': 'Help!'}]}, match=[bearer('new-access')])
    assert connected.ticket_subjects('alice') == ['Help!']
    zendesk.post(TICKETS, json={'ticket': {'id': 5}}, match=[bearer('new-access')])
    assert connected.create_ticket('alice', 'Help!', 'It is broken.', 'key-1') == 5
    assert zendesk.calls[-1].request.headers['Idempotency-Key'] == 'key-1'


def test_a_user_who_is_not_signed_in_gets_the_error_page(product, browser):
    location = browser.post('/zendesk/connect').location
    product.user.id = None
    page = browser.get('/zendesk/callback', query_string={'code': 'the-code', 'state': state_of(location)})
    assert (page.status_code, page.text) == (400, 'zendesk_error.html: You are not signed in')


def test_the_job_saves_each_page_and_reports_problems(connected, zendesk):
    connected.oauth.import_tokens('bob', {'access_token': 'bobs-access', 'refresh_token': 'bobs-refresh'})
    more = {'meta': {'has_more': True, 'after_cursor': 'c'}}
    zendesk.get(TICKETS, json={'tickets': [1], **more}, match=[bearer('new-access')])
    zendesk.get(TICKETS, json={'tickets': [2], 'meta': {'has_more': False}}, match=[bearer('new-access')])
    zendesk.get(TICKETS, status=401, match=[bearer('bobs-access')])
    zendesk.replace('POST', f'{MONDOCAM}/oauth/tokens', **INVALID_GRANT)
    problems = connected.nightly_sync(['alice', 'bob', 'carol'])
    assert connected.saved == [('alice', [1]), ('alice', [2])]
    assert list(problems) == connected.notified == ['bob']
    assert list(connected.all_tickets('alice')) == [2]


def test_a_user_disconnects(connected, browser, zendesk):
    zendesk.delete(f'{MONDOCAM}/api/v2/oauth/tokens/current', status=204)
    zendesk.get(f'{MONDOCAM}/api/v2/users/me', status=401)
    assert browser.post('/zendesk/disconnect').location == '/'
    assert connected.status('alice') == 'Connect Zendesk'


def test_a_narrower_grant_asks_to_connect_again(product):
    product.oauth.import_tokens('alice', {**TOKENS, 'scope': 'tickets:read'})
    assert product.status('alice') == 'Connect Zendesk again'
    product.oauth.import_tokens('alice', {**TOKENS, 'scope': 'tickets:read tickets:write'})
    assert product.status('alice') == f'Connected to {MONDOCAM}'


def test_each_user_can_have_their_own_account(product, browser):
    page = browser.post('/zendesk/connect-own-account', data={'subdomain': 'https://acme.zendesk.com/agent'})
    assert page.location.startswith('https://acme.zendesk.com/oauth/authorizations/new?')
    page = browser.post('/zendesk/connect-own-account', data={'subdomain': 'evil.example'})
    assert (page.status_code, page.text) == (400, 'zendesk_error.html: This is not a Zendesk subdomain')


def test_the_id_of_an_account_belongs_to_the_signed_in_user(product):
    assert product.id_of_account(4) == 'alice:4'
    product.user.id = None
    assert product.id_of_account(4) is None


def test_the_test_in_the_page_passes(product, monkeypatch):
    product.test_ticket_subjects(monkeypatch)


def test_another_framework_needs_two_calls(product, zendesk):
    with product.app.test_request_context():
        response = product.connect('alice', {})
    name, _, value = response.headers['Set-Cookie'].partition(';')[0].partition('=')
    zendesk.post(f'{MONDOCAM}/oauth/tokens', json=TOKENS)
    query = {'code': 'the-code', 'state': state_of(response.location)}
    with product.app.test_request_context():
        assert product.callback('alice', query, {name: value}).location == '/tickets'


def test_the_pages_in_html_can_be_rendered(product):
    button, page = re.findall(r'^```html\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL)
    user = SimpleNamespace(is_authenticated=True)
    with product.app.test_request_context():
        assert 'value="token"' in flask.render_template_string(button, csrf_token=lambda: 'token')
        retry = flask.render_template_string(page, error=errors.StoreError(''), current_user=user)
        connect = flask.render_template_string(page, error=errors.NotConnected(''), current_user=user)
    assert ('Try again' in retry, 'Connect Zendesk' in retry) == (True, False)
    assert ('Try again' in connect, 'Connect Zendesk' in connect) == (False, True)


def test_the_page_explains_every_public_error():
    table = PAGE.split('| error | when |')[1].split('\n\n')[0]
    assert set(re.findall(r'^\| `(\w+)` \|', table, re.MULTILINE)) == {
        'NotConnected',
        'AuthorizationError',
        'AccessDenied',
        'ZendeskError',
        'SetupError',
        'ResponseError',
        'StoreError',
    }
