"""
An OAuth library for Zendesk: the authorization code flow with PKCE, and rotating refresh tokens.

    oauth = ZendeskOAuth(
        zendesk_url='https://mondocam.zendesk.com',
        client_id='my_oauth_app',
        client_secret=os.environ['ZENDESK_CLIENT_SECRET'],
        redirect_uri='https://app.example.com/zendesk/oauth/callback',
        scope='users:read',
        store=JsonFileStore('users.json'),
    )
    response = oauth.api_request('GET', '/api/v2/users/me', headers={'Authorization': f'Bearer {access_token}'})

It reads no settings, imports no web framework, and logs to the standard logger `zendesk_oauth`.
"""

from zendesk_oauth import errors
from zendesk_oauth.authorization import AuthorizationRequest, cookie_prefix
from zendesk_oauth.client import ZendeskOAuth
from zendesk_oauth.endpoints import Response, fingerprints, user_from
from zendesk_oauth.stores import JsonFileStore, Store

__all__ = [
    'AuthorizationRequest',
    'JsonFileStore',
    'Response',
    'Store',
    'ZendeskOAuth',
    'cookie_prefix',
    'errors',
    'fingerprints',
    'user_from',
]
