"""
The OAuth clients of the practice Zendesk.

The main client is the practice client, or the client in ZENDESK_CLIENT_ID, ZENDESK_CLIENT_SECRET and REDIRECT_URI. The
other clients have the same secret, name and redirect URI.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

CLIENT_ID = os.environ.get('ZENDESK_CLIENT_ID', 'practice_client')
CLIENT_SECRET = os.environ.get('ZENDESK_CLIENT_SECRET', 'practice_secret')
CLIENT_NAME = os.environ.get('ZENDESK_CLIENT_NAME', 'Zendesk OAuth in a web app')
REDIRECT_URI = os.environ.get('REDIRECT_URI', 'http://localhost:3000/zendesk/oauth/callback')


@dataclass(frozen=True)
class Client:
    """An OAuth client. `scope` is the scope of all its grants, or None for the requested scope."""

    scope: str | None = None


CLIENTS = {CLIENT_ID: Client(), 'narrow_client': Client(scope='users:read')}
