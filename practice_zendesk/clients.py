"""
The OAuth clients and the users of the practice Zendesk, and the kinds of client that it can imitate.

Without a file (see `read_file`), the main client is the practice client, or the client in ZENDESK_CLIENT_ID,
ZENDESK_CLIENT_SECRET and REDIRECT_URI.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Client:
    """An OAuth client. `scope` is the scope of all its grants, or None for the requested scope."""

    secret: str
    name: str
    redirect_uris: tuple[str, ...]
    scope: str | None = None


MAIN = Client(
    os.environ.get('ZENDESK_CLIENT_SECRET') or 'practice_secret',
    os.environ.get('ZENDESK_CLIENT_NAME') or 'Zendesk OAuth in a web app',
    (os.environ.get('REDIRECT_URI') or 'http://localhost:3000/zendesk/oauth/callback',),
)
CLIENTS = {
    os.environ.get('ZENDESK_CLIENT_ID') or 'practice_client': MAIN,
    'narrow_client': Client(MAIN.secret, MAIN.name, MAIN.redirect_uris, scope='users:read'),
}
USERS: dict[int, dict[str, Any]] = {
    user_id: {'id': user_id, 'name': name, 'role': role, 'email': f'{email}@practice.example'}
    for user_id, name, role, email in (
        (9130907993101, 'Amara Okafor', 'agent', 'amara'),
        (9130907993102, 'Tomás Herrera', 'admin', 'tomas'),
        (9130907993103, 'Zoë Żółkiewska', 'end-user', 'zoe'),
    )
}
REDIRECT_URI = r'https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?(/[!-~]*)?'
ROLES = ('admin', 'agent', 'end-user')


def main_client() -> tuple[str, Client]:
    """Return the identifier of the first client, and the client."""
    return next(iter(CLIENTS.items()))


def app_origins() -> list[str]:
    """Return the origins of all redirect URIs, without repetition. The first one is the app of the main client."""
    uris = [urlsplit(uri) for client in CLIENTS.values() for uri in client.redirect_uris]
    return list(dict.fromkeys(f'{uri.scheme}://{uri.netloc}' for uri in uris))


# --- The file with clients and users --- #


def read_file(path: str | os.PathLike[str]) -> None:
    """
    Replace the clients, the users or both with those of a TOML file.

    docs/practice-zendesk.md has an example.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is malformed. The message names the problem.
    """
    with Path(path).open('rb') as file:
        data = tomllib.load(file)
    unknown = set(data) - {'clients', 'users'}
    if unknown or not data:
        raise ValueError('it must contain [[clients]] or [[users]], and nothing else')
    new_clients, new_users = {}, {}
    for number, table in enumerate(_tables(data, 'clients'), 1):
        fields = _fields(table, f'client {number}', {'id': str, 'secret': str, 'redirect_uris': list}, CLIENT_DEFAULTS)
        if not fields['id'] or not fields['secret'] or fields['id'] in new_clients:
            raise ValueError(f'client {number} needs a secret and a unique id')
        uris = tuple(fields['redirect_uris'])
        if not uris or not all(isinstance(uri, str) and re.fullmatch(REDIRECT_URI, uri) for uri in uris):
            raise ValueError(f'redirect_uris of client {number} must be a list of absolute URLs')
        name = fields['name'] or fields['id']
        new_clients[fields['id']] = Client(fields['secret'], name, uris, fields['scope'] or None)
    for number, table in enumerate(_tables(data, 'users'), 1):
        user = _fields(table, f'user {number}', {'id': int, 'name': str, 'role': str}, {'email': ''})
        if user['role'] not in ROLES:
            raise ValueError(f'the role of user {number} must be one of {", ".join(ROLES)}')
        if not 0 < user['id'] < 2**63 or not user['name'].isprintable():
            raise ValueError(f'the id or the name of user {number} is not valid')
        new_users[user['id']] = user
    replace(new_clients or CLIENTS.copy(), new_users or USERS.copy())


def replace(new_clients: dict[str, Client], new_users: dict[int, dict[str, Any]]) -> None:
    """Replace all clients and users."""
    CLIENTS.clear()
    CLIENTS.update(new_clients)
    USERS.clear()
    USERS.update(new_users)


CLIENT_DEFAULTS = {'name': '', 'scope': ''}
TYPES = {str: 'a string', int: 'an integer', list: 'a list'}


def _tables(data: dict[str, Any], name: str) -> list[dict[str, Any]]:
    tables = data.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f'write [[{name}]], with two brackets')
    return tables


def _fields(table: dict[str, Any], what: str, required: dict[str, type], optional: dict[str, str]) -> dict[str, Any]:
    """Return the fields of a table, with defaults for the optional ones. Raise ValueError if a field is wrong."""
    for name, kind in (required | dict.fromkeys(optional, str)).items():
        if type(table.get(name, optional.get(name))) is not kind:
            raise ValueError(f'the key {name} of {what} must be {TYPES[kind]}')
    if unknown := set(table) - set(required) - set(optional):
        raise ValueError(f'{what} has the unknown key {min(unknown)}')
    return {**optional, **table}


# --- The kinds of client --- #


@dataclass(frozen=True)
class Kind:
    """
    A kind of OAuth client, with the tokens that Zendesk issues to it.

    `access_token_lifetime` replaces the lifetime that the client requests (seconds). If `expires` is false, access
    tokens do not expire, and there are no refresh tokens.
    """

    label: str
    access_token_lifetime: int | None = None
    expires: bool = True
    jwt: bool = False


KINDS = {
    'new': Kind('new: tokens with the requested lifetimes'),
    'fixed': Kind(
        'new, with access tokens that are valid for 30 minutes, regardless of the request', access_token_lifetime=1800
    ),
    'jwt': Kind('new, with JSON Web Tokens (JWT) as access tokens', jwt=True),
    'old': Kind('old: access tokens that do not expire, without refresh tokens', expires=False),
}
_current = 'new'


def current_kind() -> Kind:
    return KINDS[_current]


def use_kind(name: str) -> None:
    """Issue the tokens of this kind of client until the process ends."""
    global _current
    _current = name
