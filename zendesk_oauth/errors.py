"""All errors of the package. Each has a title and advice for the user's page, and a message for the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zendesk_oauth.endpoints import Response


class ZendeskOAuthError(Exception):
    """
    The base class of all errors of this package.

    `title` and `advice` are for the user, and `status` is the HTTP status of the page. If `reauthorize` is true, the
    user must grant access again to continue. `during_refresh` is true if the error occurred during a refresh: if it
    keeps happening, the user can grant access again. `retry_after` is the number of seconds to wait, or None if trying
    again does not help. `next_url` is the path that the product passed to the authorization request, if it is known.
    The message is for the log: it names the cause and the remedy, and contains no value from a request or a response.
    Errors can be pickled.
    """

    status = 500
    title = 'Something went wrong'
    advice = 'Try again.'
    reauthorize = False
    during_refresh = False
    retry_after: int | None = None
    next_url: str | None = None

    def __init__(self, message: str, **page: Any) -> None:
        """Create the error. The keywords in `page` override attributes of the class, such as `title`."""
        super().__init__(message)
        vars(self).update(page)


class NotConnected(ZendeskOAuthError):
    """The user has no grant: they have not connected, have disconnected, or Zendesk rejected the refresh token."""

    status = 403
    title = 'Your Zendesk account is not connected'
    advice = 'Connect it to continue.'
    reauthorize = True


# --- The authorization request and Zendesk's response to it --- #


class AuthorizationError(ZendeskOAuthError):
    """The authorization request cannot be started or completed."""

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
    advice = 'You have ten minutes to allow access. Start again.'


class AccessDenied(AuthorizationError):
    """The user did not grant access (RFC 6749, section 4.1.2.1)."""

    status = 403
    title = 'Access was not granted'
    advice = 'You can still grant it.'


# --- Zendesk --- #


class ZendeskError(ZendeskOAuthError):
    """Zendesk rejected the request or did not send a valid response."""

    status = 502
    title = 'The request to Zendesk failed'
    advice = 'Try again in a moment.'
    retry_after: int | None = 10


class ResponseError(ZendeskError):
    """Zendesk responded with a status other than 2xx, or with an unexpected body. `response` is a Response."""

    title = 'Zendesk rejected the request'
    advice = 'If this keeps happening, contact the operator of the app.'
    retry_after = None
    response: Response


class InvalidGrant(ZendeskError):
    """
    Zendesk rejected the authorization code or the refresh token: it is expired, used or unknown.

    The user must grant access again (RFC 6749, section 5.2).
    """

    status = 400
    title = 'Zendesk rejected the authorization code'
    advice = (
        'A code can be used once, within two minutes, and only for the request to which it belongs. Start again. If '
        'this happens every time, check that the redirect URI of the app matches one of the redirect URLs of the OAuth '
        'client exactly.'
    )
    reauthorize = True
    retry_after = None


class ZendeskTimeout(ZendeskError):
    """Zendesk did not respond in time."""

    status = 504
    title = 'Zendesk did not respond in time'


class ZendeskUnavailable(ZendeskError):
    """Zendesk is temporarily unavailable (503)."""

    status = 503
    title = 'Zendesk is temporarily unavailable'


class RateLimited(ZendeskUnavailable):
    """The account has made too many requests (429)."""

    title = 'Too many requests to Zendesk'


class SetupError(ZendeskError):
    """A setting of the app or of its OAuth client is wrong. Only the operator of the app can correct it."""

    retry_after = None


class InsufficientScope(ZendeskError):
    """The grant lacks the scope of this request (403; RFC 6750, section 3.1)."""

    status = 403
    title = 'A permission is missing'
    advice = (
        'You have not granted a permission that the app needs. Grant access again. If this keeps happening, contact '
        'the operator of the app.'
    )
    reauthorize = True
    retry_after = None


class NewTokenRejected(ZendeskError):
    """Zendesk rejected an access token that it had just issued."""

    title = 'Zendesk rejected the new access token'
    advice = 'Grant access again.'
    reauthorize = True
    retry_after = None


class AnonymousUser(ZendeskError):
    """Zendesk ignored the access token and returned its anonymous user."""

    title = 'Zendesk ignored the access token'
    advice = 'Grant access again. If this keeps happening, a proxy may be removing the Authorization header.'
    reauthorize = True
    retry_after = None


# What is wrong and what to do about it, by Zendesk's error code (RFC 6749, sections 4.1.2.1 and 5.2).
_OTHER_CLIENT = (
    'The OAuth client is not set up for this app',
    "In Admin Center, check that the client kind is Confidential, and that one of the redirect URLs is the app's "
    'redirect URI',
)
SETUP_ERRORS = {
    'invalid_client': (
        'Zendesk rejected the client ID or the client secret',
        'Check that the client ID is the Identifier of the OAuth client (a name such as my_oauth_app, not a number), '
        'and that the client secret is its Secret. If the secret is lost, generate a new one in Admin Center',
    ),
    'invalid_scope': (
        'The OAuth client does not allow this scope',
        'In Admin Center, add the scope {scope} to the OAuth client',
    ),
    'invalid_request': _OTHER_CLIENT,
    'unauthorized_client': _OTHER_CLIENT,
    'unsupported_grant_type': _OTHER_CLIENT,
    'unsupported_response_type': _OTHER_CLIENT,
}
WRONG_ADDRESS = {
    '404': (
        'There is no Zendesk account at this address',
        'Check the subdomain: use the subdomain of the account, not of a brand',
    ),
    'a redirect': (
        'Zendesk redirects to another address',
        'Check the subdomain: use the current subdomain of the account, not a former one, a brand or an alias. Check '
        'also that no proxy of the network requires a login',
    ),
}


def setup_error(code: str, scope: str) -> SetupError:
    """Return the error for one of the codes in SETUP_ERRORS or one of the responses in WRONG_ADDRESS."""
    title, remedy = (SETUP_ERRORS | WRONG_ADDRESS)[code]
    remedy = remedy.format(scope=scope)
    return SetupError(
        f'Zendesk responded with {code}. {remedy}',
        title=title,
        advice=f'The operator of the app can fix this. {remedy}. If you change a setting of the app, restart it.',
    )


# --- The store --- #


class StoreError(ZendeskOAuthError):
    """The store cannot be read or written."""

    status = 503
    title = 'The app cannot access its stored data'
    advice = "Try again in a moment. The app's log has the cause."
    retry_after: int | None = 10


class LockTimeout(StoreError):
    """Another request held the lock too long."""

    title = 'The app is busy'
    advice = 'Wait a few seconds, then try again.'
