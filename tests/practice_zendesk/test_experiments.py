"""The list of experiments, the tour and the attacks, without the app."""

from __future__ import annotations

import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from practice_zendesk import attacks, clients, experiments, faults
from practice_zendesk.experiments import EXPERIMENTS
from practice_zendesk.faults import fingerprint

ATTACKS = [name for name, experiment in EXPERIMENTS.items() if experiment.title.startswith('Attack')]
APP = 'http://localhost:3000'
CLIENT_ID, CLIENT = clients.main_client()


@pytest.fixture
def run(client):
    """Return a function that submits the form of an experiment, and returns the URL to which it leads."""

    def run(name: str, **form) -> str:
        response = client.post('/practice', data={'action': name, **form})
        assert response.status_code == 303
        return response.location

    return run


@pytest.fixture
def sent(client, monkeypatch):
    """Let the practice Zendesk send its own requests to itself, and return them. The app is not running."""
    requests_sent = []

    def send(method: str, url: str, **options) -> requests.Response:
        requests_sent.append((method, url, options.get('data')))
        if url.startswith(APP):
            raise requests.ConnectionError
        with ThreadPoolExecutor() as pool:  # a request in the same thread would share flask.g
            received = pool.submit(client.open, urlsplit(url).path, method=method, data=options.get('data')).result()
        response = requests.Response()
        response.status_code, response._content = received.status_code, received.data
        response.headers.update(received.headers)
        return response

    monkeypatch.setattr(attacks, 'send', send)
    return requests_sent


@pytest.fixture
def thefts(monkeypatch):
    """The records of the requests of a thief."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record) if hasattr(record, 'request') else None
    attacks.exchange_log.addHandler(handler)
    attacks.exchange_log.setLevel(logging.DEBUG)
    yield records
    attacks.exchange_log.removeHandler(handler)


# --- The list and the tour --- #


def test_each_experiment_describes_what_the_reader_will_see(client):
    page = ' '.join(client.get('/practice').text.split())
    titles = re.findall('<h2><a href="/practice/experiments/([a-z_]+)">', page)
    assert titles == list(EXPERIMENTS)
    for experiment in EXPERIMENTS.values():
        assert experiment.see in page
        assert f'>{experiment.button}</button>' in page


def test_each_page_of_the_tour_leads_to_the_next(client):
    names, path = [], '/practice/next'
    while path:
        page = client.get(path, follow_redirects=True)
        names.append(page.request.path.rpartition('/')[2])
        path = (re.findall('<a href="([^"]+)">Next: ', page.text) or [''])[0]
    assert names == list(EXPERIMENTS)
    assert f'Experiment {len(names)} of {len(names)}' in page.text


def test_the_tour_continues_with_the_first_experiment_that_was_not_tried(client, run):
    names = list(EXPERIMENTS)
    assert 'Start the tour' in client.get('/practice').text
    for name in (names[0], names[1], names[3]):
        experiments.remember(name)
    assert client.get('/practice/next').location == f'/practice/experiments/{names[4]}'
    experiments.remember(names[0])  # tried again
    assert client.get('/practice/next').location == f'/practice/experiments/{names[2]}'
    experiments.remember(names[-1])
    assert client.get('/practice/next').location == f'/practice/experiments/{names[2]}'
    page = client.get('/practice').text
    assert 'Continue the tour' in page
    assert page.count('✓ tried') == 4
    assert '4 of 14 tried' in page
    assert 'tried ✓' in client.get('/practice/experiments/grant').text
    for name in EXPERIMENTS:
        experiments.remember(name)
    assert client.get('/practice/next').location == '/practice'
    assert 'Continue the tour' not in client.get('/practice').text


def test_a_button_marks_its_experiment_as_tried(client, run):
    run('forge_callback')
    assert '1 of 14 tried' in client.get('/practice').text


@pytest.mark.parametrize(('headers', 'tried'), [({'Sec-Fetch-Site': 'same-origin'}, 1), ({}, 0)])
def test_a_grant_in_a_browser_counts_as_tried(client, headers, tried):
    parameters = {
        'response_type': 'code',
        'client_id': CLIENT_ID,
        'redirect_uri': CLIENT.redirect_uris[0],
        'scope': 'users:read',
    }
    form = {'decision': 'allow', 'user_id': str(next(iter(clients.USERS)))}
    url = '/oauth/authorizations/new'
    assert client.post(url, query_string=parameters, data=form, headers=headers).status_code == 302
    assert f'{tried} of 14 tried' in client.get('/practice').text


def test_an_unknown_experiment_is_not_found(client):
    assert client.get('/practice/experiments/nothing').status_code == 404


def test_an_experiment_without_the_tokens_that_it_needs_links_to_the_grant(client, run):
    page = client.get(run('expire_access')).text
    assert 'The app has no tokens for this experiment.' in page
    assert f'href="{APP}/grant_access"' in page
    assert '0 of 14 tried' in client.get('/practice').text
    client.grant()
    assert run('expire_access') == f'{APP}/profile'


@pytest.mark.parametrize(
    ('name', 'form', 'target'),
    [
        ('grant', {}, '/grant_access'),
        ('profile', {}, '/profile'),
        ('expire_access', {}, '/profile'),
        ('end_grants', {}, '/profile'),
        ('lose_refresh', {}, '/profile'),
        ('fail_next', {'call': 'any', 'fault': '500'}, '/profile'),
        ('fail_next', {'call': 'exchange', 'fault': '500'}, '/grant_access'),
        ('use_kind', {'kind': 'jwt'}, '/grant_access'),
        ('inject_code', {}, '/grant_access'),
        ('steal_code', {}, '/grant_access'),
    ],
)
def test_each_button_leads_back_into_the_app(client, run, name, form, target):
    client.grant()
    assert run(name, **form) == APP + target


def test_an_invalid_form_does_not_mark_the_experiment_as_tried(client):
    assert client.post('/practice', data={'action': 'fail_next'}).status_code == 400
    assert '0 of 14 tried' in client.get('/practice').text


def test_other_apps_get_only_the_experiments_that_work_with_any_app(client, run, monkeypatch):
    other = clients.Client('secret', 'Other', ('http://localhost:5000/zendesk/callback',))
    client.grant()
    experiments.remember('grant')
    monkeypatch.setitem(clients.CLIENTS, CLIENT_ID, other)
    assert '0 of 6 tried' in client.get('/practice').text
    page = client.get('/practice').text
    assert page.count('<h2><a href') == sum(experiment.any_app for experiment in EXPERIMENTS.values()) == 6
    assert run('expire_access') == 'http://localhost:5000/'
    assert client.post('/practice', data={'action': 'forge_callback'}).status_code == 400


# --- Attacks --- #


def test_losing_the_response_to_a_refresh_still_ends_the_old_tokens(client, run):
    tokens = client.grant()
    run('lose_refresh')
    assert faults.pending_faults() == [{'call': 'refresh', 'lost': True}]
    assert client.show_self(tokens).status_code == 401


def test_a_forged_callback_has_a_code_and_no_state(run):
    address = urlsplit(run('forge_callback'))
    assert address.path == '/zendesk/oauth/callback'
    assert list(parse_qs(address.query)) == ['code']


def test_a_stolen_code_is_useless_without_the_verifier(client, run, sent, thefts):
    run('steal_code')
    code = client.code()
    [(method, url, form)] = sent
    assert (method, url) == ('POST', 'http://localhost:80/oauth/tokens')
    assert (form['code'], form['client_secret']) == (code, CLIENT.secret)
    assert 'code_verifier' not in form
    [record] = thefts
    assert record.request['form']['code'] == fingerprint(code)
    assert record.response['status'] == 400
    assert record.response['body']['error'] == 'invalid_grant'
    assert client.exchange(code).status_code == 200
    assert client.code()
    assert len(sent) == 1  # only one code is stolen


def test_another_experiment_cancels_a_pending_attack(client, run, sent):
    run('steal_code')
    run('expire_access')
    assert client.code()
    assert sent == []


def test_a_thief_who_refreshes_first_ends_the_tokens_of_the_app(client, run, sent, thefts, monkeypatch):
    other, tokens = client.grant(), client.grant()
    monkeypatch.setattr(experiments, 'tokens_of_app', lambda: set(other.values()))
    assert run('steal_refresh_token') == f'{APP}/profile'
    assert client.refresh(other).json['error'] == 'invalid_grant'
    assert client.refresh(tokens).status_code == 200
    [record] = thefts
    assert record.response['status'] == 200
    stolen = str([record.request, record.response, record.getMessage()])
    assert fingerprint(other['refresh_token']) in stolen
    for secret in (other['refresh_token'], CLIENT.secret):
        assert secret not in stolen
    assert not re.search('[0-9a-f]{64}', stolen)


def test_the_host_header_does_not_decide_where_a_thief_sends_the_secrets(client, sent, monkeypatch):
    tokens = client.grant()
    monkeypatch.setattr(experiments, 'tokens_of_app', lambda: set(tokens.values()))
    client.post('/practice', data={'action': 'steal_refresh_token'}, headers={'Host': 'localhost:3912'})
    assert [url for _, url, _ in sent] == ['http://localhost:80/oauth/tokens']


@pytest.mark.parametrize('headers', [{'Sec-Fetch-Site': 'cross-site'}, {'Sec-Fetch-Site': 'same-site'}])
def test_another_site_cannot_trigger_an_attack(client, run, sent, headers):
    run('steal_code')
    client.environ_base.update({f'HTTP_{name.upper().replace("-", "_")}': value for name, value in headers.items()})
    assert client.code()
    assert sent == []


def test_visits_at_once_need_a_grant_of_their_own(client, monkeypatch):
    """Otherwise, the access token of the reader would expire."""
    tokens = client.grant()
    faults.set_faults([{'call': 'exchange', 'status': 500}])

    def send(method: str, url: str, **options) -> requests.Response:
        response = requests.Response()
        response.status_code = 400
        response.headers['Location'] = 'http://localhost:3001/oauth/authorizations/new?client_id=1'
        return response

    monkeypatch.setattr(attacks, 'send', send)
    assert client.post('/practice', data={'action': 'visit_at_once'}).status_code == 502
    assert client.show_self(tokens).status_code == 200
    assert faults.pending_faults() == []


def test_an_attack_is_not_subject_to_a_pending_fault(client, run, sent):
    faults.set_faults([{'call': 'any', 'status': 500, 'times': 9}])
    run('steal_code')
    assert client.exchange(client.code()).status_code == 200
    assert len(sent) == 1


def test_an_unexpected_response_to_a_thief_does_not_break_the_grant(client, run, sent):
    run('steal_code')
    faults.set_faults([{'call': 'exchange', 'status': 500, 'body': '[]'}])
    assert client.exchange(client.code()).status_code == 200


def test_the_grant_of_an_experiment_does_not_change_the_position_in_the_tour(client):
    for name in ('grant', 'profile', 'inject_code'):
        experiments.remember(name)
    client.environ_base['HTTP_SEC_FETCH_SITE'] = 'same-origin'
    assert client.code()
    assert client.get('/practice/next').location == '/practice/experiments/steal_code'


def test_only_the_code_of_the_main_client_is_attacked(client, run, sent):
    run('steal_code')
    assert client.code(client_id='narrow_client')
    assert sent == []


def test_a_grant_continues_if_its_attack_fails(client, run, sent):
    run('inject_code')  # the attacker needs the app, which is not running
    assert client.exchange(client.code()).status_code == 200


def test_an_attacker_allows_access_only_at_this_practice_zendesk(client, sent, monkeypatch):
    def send(method: str, url: str, **options) -> requests.Response:
        sent.append((method, url, options.get('data')))
        response = requests.Response()
        response.headers['Location'] = 'https://mondocam.zendesk.com/oauth/authorizations/new?client_id=1'
        return response

    monkeypatch.setattr(attacks, 'send', send)
    client.post('/practice', data={'action': 'send_foreign_link'})
    assert [url for method, url, _ in sent if method == 'POST'] == [
        'http://localhost:80/oauth/authorizations/new?client_id=1'
    ]


@pytest.mark.parametrize('location', ['', '/somewhere', 'https://mondocam.zendesk.com/login'])
def test_an_app_without_the_flow_of_the_tutorial_is_reported(client, monkeypatch, location):
    response = requests.Response()
    response.headers['Location'] = location
    monkeypatch.setattr(attacks, 'send', lambda *args, **options: response)
    assert client.post('/practice', data={'action': 'send_foreign_link'}).status_code == 502


@pytest.mark.parametrize(('call', 'missing'), [('profile', True), ('revoke', True), ('exchange', False)])
def test_a_request_without_tokens_cannot_fail(client, run, call, missing):
    assert ('needs_grant' in run('fail_next', call=call, fault='500')) == missing
    assert (faults.pending_faults() == []) == missing


def test_an_app_that_has_lost_its_tokens_needs_a_grant(client, run):
    tokens = client.grant()  # tokens of another user
    Path('users.json').write_text('{}')
    assert 'needs_grant' in run('expire_access')
    Path('users.json').write_text(json.dumps({'user-1': tokens}))
    assert run('expire_access') == f'{APP}/profile'


def test_a_thief_steals_the_newest_refresh_token_of_the_app(client, run, sent, monkeypatch):
    first, second = client.grant(), client.grant()
    monkeypatch.setattr(experiments, 'tokens_of_app', lambda: {*first.values(), *second.values()})
    run('steal_refresh_token')
    assert [form['refresh_token'] for _, _, form in sent] == [second['refresh_token']]


def test_the_page_reminds_the_reader_of_another_kind_of_client(client, run):
    client.grant()
    pages = ('/practice', '/practice/experiments/profile')
    assert not any('To continue the tour' in client.get(page).text for page in pages)
    run('use_kind', kind='old')
    assert all('To continue the tour' in client.get(page).text for page in pages)


def test_the_next_refresh_fails_at_the_next_visit(client, run):
    tokens = client.grant()
    run('fail_next', call='refresh', fault='500')
    assert client.show_self(tokens).status_code == 401
    assert faults.pending_faults()[0]['call'] == 'refresh'


def test_a_consent_that_fails_is_reported(client, monkeypatch):
    monkeypatch.setattr(attacks, 'send', lambda method, url, **options: responses.pop(0))
    started, refused = requests.Response(), requests.Response()
    started.headers['Location'] = 'http://localhost:3001/oauth/authorizations/new?client_id=1'
    responses = [requests.Response(), started, refused]
    assert client.post('/practice', data={'action': 'send_foreign_link'}).status_code == 502


def test_without_tokens_of_the_app_a_thief_steals_nothing(client, run, sent):
    client.grant()
    assert run('steal_refresh_token') == '/practice/experiments/steal_refresh_token?needs_grant'
    assert sent == []


@pytest.mark.parametrize('name', ['send_foreign_link', 'visit_at_once'])
def test_an_experiment_reports_that_the_app_is_not_running(client, sent, name):
    response = client.post('/practice', data={'action': name})
    assert response.status_code == 502
    assert f'Start the tutorial app at {APP}' in response.text
    assert '0 of 14 tried' in client.get('/practice').text


def test_the_practice_zendesk_sends_no_request_through_a_proxy(monkeypatch):
    monkeypatch.setenv('HTTP_PROXY', 'http://localhost:1')
    seen = {}

    def send(self, request, **options):
        seen.update(options)
        raise requests.ConnectionError

    monkeypatch.setattr(requests.adapters.HTTPAdapter, 'send', send)
    with pytest.raises(requests.ConnectionError):
        attacks.send('GET', f'{APP}/')
    assert not seen['proxies']
    assert seen['timeout'] is not None
