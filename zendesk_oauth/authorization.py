"""
Authorization requests: each is bound to one browser, is valid for ten minutes, and can be completed once.

The `state`, 256 random bits, identifies a request: it goes to Zendesk and comes back in the callback. The browser keeps
one signed cookie per request, so parallel tabs cannot interfere with each other. The cookie's name contains the time,
and its value is a signature of the time, the state and the user. The PKCE code verifier is derived from the state and
the client secret, so the server stores nothing, and the cookie reveals neither the state nor the verifier.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from zendesk_oauth.endpoints import fingerprint
from zendesk_oauth.errors import (
    AccessDenied,
    AuthorizationError,
    AuthorizationExpired,
    StateCookieMissing,
    setup_error,
)

LIFETIME = 600  # seconds
COOKIE_LIFETIME = 3600  # seconds; longer than LIFETIME, to tell an expired request from an unknown one
CLOCK_SKEW = 60  # seconds by which the clocks of two machines may differ

log = logging.getLogger('zendesk_oauth')


@dataclass(frozen=True)
class AuthorizationRequest:
    """
    A pending authorization request: `state` and `code_challenge` go to Zendesk, the cookie goes to the browser.

    `cookie_options` are keyword arguments for a framework's `set_cookie`. All cookies of pending requests have names
    that begin with `cookie_prefix`, and the newest name sorts last.
    """

    state: str = field(repr=False)
    code_challenge: str = field(repr=False)
    cookie_prefix: str
    cookie_name: str
    cookie_value: str = field(repr=False)
    cookie_options: dict[str, Any]


class Authorization:
    """Create and verify the authorization requests of one OAuth client."""

    def __init__(self, *, client_secret: str, redirect_uri: str, scope: str, issuer: str) -> None:
        self._key = hmac.digest(client_secret.encode(), b'zendesk_oauth: authorization requests', 'sha256')
        self._redirect_uri, self._scope, self._issuer = redirect_uri, scope, issuer
        self._https = urlsplit(redirect_uri).scheme == 'https'
        self._cookie_prefix = cookie_prefix(redirect_uri) + 'request_'

    def begin(self, user_id: str | None) -> AuthorizationRequest:
        """Return a new authorization request, bound to the browser and, if `user_id` is given, to the user."""
        state, started = secrets.token_urlsafe(32), int(time.time())
        log.debug('Created state %s and a code verifier for this browser', fingerprint(state))
        return AuthorizationRequest(
            state=state,
            code_challenge=code_challenge(self.code_verifier(state)),
            cookie_prefix=self._cookie_prefix,
            cookie_name=f'{self._cookie_prefix}{started}_{digest(state)[:16]}',
            cookie_value=self._signature(started, state, user_id),
            # Lax: the browser sends the cookie when Zendesk redirects it back, but not with other cross-site requests.
            cookie_options={
                'max_age': COOKIE_LIFETIME,
                'secure': self._https,
                'httponly': True,
                'samesite': 'Lax',
            },
        )

    def verified_state(
        self, query: Mapping[str, str], cookies: Mapping[str, str], user_id: str | None
    ) -> tuple[str, int]:
        """
        Verify that this browser and user started the callback's request less than LIFETIME seconds ago.

        Call it before using anything else in the query (RFC 9700, sections 2.1 and 4.7).

        Returns:
            The state and its expiry time (seconds since 1970).

        Raises:
            StateCookieMissing: the browser sent no cookie of any authorization request.
            AuthorizationExpired: the request is too old.
            AuthorizationError: the state is missing, malformed or unknown.
        """
        state = _only(query, 'state')
        name_pattern = re.compile(f'{self._cookie_prefix}([0-9]{{1,12}})_{re.escape(digest(state)[:16])}')
        pending = [name for name in cookies if name.startswith(self._cookie_prefix)]
        for name in pending:
            match = name_pattern.fullmatch(name)
            started = int(match[1]) if match else 0
            if match and hmac.compare_digest(
                cookies[name].encode('utf-8', 'replace'), self._signature(started, state, user_id).encode()
            ):
                if not -CLOCK_SKEW <= time.time() - started <= LIFETIME:
                    raise AuthorizationExpired('The authorization request has expired. The user can start again')
                return state, started + LIFETIME + 2 * CLOCK_SKEW
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

    def code(self, query: Mapping[str, str]) -> str:
        """
        Return the authorization code of a callback whose state is verified.

        Raises:
            AccessDenied, AuthorizationError, SetupError: Zendesk sent an error (RFC 6749, section 4.1.2.1).
            AuthorizationError: the callback names another issuer (RFC 9207) or has no valid code.
        """
        if 'iss' in query and _only(query, 'iss') != self._issuer:
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

    def _signature(self, started: int, state: str, user_id: str | None) -> str:
        return self._mac(f'cookie {started} {state} {user_id or ""}')

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
