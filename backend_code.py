"""
The backend of the tutorial: three services that need no page, and nobody to click on it.

`refresh_tokens` trades a refresh token for new tokens, `retrieve_oauth_tokens_from_db` and `store_oauth_tokens_in_db`
read and write the tokens of whoever is signed in. Below them stand the seams, where a product puts its own: the
database in `users_db`; the sign-in in `current_user_id`, `new_user_id` and `fresh_user_id`.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

from flask import session
from loguru import logger

from settings import current_settings
from zendesk_oauth import endpoints as zendesk
from zendesk_oauth.errors import Problem
from zendesk_oauth.fingerprints import fingerprints
from zendesk_oauth.stores import UsersDb
from zendesk_oauth.token_store import Store, StoreBusy, StoreError

USERS_DB = 'users.json'


def refresh_tokens(refresh_token: str) -> dict[str, Any]:
    """
    Trade a refresh token for a new pair, store it, and return it.

    Zendesk deletes both old tokens as it issues the new ones
    (https://developer.zendesk.com/api-reference/ticketing/oauth/grant_type_tokens/), so two refreshes at once, or a
    new pair that can't be stored, would cost the user the grant. Therefore: lock, look again, try the disk, and only
    then refresh.

    Returns:
        The stored pair (`access_token`, `refresh_token`), or `{'error': 'invalid_refresh_token'}` when the user has
        to grant access again.

    Raises:
        zendesk.ZendeskError, token_store.StoreError: the store is as it was.
    """
    user_id, db = current_user_id(), users_db()
    if user_id is None:
        return {'error': 'invalid_refresh_token'}

    with db.refreshing(user_id):
        stored = db.find(user_id)
        if stored is None:
            logger.info('The tokens were removed meanwhile: not refreshing them')
            return {'error': 'invalid_refresh_token'}
        if stored['refresh_token'] != refresh_token:
            logger.info('Another request has refreshed the tokens meanwhile: using those')
            return stored

        db.rehearse()
        logger.info('Trading the refresh token for a new pair of tokens')
        new_tokens: dict[str, Any] | None
        try:
            new_tokens = {**stored, **zendesk.refresh(refresh_token)}
            logger.info('Storing the new pair: {}', fingerprints(new_tokens))
        except zendesk.InvalidGrant as refusal:
            new_tokens = None
            logger.info('Zendesk refuses the refresh token: dropping the pair ({})', refusal)
        # Whatever was stored while Zendesk was busy wins: a grant removed or made anew is not overwritten.
        kept = db.replace(user_id, refresh_token, new_tokens)

    if new_tokens is not None and kept != new_tokens:
        logger.info('The grant was ended or made anew meanwhile: revoking the new pair')
        with contextlib.suppress(Problem):
            zendesk.revoke(new_tokens['access_token'])
    return kept or {'error': 'invalid_refresh_token'}


def retrieve_oauth_tokens_from_db() -> dict[str, Any]:
    """Return the tokens of the session's user, or `{'error': 'tokens_not_found'}`."""
    user_id, db = current_user_id(), users_db()
    tokens = db.find(user_id) if user_id else None
    if tokens is None:
        return {'error': 'tokens_not_found'}
    logger.debug('{} holds {}', db, fingerprints(tokens))
    return tokens


def store_oauth_tokens_in_db(tokens: dict[str, Any]) -> None:
    """
    Store the tokens under the session's user id; every other user's stay as they are.

    `tokens` has an `access_token`. Without a `refresh_token` the record gets an empty one, which no refresh accepts.

    Raises:
        LookupError: nobody is signed in.
        token_store.StoreError: nothing was changed.
    """
    user_id, db = current_user_id(), users_db()
    if user_id is None:
        raise LookupError('store_oauth_tokens_in_db was called without a user_id in the session')
    logger.info('Writing the tokens to {}: {}', db, fingerprints(tokens))
    db.save(user_id, {'refresh_token': '', **tokens})


def revoke_tokens() -> dict[str, Any]:
    """
    Take the user's tokens out of the database, and have Zendesk revoke them.

    Returns:
        `{}` if Zendesk accepts neither of them any more; `{'error': 'not_confirmed'}` if that is not certain;
        `{'error': 'tokens_not_found'}` if there were none.

    Raises:
        token_store.StoreError: nothing was done.
    """
    user_id, db = current_user_id(), users_db()
    if user_id is None:
        return {'error': 'tokens_not_found'}

    undisturbed = True
    with contextlib.ExitStack() as until_removed:
        try:
            # A refresh that is under way comes to its end first, and these are its new tokens.
            until_removed.enter_context(db.refreshing(user_id))
        except StoreBusy as problem:
            logger.warning('A refresh is under way, and may still bring new tokens: {}', problem)
            undisturbed = False
        tokens = db.remove(user_id)
    if tokens is None:
        return {'error': 'tokens_not_found'}
    logger.info('Deleted from {}: {}', db, fingerprints(tokens))
    try:
        revoked = _revoke(tokens)
    except Problem as problem:
        logger.warning('It is not certain that the tokens are revoked: {}', problem)
        revoked = False
    return {} if revoked and undisturbed else {'error': 'not_confirmed'}


def _revoke(tokens: dict[str, Any]) -> bool:
    """Have Zendesk revoke both tokens, and find out whether it has."""
    logger.info('Asking Zendesk to revoke the tokens')
    if 'error' in zendesk.revoke(tokens['access_token']):
        # It has expired; but its refresh token lives for days, and only a living access token can revoke that.
        logger.info('401, the access token has expired: refreshing the tokens, to revoke the new ones')
        try:
            tokens = {**tokens, **zendesk.refresh(tokens['refresh_token'])}
        except zendesk.InvalidGrant:
            logger.warning(
                'Zendesk accepts neither token: they may be dead, or there may be others that nobody here has'
            )
            return False
        zendesk.revoke(tokens['access_token'])

    # Zendesk has been seen to say yes and do nothing.
    logger.info('Checking that neither token opens anything any more')
    if 'error' not in zendesk.show_self(tokens['access_token']):
        logger.warning('Zendesk says that it has revoked the tokens, but the access token still works')
        return False
    try:
        tokens = zendesk.refresh(tokens['refresh_token'])
    except zendesk.InvalidGrant:
        logger.info('Zendesk accepts neither: the tokens are revoked')
        return True
    logger.warning('Zendesk says that it has revoked the tokens, but the refresh token still worked')
    zendesk.revoke(tokens['access_token'])
    return False


# --- The seams --- #


def users_db() -> Store:
    """Return the store: users.json or, with DATABASE_URL set, PostgreSQL. A product can return one of its own."""
    database_url = current_settings().database_url
    if database_url:
        from zendesk_oauth.postgresql_store import PostgresqlDb  # which needs requirements-postgresql.txt

        return PostgresqlDb(database_url)
    return UsersDb(USERS_DB)


def current_user_id() -> str | None:
    """
    Return the id of the user who is signed in, or None.

    Here that is a random id that the home page gives to each browser; a product returns the id of the account that
    the visitor has signed in to.
    """
    user_id = session.get('user_id')
    return user_id if isinstance(user_id, str) and user_id else None


def new_user_id() -> str:
    """Return an id that nobody can guess (128 random bits)."""
    return f'user-{secrets.token_hex(16)}'


@contextlib.contextmanager
def fresh_user_id() -> Iterator[None]:
    """
    Give the session a new user id, and remove the old id's record once the block has succeeded.

    Somebody may have planted the old session in this browser and be waiting for tokens to appear under its id
    (session fixation). If the block fails, the old id stays. Where `current_user_id` is the id of an account, which
    nobody can plant, this changes nothing and can go.
    """
    in_session, modified, old_user_id = session.get('user_id'), session.modified, current_user_id()
    session['user_id'] = new_user_id()
    try:
        yield
    except BaseException:
        session['user_id'] = in_session
        session.modified = modified  # no cookie goes out that could overwrite one set meanwhile
        raise
    if old_user_id and old_user_id != current_user_id():
        try:
            users_db().remove(old_user_id)
        except StoreError as problem:
            logger.warning('The new grant is stored, but the old one could not be removed: {}', problem)
