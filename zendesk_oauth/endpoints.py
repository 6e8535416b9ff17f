"""Everything the app says to Zendesk over HTTP, and the few ways in which that can fail."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any

from loguru import logger

from settings import current_settings
from zendesk_oauth import transport as http_client
from zendesk_oauth.errors import Problem
from zendesk_oauth.fingerprints import fingerprints

SCOPE = 'users:read'
ACCESS_TOKEN_LIFETIME = 360  # seconds; Zendesk takes 300 to 172,800
REFRESH_TOKEN_LIFETIME = 604800  # seconds; Zendesk takes 604,800 to 7,776,000

MAX_RETRY_AFTER = 300  # seconds

TOKEN = re.compile('[!-~]{1,4096}')  # visible ASCII: it will stand in a header (RFC 6749, A.12; RFC 6750, 2.1)


class ZendeskError(Problem):
    """Zendesk did not do what was asked, or its answer was lost; what is stored stays as it is."""

    status = 502
    title = 'Zendesk could not answer'
    advice = 'Please try again in a moment. If the app asks you for access then, grant it once more.'


class InvalidGrant(ZendeskError):
    """The code or the refresh token is spent, expired or revoked (RFC 6749, section 5.2): the user must grant again."""

    status = 400
    title = 'That took too long, or was used before'
    advice = (
        'Zendesk no longer accepts this answer: it is good for two minutes, and for one use. Please start again. '
        'If this happens every time, the REDIRECT_URI of the app is not one of its Redirect URLs at Zendesk.'
    )
    way_on = ('/grant_access', 'Start again')


class TooSlow(ZendeskError):
    """No answer in time."""

    status = 504
    title = 'Zendesk did not answer in time'


class Busy(ZendeskError):
    """Zendesk limits the rate of requests (429) or is down for a while (503)."""

    status = 503
    title = 'Zendesk is busy'

    def __init__(self, cause: str, retry_after: int) -> None:
        super().__init__(cause)
        self.retry_after = retry_after
        self.advice = f'Please try again, in {retry_after} s at the earliest.'


class SetupError(ZendeskError):
    """A setting of the app, or of its OAuth client, is wrong: `what` and `remedy` tell visitor and developer alike."""

    def __init__(self, answer: str, what: str, remedy: str) -> None:
        super().__init__(f'Zendesk answered {answer}. {remedy}')
        self.title = what
        self.advice = f'For whoever runs the app: {remedy}. Then start the app again.'


class PermissionMissing(ZendeskError):
    """The token is valid, but does not allow this request (403). A refresh would not change that."""

    status = 403
    title = 'A permission is missing'
    advice = (
        'Zendesk does not let this app read your profile with the access you granted: the access lacks the permission '
        f'{SCOPE}, or your Zendesk user has been demoted or suspended.'
    )
    way_on = ('/grant_access', 'Grant access again')


class AccessTokenRefused(ZendeskError):
    """Zendesk refuses an access token that was issued a moment ago."""

    title = 'Zendesk refuses the new access token'
    advice = 'Please try again, or grant access again.'
    way_on = ('/grant_access', 'Grant access again')


class NotSignedIn(ZendeskError):
    """Zendesk answered as to somebody who is not signed in."""

    title = 'Zendesk does not recognise you'
    advice = (
        'Zendesk answered as to an anonymous visitor. Please grant access again. If this happens every time, something '
        'between the app and Zendesk takes the access token away.'
    )
    way_on = ('/grant_access', 'Grant access again')


def exchange_code(code: str, code_verifier: str) -> dict[str, Any]:
    """
    Trade an authorization code for an access and a refresh token (RFC 6749, section 4.1.3; RFC 7636, section 4.5).

    Returns:
        `access_token`; and, where Zendesk sent one, `refresh_token` with its `refresh_token_expires_at` (seconds since
        1970, None if Zendesk does not tell).

    Raises:
        InvalidGrant: the code is spent, older than 120 seconds, or does not belong to this request.
        ZendeskError: anything else; the code may be spent.
    """
    return _request_tokens(
        grant_type='authorization_code',
        redirect_uri=current_settings().redirect_uri,
        code=code,
        code_verifier=code_verifier,
    )


def refresh(refresh_token: str) -> dict[str, Any]:
    """
    Trade a refresh token for a new pair (RFC 6749, section 6). Zendesk deletes both old tokens as it does so.

    Returns:
        The same as exchange_code.

    Raises:
        InvalidGrant: the refresh token is spent, expired or revoked.
        ZendeskError: anything else; the old pair may be alive.
    """
    if not TOKEN.fullmatch(refresh_token):
        raise InvalidGrant('There is no refresh token: the OAuth client issues none, or somebody has edited it')
    return _request_tokens(grant_type='refresh_token', refresh_token=refresh_token)


def show_self(access_token: str) -> dict[str, str]:
    """
    Return the `name` and the `role` of the user who granted access, or `{'error': 'invalid_token'}`.

    Zendesk's page: https://developer.zendesk.com/api-reference/ticketing/users/users/#show-self

    Raises:
        PermissionMissing: the token lacks the scope.
        ZendeskError: anything else.
    """
    if not TOKEN.fullmatch(access_token):  # edited by hand: it cannot even stand in a header
        return {'error': 'invalid_token'}
    status, data = _call('GET', '/api/v2/users/me', access_token=access_token)
    if status == 401:
        return {'error': 'invalid_token'}
    if status == 403:
        raise PermissionMissing(
            f"Zendesk answered 403: allow the scope {SCOPE} to the OAuth client, and see to the user's role"
        )
    if status != 200:
        raise _unexpected(status)

    user = data.get('user')
    if not isinstance(user, dict):
        raise ZendeskError('Zendesk answered 200 without a user')
    # Without credentials that it accepts, Zendesk answers 200 with an "Anonymous user" who has no id.
    if type(user.get('id')) is not int:
        raise NotSignedIn(
            'Zendesk answered 200 with an anonymous user: it took no notice of the access token. Check that no proxy '
            'removes the Authorization header, and that the address in the settings is that of the API'
        )
    name, role = user.get('name'), user.get('role')
    if not isinstance(name, str) or not isinstance(role, str):
        raise ZendeskError('Zendesk answered 200 with a user whose name or role is not a text')
    return {'name': _printable(name), 'role': _printable(role)}


def revoke(access_token: str) -> dict[str, str]:
    """
    Have Zendesk delete the access token and its refresh token; return `{}`, or `{'error': 'invalid_token'}`.

    The error means that this access token is dead already; its refresh token may be alive. Zendesk's page:
    https://developer.zendesk.com/documentation/api-basics/authentication/revoking-oauth-token

    Raises:
        ZendeskError: the tokens may be alive.
    """
    if not TOKEN.fullmatch(access_token):
        return {'error': 'invalid_token'}
    status, _ = _call('DELETE', '/api/v2/oauth/tokens/current', access_token=access_token)
    if status == 401:
        return {'error': 'invalid_token'}
    if not 200 <= status < 300:
        raise ZendeskError(f'Zendesk answered {status} when asked to revoke the tokens')
    return {}


def setup_error(error: str) -> SetupError | None:
    """Return what an error code means that blames the settings (RFC 6749, 4.1.2.1 and 5.2), or None for another one."""
    if error == 'invalid_client' and current_settings().client_id_is_a_number:
        return SetupError(error, *CLIENT_ID_IS_A_NUMBER)
    return SetupError(error, *SETUP_ERRORS[error]) if error in SETUP_ERRORS else None


def _request_tokens(**grant: str) -> dict[str, Any]:
    """Ask the token endpoint, and check each field of its answer before anybody uses it."""
    settings = current_settings()
    form = {
        **grant,
        'client_id': settings.client_id,
        'client_secret': settings.client_secret,
        'scope': SCOPE,
        # Zendesk keeps neither lifetime from one request to the next, and takes its defaults where they are missing.
        'expires_in': ACCESS_TOKEN_LIFETIME,
        'refresh_token_expires_in': REFRESH_TOKEN_LIFETIME,
    }
    status, data = _call('POST', '/oauth/tokens', form=form)
    error = data.get('error') if 400 <= status < 500 else None
    if error == 'invalid_grant':
        raise InvalidGrant(INVALID_GRANT[grant['grant_type']])
    refusal = setup_error(str(error))
    if refusal:
        raise refusal
    if not 200 <= status < 300:
        raise _unexpected(status)

    tokens: dict[str, Any] = {'access_token': _token(data, 'access_token')}
    if 'refresh_token' in data:  # an old client without expiration gets none
        tokens['refresh_token'] = _token(data, 'refresh_token')
        tokens['refresh_token_expires_at'] = _expiry(data.get('refresh_token_expires_in'))
    if str(data.get('token_type', 'bearer')).lower() != 'bearer':
        raise ZendeskError('Zendesk issued a token of a type other than bearer')
    if data.get('scope', SCOPE) != SCOPE:
        logger.warning('Zendesk granted another scope than {}: check the scopes allowed to the OAuth client', SCOPE)
    return tokens


# What the page says, and the remedy, on the page and in the log.
CLIENT_ID_IS_A_NUMBER = (
    "The app's client id is a number",
    'Set ZENDESK_CLIENT_ID to the Identifier of the OAuth client, which is a text such as my_oauth_app',
)
_OTHER_CLIENT = (
    'The OAuth client does not fit this app',
    'In the Admin Center, check that the kind of the OAuth client is Confidential, and its Redirect URLs',
)
SETUP_ERRORS = {
    'invalid_client': (
        "Zendesk does not accept the app's client secret",
        'Check ZENDESK_CLIENT_SECRET (copy it again, whole; if it is lost, make a new one in the Admin Center), and '
        'that ZENDESK_CLIENT_ID is the Identifier of the same OAuth client',
    ),
    'invalid_scope': (
        'The app is not allowed the permission it asks for',
        f'In the Admin Center, allow the scope {SCOPE} to the OAuth client',
    ),
    'invalid_request': _OTHER_CLIENT,
    'unauthorized_client': _OTHER_CLIENT,
    'unsupported_grant_type': _OTHER_CLIENT,
    'unsupported_response_type': _OTHER_CLIENT,
}
INVALID_GRANT = {
    'authorization_code': 'Zendesk answered invalid_grant: the code is older than 120 seconds or was used before, or '
    "REDIRECT_URI is not, to the letter, one of the OAuth client's Redirect URLs",
    'refresh_token': 'Zendesk answered invalid_grant: the refresh token is spent, expired or revoked',
}


def _token(data: dict[str, Any], name: str) -> str:
    token = data.get(name)
    if not isinstance(token, str) or not TOKEN.fullmatch(token):
        raise ZendeskError(f'Zendesk answered without a usable {name}')
    return token


def _expiry(lifetime: Any) -> int | None:
    """Return the time after so many seconds. Nonsense counts as nothing: the tokens beside it are good all the same."""
    return int(time.time()) + lifetime if type(lifetime) is int and 0 < lifetime < 10**9 else None


def _call(
    method: str, path: str, access_token: str = '', form: dict[str, Any] | None = None
) -> tuple[int, dict[str, Any]]:
    """
    Send one request and return the status and the JSON object of the answer, `{}` where it is something else.

    This is the one place from which the app reaches Zendesk, within the limits of http_client.

    Raises:
        TooSlow, Busy: for the time being.
        ZendeskError: no answer, or Zendesk failing (5xx).
    """
    logger.debug('{} {} with {}', method, path, fingerprints({**(form or {}), 'access_token': access_token}))
    headers = {'Authorization': f'Bearer {access_token}'} if access_token else {}
    try:
        answer = http_client.send(method, current_settings().zendesk_url + path, headers=headers, data=form)
    except TimeoutError as error:
        raise TooSlow(f'{error}. Nothing to do but wait') from error
    except ConnectionError as error:
        raise ZendeskError(str(error)) from error

    status = answer.status
    try:
        data = json.loads(answer.body)
    except (ValueError, RecursionError):  # HTML, nothing at all, or brackets without end
        data = None
    data = data if isinstance(data, dict) else {}
    issued = fingerprints(data)
    logger.debug('Zendesk answers {}{}', status, f' with {issued}' if issued else '')
    if status in (429, 503):
        cause = 'too many requests' if status == 429 else 'maintenance, or too much to do'
        raise Busy(f'Zendesk answered {status}, {cause}. Nothing to do but wait', _retry_after(answer.headers))
    if status >= 500:
        raise ZendeskError(f'Zendesk answered {status}. Nothing to do but wait')
    return status, data


def _retry_after(headers: Mapping[str, str]) -> int:
    """Return the seconds to wait, within bounds, whatever Zendesk's header says."""
    header = headers.get('Retry-After', '')
    seconds = int(header) if re.fullmatch('[0-9]{1,9}', header) else 30
    return min(max(seconds, 1), MAX_RETRY_AFTER)


def _unexpected(status: int) -> ZendeskError:
    if status == 404:
        return SetupError(
            '404, no help desk at this address',
            'There is no Zendesk at this address',
            "Check ZENDESK_SUBDOMAIN: the first part of the account's own address, not of a brand's",
        )
    if 300 <= status < 400:
        return SetupError(
            f'{status}, a redirect',
            'Zendesk is at another address',
            "Check ZENDESK_SUBDOMAIN: the account's present name, not a former one, a brand's or an alias",
        )
    return ZendeskError(f'Zendesk answered {status}, which is not part of its documented answers')


def _printable(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON can hold and UTF-8 cannot."""
    return text.encode('utf-8', 'replace').decode('utf-8')
