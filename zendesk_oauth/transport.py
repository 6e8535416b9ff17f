"""Send one HTTP request with a deadline and a size limit, without redirects, cookies or .netrc."""

from __future__ import annotations

import functools
import io
import os
import re
import socket
import ssl
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.utils import DEFAULT_CA_BUNDLE_PATH, default_headers, get_environ_proxies, select_proxy

LOOPBACK = ('localhost', '127.0.0.1', '::1')
CONNECT_TIMEOUT = 3  # seconds for each IP address of the host; less with four or more addresses, or a short deadline
MAX_IDLE_GET = 30  # seconds idle after which a GET uses a new connection: a firewall may have dropped the old one
MAX_IDLE_OTHER = 2  # the same for POST and DELETE, which are never sent twice: few servers close this early
NO_REUSE = 600  # seconds without reuse for POST and DELETE, after one got no response on a persistent connection
FAILURES = (OSError, urllib3.exceptions.HTTPError, ValueError, OverflowError)  # invalid HTTP, or a too large response


@dataclass
class _Call:
    """The state of the current request. `send` creates it. `_Connection` reads it and sets `may_be_closed`."""

    deadline: float  # monotonic time
    max_idle: float  # seconds
    may_be_closed: bool = False  # the connection is reused and has not responded yet: the server may have closed it


_call: ContextVar[_Call] = ContextVar('_call')


def _time_left() -> float:  # seconds
    left = _call.get().deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def send(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: Mapping[str, Any] | bytes,
    timeout: float,
    max_bytes: int,
) -> tuple[int, Mapping[str, str], bytes]:
    """
    Send one request. Return the status, the headers and the decompressed body, or raise one of FAILURES.

    `body` is a form or bytes. `timeout` (seconds) covers the whole exchange. The DNS lookup has a separate timeout.
    Requests share persistent connections. If a reused connection fails before the response, a GET is sent again.
    Other methods are sent only once: a second POST could use the same refresh token (RFC 9110, section 9.2.2).
    """
    connections = _Connections(os.getpid(), *urlsplit(url)[:2])  # cached: one object for each process and host
    request = connections.request.copy()  # faster than preparing a new one
    request.prepare_method(method)
    request.prepare_url(url, None)
    request.headers.update(headers)
    request.prepare_body(body, None)
    call = _Call(time.monotonic() + timeout, MAX_IDLE_GET)
    if method != 'GET':
        call.max_idle = MAX_IDLE_OTHER if time.monotonic() > connections.no_reuse_until else 0
    _call.set(call)
    try:
        return connections.exchange(request, max_bytes)
    except FAILURES:
        if not call.may_be_closed:
            raise
        if method != 'GET':
            connections.no_reuse_until = time.monotonic() + NO_REUSE
            raise
    call.max_idle = 0  # the GET uses a new connection
    return connections.exchange(request, max_bytes)


def cause_of(error: BaseException) -> str:
    """
    Return the cause of one of the FAILURES in the words of the operating system or of OpenSSL, else its type.

    The messages of requests and urllib3 are not returned, because they can contain the URL or parts of a response.
    """
    for inner in (*error.args, error.__cause__):
        if isinstance(inner, BaseException):
            return cause_of(inner)
    if tunnel := re.match('Tunnel connection failed: [0-9]{3}', str(error)):
        return tunnel[0]
    words = getattr(error, 'verify_message', None) or getattr(error, 'strerror', None) or type(error).__name__
    return str(words).rstrip('.')


@functools.lru_cache(maxsize=100)
class _Connections(requests.adapters.HTTPAdapter):
    """The persistent connections to one host. `process_id` is only a cache key: a fork must not share sockets."""

    def __init__(self, process_id: int, scheme: str, host: str) -> None:
        super().__init__(pool_maxsize=64)  # idle connections
        self.no_reuse_until = 0.0  # monotonic time
        url = f'{scheme}://{host}'
        # Without a Session, which would share cookies between users and send passwords from ~/.netrc.
        self.request = requests.Request('GET', url, default_headers()).prepare()
        is_local = urlsplit(url).hostname in LOOPBACK
        self._proxies = {} if is_local else get_environ_proxies(url)
        tls = _tls_context(os.getenv('REQUESTS_CA_BUNDLE') or os.getenv('CURL_CA_BUNDLE') or DEFAULT_CA_BUNDLE_PATH)
        manager = self.poolmanager
        if proxy := select_proxy(url, self._proxies):
            options = {'proxy_ssl_context': tls} if proxy.lower().startswith('https:') else {}
            manager = self.proxy_manager_for(proxy if '://' in proxy else f'http://{proxy}', **options)
        self._pool = manager.connection_from_url(url, {'ssl_context': tls})
        self._pool.ConnectionCls = type('Connection', (_Connection, self._pool.ConnectionCls), {})  # see _Connection

    def exchange(self, request: requests.PreparedRequest, max_bytes: int) -> tuple[int, Mapping[str, str], bytes]:
        with self.send(request, stream=True, timeout=_time_left(), proxies=self._proxies) as response:
            # http.client skips only 100: the next request would receive the final response.
            if response.status_code < 200 or ',' in response.headers.get('Content-Encoding', ''):
                raise urllib3.exceptions.ProtocolError('an interim response, or codings that evade the deadline')
            body = bytearray()
            while piece := response.raw.read(64 * 1024, decode_content=True):
                body += piece
                if len(body) > max_bytes:
                    raise OverflowError
            return response.status_code, response.headers, bytes(body)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        return self._pool

    def cert_verify(self, *args: Any) -> None:
        """Do nothing: the TLS context always verifies the certificate."""


@functools.lru_cache(maxsize=10)  # loading the CA certificates takes longer than connecting
def _tls_context(ca_bundle: str) -> ssl.SSLContext:
    context = urllib3.util.create_urllib3_context()  # requires a valid certificate for the host
    context.load_verify_locations(**{'capath' if Path(ca_bundle).is_dir() else 'cafile': ca_bundle})
    return context


class _DeadlineStream(io.RawIOBase):
    """Apply the deadline to each read, including a proxy's response: a socket timeout restarts with each byte."""

    def __init__(self, sock: Any, stream: Any) -> None:
        self._sock, self._stream = sock, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Any:
        self._sock.settimeout(_time_left())
        return self._stream.readinto(buffer)

    def readall(self) -> bytes:
        raise OverflowError  # an unlimited read: http.client attempts one for a chunk of size -1

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Response(HTTPResponse):
    """A response with the deadline. It hides malformed headers from urllib3, which would log them, tokens included."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_DeadlineStream(sock, self.fp.detach()))

    def begin(self) -> None:
        super().begin()
        self.headers.defects.clear()
        self.headers.set_payload('')


class _Connection(urllib3.connection.HTTPConnection):
    """Overrides for urllib3's HTTPConnection and HTTPSConnection. `_Connections` combines them with one of the two."""

    used_at = 0.0  # when the last response began (monotonic time)

    response_class = _Response

    def connect(self) -> None:
        addresses = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        self.timeout = min(CONNECT_TIMEOUT, _time_left() / (len(addresses) + 1))  # + 1: time for the TLS handshake
        super().connect()
        self.timeout = _time_left()  # for sending: urllib3 sets it on the socket before the request

    @property
    def is_connected(self) -> bool:
        """Return whether a request can reuse this connection; set `may_be_closed`. If not, urllib3 opens a new one."""
        call = _call.get()
        # super() misses bytes in a TLS buffer: the next request would receive them. TLS in TLS has no pending().
        unread = getattr(self.sock, 'pending', lambda: 0)() or (self.proxy and self.proxy.scheme == 'https')
        call.may_be_closed = super().is_connected and not unread and time.monotonic() - self.used_at < call.max_idle
        return call.may_be_closed

    def getresponse(self) -> Any:
        response = super().getresponse()
        _call.get().may_be_closed = False
        length, coding = (response.headers.get(name) for name in ('Content-Length', 'Transfer-Encoding'))
        unclear_end = (length and coding) or (response.status == 204 and length not in (None, '0'))
        self.used_at = float('-inf') if unclear_end else time.monotonic()  # a faulty server may have sent more bytes
        return response
