"""
An OAuth library for Zendesk: the authorization code flow with PKCE, and rotating refresh tokens.

    oauth = ZendeskOAuth(
        subdomain='mondocam',
        client_id='my_oauth_app',
        client_secret=os.environ['ZENDESK_CLIENT_SECRET'],
        redirect_uri='https://app.example.com/zendesk/callback',
        scope='users:read tickets:read',
        store=JsonFileStore('users.json'),
    )
    redirect = oauth.begin_authorization(user_id)  # in a POST view: return this redirect to Zendesk
    connection = oauth.complete_authorization(user_id)  # in the view of the redirect URI: stores the tokens
    user = oauth.session(user_id).get('/api/v2/users/me.json').raise_for_status().json()

All settings are arguments. Only the two calls for views import Flask. The package logs to `zendesk_oauth`.
"""

from typing import TYPE_CHECKING, Any

from zendesk_oauth import errors, signals
from zendesk_oauth.authorization import AuthorizationRequest, cookie_prefix
from zendesk_oauth.client import Connection, ZendeskOAuth
from zendesk_oauth.endpoints import Response, fingerprint, fingerprints, user_from
from zendesk_oauth.session import Session
from zendesk_oauth.stores import JsonFileStore, MemoryStore, Store

if TYPE_CHECKING:
    from zendesk_oauth.sql_store import SqlStore as SqlStore

# Without SqlStore, so that "import *" does not need its packages.
__all__ = [
    'AuthorizationRequest',
    'Connection',
    'JsonFileStore',
    'MemoryStore',
    'Response',
    'Session',
    'Store',
    'ZendeskOAuth',
    'cookie_prefix',
    'errors',
    'fingerprint',
    'fingerprints',
    'signals',
    'user_from',
]


def __getattr__(name: str) -> Any:
    """Import SqlStore at its first use, because it needs packages that the other stores do not."""
    if name != 'SqlStore':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        from zendesk_oauth.sql_store import SqlStore
    except ImportError as error:
        raise ImportError(f'SqlStore needs more packages ({error}). Install this package with [sql]') from error
    return SqlStore
