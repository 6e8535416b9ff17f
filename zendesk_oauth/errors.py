"""Every way in which connecting to Zendesk can fail: one text for the user's page, another one for the log."""

from __future__ import annotations

from typing import Any


class ZendeskOAuthError(Exception):
    """
    The base of all errors of this package.

    `title` and `advice` are for the user, and `status` is the HTTP status of the page. If `reauthorize` is true, the
    user can go on by granting access again. `retry_after` is the number of seconds to wait, or None if unknown. The
    exception's text is for the log: it names the cause and the remedy, and repeats no value that came from outside.
    """

    status = 500
    title = 'Something went wrong'
    advice = 'Please try again.'
    reauthorize = False
    retry_after: int | None = None

    def __init__(self, message: str, **page: Any) -> None:
        """`page` replaces attributes of the class, such as `title`."""
        super().__init__(message)
        vars(self).update(page)


# --- The authorization request and Zendesk's response to it --- #


class AuthorizationError(ZendeskOAuthError):
    """The callback does not belong to a pending authorization request of this browser."""

    status = 400
    title = 'This link cannot be used'
    advice = (
        'This link was already used, or was opened in another browser. '
        'If you have already granted access, go to the home page.'
    )
    reauthorize = True


class StateCookieMissing(AuthorizationError):
    """The browser sent no cookie of an authorization request."""

    title = 'This browser did not start the request'


class AuthorizationExpired(AuthorizationError):
    """The authorization request is more than ten minutes old."""

    title = 'That took too long'
    advice = 'A request for access is valid for ten minutes. Please start again.'


class AccessDenied(AuthorizationError):
    """The user did not grant access (RFC 6749, section 4.1.2.1)."""

    status = 403
    title = 'Access was not granted'
    advice = 'The app needs access to show your profile. You can still grant it.'


# --- Zendesk --- #


class ZendeskError(ZendeskOAuthError):
    """Zendesk did not do what was requested, or its response was lost. The stored tokens are unchanged."""

    status = 502
    title = 'Zendesk could not answer'
    advice = 'Please try again in a moment. If the app then asks you for access, grant it once more.'


class InvalidGrant(ZendeskError):
    """The code or the refresh token is used, expired or revoked (RFC 6749, section 5.2): the user must grant again."""

    status = 400
    title = 'The authorization code is no longer valid'
    advice = (
        'The authorization code has expired or was already used. Codes are valid for two minutes, for one use. Please '
        'start again. If this happens every time, REDIRECT_URI does not match any Redirect URL of the OAuth client.'
    )
    reauthorize = True


class ZendeskTimeout(ZendeskError):
    """Zendesk did not respond in time."""

    status = 504
    title = 'Zendesk did not answer in time'


class ZendeskUnavailable(ZendeskError):
    """Zendesk is temporarily unavailable (503)."""

    status = 503
    title = 'Zendesk is busy'


class RateLimited(ZendeskUnavailable):
    """The account has made too many requests (429)."""


class SetupError(ZendeskError):
    """A setting of the app or of its OAuth client is wrong; only the operator can correct it."""


class InsufficientScope(ZendeskError):
    """The access token is valid, but does not allow this request (403; RFC 6750, section 3.1)."""

    status = 403
    title = 'A permission is missing'
    reauthorize = True


class NewTokenRejected(ZendeskError):
    """Zendesk rejected an access token that it had just issued."""

    title = 'Zendesk rejected the new access token'
    advice = 'Please grant access again.'
    reauthorize = True


class AnonymousUser(ZendeskError):
    """Zendesk ignored the access token and returned its anonymous user."""

    title = 'Zendesk does not recognise you'
    advice = (
        'Zendesk ignored the access token. Grant access again. '
        'If this keeps happening, a proxy is removing the Authorization header.'
    )
    reauthorize = True


# What is wrong and what to do about it, by Zendesk's error code (RFC 6749, sections 4.1.2.1 and 5.2).
_OTHER_CLIENT = (
    'The OAuth client does not fit this app',
    'In the Admin Center, check that the kind of the OAuth client is Confidential, and check its Redirect URLs',
)
SETUP_ERRORS = {
    'invalid_client': (
        "Zendesk does not accept the app's client secret",
        'Check ZENDESK_CLIENT_SECRET (copy it again; if it is lost, make a new one in the Admin Center), and check '
        'that ZENDESK_CLIENT_ID is the Identifier of the same OAuth client, which is a text and not a number',
    ),
    'invalid_scope': (
        'The app is not allowed the permission it asks for',
        'In the Admin Center, add the scope {scope} to the OAuth client',
    ),
    'invalid_request': _OTHER_CLIENT,
    'unauthorized_client': _OTHER_CLIENT,
    'unsupported_grant_type': _OTHER_CLIENT,
    'unsupported_response_type': _OTHER_CLIENT,
}
WRONG_ADDRESS = {
    '404': (
        'There is no Zendesk at this address',
        "Check ZENDESK_SUBDOMAIN: it must be the first part of the account's own address, not of a brand's",
    ),
    'a redirect': (
        'Zendesk is at another address',
        "Check ZENDESK_SUBDOMAIN: it must be the account's current subdomain, not a former one, a brand's or an alias",
    ),
}


def setup_error(code: str, scope: str) -> SetupError:
    """Return the error for one of the codes in SETUP_ERRORS, or the responses in WRONG_ADDRESS."""
    title, remedy = (SETUP_ERRORS | WRONG_ADDRESS)[code]
    remedy = remedy.format(scope=scope)
    return SetupError(
        f'Zendesk responded with {code}. {remedy}',
        title=title,
        advice=f'For the operator of the app: {remedy}. Then restart the app.',
    )


# --- The store --- #


class StoreError(ZendeskOAuthError):
    """The store can't be read or written. What it holds is unchanged."""

    status = 503
    title = 'The app cannot reach its stored data'
    advice = (
        'Please try again in a moment. If the app then asks you for access, grant it once more. '
        "The app's log has the cause."
    )


class LockTimeout(StoreError):
    """Another refresh of the same tokens held the lock too long."""

    title = 'The app is busy'
    advice = 'Please try again in a moment. If the app then asks you for access, grant it once more.'
    retry_after = 10
