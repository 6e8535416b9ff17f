"""Check the URLs, paths and subdomains that callers pass."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from zendesk_oauth.errors import AuthorizationError
from zendesk_oauth.transport import LOOPBACK

LABEL = '[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?'
MAX_NEXT_URL = 1000  # bytes: it is stored in a cookie


def account_url(subdomain: str | None) -> str:
    """
    Return the address of a Zendesk account, such as https://acme.zendesk.com.

    `subdomain` is user input: the subdomain, such as acme, or an address of the account.

    Raises:
        AuthorizationError: it is neither.
    """
    match = re.fullmatch(
        rf'({LABEL})|(?:https?://)?({LABEL})\.zendesk\.com(?:[/?#].*)?',
        subdomain.strip() if isinstance(subdomain, str) else '',
        re.IGNORECASE | re.ASCII,
    )
    if match is None:
        raise AuthorizationError(
            'The subdomain is missing or malformed. If the user entered it, no action is needed',
            title='This is not a Zendesk subdomain',
            advice='Enter the first part of your Zendesk address: acme if your address is https://acme.zendesk.com.',
        )
    return f'https://{(match[1] or match[2]).lower()}.zendesk.com'


def is_account_url(url: object) -> bool:
    """Return True if the URL has the form that `account_url` returns."""
    return isinstance(url, str) and re.fullmatch(rf'https://{LABEL}\.zendesk\.com', url) is not None


def check_absolute_url(argument: str, url: object, origin_only: bool) -> None:
    """
    Check an absolute https URL. On localhost, http is also allowed.

    Raises:
        ValueError: the URL is something else. The message names the argument.
    """
    try:
        parts = urlsplit(url if isinstance(url, str) else '')
        host = re.fullmatch(r'[a-z0-9.-]+|[0-9a-f:]+', parts.hostname or '')
        valid = host and parts.port != 0 and re.fullmatch('[!-~]+', str(url)) and not re.search('[@#\\\\]', str(url))
    except ValueError:
        valid = None
    if not valid or not (parts.scheme == 'https' or (parts.scheme == 'http' and parts.hostname in LOOPBACK)):
        raise ValueError(f'{argument} must be an absolute https URL without a fragment (http is allowed on localhost)')
    if origin_only and (parts.path not in ('', '/') or '?' in str(url)):
        raise ValueError(f'{argument} must be of the form https://acme.zendesk.com, without a path')


def check_next_url(next_url: object) -> None:
    """
    Check that a redirect to `next_url` stays on the product's own host (an open redirect, RFC 9700, section 4.11).

    Browsers read a backslash as a slash, and ignore tabs and line breaks.

    Raises:
        ValueError: it is not a path, or has more than MAX_NEXT_URL bytes.
    """
    if not isinstance(next_url, str) or not re.fullmatch(r'/(?!/)[^\s\\\x00-\x1f\x7f-\x9f]*', next_url):
        raise ValueError('next_url must be a path of the app that starts with one slash')
    if len(next_url.encode()) > MAX_NEXT_URL:
        raise ValueError(f'next_url must have at most {MAX_NEXT_URL} bytes')


def api_path(address: str, zendesk_url: str | None) -> str:
    """
    Return the path and query of `address`: a path, or a URL of the account at `zendesk_url`.

    If `zendesk_url` is None, the account is not known yet: return a URL of any account unchanged.

    Raises:
        ValueError: it is something else. A request to another host would send the access token there. Dot segments
            would lead to another endpoint.
    """
    path = address if isinstance(address, str) else ''
    origin = '/'.join(path.split('/')[:3]).lower()  # https://host, if it is a URL
    if is_account_url(origin) if zendesk_url is None else origin == zendesk_url:
        path = path[len(origin) :]
    if not path.startswith('/') or path.startswith('//'):
        raise ValueError('The path must start with one slash, or be a URL of the same Zendesk account')
    if re.search(r'[\x00-\x1f\x7f\\#]', path) or re.search(r'/\.\.?(/|$)', unquote(path.partition('?')[0])):
        raise ValueError('The path must not contain control characters, backslashes, fragments or dot segments')
    return address if zendesk_url is None else path
