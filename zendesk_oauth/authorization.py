"""
Authorization requests: each is bound to one browser and one user, and is valid for ten minutes.

The `state`, 256 random bits, identifies a request: it goes to Zendesk and comes back in the callback. The browser keeps
one signed cookie per request, so parallel tabs cannot interfere with each other. The cookie's name contains the start
time. Its value contains the Zendesk account, `next_url`, a hash of the user id, and a signature of all this and the
state. The PKCE code verifier is derived from the state and the client secret, so the server stores nothing, and the
cookie reveals neither the state nor the verifier.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from zendesk_oauth.endpoints import fingerprint
from zendesk_oauth.errors import (
    AccessDenied,
    AuthorizationError,
    AuthorizationExpired,
    StateCookieMissing,
    setup_error,
)
from zendesk_oauth.urls import check_next_url

LIFETIME = 600  # seconds
COOKIE_LIFETIME = 3600  # seconds; longer than LIFETIME, to tell an expired request from an unknown one
CLOCK_SKEW = 60  # seconds by which the clocks of two machines may differ
MAX_COOKIE_BYTES = 3000  # bytes of the cookies of pending requests: servers limit the Cookie header, often to 8 KiB

log = logging.getLogger('zendesk_oauth')


@dataclass(frozen=True)
class AuthorizationRequest:
    """
    A pending authorization request: redirect the browser to `url`, and call `set_cookies`.

    `url` contains `state` and `code_challenge`. `cookie_options` are keyword arguments for a framework's `set_cookie`.
    All cookies of pending requests have names that begin with `cookie_prefix`, and the newest name sorts last.
    """

    url: str = field(repr=False)
    state: str = field(repr=False)
    code_challenge: str = field(repr=False)
    cookie_prefix: str
    cookie_name: str
    cookie_value: str = field(repr=False)
    cookie_options: dict[str, Any]

    def set_cookies(self, response: Any, cookies: Mapping[str, str]) -> None:
        """
        Set the cookie on a response of Flask, Django or Starlette. `cookies` are the cookies of the request.

        If the cookies of all pending requests have more than MAX_COOKIE_BYTES, delete the oldest.
        """
        size = len(self.cookie_name) + len(self.cookie_value)
        for name in sorted((name for name in cookies if name.startswith(self.cookie_prefix)), reverse=True):
            size += len(name) + len(cookies[name])
            if size > MAX_COOKIE_BYTES:
                response.set_cookie(name, **{**self.cookie_options, 'max_age': 0})
        response.set_cookie(self.cookie_name, self.cookie_value, **self.cookie_options)


@dataclass(frozen=True)
class VerifiedState:
    """The state of a callback, and the content of its cookie. `expires_at` (seconds since 1970) is when it expires."""

    state: str = field(repr=False)
    expires_at: int
    zendesk_url: str
    next_url: str


class Authorization:
    """Create and verify the authorization requests of one OAuth client."""

    def __init__(self, *, client_id: str, client_secret: str, redirect_uri: str, scope: str) -> None:
        self._key = hmac.digest(client_secret.encode(), b'zendesk_oauth: authorization requests', 'sha256')
        self._client_id, self._redirect_uri, self._scope = client_id, redirect_uri, scope
        self._https = urlsplit(redirect_uri).scheme == 'https'
        self._cookie_prefix = cookie_prefix(redirect_uri) + 'request_'

    def begin(self, user_id: str | None, zendesk_url: str, next_url: str = '/') -> AuthorizationRequest:
        """Return a new authorization request, bound to the browser and, if `user_id` is given, to the user."""
        check_next_url(next_url)
        state, started = secrets.token_urlsafe(32), int(time.time())
        challenge = code_challenge(self.code_verifier(state))
        parameters = {
            'response_type': 'code',
            'client_id': self._client_id,
            'redirect_uri': self._redirect_uri,
            'scope': self._scope,
            'state': state,
            'code_challenge': challenge,
            'code_challenge_method': 'S256',
        }
        content = json.dumps([zendesk_url, next_url, self._user_hash(state, user_id)], ensure_ascii=False)
        content = _base64url(content.encode())
        log.debug('Created state %s and a code verifier for this browser', fingerprint(state))
        return AuthorizationRequest(
            url=f'{zendesk_url}/oauth/authorizations/new?{urlencode(parameters)}',
            state=state,
            code_challenge=challenge,
            cookie_prefix=self._cookie_prefix,
            cookie_name=f'{self._cookie_prefix}{started}_{digest(state)[:16]}',
            cookie_value=f'{content}.{self._signature(started, state, content)}',
            # Lax: the browser sends the cookie when Zendesk redirects it back, but not with other cross-site requests.
            cookie_options={
                'max_age': COOKIE_LIFETIME,
                'path': '/',
                'secure': self._https,
                'httponly': True,
                'samesite': 'Lax',
            },
        )

    def verified_state(
        self, query: Mapping[str, str], cookies: Mapping[str, str], user_id: str | None, zendesk_url: str | None
    ) -> VerifiedState:
        """
        Verify that this browser and user started the callback's request less than LIFETIME seconds ago.

        If `zendesk_url` is not None, the request must be for this account.

        Call it before using anything else in the query (RFC 9700, sections 2.1 and 4.7).

        Raises:
            StateCookieMissing: the browser sent no cookie of any authorization request.
            AuthorizationExpired: the request is too old.
            AuthorizationError: the state is missing, malformed or unknown, or another user started the request.
        """
        state = _only(query, 'state')
        started, account, next_url, user_hash = self._cookie_content(cookies, state)
        if not -CLOCK_SKEW <= time.time() - started <= LIFETIME:
            raise AuthorizationExpired(
                'The authorization request has expired. The user can start again', next_url=next_url
            )
        if user_hash and not hmac.compare_digest(user_hash, self._user_hash(state, user_id)):
            raise user_mismatch(user_id, next_url)
        if zendesk_url not in (None, account):
            raise AuthorizationError(
                'The Zendesk account in the settings has changed since the request. The user can start again',
                next_url=next_url,
            )
        return VerifiedState(state, started + LIFETIME + 2 * CLOCK_SKEW, account, next_url)

    def _cookie_content(self, cookies: Mapping[str, str], state: str) -> tuple[int, str, str, str]:
        """Return the start time, the account, `next_url` and the user hash from the signed cookie of this state."""
        name_pattern = re.compile(f'{self._cookie_prefix}([0-9]{{1,12}})_{re.escape(digest(state)[:16])}')
        pending = [name for name in cookies if name.startswith(self._cookie_prefix)]
        for name in pending:
            match = name_pattern.fullmatch(name)
            started = int(match[1]) if match else 0
            content, _, signature = cookies[name].encode('utf-8', 'replace').decode().rpartition('.')
            expected = self._signature(started, state, content)
            if match and content and hmac.compare_digest(signature.encode(), expected.encode()):
                account, next_url, user_hash = json.loads(base64.urlsafe_b64decode(content + '=='))
                return started, account, next_url, user_hash
        if not pending:
            origin = '{0.scheme}://{0.netloc}'.format(urlsplit(self._redirect_uri))
            raise StateCookieMissing(
                'The browser sent no cookie of an authorization request. The user started in another browser, at an '
                f'address other than {origin} (localhost and 127.0.0.1 have separate cookies), or more than an hour '
                f'ago, or the browser blocks cookies. Start again at {origin}',
                advice=f'Start again at {origin}, allow cookies, and finish in the same browser.',
            )
        raise AuthorizationError(
            'No pending authorization request of this browser has this state. The link was probably opened in another '
            'browser. No action is needed'
        )

    def code(self, query: Mapping[str, str], issuer: str | None) -> str:
        """
        Return the authorization code of a callback whose state is verified.

        Raises:
            AccessDenied, AuthorizationError, SetupError: Zendesk sent an error (RFC 6749, section 4.1.2.1).
            AuthorizationError: the callback names another issuer (RFC 9207) or has no valid code.
        """
        if 'iss' in query and _only(query, 'iss') != issuer:
            raise AuthorizationError('The callback names another issuer: it may come from another server')
        if 'error' in query:
            error = query['error']
            if error in SETUP_ERROR_CODES:
                raise setup_error(error, self._scope)
            raise _authorization_error(error)
        code = _only(query, 'code')
        if len(code) > 1024:
            raise AuthorizationError('The code has more than 1024 characters')
        return code

    def code_verifier(self, state: str) -> str:
        """Return the PKCE code verifier: 43 characters that only this client can compute (RFC 7636, section 4.1)."""
        return self._mac(f'code verifier {state}')

    def _signature(self, started: int, state: str, content: str) -> str:
        return self._mac(f'request {started} {state} {content}')

    def _user_hash(self, state: str, user_id: str | None) -> str:
        """Return a keyed hash, so that the cookie does not reveal the user id. It is empty without a user."""
        return '' if user_id is None else self._mac(f'user {state} {user_id}')

    def _mac(self, message: str) -> str:
        return _base64url(hmac.digest(self._key, message.encode('utf-8', 'replace'), 'sha256'))


def cookie_prefix(redirect_uri: str) -> str:
    """
    Return the prefix of the cookie names. Browsers send a cookie to every port of its host, so it contains the port.

    Under https, it starts with `__Host-`: browsers accept the cookie only from this exact host (RFC 6265bis, 4.1.3.2).
    """
    parts = urlsplit(redirect_uri)
    return ('__Host-' if parts.scheme == 'https' else '') + 'zendesk_oauth_' + (f'{parts.port}_' if parts.port else '')


def code_challenge(code_verifier: str) -> str:
    """Return the code challenge of a verifier (method S256; RFC 7636, section 4.2)."""
    return digest(code_verifier)


def digest(text: str) -> str:
    return _base64url(hashlib.sha256(text.encode()).digest())


def user_mismatch(user_id: str | None, next_url: str) -> AuthorizationError:
    """Return the error for a callback of a user who did not start the request."""
    if user_id is None:
        return AuthorizationError(
            'The user is not signed in. Either they have signed out during the authorization, or the session cookie of '
            'the product is not SameSite=Lax',
            title='You are not signed in',
            advice='Sign in, then connect your Zendesk account again.',
            next_url=next_url,
        )
    return AuthorizationError(
        'Another user of this browser started the authorization request. The user can start again',
        title='Another account started this',
        advice='Check which account is signed in, then connect your Zendesk account again.',
        next_url=next_url,
    )


# The errors of an authorization response that have their cause in the settings (RFC 6749, section 4.1.2.1).
SETUP_ERROR_CODES = {'invalid_request', 'unauthorized_client', 'unsupported_response_type', 'invalid_scope'}


def _authorization_error(error: str) -> AuthorizationError:
    """Return the error for any other code."""
    if error == 'access_denied':
        return AccessDenied('The user clicked Deny')
    if error == 'temporarily_unavailable':
        return AuthorizationError(
            'Zendesk is temporarily unavailable. Try again later',
            status=503,
            title='Zendesk is temporarily unavailable',
            advice='Try again in a moment.',
        )
    if error == 'server_error':
        return AuthorizationError(
            'Zendesk had an internal error. Try again later',
            status=502,
            title='The request to Zendesk failed',
            advice='Try again in a moment.',
        )
    return AuthorizationError(
        'Zendesk reported an error that is not in RFC 6749',
        title='Access was not granted',
        advice='Zendesk reported an error. Try again.',
    )


def _only(query: Mapping[str, str], name: str) -> str:
    """Return the parameter. Raise AuthorizationError unless it occurs exactly once, in visible ASCII."""
    getlist = getattr(query, 'getlist', None)  # Flask, Django and Starlette have it; a dict has one value per name
    values = getlist(name) if getlist else [query[name]] if name in query else []
    if len(values) != 1 or not re.fullmatch('[!-~]+', values[0]):
        raise AuthorizationError(
            f'The parameter {name} is missing, malformed or repeated: this callback does not come from Zendesk'
        )
    return str(values[0])


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b'=').decode()
