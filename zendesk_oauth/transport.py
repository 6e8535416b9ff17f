"""Send one HTTP request with a deadline and a size limit, without redirects, cookies or .netrc."""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import json
import logging
import math
import os
import socket
import ssl
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH

CONNECT_TIMEOUT = 3  # seconds for each IP address of the host
CALL_TIMEOUT = 14  # seconds for the whole exchange: error pages must appear within 15 seconds
MAX_RESPONSE_SIZE = 1024 * 1024  # bytes
MAX_KEPT = 64  # idle connections to each host, per process
MAX_IDLE = 30  # seconds before an idle connection is closed: a firewall may have dropped it

# urllib3 logs headers that it cannot parse. In a malformed response, they can contain tokens.
logging.getLogger('urllib3.connection').setLevel(logging.ERROR)


@dataclass(frozen=True)
class Response:
    """
    The response to one request. `content` is decompressed and has at most MAX_RESPONSE_SIZE bytes.

    Unlike `requests.Response`, it does not reference the request, whose headers contain the access token.
    """

    status_code: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)

    def json(self) -> Any:
        """Return the content parsed as JSON, or None if it is not JSON."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            return None


def send(
    method: str,
    url: str,
    headers: Mapping[str, str] | None = None,
    data: Mapping[str, Any] | None = None,
    timeout: float | None = None,
) -> Response:
    """
    Send one request and return the response, with any status.

    `data` is sent as a form. `timeout` is in seconds for the whole exchange, by default CALL_TIMEOUT. It does not cover
    the DNS lookup: the resolver has a separate timeout.

    A GET request uses a persistent connection. If that connection fails, the request is sent again over a new one. All
    other methods use a new connection and are sent only once: a second POST could refresh the tokens twice (RFC 9110,
    section 9.2.2).

    Raises:
        TimeoutError: no connection, or no complete response, within the timeout. The text names the cause.
        ConnectionError: the response is missing, invalid or too large. The text names the cause and the remedy.
    """
    call = _Call(deadline=time.monotonic() + (timeout or CALL_TIMEOUT))
    _call.set(call)
    if method == 'GET':
        try:
            return _exchange(method, url, headers, data, kept=True)
        except ConnectionError:
            if not call.over_a_kept_connection:
                raise
    return _exchange(method, url, headers, data, kept=False)


def _exchange(
    method: str, url: str, headers: Mapping[str, str] | None, data: Mapping[str, Any] | None, kept: bool
) -> Response:
    """Send one request and return the response. Raise TimeoutError or ConnectionError if that fails."""
    body = bytearray()
    try:
        with contextlib.ExitStack() as stack:
            request = _prepared(method, url).copy()
            request.headers.update(headers or {})
            if data is not None:
                request.prepare_body(data, None)
            proxies, ca_bundle = _environment(*urlsplit(url)[:2])
            if kept:
                connections = _kept_connections(os.getpid(), ca_bundle)
            else:
                connections = stack.enter_context(contextlib.closing(_Connections(ca_bundle)))
            timeout: Any = urllib3.Timeout(connect=CONNECT_TIMEOUT, total=_call.get().time_left())
            response = stack.enter_context(connections.send(request, stream=True, timeout=timeout, proxies=proxies))
            for chunk in response.raw.stream(64 * 1024, decode_content=True):
                body += chunk
                if len(body) > MAX_RESPONSE_SIZE:
                    break
    except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
        raise TimeoutError(f'No response in time ({type(error).__name__})') from error
    except requests.exceptions.SSLError as error:
        raise ConnectionError(
            "The TLS handshake failed, or the certificate is not trusted: check this machine's clock. If a proxy "
            'inspects TLS traffic, set REQUESTS_CA_BUNDLE to the path of its CA certificate'
        ) from error
    except requests.exceptions.ProxyError as error:
        raise ConnectionError('The proxy connection failed: check HTTPS_PROXY and NO_PROXY') from error
    except (OSError, urllib3.exceptions.HTTPError, ValueError) as error:  # ValueError: the response is not HTTP
        raise ConnectionError(
            f'The connection failed or was closed early ({type(error).__name__}): check the network. If this keeps '
            'happening, check the configured address'
        ) from error
    if len(body) > MAX_RESPONSE_SIZE:
        raise ConnectionError(f'The response is larger than {MAX_RESPONSE_SIZE} bytes: check the configured address')
    return Response(response.status_code, response.headers, bytes(body))


@functools.cache
def _prepared(method: str, url: str) -> requests.PreparedRequest:
    """
    Return a prepared request to copy. It is cached because preparing a request takes as long as sending it.

    No `requests.Session` prepares it: a session shares cookies between users and sends passwords from ~/.netrc.
    """
    return requests.Request(method, url, requests.utils.default_headers()).prepare()


@functools.cache
def _environment(scheme: str, host: str) -> tuple[Any, str]:
    """Return the proxies for the host, and the path of the trusted CA certificates."""
    # Never use a proxy for this machine. With `no_proxy`, requests would change the environment of all threads.
    proxies: Any = None if urlsplit(f'//{host}').hostname in ('localhost', '127.0.0.1', '::1') else {}
    found = requests.Session().merge_environment_settings(f'{scheme}://{host}', proxies, None, None, None)
    return found['proxies'], DEFAULT_CA_BUNDLE_PATH if found['verify'] is True else str(found['verify'])


# --- Connections --- #


class _Connections(HTTPAdapter):
    """
    Persistent connections, shared by all threads. Each connection serves one request at a time.

    The CA certificates are loaded once, because loading them takes longer than connecting. requests would load them for
    each new connection.
    """

    def __init__(self, ca_bundle: str) -> None:
        self._tls = _tls_context(ca_bundle)
        self._pools: dict[tuple[str, str], Any] = {}
        super().__init__(pool_maxsize=MAX_KEPT)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._tls, **kwargs)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        if proxy.lower().startswith('https:'):
            kwargs['proxy_ssl_context'] = self._tls
        return super().proxy_manager_for(proxy, ssl_context=self._tls, **kwargs)

    def cert_verify(self, *args: Any) -> None:
        """Do nothing: the TLS context always verifies the certificate."""

    def get_connection_with_tls_context(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        origin = urlsplit(str(request.url))[:2]
        if origin not in self._pools:
            pool: Any = super().get_connection_with_tls_context(request, *args, **kwargs)
            pool.ConnectionCls = _HTTPSConnection if pool.scheme == 'https' else _HTTPConnection
            self._pools[origin] = pool
        return self._pools[origin]


@functools.cache
def _kept_connections(process_id: int, ca_bundle: str) -> _Connections:
    """Return the connections of this process: a forked process must not use its parent's connections."""
    return _Connections(ca_bundle)


@functools.cache
def _tls_context(ca_bundle: str) -> ssl.SSLContext:
    context = urllib3.util.create_urllib3_context()  # requires a valid certificate for the host
    if Path(ca_bundle).is_dir():
        context.load_verify_locations(capath=ca_bundle)
    else:
        context.load_verify_locations(cafile=ca_bundle)
    return context


# --- Time limits --- #


@dataclass
class _Call:
    """The request that the current thread sends: its deadline (monotonic time) and its kind of connection."""

    deadline: float
    over_a_kept_connection: bool = False

    def time_left(self) -> float:
        return self.deadline - time.monotonic()


_call: ContextVar[_Call] = ContextVar('_call')


class _TimedStream(io.RawIOBase):
    """
    A socket stream that enforces the deadline of the request.

    A socket timeout restarts with each byte: a server that sends one byte every few seconds would block the thread for
    hours.
    """

    def __init__(self, sock: socket.socket, stream: io.RawIOBase) -> None:
        self._socket, self._stream = sock, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = _call.get().time_left()
        if left <= 0:
            raise TimeoutError('the deadline of the request has passed')
        self._socket.settimeout(left)
        return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimedStream(sock, self.fp.detach()))

    def _read_status(self) -> tuple[str, int, str]:
        """
        Treat each interim response as "100 Continue": http.client skips no other (RFC 9110, section 15.2).

        Otherwise http.client returns a 103 as the final response. The next request on this connection, possibly for
        another user, then receives the real one.
        """
        version, status, reason = super()._read_status()  # type: ignore[misc]
        return version, 100 if 101 < status < 200 else status, reason


class _HTTPConnection(urllib3.connection.HTTPConnection):
    response_class = _TimedResponse
    _good_until = math.inf

    def getresponse(self) -> Any:
        self._good_until = time.monotonic() + MAX_IDLE
        return super().getresponse()

    @property
    def is_connected(self) -> bool:
        """
        Return True if a kept connection can be reused. Otherwise urllib3 opens a new one.

        A connection with unread data cannot be reused. `super().is_connected` does not see data that is already
        decrypted.
        """
        decrypted = isinstance(self.sock, ssl.SSLSocket) and self.sock.pending()
        good = super().is_connected and not decrypted and time.monotonic() < self._good_until
        _call.get().over_a_kept_connection = good
        return good


class _HTTPSConnection(_HTTPConnection, urllib3.connection.HTTPSConnection):
    pass
