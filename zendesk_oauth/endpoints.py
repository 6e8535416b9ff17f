"""Send requests to Zendesk, check the responses, and log each exchange with fingerprints instead of secrets."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import requests
import urllib3

from zendesk_oauth import transport
from zendesk_oauth.errors import (
    SETUP_ERRORS,
    AnonymousUser,
    InsufficientScope,
    InvalidGrant,
    NewTokenRejected,
    RateLimited,
    ResponseError,
    ZendeskError,
    ZendeskTimeout,
    ZendeskUnavailable,
    setup_error,
)

TOKEN = re.compile('[!-~]{1,4096}')  # visible ASCII: it is sent in a header (RFC 6749, A.12; RFC 6750, section 2.1)
CALL_TIMEOUT = 14  # seconds for the whole exchange: error pages must appear within 15 seconds
MAX_BYTES = 2**20  # decompressed content of a response, unless the caller sets another limit
DEFAULT_RETRY_AFTER = 30  # seconds
MAX_RETRY_AFTER = 300  # seconds, on error pages
MAX_LOGGED_BODY = 16 * 1024  # bytes of a response
MAX_DEPTH = 20  # levels of a response to log: a deeply nested one would raise RecursionError

log = logging.getLogger('zendesk_oauth')
exchange_log = logging.getLogger('zendesk_oauth.exchange')

EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Response:
    """
    The response to one request. `content` is decompressed.

    Unlike `requests.Response`, it does not reference the request, whose headers contain the access token.
    """

    status_code: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status_code < 300

    @property
    def text(self) -> str:
        """The content, decoded as UTF-8."""
        return self.content.decode('utf-8', 'replace')

    @property
    def retry_after(self) -> int | None:
        """The header Retry-After in seconds. If it is missing or a date: 30 for 429 and 503, else None."""
        header = self.headers.get('Retry-After', '')
        if re.fullmatch('[0-9]{1,9}', header):
            return int(header)
        return DEFAULT_RETRY_AFTER if self.status_code in (429, 503) else None

    def json(self) -> Any:
        """Return the content parsed as JSON. Raise ResponseError if it is not JSON."""
        value = _parsed(self.content)
        if value is INVALID:
            raise unexpected_response(f'Zendesk responded with {self.status_code} and a body that is not JSON', self)
        return value

    def raise_for_status(self) -> Response:
        """Return the response if the status is 2xx, else raise ResponseError."""
        if self.ok:
            return self
        if self.status_code not in (403, 408, 429) and self.status_code < 500:
            raise ResponseError(f'Zendesk responded with {self.status_code}', response=self)
        error = api_error(self)
        page = ('status', 'title', 'advice', 'reauthorize', 'retry_after')
        raise ResponseError(str(error), response=self, **{name: getattr(error, name) for name in page})


def send(
    zendesk_url: str,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str] = EMPTY,
    body: Mapping[str, Any] | bytes = EMPTY,
    timeout: float = CALL_TIMEOUT,
    max_bytes: int = MAX_BYTES,
) -> Response:
    """
    Send one request to Zendesk and return the response, with any status.

    `body` is a form or bytes. `timeout` (seconds) limits the whole exchange, and `max_bytes` the decompressed content.

    Raises:
        ZendeskTimeout: Zendesk did not respond in time.
        ZendeskError: Zendesk sent no valid HTTP response, or a response that is too large.
    """
    result: Response | ZendeskError
    try:
        result = Response(*transport.send(method, zendesk_url + path, headers, body, timeout, max_bytes))
    except transport.FAILURES as error:
        result = failed_exchange(error, max_bytes)
    if isinstance(result, ZendeskError):
        _log_exchange(zendesk_url, method, path, headers, body, None)
        raise result  # without the cause: error trackers would collect the request and parts of the response
    _log_exchange(zendesk_url, method, path, headers, body, result)
    return result


def send_with_token(zendesk_url: str, access_token: str, method: str, path: str, **options: Any) -> Response:
    """
    Send one API request with the access token. `send` defines the keywords in `options`.

    If the access token cannot be sent in a header, return a 401 without a request.
    """
    if not is_token(access_token):
        return Response(401, {}, b'')  # Zendesk never issues such a token: it was edited by hand
    headers = {**options.pop('headers', EMPTY), 'Authorization': f'Bearer {access_token}'}
    return send(zendesk_url, method, path, headers=headers, **options)


def tokens_from(response: Response, form: Mapping[str, Any]) -> dict[str, Any]:
    """
    Check the token endpoint's response to `form` and return the tokens (RFC 6749, sections 5.1 and 5.2).

    Returns:
        `access_token`, `access_token_expires_at`; if Zendesk sent a refresh token, `refresh_token` and
        `refresh_token_expires_at`; and, except if a refresh returns none, the granted `scope`. The times are in seconds
        since 1970, or None if unknown.

    Raises:
        InvalidGrant: the code or the refresh token is expired, used or unknown.
        SetupError, ZendeskError: any other failure.
    """
    data, status, scope = _object(response), response.status_code, form.get('scope', '')
    error = data.get('error') if 400 <= status < 500 and status != 429 else None
    if error == 'invalid_grant':
        raise InvalidGrant(f'Zendesk responded with invalid_grant: {INVALID_GRANT[form["grant_type"]]}')
    if isinstance(error, str) and error in SETUP_ERRORS:
        raise setup_error(error, scope)
    if not 200 <= status < 300:
        raise unexpected_status(response, scope)

    tokens: dict[str, Any] = {
        'access_token': _token(data, 'access_token'),
        'access_token_expires_at': expiry(data.get('expires_in')),
    }
    if form['grant_type'] == 'refresh_token' and not is_token(data.get('refresh_token')):
        log.warning('Zendesk returned no valid refresh token: keeping the old one')
    elif 'refresh_token' in data:  # older OAuth clients, whose tokens do not expire, get none
        tokens['refresh_token'] = _token(data, 'refresh_token')
        tokens['refresh_token_expires_at'] = expiry(data.get('refresh_token_expires_in'))
    if str(data.get('token_type', 'bearer')).lower() != 'bearer':
        raise ZendeskError('Zendesk issued a token of a type other than bearer')
    granted = data.get('scope', scope)  # without a scope, Zendesk granted the requested one (RFC 6749, section 5.1)
    if form['grant_type'] != 'refresh_token' or is_scope(data.get('scope')):
        tokens['scope'] = granted if is_scope(granted) else None  # None: unknown
    if scope and is_scope(granted) and set(granted.split()) != set(scope.split()):
        log.warning('Zendesk granted a scope other than %s: check the scopes of the OAuth client', scope)
    return tokens


INVALID_GRANT = {
    'authorization_code': 'the code is older than 120 seconds, was already used, or belongs to another request, or the '
    "redirect URI does not match one of the OAuth client's redirect URLs exactly",
    'refresh_token': 'the refresh token is expired, used or unknown',
}


def user_from(response: Response) -> dict[str, str]:
    """
    Return the `name` and `role` of the user from Zendesk's response to "Show Self".

    https://developer.zendesk.com/api-reference/ticketing/users/users/#show-self

    Raises:
        NewTokenRejected: 401. The token is new, so another refresh would not help.
        InsufficientScope: 403, because of the scope.
        AnonymousUser: Zendesk ignored the access token.
        ZendeskError: any other failure.
    """
    if response.status_code != 200:
        raise api_error(response, 'users:read')

    user = _object(response).get('user')
    if not isinstance(user, dict):
        raise ZendeskError('Zendesk responded with 200 but without a user. Check that no proxy responds in its place')
    # If a request has no valid credentials, Zendesk responds with 200 and an "Anonymous user" without an id.
    if user.get('id') is None:
        raise AnonymousUser(
            'Zendesk ignored the access token and returned its anonymous user. Check that no proxy removes the '
            'Authorization header, and that the address in the settings is the address of the API'
        )
    name, role = user.get('name'), user.get('role')
    if type(user['id']) is not int or not isinstance(name, str) or not isinstance(role, str):
        raise ZendeskError('Zendesk responded with a user whose id, name or role has the wrong type')
    return {'name': _printable(name), 'role': _printable(role)}


CA_BUNDLE = 'If a proxy inspects TLS traffic, set REQUESTS_CA_BUNDLE to the path of its CA certificate'
# Remedies by a part of OpenSSL's message.
TLS_REMEDIES = {
    **dict.fromkeys(('mismatch', 'version number', 'record layer'), 'Check the configured address'),
    **dict.fromkeys(('expired', 'not yet valid'), "Check this machine's clock"),
}


def failed_exchange(error: Exception, max_bytes: int) -> ZendeskError:
    """Return the error for an exchange without a valid response. The message names the cause and the remedy."""
    cause = transport.cause_of(error)
    if isinstance(error, (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)):
        return ZendeskTimeout(f'No response in time ({cause}). Try again later')
    if isinstance(error, requests.exceptions.SSLError):
        remedy = next((remedy for words, remedy in TLS_REMEDIES.items() if words in cause), CA_BUNDLE)
        return ZendeskError(f'The TLS connection failed: {cause}. {remedy}')
    if isinstance(error, (ssl.SSLError, FileNotFoundError, NotADirectoryError, PermissionError)):
        return ZendeskError(f'The CA certificates cannot be read: {cause}. Check the path in REQUESTS_CA_BUNDLE')
    if isinstance(error, requests.exceptions.InvalidSchema):
        return ZendeskError('The proxy in HTTPS_PROXY or ALL_PROXY uses SOCKS: run pip install "requests[socks]"')
    if isinstance(error, (requests.exceptions.ProxyError, urllib3.exceptions.LocationValueError)):
        return ZendeskError(f'The proxy connection failed ({cause}): check HTTPS_PROXY and NO_PROXY')
    if isinstance(error, OverflowError):
        return ZendeskError(
            f'The response is larger than {max_bytes} bytes: request less data, or check the configured address'
        )
    return ZendeskError(
        f'The connection failed or was closed early ({cause}): check the network. If this keeps happening, check the '
        'configured address'
    )


def unexpected_response(message: str, response: Response) -> ResponseError:
    """Return the error for a response whose body is not what the caller expects."""
    return ResponseError(message, response=response, title='Zendesk sent an unexpected response')


def api_error(response: Response, scope: str = 'that the request needs') -> ZendeskError:
    """Return the error for an unexpected status of an API response. `scope` is the scope that the request needs."""
    if response.status_code == 401 and not _is_not_json(response):
        return NewTokenRejected('Zendesk rejected the new access token (401)')
    words = f'{response.text} {response.headers.get("WWW-Authenticate")}'.lower()
    if response.status_code == 403 and not _is_not_json(response) and re.search('(?<![a-z])scope', words):
        return InsufficientScope(
            f'Zendesk responded with 403: the grant lacks a scope. Add the scope {scope} to the OAuth client, then '
            'grant access again'
        )
    return unexpected_status(response, scope)


def _is_not_json(response: Response) -> bool:
    """Return True if the body is something other than a JSON object. Zendesk's errors are JSON objects, or empty."""
    return bool(response.content) and not isinstance(_parsed(response.content), dict)


def unexpected_status(response: Response, scope: str) -> ZendeskError:
    """Return the error for a status other than success or a documented OAuth error."""
    status = response.status_code
    if status in (429, 503):
        retry_after = min(max(response.retry_after or 0, 1), MAX_RETRY_AFTER)
        error, cause = (RateLimited, 'too many requests') if status == 429 else (ZendeskUnavailable, 'unavailable')
        return error(
            f'Zendesk responded with {status} ({cause}). Try again in {retry_after} s',
            retry_after=retry_after,
            advice=f'Wait {retry_after} {"second" if retry_after == 1 else "seconds"}, then try again.',
        )
    if status >= 500 or status == 408:
        return ZendeskError(f'Zendesk responded with {status}. Try again later')
    if status == 404 or 300 <= status < 400:
        return setup_error('404' if status == 404 else 'a redirect', scope)
    if status in (401, 403) and _is_not_json(response):
        return ZendeskError(
            f'Zendesk, or a server in front of it, responded with {status} and a body that is not JSON: a firewall, a '
            'CDN or a proxy probably blocked the request. Check the network of this machine',
            title='The request to Zendesk was blocked',
            advice=f'Something in front of Zendesk, such as a firewall or a proxy, responded with {status}. Contact '
            'the operator of the app.',
            retry_after=None,
        )
    if status == 403:
        return ZendeskError(
            'Zendesk responded with 403, but not because of a scope: check the role of the user, and whether the '
            'account restricts access to some IP addresses',
            status=403,
            title='Zendesk does not allow this request',
            advice='Your Zendesk user may be suspended or have the wrong role, or the account may block the IP address '
            'of the app. Ask an administrator of your Zendesk account.',
            retry_after=None,
        )
    message = f'Zendesk, or a server in front of it, responded with {status}'
    advice = f'Zendesk responded with {status}. '
    if status == 402 or status > 403:
        message += '. Check that the account is active'
        advice += 'The Zendesk account may be suspended or closed: ask its administrator. '
    return ZendeskError(
        message,
        title='Zendesk rejected the request',
        advice=f'{advice}If this keeps happening, contact the operator of the app.',
        retry_after=None,
    )


# --- Fingerprints, and the record of each exchange --- #


def fingerprint(secret: str) -> str:
    """
    Return `#` and eight hexadecimal digits of the SHA-256 of a token or code, to identify it in the log.

    They distinguish tokens but do not reveal them. Do not use them for passwords, which can be guessed.
    """
    return '#' + hashlib.sha256(secret.encode('utf-8', 'replace')).hexdigest()[:8]


def fingerprints(data: Mapping[str, Any]) -> str:
    """Return the fingerprints of the code and the tokens in `data`, such as "access token #0c6a5db0"."""
    names = ('code', 'access_token', 'refresh_token')
    found = {name.replace('_', ' '): data[name] for name in names if isinstance(data.get(name), str) and data[name]}
    return ', '.join(f'{name} {fingerprint(secret)}' for name, secret in found.items())


SECRET_NAME = re.compile('^(code|state)$|tokens?$|secret|verifier|password', re.IGNORECASE)
ERROR_CODES = ('invalid_grant', 'invalid_token', *SETUP_ERRORS)  # other codes could contain anything
SHOWN_HEADERS = ('Content-Type', 'Cache-Control', 'WWW-Authenticate', 'Retry-After')


def _log_exchange(
    zendesk_url: str,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: Mapping[str, Any] | bytes,
    response: Response | None,
) -> None:
    """
    Log one exchange as one record, with both messages as data in `request` and `response` (None without a response).

    Fingerprints replace all secrets: the values of fields with a secret's name, and their copies in other fields. A
    response body that is not a JSON object or is larger than MAX_LOGGED_BODY is omitted, and so are the query and the
    body of an API request. The level is INFO for token requests and revocations, and DEBUG for API requests, whose
    responses can contain personal data.
    """
    level = logging.INFO if 'oauth/tokens' in path.partition('?')[0] else logging.DEBUG
    if not exchange_log.isEnabledFor(level):
        return
    form = body if isinstance(body, Mapping) and path == '/oauth/tokens' else {}
    path = re.sub('[^!-~]', '_', path.partition('?')[0])  # a line break could forge a log line
    authorization = {name: value for name, value in headers.items() if name == 'Authorization'}
    access_token = authorization.get('Authorization', '').removeprefix('Bearer ')
    headers = {'Host': zendesk_url.partition('://')[2], **authorization}
    if form:
        headers['Content-Type'] = 'application/x-www-form-urlencoded'
    data = _object(response) if response and len(response.content) <= MAX_LOGGED_BODY else {}
    known = [str(value) for name, value in [*form.items(), *data.items()] if SECRET_NAME.search(name)] + [access_token]
    # Longest first: a secret may begin with another. Secrets shorter than a fingerprint could match inside one.
    copies = {secret: fingerprint(secret) for secret in sorted(known, key=len, reverse=True) if len(secret) > 8}

    def redact(value: Any, name: str = '', depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            return '...'
        if isinstance(value, dict):
            return {
                redact(key): redact(item, name if SECRET_NAME.search(name) else key, depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [redact(item, name, depth + 1) for item in value]
        if SECRET_NAME.search(name) and value is not None:
            return fingerprint(str(value))
        if isinstance(value, str):
            for secret, replacement in copies.items():
                value = value.replace(secret, replacement)
        return value

    request = {'method': method, 'path': path, 'headers': redact(headers), 'form': redact(dict(form))}
    received = None
    if response is not None:
        shown = {name: response.headers[name] for name in SHOWN_HEADERS if name in response.headers}
        received = {'status': response.status_code, 'headers': redact(shown), 'body': redact(data) if data else None}
    sent_with = fingerprints({**form, 'access_token': access_token})
    outcome = 'no response'
    if response is not None:
        issued = fingerprints(data)
        code = data.get('error') if data.get('error') in ERROR_CODES else ''
        outcome = f'{response.status_code} {code}'.rstrip() + (f', issued {issued}' if issued else '')
    message = f'{method} {path} with {sent_with}: {outcome}' if sent_with else f'{method} {path}: {outcome}'
    exchange_log.log(level, '%s', message, extra={'request': request, 'response': received})


# --- Reading a response --- #


INVALID = object()


def _parsed(content: bytes) -> Any:
    """Return the content parsed as JSON, or INVALID."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return INVALID


def _object(response: Response) -> dict[str, Any]:
    """Return the JSON object in the response, or `{}` if the content is something else."""
    data = _parsed(response.content)
    return data if isinstance(data, dict) else {}


def _token(data: dict[str, Any], name: str) -> str:
    if not is_token(data.get(name)):
        raise ZendeskError(f"Zendesk's response has no valid {name}")
    return str(data[name])


def is_token(value: Any) -> bool:
    return isinstance(value, str) and TOKEN.fullmatch(value) is not None


def granted_scope(record: Mapping[str, Any]) -> str | None:
    """Return the scope of a stored record, or None if it is unknown or malformed."""
    return record['scope'] if is_scope(record.get('scope')) else None


def is_scope(value: Any) -> bool:
    """Return True for scope names in visible ASCII, separated by spaces (RFC 6749, section 3.3), and for no scope."""
    return isinstance(value, str) and re.fullmatch('[ -~]{0,4096}', value) is not None


def expiry(lifetime: Any) -> int | None:
    """Return the expiry time, or None if the lifetime is missing or malformed."""
    return int(time.time()) + lifetime if type(lifetime) is int and 0 < lifetime < 10**9 else None


def _printable(text: str) -> str:
    """Replace lone surrogates, which are valid in JSON but not in UTF-8."""
    return text.encode('utf-8', 'replace').decode('utf-8')
