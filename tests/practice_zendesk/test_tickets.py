"""The ticket list and the search have Zendesk's pagination and errors."""

from __future__ import annotations

import base64
from datetime import datetime
from urllib.parse import parse_qsl, urlsplit

import pytest

from practice_zendesk.clients import USERS

AGENT, ADMIN, END_USER = USERS
TICKETS, SEARCH = '/api/v2/tickets', '/api/v2/search'


@pytest.fixture
def tokens(client) -> dict:
    return client.grant(scope='tickets:read')


@pytest.fixture
def every_id(client, tokens) -> list[int]:
    """Return the ids of the agent's tickets, in the order of the list."""
    pages = [client.tickets(tokens, page=number).json['tickets'] for number in (1, 2)]
    return [ticket['id'] for page in pages for ticket in page]


def ids(response, name: str = 'tickets') -> list[int]:
    assert response.status_code == 200, response.text
    return [ticket['id'] for ticket in response.json[name]]


def path_of(url: str) -> str:
    assert url.startswith('http://localhost/api/v2/')
    return url.removeprefix('http://localhost')


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query, strict_parsing=True))


# --- Tickets --- #


def test_a_ticket_has_zendesks_fields(client, tokens):
    ticket = client.tickets(tokens).json['tickets'][0]
    assert ticket == {
        'id': 1001,
        'url': 'http://localhost/api/v2/tickets/1001.json',
        'subject': 'App crashes when I upload a photo',
        'description': 'The app closes as soon as I select a photo from the gallery.',
        'status': 'pending',
        'priority': 'normal',
        'created_at': '2026-01-05T20:00:00Z',
        'updated_at': '2026-01-05T20:37:00Z',
        'requester_id': END_USER,
        'assignee_id': AGENT,
    }


def test_tickets_are_varied_and_plausible(client, tokens):
    tickets = client.tickets(tokens).json['tickets']
    assert {ticket['status'] for ticket in tickets} == {'open', 'pending', 'hold', 'solved', 'closed'}
    assert {ticket['priority'] for ticket in tickets} == {'low', 'normal', 'high', 'urgent', None}
    assert len({ticket['subject'] for ticket in tickets}) > 10
    for ticket in tickets:
        assert datetime.fromisoformat(ticket['created_at']) <= datetime.fromisoformat(ticket['updated_at'])


@pytest.mark.parametrize('path', [TICKETS, f'{TICKETS}.json', SEARCH, f'{SEARCH}.json'])
@pytest.mark.parametrize('user_id', [AGENT, ADMIN])
def test_each_agent_has_120_tickets(client, path, user_id):
    tokens = client.grant(scope='read', user_id=user_id)
    response = client.tickets(tokens, path)
    assert response.json['count'] == 120
    assert client.tickets(tokens, path).json == response.json
    name = 'results' if 'search' in path else 'tickets'
    assert {ticket['assignee_id'] for ticket in response.json[name]} == {user_id}


def test_agents_have_different_tickets(client, tokens, every_id):
    assert len(set(every_id)) == 120
    admin = client.grant(scope='tickets:read', user_id=ADMIN)
    assert not set(every_id) & set(ids(client.tickets(admin)))
    assert client.tickets(admin).json['tickets'][0]['subject'] != client.tickets(tokens).json['tickets'][0]['subject']


# --- Access --- #


@pytest.mark.parametrize('path', [TICKETS, SEARCH])
@pytest.mark.parametrize('scope', ['users:read', 'tickets:write', 'tickets', 'write'])
def test_a_token_without_the_scope_is_forbidden(client, path, scope):
    response = client.tickets(client.grant(scope=scope), path)
    assert response.status_code == 403
    assert response.json == {'error': 'Forbidden', 'description': 'Missing the following required scopes: read'}


@pytest.mark.parametrize('path', [TICKETS, SEARCH])
def test_an_end_user_is_forbidden(client, path):
    response = client.tickets(client.grant(scope='tickets:read', user_id=END_USER), path)
    assert response.status_code == 403
    assert response.json == {
        'error': {
            'title': 'Forbidden',
            'message': 'You do not have access to this page. Please contact the account owner of this help desk for '
            'further help.',
        }
    }


@pytest.mark.parametrize('path', [TICKETS, SEARCH])
def test_tickets_need_a_valid_access_token(client, path):
    assert client.get(path).status_code == 401
    response = client.tickets({'access_token': 'unknown'}, path)
    assert (response.status_code, response.json['error']) == (401, 'invalid_token')


# --- Cursor pagination --- #


def test_the_next_links_lead_through_all_tickets(client, tokens, every_id):
    found, has_more, path = [], [], f'{TICKETS}?page[size]=50'
    while not has_more or has_more[-1]:
        response = client.tickets(tokens, path)
        assert set(response.json) == {'tickets', 'meta', 'links'}
        found += ids(response)
        has_more.append(response.json['meta']['has_more'])
        path = path_of(response.json['links']['next'])
    assert has_more == [True, True, False]
    assert found == every_id


def test_the_prev_links_lead_back_to_the_first_page(client, tokens, every_id):
    first = client.tickets(tokens, **{'page[size]': 50}).json
    last = client.tickets(tokens, **{'page[size]': 50, 'page[after]': first['meta']['after_cursor']}).json
    last = client.tickets(tokens, path_of(last['links']['next'])).json
    middle = client.tickets(tokens, path_of(last['links']['prev']))
    again = client.tickets(tokens, path_of(middle.json['links']['prev']))
    assert (ids(middle), ids(again)) == (every_id[50:100], every_id[:50])
    assert (middle.json['meta']['has_more'], again.json['meta']['has_more']) == (True, False)


def test_the_page_before_a_cursor_can_be_shorter(client, tokens, every_id):
    first = client.tickets(tokens, **{'page[size]': 5}).json
    second = client.tickets(tokens, path_of(first['links']['next'])).json
    response = client.tickets(tokens, **{'page[size]': 100, 'page[before]': second['meta']['before_cursor']})
    assert ids(response) == every_id[:5]
    assert response.json['meta']['has_more'] is False


def test_links_keep_the_other_parameters(client, tokens):
    page = client.tickets(tokens, f'{TICKETS}.json', **{'page[size]': 7, 'sort': 'id & more'}).json
    assert path_of(page['links']['next']).startswith(f'{TICKETS}.json?')
    after, before = page['meta']['after_cursor'], page['meta']['before_cursor']
    assert query_of(page['links']['next']) == {'page[size]': '7', 'sort': 'id & more', 'page[after]': after}
    assert query_of(page['links']['prev']) == {'page[size]': '7', 'sort': 'id & more', 'page[before]': before}
    following = client.tickets(tokens, path_of(page['links']['next'])).json
    assert 'page[before]' not in query_of(following['links']['next'])
    assert 'page[after]' not in query_of(following['links']['prev'])


@pytest.mark.parametrize('size', [60, 100])
def test_the_last_page_has_a_next_link_to_an_empty_page(client, tokens, size):
    """Return the link as Zendesk does: a client must stop at `has_more`."""
    first = client.tickets(tokens, **{'page[size]': size}).json
    last = client.tickets(tokens, path_of(first['links']['next'])).json
    assert (len(last['tickets']), last['meta']['has_more']) == (120 - size, False)
    assert client.tickets(tokens, path_of(last['links']['next'])).json == {
        'tickets': [],
        'meta': {'has_more': False, 'after_cursor': None, 'before_cursor': None},
        'links': {'prev': None, 'next': None},
    }


@pytest.mark.parametrize(('size', 'length'), [('1', 1), ('100', 100), ('101', 100), ('1000', 100)])
def test_a_page_has_at_most_100_tickets(client, tokens, size, length):
    assert len(ids(client.tickets(tokens, **{'page[size]': size}))) == length
    assert len(ids(client.tickets(tokens, per_page=size))) == length
    assert len(ids(client.tickets(tokens, SEARCH, per_page=size), 'results')) == length


@pytest.mark.parametrize('name', ['page[after]', 'page[before]'])
@pytest.mark.parametrize('cursor', ['', 'x', '1001', base64.b64encode(b'{"id": 5}').decode(), 'ä'])
def test_an_invalid_cursor_is_rejected(client, tokens, name, cursor):
    response = client.tickets(tokens, **{'page[size]': 5, name: cursor})
    assert response.status_code == 400
    assert response.json == {'error': 'InvalidPaginationParameter', 'description': f'{name} is not valid'}


def test_a_cursor_of_another_user_is_rejected(client, tokens):
    admin = client.grant(scope='tickets:read', user_id=ADMIN)
    cursor = client.tickets(admin, **{'page[size]': 5}).json['meta']['after_cursor']
    assert client.tickets(tokens, **{'page[size]': 5, 'page[after]': cursor}).status_code == 400


# --- Offset pagination --- #


@pytest.mark.parametrize(('path', 'name'), [(TICKETS, 'tickets'), (SEARCH, 'results')])
def test_page_numbers_lead_through_all_tickets(client, tokens, every_id, path, name):
    first = client.tickets(tokens, path, per_page=50, query='type:ticket')
    assert set(first.json) == {name, 'next_page', 'previous_page', 'count'}
    second = client.tickets(tokens, path_of(first.json['next_page']))
    third = client.tickets(tokens, path_of(second.json['next_page']))
    assert [*ids(first, name), *ids(second, name), *ids(third, name)] == every_id
    assert (first.json['previous_page'], third.json['next_page']) == (None, None)
    assert client.tickets(tokens, path_of(third.json['previous_page'])).json == second.json
    assert query_of(second.json['next_page']) == {'per_page': '50', 'query': 'type:ticket', 'page': '3'}
    beyond = client.tickets(tokens, path, page=9)
    assert (ids(beyond, name), beyond.json['next_page'], beyond.json['count']) == ([], None, 120)


def test_a_full_last_page_has_no_next_page(client, tokens):
    assert client.tickets(tokens, per_page=60).json['next_page'] is not None
    assert client.tickets(tokens, per_page=60, page=2).json['next_page'] is None


def test_a_page_has_100_tickets_by_default(client, tokens):
    assert len(ids(client.tickets(tokens))) == 100
    assert len(ids(client.tickets(tokens, SEARCH), 'results')) == 100


def test_the_search_ignores_cursor_parameters(client, tokens):
    response = client.tickets(tokens, SEARCH, **{'page[size]': 5, 'page[after]': 'x'})
    assert set(response.json) == {'results', 'next_page', 'previous_page', 'count'}
    assert len(response.json['results']) == 100


@pytest.mark.parametrize('value', ['', '0', '-1', 'x', '1.5', '٣', '9' * 5000])
@pytest.mark.parametrize(
    ('path', 'name', 'attribute'),
    [
        (f'{TICKETS}.json', 'page[size]', 'page.size'),
        (TICKETS, 'page', 'page'),
        (TICKETS, 'per_page', 'per_page'),
        (SEARCH, 'page', 'page'),
    ],
)
def test_a_malformed_page_or_size_is_rejected(client, tokens, path, name, attribute, value):
    response = client.tickets(tokens, path, **{name: value})
    endpoint = 'api/v2/search/index' if path == SEARCH else 'api/v2/tickets/index'
    assert response.status_code == 400
    assert response.json['error'] == {
        'title': 'Invalid attribute',
        'message': f'You passed an invalid value for the {attribute} attribute. '
        f'Invalid parameter: {attribute} must be an integer from {endpoint}',
    }
