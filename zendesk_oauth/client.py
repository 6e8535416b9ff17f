"""ZendeskOAuth: authorization requests, token requests, API requests, revocation, stored tokens."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from zendesk_oauth import endpoints
from zendesk_oauth.authorization import Authorization, AuthorizationRequest, digest
from zendesk_oauth.endpoints import CALL_TIMEOUT, TOKEN, Response
from zendesk_oauth.errors import (
    AuthorizationError,
    InvalidGrant,
    NewTokenRejected,
    StoreError,
    ZendeskError,
    ZendeskOAuthError,
    ZendeskTimeout,
)
from zendesk_oauth.stores import Record, Store

BEST_EFFORT_TIMEOUT = 3  # seconds
MAX_API_BYTES = 32 * 2**20  # limit for API responses: a list of 100 tickets can exceed 1 MiB

log = logging.getLogger('zendesk_oauth')


class ZendeskOAuth:
    """
    The OAuth requests and the stored tokens of one Zendesk account. `store` holds the tokens of all users.

    `zendesk_url` is the address of the account, for example https://mondocam.zendesk.com. Threads and forked processes
    can share an instance.
    """

    def __init__(
        self,
        *,
        zendesk_url: str,
        client_id: str,
        client_secret: str,
        redirect_uri: str,
        scope: str,
        store: Store,
    ) -> None:
        self.store = store
        self._zendesk_url = zendesk_url
        self._client_id = client_id
        self._client_secret = client_secret
        self._scope = scope
        self._authorization = Authorization(
            client_secret=client_secret, redirect_uri=redirect_uri, scope=scope, issuer=zendesk_url
        )

    # --- The grant --- #

    def authorization_request(self, user_id: None) -> AuthorizationRequest:
        """
        Return a new authorization request: its `state`, `code_challenge` and the cookie that binds it to the browser.

        `user_id` must be None: the request is bound to the browser only. A product must check at the callback that the
        account that started the request is still signed in. (RFC 6749, section 4.1.1; RFC 7636, section 4.3)
        """
        return self._authorization.begin(user_id)

    def consume_state(self, query: Mapping[str, str], cookies: Mapping[str, str]) -> str:
        """
        Verify the state of a callback, mark it as used, and return the PKCE code verifier.

        Call it before using anything else in the query (RFC 9700, section 4.7).

        Raises:
            AuthorizationError: another browser started the request, or the request has expired or was already used.
            StoreError: the store cannot mark the state as used.
        """
        state, expires_at = self._authorization.verified_state(query, cookies, None)
        # Deleting the cookie would not stop concurrent requests, so mark the state as used in the store.
        if not self.store.consume_once(digest(state), expires_at):
            raise AuthorizationError('The state was already used: the callback was opened twice. No action is needed')
        log.info('State %s is valid: this browser started the request', endpoints.fingerprint(state))
        return self._authorization.code_verifier(state)

    def authorization_code(self, query: Mapping[str, str]) -> str:
        """
        Return the authorization code of a callback. Call `consume_state` first.

        Raises:
            AccessDenied: the user did not grant access.
            AuthorizationError, SetupError: Zendesk sent another error or no valid code (RFC 6749, section 4.1.2.1).
        """
        return self._authorization.code(query)

    # --- Requests to Zendesk --- #

    def request_tokens(self, form: Mapping[str, Any]) -> dict[str, Any]:
        """
        Send `form` to the token endpoint once and return the tokens (RFC 6749, sections 4.1.3 and 6).

        Before a refresh, check that the store is writable, because Zendesk invalidates the old tokens.

        Returns:
            `access_token`; and, if Zendesk sent a refresh token, `refresh_token` and `refresh_token_expires_at`
            (seconds since 1970, or None if unknown). If a refresh returns no valid refresh token, only `access_token`.

        Raises:
            InvalidGrant: the code or the refresh token is expired, used or unknown.
            ZendeskError: any other failure. The old tokens may still be valid.
            StoreError: the store is not writable. The refresh was not sent.
        """
        return self._request_tokens(form, to_be_stored=True)

    def _request_tokens(self, form: Mapping[str, Any], to_be_stored: bool) -> dict[str, Any]:
        if form['grant_type'] == 'refresh_token':
            if not TOKEN.fullmatch(form['refresh_token']):
                log.info('No usable refresh token is stored: not sending a request')
                raise InvalidGrant(
                    'No usable refresh token is stored: the OAuth client issues none, or the stored token was edited'
                )
            if to_be_stored:
                self.store.check_writable()
        try:
            return endpoints.tokens_from(endpoints.send(self._zendesk_url, 'POST', '/oauth/tokens', form=form), form)
        except ZendeskError as error:
            if type(error) in (ZendeskError, ZendeskTimeout):  # Zendesk may have issued tokens that did not arrive
                error.advice += ' If the app then asks for access, grant it again.'
            raise

    def api_request(self, method: str, path: str, *, headers: Mapping[str, str]) -> Response:
        """
        Send one API request and return the response, with any status. Do not refresh the tokens.

        If the access token cannot be sent in a header, return a 401 without a request.

        Raises:
            ZendeskError: Zendesk sent no valid HTTP response.
        """
        if not TOKEN.fullmatch(headers['Authorization'].removeprefix('Bearer ')):
            # Zendesk never issues such a token: it was edited by hand.
            return Response(401, {}, b'')
        return endpoints.send(self._zendesk_url, method, path, headers=headers, max_bytes=MAX_API_BYTES)

    def revoke_tokens(self, tokens: Mapping[str, Any] | None, *, best_effort: bool = False) -> bool:
        """
        Revoke both tokens of a grant. Return True if Zendesk then rejects the access token.

        With `best_effort`, send one request of at most 3 seconds and return True if Zendesk confirms it. If `tokens`
        is None, return False.
        https://developer.zendesk.com/documentation/api-basics/authentication/revoking-oauth-token
        """
        if tokens is None:
            return False
        try:
            if best_effort:
                revoked = self._revoke(tokens['access_token'], timeout=BEST_EFFORT_TIMEOUT) != 401
                if not revoked:
                    log.info(
                        'Zendesk rejects the access token (401), so the refresh token stays valid until it expires'
                    )
                return revoked
            return self._revoke_and_verify(tokens)
        except ZendeskOAuthError as error:
            log.warning('The tokens could not be revoked and may still be valid. %s', error)
            return False

    def _revoke_and_verify(self, tokens: Mapping[str, Any]) -> bool:
        access_token = tokens['access_token']
        if self._revoke(access_token) == 401:
            # Only a valid access token can revoke the refresh token, which is valid for longer.
            log.info('The access token has expired: refreshing to revoke the new tokens')
            form = self._refresh_form(tokens.get('refresh_token', ''))
            access_token = self._request_tokens(form, to_be_stored=False)['access_token']
            if self._revoke(access_token) == 401:
                raise NewTokenRejected('Zendesk rejected the new access token (401) and revoked nothing')
        # Zendesk has been reported to return 204 without revoking.
        log.debug('Checking that Zendesk now rejects the access token')
        status = self.api_request('GET', '/api/v2/users/me', headers=_bearer(access_token)).status_code
        if status == 401:
            log.info('Zendesk rejects the access token (401): it is revoked')
            return True
        log.warning(
            'Zendesk confirmed the revocation, but still responds with %s instead of 401 to the access token', status
        )
        return False

    def _revoke(self, access_token: str, timeout: float = CALL_TIMEOUT) -> int:
        """Send one revocation request and return the status: 401 or 2xx."""
        if not TOKEN.fullmatch(access_token):
            return 401
        response = endpoints.send(
            self._zendesk_url,
            'DELETE',
            '/api/v2/oauth/tokens/current',
            headers=_bearer(access_token),
            timeout=timeout,
        )
        if response.status_code != 401 and not 200 <= response.status_code < 300:
            raise ZendeskError(f'Zendesk responded with {response.status_code} to the revocation')
        return response.status_code

    def _refresh_form(self, refresh_token: str) -> dict[str, Any]:
        return {
            'grant_type': 'refresh_token',
            'refresh_token': refresh_token,
            'client_id': self._client_id,
            'client_secret': self._client_secret,
            'scope': self._scope,
            # The shortest lifetimes that Zendesk allows, because these tokens are revoked immediately.
            'expires_in': 300,
            'refresh_token_expires_in': 604_800,
        }

    # --- The stored tokens --- #

    def refresh_lock(self, user_id: str) -> AbstractContextManager[Record | None]:
        """
        Hold the lock for refreshing this user's tokens. Everything that shares the store shares the lock.

        The context manager yields the current record, read past any cache, or None.

        Raises:
            LockTimeout: another refresh of the same tokens held the lock too long.
            StoreError: the store cannot be read.
        """
        return self.store.refresh_lock(user_id)

    def save_tokens(self, user_id: str, tokens: Record) -> None:
        """
        Store the tokens of a new grant.

        Raises:
            StoreError: the tokens cannot be stored. They are revoked (best effort).
        """
        with self._revoked_if_not_stored(tokens):
            self.store.save(user_id, tokens)

    def replace_tokens(self, user_id: str, old_refresh_token: str, tokens: Record | None) -> Record | None:
        """
        Store the tokens if the stored refresh token is still the old one (compare and swap). None deletes the record.

        Returns:
            The stored record, or None. If it is not `tokens`, the new tokens are revoked (best effort).

        Raises:
            StoreError: the new tokens cannot be stored. They are revoked (best effort).
        """
        with self._revoked_if_not_stored(tokens):
            stored = self.store.replace(user_id, old_refresh_token, tokens)
        if tokens is not None and stored != tokens:
            log.info('The stored tokens changed during the refresh: revoking the new ones')
            self.revoke_tokens(tokens, best_effort=True)
        return stored

    @contextlib.contextmanager
    def _revoked_if_not_stored(self, tokens: Record | None) -> Iterator[None]:
        try:
            yield
        except StoreError as error:
            if tokens is not None:
                log.warning('The new tokens cannot be stored: revoking them')
                self.revoke_tokens(tokens, best_effort=True)
                error.advice = "Your new tokens could not be stored. Grant access again. The app's log has the cause."
                error.reauthorize = True
            raise


def _bearer(access_token: str) -> dict[str, str]:
    return {'Authorization': f'Bearer {access_token}'}
