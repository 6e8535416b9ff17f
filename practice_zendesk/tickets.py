"""
The generated tickets of the practice users, and Zendesk's cursor and offset pagination.

See https://developer.zendesk.com/api-reference/introduction/pagination/.
"""

from __future__ import annotations

import base64
import json
import re
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from flask import abort, make_response, request

from practice_zendesk.clients import USERS

TICKETS_PER_USER = 120
MAX_PAGE_SIZE = 100  # also the default of offset pagination
POSITIONS = ('page', 'page[after]', 'page[before]')  # the parameters that select a page

FIRST_TICKET = datetime(2026, 1, 5, 9)
# The lists have different lengths, so most tickets have a different combination.
SUBJECTS = (
    ('Cannot sign in after a password reset', 'I reset my password, but the new one is rejected.'),
    ('Invoice shows the wrong VAT number', 'Please correct the VAT number on our last invoice.'),
    ('Order arrived damaged', 'The parcel was open and one item is broken. Can you send another one?'),
    ('How do I export my data?', 'I am looking for a CSV export of all our records.'),
    ('Refund not received', 'You confirmed the refund two weeks ago, but I have not received it.'),
    ('App crashes when I upload a photo', 'The app closes as soon as I select a photo from the gallery.'),
    ('Change of delivery address', 'We have moved. Please send the next order to our new address.'),
    ('Notification emails arrive twice', 'Since Monday I get each notification email two times.'),
    ('Question about the team plan', 'How many users can we add before we need the next plan?'),
    ('Please cancel my subscription', 'I want to cancel at the end of this month.'),
    ('Slow page loads in the evening', 'The dashboard takes about 20 seconds to load after 6 pm.'),
)
STATUSES = ('open', 'pending', 'solved', 'hold', 'closed')
PRIORITIES = ('normal', 'high', 'low', 'urgent', None)


def tickets_of(user_id: int) -> list[dict[str, Any]]:
    """Return the tickets that are assigned to the user, oldest first. They are the same at each call."""
    return [_ticket(user_id, number) for number in range(1, TICKETS_PER_USER + 1)]


def _ticket(user_id: int, number: int) -> dict[str, Any]:
    ticket_id = user_id % 100 * 1000 + number
    subject, description = SUBJECTS[(user_id + number) % len(SUBJECTS)]
    created_at = FIRST_TICKET + timedelta(hours=11 * number)
    updated_at = created_at + timedelta(minutes=37 * (number % 50))
    return {
        'id': ticket_id,
        'url': f'{request.host_url}api/v2/tickets/{ticket_id}.json',
        'subject': subject,
        'description': description,
        'status': STATUSES[number % len(STATUSES)],
        'priority': PRIORITIES[number // 2 % len(PRIORITIES)],
        'created_at': f'{created_at.isoformat()}Z',
        'updated_at': f'{updated_at.isoformat()}Z',
        'requester_id': next((user['id'] for user in USERS.values() if user['role'] == 'end-user'), user_id),
        'assignee_id': user_id,
    }


def cursor_page(tickets: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the page before or after the request's cursor, or the first page."""
    size = _page_size('page[size]')
    positions = {_cursor(ticket): position for position, ticket in enumerate(tickets)}
    for name in ('page[after]', 'page[before]'):
        if name in request.args and request.args[name] not in positions:
            abort(make_response({'error': 'InvalidPaginationParameter', 'description': f'{name} is not valid'}, 400))

    if 'page[before]' in request.args:
        end = positions[request.args['page[before]']]
        start = max(end - size, 0)
        has_more = start > 0
    else:
        start = positions[request.args['page[after]']] + 1 if 'page[after]' in request.args else 0
        end = start + size
        has_more = end < len(tickets)
    page = tickets[start:end]
    # Like Zendesk, return both cursors and links also on the first and last page: clients stop at `has_more`.
    before, after = (_cursor(page[0]), _cursor(page[-1])) if page else (None, None)
    return {
        'tickets': page,
        'meta': {'has_more': has_more, 'after_cursor': after, 'before_cursor': before},
        'links': {
            'prev': _page_url('page[before]', before) if before else None,
            'next': _page_url('page[after]', after) if after else None,
        },
    }


def offset_page(name: str, tickets: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the page with the request's page number, as a list under this name."""
    number, size = _positive_integer('page', default=1), _page_size('per_page')
    end = number * size
    return {
        name: tickets[end - size : end],
        'next_page': _page_url('page', number + 1) if end < len(tickets) else None,
        'previous_page': _page_url('page', number - 1) if number > 1 else None,
        'count': len(tickets),
    }


def _cursor(ticket: dict[str, Any]) -> str:
    return base64.b64encode(json.dumps({'id': ticket['id']}).encode()).decode()


def _page_url(name: str, value: str | int) -> str:
    """Return the request's URL with another page selected."""
    query = {key: text for key, text in request.args.items() if key not in POSITIONS}
    return f'{request.base_url}?{urlencode({**query, name: value})}'


def _page_size(name: str) -> int:
    # Zendesk documents the maximum, but not what it does with a larger value.
    return min(_positive_integer(name, default=MAX_PAGE_SIZE), MAX_PAGE_SIZE)


def _positive_integer(name: str, default: int) -> int:
    """Return the value of the query parameter. Abort with Zendesk's error if it is not valid."""
    text = request.args.get(name, str(default))
    if not re.fullmatch('[0-9]{1,9}', text) or int(text) < 1:
        name = name.replace('[', '.').rstrip(']')
        message = (
            f'You passed an invalid value for the {name} attribute. Invalid parameter: {name} must be an integer '
            f'from {request.path.removeprefix("/").removesuffix(".json")}/index'
        )
        abort(make_response({'error': {'title': 'Invalid attribute', 'message': message}}, 400))
    return int(text)
