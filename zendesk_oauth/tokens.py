"""TokenClient: request, store, refresh and revoke the tokens of users."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

from zendesk_oauth import endpoints, signals, urls
from zendesk_oauth.endpoints import CALL_TIMEOUT, Response
from zendesk_oauth.errors import (
    InvalidGrant,
    NewTokenRejected,
    NotConnected,
    StoreError,
    ZendeskError,
    ZendeskOAuthError,
    ZendeskTimeout,
)
from zendesk_oauth.session import MAX_API_BYTES
from zendesk_oauth.stores import Record, Store

BEST_EFFORT_TIMEOUT = 3  # seconds

log = logging.getLogger('zendesk_oauth')


class TokenClient:
    """
    The base class of ZendeskOAuth: requests to the token endpoint, and the stored tokens.

    An app that shows the steps of the protocol calls these methods. A product does not need them.
    """

    def __init__(
        self,
        *,
        zendesk_url: str | None,
        client_id: str,
        client_secret: str,
        lifetimes: Mapping[str, int],
        store: Store,
    ) -> None:
        self.store = store
        self._zendesk_url, self._client_id, self._client_secret = zendesk_url, client_id, client_secret
        self._lifetimes = lifetimes

    # --- Requests to Zendesk --- #

    def request_tokens(self, form: Mapping[str, Any]) -> dict[str, Any]:
        """
        Send `form` to the token endpoint once and return the tokens (RFC 6749, sections 4.1.3 and 6).

        For a refresh, first check that the store is writable, because Zendesk invalidates the old tokens.

        Returns:
            `access_token`, `access_token_expires_at`; if Zendesk sent a refresh token, `refresh_token` and
            `refresh_token_expires_at`; and, except if a refresh returns none, the granted `scope`. The times are in
            seconds since 1970, or None if unknown.

        Raises:
            InvalidGrant: the code or the refresh token is expired, used or unknown.
            ZendeskError: any other failure. The old tokens may still be valid.
            StoreError: the store is not writable. The refresh was not sent.
        """
        return self._request_tokens(self._account(), form)

    def _request_tokens(
        self, zendesk_url: str, form: Mapping[str, Any], *, to_be_stored: bool = True
    ) -> dict[str, Any]:
        if form['grant_type'] == 'refresh_token':
            if not endpoints.is_token(form['refresh_token']):
                log.info('No usable refresh token is stored: not sending a request')
                raise InvalidGrant(
                    'No usable refresh token is stored: the OAuth client issues none, or the stored token was edited'
                )
            if to_be_stored:
                self.store.check_writable()
        try:
            return endpoints.tokens_from(endpoints.send(zendesk_url, 'POST', '/oauth/tokens', body=form), form)
        except ZendeskError as error:
            if type(error) in (ZendeskError, ZendeskTimeout) and error.retry_after:
                # Zendesk may have issued tokens that did not arrive.
                error.advice += ' If the app then asks for access, grant it again.'
            raise

    def api_request(self, method: str, path: str, *, headers: Mapping[str, str]) -> Response:
        """
        Send one API request and return the response, with any status. Do not refresh the tokens.

        If the access token cannot be sent in a header, return a 401 without a request.

        Raises:
            ValueError: the path leads to another host.
            ZendeskError: Zendesk sent no valid HTTP response.
        """
        access_token = headers['Authorization'].removeprefix('Bearer ')
        path = urls.api_path(path, self._account())
        return endpoints.send_with_token(
            self._account(), access_token, method, path, headers=headers, max_bytes=MAX_API_BYTES
        )

    def _account(self) -> str:
        if self._zendesk_url is None:
            raise ValueError('This method needs a ZendeskOAuth with a subdomain or a zendesk_url')
        return self._zendesk_url

    def revoke_tokens(self, tokens: Mapping[str, Any] | None, *, best_effort: bool = False) -> bool:
        """
        Revoke both tokens of a grant. Return True if Zendesk then rejects the access token.

        With `best_effort`, send one request of at most 3 seconds and return True if Zendesk confirms it. If `tokens`
        is None, return False.
        https://developer.zendesk.com/documentation/api-basics/authentication/revoking-oauth-token
        """
        if tokens is None:
            return False
        zendesk_url = self._account_of(tokens)
        if zendesk_url is None:
            log.warning('The tokens cannot be revoked: their record has no address of a Zendesk account')
            return False
        try:
            if best_effort:
                revoked = self._revoke(zendesk_url, tokens['access_token'], BEST_EFFORT_TIMEOUT) != 401
                if not revoked:
                    log.info(
                        'Zendesk rejects the access token (401), so the refresh token stays valid until it expires'
                    )
                return revoked
            return self._revoke_and_verify(zendesk_url, tokens)
        except ZendeskOAuthError as error:
            log.warning('The tokens could not be revoked and may still be valid. %s', error)
            return False

    def _revoke_and_verify(self, zendesk_url: str, tokens: Mapping[str, Any]) -> bool:
        access_token = tokens['access_token']
        if self._revoke(zendesk_url, access_token) == 401:
            # Only a valid access token can revoke the refresh token, which is valid for longer.
            log.info('The access token has expired: refreshing to revoke the new tokens')
            form = self._refresh_form(tokens)
            # The shortest lifetimes that Zendesk allows, because these tokens are revoked immediately.
            form |= {'expires_in': 300, 'refresh_token_expires_in': 604_800}
            access_token = self._request_tokens(zendesk_url, form, to_be_stored=False)['access_token']
            if self._revoke(zendesk_url, access_token) == 401:
                raise NewTokenRejected('Zendesk rejected the new access token (401) and revoked nothing')
        # Zendesk has been reported to return 204 without revoking.
        log.debug('Checking that Zendesk now rejects the access token')
        status = endpoints.send_with_token(zendesk_url, access_token, 'GET', '/api/v2/users/me').status_code
        if status == 401:
            log.info('Zendesk rejects the access token (401): it is revoked')
            return True
        log.warning(
            'Zendesk confirmed the revocation, but still responds with %s instead of 401 to the access token', status
        )
        return False

    def _revoke(self, zendesk_url: str, access_token: str, timeout: float = CALL_TIMEOUT) -> int:
        """Send one revocation request and return the status: 401 or 2xx."""
        response = endpoints.send_with_token(
            zendesk_url, access_token, 'DELETE', '/api/v2/oauth/tokens/current', timeout=timeout
        )
        if response.status_code != 401 and not response.ok:
            raise ZendeskError(f'Zendesk responded with {response.status_code} to the revocation')
        return response.status_code

    def _form(self, **fields: str) -> dict[str, Any]:
        """Return a token request with these fields, the client's credentials and the lifetimes."""
        return {**fields, 'client_id': self._client_id, 'client_secret': self._client_secret, **self._lifetimes}

    def _refresh_form(self, tokens: Mapping[str, Any]) -> dict[str, Any]:
        """Return a refresh request with the granted scope: a refresh cannot extend it (RFC 6749, section 6)."""
        scope = endpoints.granted_scope(tokens)
        form = self._form(grant_type='refresh_token', refresh_token=tokens.get('refresh_token', ''))
        return {**form, 'scope': scope} if scope else form

    # --- The stored tokens --- #

    @contextlib.contextmanager
    def refresh_lock(self, user_id: str) -> Iterator[Record | None]:
        """
        Hold the lock for refreshing this user's tokens. All threads and processes that use the store share it.

        The context manager yields the current record, read past any cache, or None. It sets `during_refresh` on the
        errors of this package that are raised here or in the `with` block.

        Raises:
            LockTimeout: another refresh of the same tokens held the lock too long.
            StoreError: the store cannot be read.
        """
        began = time.monotonic()
        with _during_refresh(), self.store.refresh_lock(user_id) as stored:
            waited = time.monotonic() - began
            log.debug('Locked the stored tokens after %.1f s', waited, extra={'waited': waited})
            yield stored

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
                error.reauthorize, error.retry_after = True, None
            raise

    def _refresh(self, user_id: str, used: Record, early: bool) -> Record:
        """
        Refresh the tokens, unless the stored access token is no longer the one in `used`. Return the stored record.

        If `early` is true, the access token is still valid, so a rejected refresh token does not end the grant.

        Raises:
            NotConnected: the user has disconnected, or Zendesk rejected the refresh token.
            InvalidGrant: Zendesk rejected the refresh token, and `early` is true.
            ZendeskError, StoreError: the refresh failed. The old tokens stay.
        """
        # Zendesk invalidates both old tokens, so only one of several concurrent requests may refresh.
        # An early refresh does not wait: the access token is still valid.
        with _during_refresh(), self.store.refresh_lock(user_id, 0 if early else None) as current:
            stored = self._found(current)
            if stored['access_token'] != used['access_token']:
                log.info('Another request has changed the stored tokens: not refreshing')
                return stored
            try:
                new = {**stored, **self._request_tokens(stored['zendesk_url'], self._refresh_form(stored))}
            except InvalidGrant:
                if early:
                    raise
                log.info('The refresh token is invalid: deleting the stored tokens')
                new = None
            kept = self.replace_tokens(user_id, stored['refresh_token'], new)
        if kept is None:
            if new is None:
                signals.send(signals.grant_ended, self, user_id)
            raise NotConnected(
                'Zendesk rejected the refresh token, or the tokens were deleted. The user can connect again'
            )
        if kept == new:
            signals.send(signals.tokens_refreshed, self, user_id)
        return self._found(kept)

    def _found(self, record: Record | None) -> Record:
        """Return the record with its account, or raise NotConnected."""
        found = self._with_account(record)
        if found is None:
            raise NotConnected('No tokens are stored for this user. The user can connect')
        return found

    def _with_account(self, record: Record | None) -> Record | None:
        """Return the record with `zendesk_url`, or None if there is no record or its account is unknown."""
        zendesk_url = self._account_of(record or {})
        return None if record is None or zendesk_url is None else {**record, 'zendesk_url': zendesk_url}

    def _account_of(self, record: Mapping[str, Any]) -> str | None:
        """Return the account in the settings or, without one, the stored account if it is an account of Zendesk."""
        stored = record.get('zendesk_url')
        return self._zendesk_url or (stored if urls.is_account_url(stored) else None)


@contextlib.contextmanager
def _during_refresh() -> Iterator[None]:
    """Set `during_refresh` on errors raised in the `with` block."""
    try:
        yield
    except ZendeskOAuthError as error:
        error.during_refresh = True
        raise
