"""
The OAuth clients of the practice Zendesk, and the kinds of client that it can imitate.

The main client is the practice client, or the client in ZENDESK_CLIENT_ID, ZENDESK_CLIENT_SECRET and REDIRECT_URI. The
other clients have the same secret, name and redirect URI.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

CLIENT_ID = os.environ.get('ZENDESK_CLIENT_ID') or 'practice_client'
CLIENT_SECRET = os.environ.get('ZENDESK_CLIENT_SECRET') or 'practice_secret'
CLIENT_NAME = os.environ.get('ZENDESK_CLIENT_NAME') or 'Zendesk OAuth in a web app'
REDIRECT_URI = os.environ.get('REDIRECT_URI') or 'http://localhost:3000/zendesk/oauth/callback'


@dataclass(frozen=True)
class Client:
    """An OAuth client. `scope` is the scope of all its grants, or None for the requested scope."""

    scope: str | None = None


CLIENTS = {CLIENT_ID: Client(), 'narrow_client': Client(scope='users:read')}


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
    'fixed': Kind('new, with access tokens for 30 minutes, regardless of the request', access_token_lifetime=1800),
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
