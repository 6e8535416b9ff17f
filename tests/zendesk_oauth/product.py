"""The OAuth client of a product in the tests."""

from __future__ import annotations

from helpers import ZENDESK

from zendesk_oauth import MemoryStore, ZendeskOAuth

# The response of the token endpoint.
TOKENS = {
    'access_token': 'new-access',
    'refresh_token': 'new-refresh',
    'token_type': 'bearer',
    'scope': 'users:read tickets:read',
    'expires_in': 1800,
    'refresh_token_expires_in': 2_592_000,
}


OLD = {**TOKENS, 'access_token': 'old-access', 'refresh_token': 'old-refresh'}


def client(**changes) -> ZendeskOAuth:
    """Return a client with an empty store. `changes` override its arguments."""
    arguments = {
        'zendesk_url': ZENDESK,
        'client_id': 'test_client',
        'client_secret': 'canary-client-secret',
        'redirect_uri': 'https://app.example.com/zendesk/callback',
        'scope': 'users:read tickets:read',
        'store': MemoryStore(),
    }
    return ZendeskOAuth(**arguments | changes)


def connected_client() -> ZendeskOAuth:
    """Return a client to which alice is connected, with the tokens in OLD."""
    oauth = client()
    oauth.import_tokens('alice', OLD)
    return oauth
