"""The article's simulated backend: refresh, retrieve and store a user's OAuth tokens."""

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

from flask import session
from loguru import logger

from settings import load_settings
from zendesk_oauth import JsonFileStore, Store, ZendeskOAuth, errors, fingerprints

USERS_DB = 'users.json'

settings = load_settings()
# Not in the article: an optional database, and the object that sends the OAuth requests.
store: Store = JsonFileStore(lambda: USERS_DB)  # reads USERS_DB at each use
if settings.database_url:
    from zendesk_oauth import SqlStore

    store = SqlStore(settings.database_url, encryption_keys=settings.token_encryption_keys)
oauth = ZendeskOAuth(
    zendesk_url=settings.zendesk_url,
    client_id=settings.client_id,
    client_secret=settings.client_secret,
    redirect_uri=settings.redirect_uri,
    scope='users:read',
    store=store,
)


# --- Create a simulated backend for the app --- #
def refresh_tokens(refresh_token: str, access_token: str = '') -> dict[str, Any]:
    """
    Exchange the refresh token for new tokens, store and return them (RFC 6749, section 6).

    Return the stored tokens if they differ, or `{'error': 'invalid_refresh_token'}` if they were deleted or rejected.
    """
    user_id = current_user_id() or ''
    # Not in the article: Zendesk invalidates both old tokens, so only one of several concurrent requests may refresh.
    with oauth.refresh_lock(user_id) as stored:
        if not stored or stored['refresh_token'] != refresh_token or access_token not in ('', stored['access_token']):
            logger.info('Another request has changed the stored tokens: not refreshing')
            return stored or {'error': 'invalid_refresh_token'}

        logger.info('Using the refresh token to get new access and refresh tokens')
        data = {
            'grant_type': 'refresh_token',
            'refresh_token': refresh_token,
            'client_id': settings.client_id,
            'client_secret': settings.client_secret,
            'expires_in': 360,
            'refresh_token_expires_in': 604800,
            'scope': 'users:read',
        }
        try:
            # POST /oauth/tokens. Not in the article: the old refresh token is kept if Zendesk sends no new one.
            new_tokens = {**stored, **oauth.request_tokens(data)}
            logger.info('Packaging, storing, and returning the new tokens')
        except errors.InvalidGrant:
            logger.info('The refresh token is invalid: deleting the stored tokens')
            new_tokens = None
        # Not in the article: compare and swap, because the grant may have been deleted or renewed during the refresh.
        tokens = oauth.replace_tokens(user_id, refresh_token, new_tokens)
    return tokens or {'error': 'invalid_refresh_token'}


def retrieve_oauth_tokens_from_db() -> dict[str, Any]:
    """Return the tokens of the session's user, or `{'error': 'tokens_not_found'}`."""
    user_id = current_user_id()
    tokens = oauth.store.find(user_id) if user_id else None
    if tokens is None:
        return {'error': 'tokens_not_found'}
    logger.debug('{} has {}', oauth.store, fingerprints(tokens))  # fingerprints identify tokens without revealing them
    return tokens


def store_oauth_tokens_in_db(tokens: dict[str, Any]) -> None:
    """Store the tokens under the session's user id and keep all other records. Raise `StoreError` on failure."""
    user_id = current_user_id()
    if user_id is None:
        raise LookupError('The session has no user_id')
    logger.info('Storing the access and refresh tokens in {}', oauth.store)
    oauth.save_tokens(user_id, {'refresh_token': '', **tokens})  # some OAuth clients get no refresh token


# --- Not in the article: the home page's hint, ending a grant, and user ids as a substitute for sign-in --- #
def has_tokens() -> bool:
    """Return whether tokens are stored for the session's user. If the store fails, log the error and return False."""
    try:
        return 'access_token' in retrieve_oauth_tokens_from_db()
    except errors.StoreError as error:
        logger.warning('{}: {}', error.title, error)
        return False


def delete_oauth_tokens_from_db() -> dict[str, Any] | None:
    """Delete the tokens of the session's user and return them."""
    user_id = current_user_id()
    if user_id is None or oauth.store.find(user_id) is None:
        return None
    with contextlib.suppress(errors.LockTimeout), oauth.store.refresh_lock(user_id):
        pass  # wait for a running refresh, so that its new tokens are deleted
    return oauth.store.remove(user_id)


def current_user_id() -> str | None:
    """Return the id of the signed-in user, or None. In a product, return the id of the account."""
    user_id = session.get('user_id')
    return user_id if isinstance(user_id, str) and user_id else None


@contextlib.contextmanager
def new_user_id() -> Iterator[None]:
    """Switch to a new user id. On success, delete and revoke the old id's tokens; on failure, restore the old id."""
    old_user_id, before, modified = current_user_id(), dict(session), session.modified
    session['user_id'] = f'user-{secrets.token_hex(16)}'
    try:
        yield
    except BaseException:
        session.update(before, user_id=before.get('user_id'))
        session.modified = modified
        raise
    if old_user_id and old_user_id != current_user_id():
        with contextlib.suppress(errors.StoreError):  # the new tokens are already stored
            oauth.revoke_tokens(oauth.store.remove(old_user_id), best_effort=True)
