"""Session: API requests for one user, with tokens that are refreshed when needed."""

from __future__ import annotations

import json as json_module
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypedDict, Unpack
from urllib.parse import parse_qs, urlencode

from zendesk_oauth.endpoints import CALL_TIMEOUT, Response, api_error, send_with_token, unexpected_response
from zendesk_oauth.errors import LockTimeout, StoreError, ZendeskError
from zendesk_oauth.stores import Record
from zendesk_oauth.urls import api_path

MAX_API_BYTES = 32 * 2**20  # limit for API responses: a list of 100 tickets can exceed 1 MiB
REFRESH_EARLY = 60  # seconds before its expiry at which an access token is refreshed
RESERVED_HEADERS = (
    *('authorization', 'connection', 'content-length', 'cookie', 'expect', 'host', 'te', 'trailer'),
    *('transfer-encoding', 'upgrade'),
)
PAGE_SIZE = 100  # the maximum of most endpoints

log = logging.getLogger('zendesk_oauth')


class RequestOptions(TypedDict, total=False):
    """
    Keyword arguments of the request methods.

    `params` are added to the query: lists are repeated, None is omitted. `json` becomes the body as JSON. `data` is a
    body: bytes, str or a form (dict). `headers` are added to the request. `timeout` (default 14 s) limits each HTTP
    request, and `max_bytes` (default 32 MiB) its decompressed response.
    """

    params: Mapping[str, Any] | None
    json: Any
    data: bytes | str | Mapping[str, Any] | None
    headers: Mapping[str, str] | None
    timeout: float
    max_bytes: int


class Session:
    """
    The API of one user's Zendesk account. `ZendeskOAuth.session` creates it.

    `get`, `post`, `put`, `patch` and `delete` send one request and return the response, with any status except 401. The
    path starts with a slash, or is a URL of the same account. Redirects are returned, not followed.

    The session refreshes the tokens if the access token expires within a minute, or after a 401. After a 401, it sends
    the request once more. Concurrent requests, also of other processes, refresh the tokens once. After a 429, it waits
    as the header Retry-After says, if `max_wait` allows it, and sends the request again.

    The request methods raise:
        NotConnected: the user has no grant, or Zendesk rejected the refresh token.
        ZendeskError: Zendesk sent no valid response, the refresh failed, or Zendesk rejected the new access token.
        StoreError: the store cannot be read or written, or another refresh takes too long.
        ValueError: the path or a header is not allowed, or both `json` and `data` are given. Nothing is sent.
        TypeError: `data` is not bytes, str or a dict. Nothing is sent.
    """

    def __init__(
        self,
        zendesk_url: str | None,
        find: Callable[[], Record],
        refresh: Callable[[Record, bool], Record],
        max_wait: float,
    ) -> None:
        """
        Create the session. `find()` returns the stored record or raises NotConnected. `refresh(record, early)` returns
        the refreshed record.

        `zendesk_url` is None if only the record has the address of the account.
        """
        self._zendesk_url, self._find, self._refresh, self._max_wait = zendesk_url, find, refresh, max_wait

    def get(self, path: str, **options: Unpack[RequestOptions]) -> Response:
        """Send a GET request."""
        return self._request('GET', path, **options)

    def post(self, path: str, **options: Unpack[RequestOptions]) -> Response:
        """Send a POST request. If it must not happen twice, set Zendesk's header Idempotency-Key."""
        return self._request('POST', path, **options)

    def put(self, path: str, **options: Unpack[RequestOptions]) -> Response:
        """Send a PUT request."""
        return self._request('PUT', path, **options)

    def patch(self, path: str, **options: Unpack[RequestOptions]) -> Response:
        """Send a PATCH request."""
        return self._request('PATCH', path, **options)

    def delete(self, path: str, **options: Unpack[RequestOptions]) -> Response:
        """Send a DELETE request."""
        return self._request('DELETE', path, **options)

    def pages(
        self,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = CALL_TIMEOUT,
        max_bytes: int = MAX_API_BYTES,
    ) -> Iterator[Any]:
        """
        Request a list page by page, and yield the JSON object of each page.

        To resume, pass the `meta.after_cursor` of the last page: `params={'page[after]': cursor}`.
        https://developer.zendesk.com/api-reference/introduction/pagination/

        Raises:
            ResponseError: a status is not 2xx, or the endpoint has no cursor pagination. Also the errors of `get`.
        """
        path, _, query = path.partition('?')
        params = {'page[size]': PAGE_SIZE, **parse_qs(query, keep_blank_values=True), **(params or {})}
        cursors: set[str] = set()
        while True:
            response = self.get(path, params=params, headers=headers, timeout=timeout, max_bytes=max_bytes)
            page = response.raise_for_status().json()
            meta = page.get('meta') if isinstance(page, dict) else None
            if not isinstance(meta, dict) or type(meta.get('has_more')) is not bool:
                raise unexpected_response('The endpoint has no cursor pagination: use get', response)
            yield page
            if not meta['has_more']:
                return
            # Not links.next: its URL could lead elsewhere.
            cursor = meta.get('after_cursor')
            if not isinstance(cursor, str) or not cursor or cursor in cursors:
                raise unexpected_response(
                    'meta.has_more is true, but the cursor is missing or was used before', response
                )
            cursors.add(cursor)
            params['page[after]'] = cursor

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        data: bytes | str | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = CALL_TIMEOUT,
        max_bytes: int = MAX_API_BYTES,
    ) -> Response:
        path = api_path(path, self._zendesk_url)
        params = {name: value for name, value in (params or {}).items() if value is not None}
        if params:
            path += ('&' if '?' in path else '?') + urlencode(params, doseq=True)
        body, content_type = _body(json, data)
        _check_headers(headers or {})
        options = {'headers': {**content_type, **(headers or {})}, 'timeout': timeout, 'max_bytes': max_bytes}
        waited = 0
        while True:
            response = self._send(method, path, body=body, **options)
            seconds = max(response.retry_after or 0, 1)
            if response.status_code != 429 or waited + seconds > self._max_wait:
                return response
            log.info('Zendesk responded with 429 (too many requests): sending the request again in %s s', seconds)
            waited += seconds
            time.sleep(seconds)

    def _send(self, method: str, path: str, **options: Any) -> Response:
        def send(record: Record) -> Response:
            zendesk_url = record['zendesk_url']  # known only now if each user has an account
            return send_with_token(zendesk_url, record['access_token'], method, api_path(path, zendesk_url), **options)

        record = self._find()
        api_path(path, record['zendesk_url'])  # raises before a refresh
        response = send(self._with_valid_token(record))
        if response.status_code == 401:
            log.info('Zendesk rejected the access token (401): refreshing the tokens')
            response = send(self._refresh(record, False))
            if response.status_code == 401:
                raise api_error(response)
        return response

    def _with_valid_token(self, record: Record) -> Record:
        """Refresh the tokens if the access token is about to expire. If it is still valid, ignore a failure."""
        expires_at = record.get('access_token_expires_at')
        if type(expires_at) is not int or time.time() < expires_at - REFRESH_EARLY or not record['refresh_token']:
            return record
        still_valid = time.time() < expires_at
        try:
            return self._refresh(record, still_valid)
        except (ZendeskError, StoreError) as error:
            tokens_are_lost = isinstance(error, StoreError) and error.reauthorize
            if not still_valid or tokens_are_lost:
                raise
            if not isinstance(error, LockTimeout):  # else another request is refreshing the tokens
                log.warning('The access token is still valid, but the early refresh failed. %s', error)
            return record


def _body(json: Any, data: Any) -> tuple[Any, dict[str, str]]:
    """Return the body and its Content-Type header. The body is never a generator, so it can be sent again."""
    if json is not None and data is not None:
        raise ValueError('Pass json or data, not both')
    if json is not None:
        return json_module.dumps(json).encode(), {'Content-Type': 'application/json'}
    if isinstance(data, str):
        data = data.encode()
    if data is not None and not isinstance(data, (bytes, Mapping)):
        raise TypeError('data must be bytes, str or a dict')
    return data or {}, {}


def _check_headers(headers: Mapping[str, str]) -> None:
    """Raise ValueError for malformed headers, and for headers that would change the host, the token or the framing."""
    for name, value in headers.items():
        if not re.fullmatch("[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not re.fullmatch('[\t -~\x80-\xff]*', value):
            raise ValueError('A header has an invalid name or value')
        if name.lower() in RESERVED_HEADERS:
            raise ValueError(f'The header {name} cannot be set')
