"""ZendeskOAuth: connect users to Zendesk, call the API for them, and disconnect them."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from zendesk_oauth import endpoints, urls
from zendesk_oauth.authorization import Authorization, AuthorizationRequest, VerifiedState, digest, user_mismatch
from zendesk_oauth.errors import (
    AuthorizationError,
    InvalidGrant,
    LockTimeout,
    ZendeskOAuthError,
)
from zendesk_oauth.session import Session
from zendesk_oauth.stores import Record, Store, has_expired
from zendesk_oauth.tokens import TokenClient

if TYPE_CHECKING:
    import flask

log = logging.getLogger('zendesk_oauth')


@dataclass(frozen=True)
class Connection:
    """
    The grant of a user: the account at `zendesk_url`, and the granted `scope`, which is empty if unknown.

    `missing_scopes` are the scopes in the settings that were not granted. It is empty if `scope` is unknown. `next_url`
    is the path that the product passed to the authorization request, or '/'.
    """

    user_id: str
    zendesk_url: str
    scope: str
    missing_scopes: tuple[str, ...]
    next_url: str = '/'


class ZendeskOAuth(TokenClient):
    """
    An OAuth client of Zendesk, and the stored tokens of its users. Threads and forked processes can share it.

    Pass the account's `subdomain` (acme for https://acme.zendesk.com) or its address as `zendesk_url`. Pass neither if
    each user has their own account, which requires a global OAuth client.

    `scope` is one string, such as 'users:read tickets:read'. The lifetimes are in seconds, within Zendesk's limits.
    `store` holds the tokens of all users. A user id is the product's own: a string of 1 to 255 characters. Any other
    value raises TypeError.

    https://developer.zendesk.com/api-reference/ticketing/oauth/grant_type_tokens/

    Raises:
        ValueError: an argument is malformed. The message names it.
    """

    def __init__(
        self,
        *,
        subdomain: str | None = None,
        zendesk_url: str | None = None,
        client_id: str,
        client_secret: str,
        redirect_uri: str,
        scope: str,
        store: Store,
        access_token_lifetime: int = 1800,
        refresh_token_lifetime: int = 2_592_000,
    ) -> None:
        if subdomain is not None and zendesk_url is not None:
            raise ValueError('Pass subdomain or zendesk_url, not both')
        if subdomain is not None:
            try:
                zendesk_url = urls.account_url(subdomain)
            except AuthorizationError as error:
                raise ValueError(f'subdomain is not a Zendesk subdomain. {error.advice}') from None
        elif zendesk_url is not None:
            urls.check_absolute_url('zendesk_url', zendesk_url, origin_only=True)
        urls.check_absolute_url('redirect_uri', redirect_uri, origin_only=False)
        for name, value, pattern in (
            ('client_id', client_id, '[ -~]+'),
            ('client_secret', client_secret, '[ -~]+'),
            ('scope', scope, '[!-~]+( [!-~]+)*'),
        ):
            if not isinstance(value, str) or not re.fullmatch(pattern, value):
                form = 'scope names separated by single spaces' if name == 'scope' else 'a string that is not empty'
                raise ValueError(f'{name} must be {form}, in ASCII')
        for name, lifetime, shortest, longest in (
            ('access_token_lifetime', access_token_lifetime, 300, 172_800),
            ('refresh_token_lifetime', refresh_token_lifetime, 604_800, 7_776_000),
        ):
            if not isinstance(lifetime, int) or not shortest <= lifetime <= longest:
                raise ValueError(f'{name} must be between {shortest} and {longest} seconds')
        if not hasattr(store, 'refresh_lock'):
            raise ValueError('store must have the methods of zendesk_oauth.Store, such as JsonFileStore(path)')
        super().__init__(
            zendesk_url=zendesk_url.rstrip('/').lower() if zendesk_url else None,
            client_id=client_id,
            client_secret=client_secret,
            lifetimes={'expires_in': access_token_lifetime, 'refresh_token_expires_in': refresh_token_lifetime},
            store=store,
        )
        self._redirect_uri, self._scope = redirect_uri, scope
        self._authorization = Authorization(
            client_id=client_id, client_secret=client_secret, redirect_uri=redirect_uri, scope=scope
        )

    # --- Connect: with Flask, then with any framework --- #

    def begin_authorization(self, user_id: str, *, subdomain: str | None = None, next_url: str = '/') -> flask.Response:
        """
        Return a Flask response that redirects the user to Zendesk and sets the cookie of the authorization request.

        Call it in a POST view with CSRF protection. `subdomain` can be the user's input. It is required if each user
        has their own account, and otherwise ignored. `next_url` is a path of the product.

        Raises:
            AuthorizationError: `subdomain` is not a Zendesk subdomain.
            ValueError: `next_url` is not a path of the product or has more than 1,000 bytes.
        """
        import flask

        _check_user_id(user_id)
        pending = self.authorization_request(user_id, subdomain=subdomain, next_url=next_url)
        response = flask.make_response(flask.redirect(pending.url))
        pending.set_cookies(response, flask.request.cookies)
        return response

    def complete_authorization(self, user_id: str | None) -> Connection:
        """
        Complete the authorization request in the Flask view of the redirect URI. See `exchange`.

        Call it in a view without `login_required`, and pass None if no user is signed in: a redirect to a sign-in page
        would put the authorization code into a URL.

        Raises: see `exchange`.
        """
        import flask

        return self.exchange(user_id, flask.request.args, flask.request.cookies)

    def authorization_request(
        self, user_id: str | None, *, subdomain: str | None = None, next_url: str = '/'
    ) -> AuthorizationRequest:
        """
        Return a new authorization request: its URL, and the cookie that binds it to the browser and to the user.

        Without a user, pass None: the request is bound to the browser only. See `begin_authorization` for the other
        arguments and the errors. (RFC 6749, section 4.1.1; RFC 7636, section 4.3)
        """
        if user_id is not None:
            _check_user_id(user_id)
        return self._authorization.begin(user_id, self._zendesk_url or urls.account_url(subdomain), next_url)

    def exchange(self, user_id: str | None, query: Mapping[str, str], cookies: Mapping[str, str]) -> Connection:
        """
        Exchange the authorization code of a callback for tokens and store them. Then revoke the user's old tokens.

        `query` and `cookies` are the parameters and the cookies of the callback. The same callback again, for example
        after a double click, returns the same connection. After an error, the old tokens stay. (RFC 6749, section 4.1)

        Raises:
            AuthorizationError: the user is not signed in, or did not start the request in this browser; the request has
                expired; or Zendesk rejected the code.
            AccessDenied: the user did not grant access.
            ZendeskError, SetupError: the request to Zendesk failed.
            StoreError: the store cannot be read or written, or a refresh takes too long. New tokens that cannot be
                stored are revoked (best effort).
            TypeError: `user_id` is neither None nor a string of 1 to 255 characters.
        """
        if user_id is not None:
            _check_user_id(user_id)
        verified = self._authorization.verified_state(query, cookies, user_id, self._zendesk_url)
        if user_id is None:
            raise user_mismatch(user_id, verified.next_url)
        try:
            code = self._authorization.code(query, verified.zendesk_url)
            return self._connect(user_id, code, verified)
        except ZendeskOAuthError as error:
            error.next_url = verified.next_url
            raise

    def _connect(self, user_id: str, code: str, verified: VerifiedState) -> Connection:
        state = digest(verified.state)
        with self.store.refresh_lock(user_id) as stored:
            if stored is not None and stored.get('state') == state:
                log.info('This callback has already stored its tokens')
                return self._connection(user_id, stored, verified.next_url)
            self.store.check_writable()  # else the code would be used up
            try:
                tokens = self._request_tokens(
                    verified.zendesk_url,
                    self._form(
                        grant_type='authorization_code',
                        code=code,
                        redirect_uri=self._redirect_uri,
                        scope=self._scope,
                        code_verifier=self._authorization.code_verifier(verified.state),
                    ),
                )
            except InvalidGrant as error:
                raise AuthorizationError(str(error), title=error.title, advice=error.advice) from None
            record = {'refresh_token': '', **tokens, 'zendesk_url': verified.zendesk_url, 'state': state}
            self.save_tokens(user_id, record)
        if stored is not None:
            self.revoke_tokens(stored, best_effort=True)
        return self._connection(user_id, record, verified.next_url)

    # --- Use and end a connection: in a view, a script, a job or a thread --- #

    def connection(self, user_id: str) -> Connection | None:
        """
        Return the stored connection, or None if the user has no grant or the refresh token has expired.

        Raises:
            StoreError: the store cannot be read.
        """
        _check_user_id(user_id)
        record = self._with_account(self.store.find(user_id))
        if record is None or has_expired(record.get('refresh_token_expires_at')):
            return None
        return self._connection(user_id, record)

    def session(self, user_id: str, *, max_wait: float = 0) -> Session:
        """
        Return a session that calls the API for this user. It reads the store at each request.

        After a 429, each request waits up to `max_wait` seconds in all. Use 0 in a view, and 300 in a job, for example.
        """
        _check_user_id(user_id)
        return Session(self._zendesk_url, partial(self._find, user_id), partial(self._refresh, user_id), max_wait)

    def disconnect(self, user_id: str) -> bool:
        """
        Delete the user's tokens, then revoke them.

        Returns:
            True if no tokens were stored, or if Zendesk rejects the access token afterward. False if tokens may still
            be valid.

        Raises:
            StoreError: the tokens cannot be deleted. They are not revoked.
        """
        _check_user_id(user_id)
        exclusive = False
        with contextlib.suppress(LockTimeout), self.store.refresh_lock(user_id):
            exclusive = True  # no refresh or exchange is running, whose new tokens would remain
        tokens = self.store.remove(user_id)
        return (tokens is None or self.revoke_tokens(tokens)) and exclusive

    def import_tokens(self, user_id: str, tokens: Mapping[str, Any], *, subdomain: str | None = None) -> None:
        """
        Store tokens from another library, or in a test. They replace the user's tokens, which are not revoked.

        `tokens` has the keys of a token response: `access_token`, and optionally `refresh_token`, `scope`, `expires_in`
        and `refresh_token_expires_in` (seconds from now).

        Raises:
            ValueError: a value is missing or malformed.
            AuthorizationError: each user has their own account, and `subdomain` is not a Zendesk subdomain.
            StoreError: the tokens cannot be stored.
        """
        _check_user_id(user_id)
        zendesk_url = self._zendesk_url or urls.account_url(subdomain)
        if not endpoints.is_token(tokens.get('access_token')):
            raise ValueError('access_token is missing or malformed')
        if tokens.get('refresh_token') and not endpoints.is_token(tokens['refresh_token']):
            raise ValueError('refresh_token is malformed')
        if not endpoints.is_scope(tokens.get('scope') or ''):
            raise ValueError('scope must be a string')
        for name in ('expires_in', 'refresh_token_expires_in'):
            if tokens.get(name) is not None and endpoints.expiry(tokens[name]) is None:
                raise ValueError(f'{name} must be a positive int (seconds)')
        record = {
            'access_token': tokens['access_token'],
            'access_token_expires_at': endpoints.expiry(tokens.get('expires_in')),
            'refresh_token': tokens.get('refresh_token') or '',
            'refresh_token_expires_at': endpoints.expiry(tokens.get('refresh_token_expires_in')),
            'scope': tokens.get('scope'),
            'zendesk_url': zendesk_url,
        }
        self.store.save(user_id, record)

    def _find(self, user_id: str) -> Record:
        return self._found(self.store.find(user_id))

    def _connection(self, user_id: str, record: Record, next_url: str = '/') -> Connection:
        scope = endpoints.granted_scope(record)
        granted = set((scope or '').split())
        # `read` includes `tickets:read`.
        missing = [name for name in self._scope.split() if not granted & {name, name.rpartition(':')[2]}]
        return Connection(
            user_id=user_id,
            zendesk_url=self._zendesk_url or record['zendesk_url'],
            scope=scope or '',
            missing_scopes=() if scope is None else tuple(missing),
            next_url=next_url,
        )

    # --- The steps of the protocol, for an app that shows them (see also TokenClient) --- #

    def consume_state(self, query: Mapping[str, str], cookies: Mapping[str, str]) -> str:
        """
        Verify the state of a callback, mark it as used, and return the PKCE code verifier.

        Call it before using anything else in the query (RFC 9700, section 4.7).

        Raises:
            AuthorizationError: another browser started the request, or the request has expired or was already used.
            StoreError: the store cannot mark the state as used.
        """
        verified = self._authorization.verified_state(query, cookies, None, self._zendesk_url)
        # Deleting the cookie would not stop concurrent requests, so mark the state as used in the store.
        if not self.store.consume_once(digest(verified.state), verified.expires_at):
            raise AuthorizationError(
                'The state was already used: the callback was opened twice. No action is needed',
                next_url=verified.next_url,
            )
        state = endpoints.fingerprint(verified.state)
        log.info('State %s is valid: this browser started the request', state, extra={'verified_state': state})
        return self._authorization.code_verifier(verified.state)

    def authorization_code(self, query: Mapping[str, str]) -> str:
        """
        Return the authorization code of a callback. Call `consume_state` first.

        Raises:
            AccessDenied: the user did not grant access.
            AuthorizationError, SetupError: Zendesk sent another error or no valid code (RFC 6749, section 4.1.2.1).
        """
        return self._authorization.code(query, self._zendesk_url)


def _check_user_id(user_id: object) -> None:
    if not isinstance(user_id, str) or not 1 <= len(user_id.encode('utf-8', 'ignore').decode()) == len(user_id) <= 255:
        raise TypeError('user_id must be a str of 1 to 255 characters, without surrogates')
