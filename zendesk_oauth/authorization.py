"""
Authorization requests: each one belongs to the browser that made it, works once, and lasts ten minutes.

A request is its `state`, 256 random bits that go to Zendesk and come back with the answer. The browser that started
it keeps a signed cookie of its own for each request: so two tabs do not disturb each other, and no answer to one tab
overwrites what another has set. The cookie holds a hash of the state; the PKCE code verifier is computed from the
state and the app's secret key. So neither can be read out of the cookie, and nothing is stored for a visitor who never
comes back.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets

from flask import Response, after_this_request, current_app, request
from itsdangerous import BadSignature, SignatureExpired, TimestampSigner
from loguru import logger
from werkzeug.datastructures import MultiDict

import backend_code
from settings import current_settings
from zendesk_oauth import endpoints as zendesk
from zendesk_oauth.errors import Problem
from zendesk_oauth.fingerprints import fingerprint

LIFETIME = 600  # seconds
COOKIE_LIFETIME = 3600  # seconds; longer, so that a late answer can be told from a foreign one
MAX_PENDING = 8  # requests of one browser; the oldest go first
COOKIE_PREFIX = 'zendesk_oauth_request_'


class AnswerRefused(Problem):
    """The answer does not belong to a request that this browser has open."""

    status = 400
    title = 'This answer cannot be used'
    advice = 'It was used before, or it belongs to another browser. If you have granted access already, all is well.'
    way_on = ('/grant_access', 'Start again')


class NoCookies(AnswerRefused):
    """This browser has no cookie of the app's at all."""

    title = 'This browser is not the one that asked'

    def __init__(self, origin: str) -> None:
        super().__init__(
            'the browser sent none of the cookies that bind the request to it: the visit started in another browser, '
            f'or under another name than {origin} (to browsers, localhost and 127.0.0.1 are two hosts), or long ago; '
            f'or cookies are blocked. Start at {origin}, with cookies allowed'
        )
        self.advice = (
            f'Please start at {origin}, under exactly this name, with cookies allowed, and finish in the same browser.'
        )
        self.way_on = (origin, 'Start again')


class TookTooLong(AnswerRefused):
    """The request is older than ten minutes."""

    title = 'That took too long'
    advice = 'A request for access is good for ten minutes. Please start again.'


class AccessNotGranted(Problem):
    """Zendesk reports an error in place of a code (RFC 6749, section 4.1.2.1)."""

    way_on = ('/grant_access', 'Try again')

    def __init__(self, cause: str, status: int, title: str, advice: str) -> None:
        super().__init__(cause)
        self.status, self.title, self.advice = status, title, advice


def begin() -> tuple[str, str]:
    """
    Open an authorization request for this browser and return its `state` and its PKCE code verifier.

    The cookie that binds the request to the browser goes out with the response.
    """
    state = secrets.token_urlsafe(32)
    digest = _digest(state)
    pending = _oldest_first()

    @after_this_request
    def remember(response: Response) -> Response:
        for name in pending[: max(0, len(pending) + 1 - MAX_PENDING)]:
            _forget(response, name)
        value = _signer().sign(digest).decode()
        response.set_cookie(
            _cookie_name(digest), value, max_age=COOKIE_LIFETIME, **current_settings().cookie_attributes
        )
        return response

    logger.debug('The state of the request is {}', fingerprint(state))
    return state, _code_verifier(state)


def unanswered() -> bool:
    """Tell whether this browser was sent to Zendesk before, and has not come back with an answer."""
    if not _oldest_first():
        return False
    logger.info(
        'The visitor was sent to Zendesk before, and has not come back. If Zendesk showed an error, check '
        'ZENDESK_CLIENT_ID ("No such client": it is the Identifier, a text and not a number), REDIRECT_URI '
        '("invalid_request": it is one of the Redirect URLs, to the letter) and ZENDESK_SUBDOMAIN ("no help desk": it '
        "is the account's own, not a brand's)"
    )
    return True


def code_challenge(code_verifier: str) -> str:
    """Return the challenge for a verifier by the method S256 (RFC 7636, section 4.2)."""
    return _base64url(hashlib.sha256(code_verifier.encode()).digest())


def redeem(answer: MultiDict[str, str]) -> str:
    """
    Check that the answer's `state` is that of a request open in this browser, close the request, and return its code
    verifier.

    Nothing else in the answer means anything before this (RFC 9700, sections 2.1 and 4.7).

    Raises:
        NoCookies: the browser sent none of the app's cookies.
        AnswerRefused: the state is missing, malformed, foreign or used; the browser's other requests stay open.
        TookTooLong: the request is more than LIFETIME seconds old.
    """
    state = _only(answer, 'state')
    digest = _digest(state)
    name = _cookie_name(digest)
    try:
        known = _signer().unsign(request.cookies.get(name, ''), max_age=LIFETIME).decode() == digest
    except SignatureExpired as error:
        _close(name)
        raise TookTooLong('the authorization request is too old. The visitor can start again') from error
    except BadSignature:
        known = False
    if not known and backend_code.current_user_id() is None and not _oldest_first():
        raise NoCookies(current_settings().origin)
    if not known:
        raise AnswerRefused(
            'the state is not that of a request open in this browser: the page was opened twice, or the answer belongs '
            'to another browser. Nothing to do'
        )
    _close(name)
    # The cookie goes with the answer; what arrives at the same moment, at any of the app's processes, is stopped here.
    if not backend_code.users_db().first_use(digest, LIFETIME + 60):
        raise AnswerRefused('the state was used a moment ago: the page was opened twice. Nothing to do')
    logger.info('Back from Zendesk with the state {}, that of a request of this browser', fingerprint(state))
    return _code_verifier(state)


def granted_code(answer: MultiDict[str, str]) -> str:
    """
    Return the authorization code of an answer whose state has been redeemed.

    Raises:
        AccessNotGranted, zendesk.SetupError: Zendesk sent an error instead (RFC 6749, section 4.1.2.1).
        AnswerRefused: another server's answer (RFC 9207), or no code that could be one.
    """
    if 'iss' in answer and _only(answer, 'iss') != current_settings().zendesk_url:
        raise AnswerRefused('the answer names another issuer than ours: it may come from another server')
    if 'error' in answer:
        error = answer['error']
        blame = zendesk.setup_error(error) if error in BLAMES_THE_SETTINGS else None
        raise blame or AccessNotGranted(*ERRORS.get(error, UNKNOWN_ERROR))
    code = _only(answer, 'code')
    if len(code) > 1024:
        raise AnswerRefused('the code is longer than any that Zendesk sends')
    return code


# What an authorization server may send (RFC 6749, section 4.1.2.1): errors that blame the settings; and the others,
# with the cause for the log, then status, title and advice of the page.
BLAMES_THE_SETTINGS = ('invalid_request', 'unauthorized_client', 'unsupported_response_type', 'invalid_scope')
ERRORS = {
    'access_denied': (
        'The visitor did not grant access',
        403,
        'Access was not granted',
        'You can still grant it: the app cannot show your profile without it.',
    ),
    'temporarily_unavailable': (
        'Zendesk is temporarily unavailable. Nothing to do but wait',
        503,
        'Zendesk is busy',
        'Please try again in a moment.',
    ),
    'server_error': (
        'Zendesk had an error of its own. Nothing to do but wait',
        502,
        'Zendesk could not answer',
        'Please try again in a moment.',
    ),
}
UNKNOWN_ERROR = (
    'Zendesk reported an error with a code that is not in RFC 6749',
    400,
    'Access was not granted',
    'Zendesk reported an error. Please try again.',
)


def _only(answer: MultiDict[str, str], name: str) -> str:
    """Return the parameter that must be there exactly once, in visible ASCII."""
    values = answer.getlist(name)
    if len(values) != 1 or not re.fullmatch(r'[!-~]+', values[0]):
        raise AnswerRefused(f'the parameter {name} is missing, malformed or repeated: this is no answer of Zendesk')
    return values[0]


def _digest(state: str) -> str:
    return _base64url(hashlib.sha256(state.encode()).digest())


def _code_verifier(state: str) -> str:
    """Compute the verifier: 43 characters that only the app can know (RFC 7636, section 4.1)."""
    key = str(current_app.secret_key).encode()
    return _base64url(hmac.digest(key, b'code verifier ' + state.encode(), 'sha256'))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b'=').decode()


def _signer() -> TimestampSigner:
    return TimestampSigner(str(current_app.secret_key), salt='authorization request')


def _oldest_first() -> list[str]:
    """Return the names of the cookies of this browser's requests, forged ones first."""
    made = {}
    for name, value in request.cookies.items():
        if name.startswith(_cookie_name('')):
            try:
                made[name] = _signer().unsign(value, return_timestamp=True)[1].timestamp()
            except BadSignature:
                made[name] = 0
    return sorted(made, key=lambda name: made[name])


def _cookie_name(digest: str) -> str:
    return current_settings().cookie_prefix + COOKIE_PREFIX + digest[:16]


def _close(name: str) -> None:
    """Let the browser forget the request with whatever response this one gets."""

    @after_this_request
    def forget(response: Response) -> Response:
        _forget(response, name)
        return response


def _forget(response: Response, name: str) -> None:
    response.delete_cookie(name, **current_settings().cookie_attributes)
