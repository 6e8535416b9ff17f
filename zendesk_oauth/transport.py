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

CONNECT_TIMEOUT = 3  # seconds, for each address that the host has
CALL_TIMEOUT = 14  # seconds from the call to the last byte, so that a page which tells of it is out within 15
MAX_RESPONSE_SIZE = 1024 * 1024  # bytes
MAX_KEPT = 64  # connections that wait for the next call, in each process
MAX_IDLE = 30  # seconds that such a connection is good for: something on the way may have forgotten it then

# urllib3 quotes headers that it can't parse, and in a mutilated answer those could be tokens.
logging.getLogger('urllib3.connection').setLevel(logging.ERROR)


@dataclass(frozen=True)
class Response:
    """
    The response to one request; `content` is decompressed, and no longer than MAX_RESPONSE_SIZE.

    Unlike a `requests.Response` it does not carry the request, whose headers hold the access token.
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
    Send one request, `data` as a form, and return the response, whatever its status.

    `timeout` is in seconds for the whole call; without it, it is CALL_TIMEOUT.

    A GET goes over a kept connection; should the server have closed that meanwhile, it is sent again over a new one.
    Other methods get a new connection each time. When a kept one breaks off, nobody can tell whether the request has
    arrived; and what the server does once, such as to trade a refresh token, must not be asked for twice (RFC 9110,
    section 9.2.2).

    Looking up the host's name has a time limit of its own, the resolver's.

    Raises:
        TimeoutError: no connection, or no whole answer, in time.
        ConnectionError: no answer, or one that is none. Both texts name the cause, and the second the remedy.
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
    """Send the request over a kept connection or a new one, and read the answer, or fail in one of two ways."""
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
        raise TimeoutError(f'No answer in time ({type(error).__name__})') from error
    except requests.exceptions.SSLError as error:
        raise ConnectionError(
            'No TLS, or a certificate that is not one to be trusted: check the clock of this machine and, if a proxy '
            'answers in place of Zendesk, have REQUESTS_CA_BUNDLE name its certificate'
        ) from error
    except requests.exceptions.ProxyError as error:
        raise ConnectionError('The proxy does not connect: check HTTPS_PROXY and NO_PROXY') from error
    except (OSError, urllib3.exceptions.HTTPError, ValueError) as error:  # ValueError: that was no HTTP at all
        raise ConnectionError(
            f'No connection, or one that broke off ({type(error).__name__}): check the network and, if this goes on, '
            'the address in the settings'
        ) from error
    if len(body) > MAX_RESPONSE_SIZE:
        raise ConnectionError(
            f'The response is larger than {MAX_RESPONSE_SIZE} bytes: check the address in the settings'
        )
    return Response(response.status_code, response.headers, bytes(body))


@functools.cache
def _prepared(method: str, url: str) -> requests.PreparedRequest:
    """
    Return a request to be copied. To prepare one anew takes as long as to send it.

    It is not a session that prepares it: that would take cookies from one user to the next, and send a password from
    ~/.netrc.
    """
    return requests.Request(method, url, requests.utils.default_headers()).prepare()


@functools.cache
def _environment(scheme: str, host: str) -> tuple[Any, str]:
    """Return which proxies lead to the host, and where the authorities stand whose certificates are trusted."""
    # Talk on this machine stays there. (`no_proxy` would have requests change the environment of all threads.)
    proxies: Any = None if urlsplit(f'//{host}').hostname in ('localhost', '127.0.0.1', '::1') else {}
    found = requests.Session().merge_environment_settings(f'{scheme}://{host}', proxies, None, None, None)
    return found['proxies'], DEFAULT_CA_BUNDLE_PATH if found['verify'] is True else str(found['verify'])


# --- The connections --- #


class _Connections(HTTPAdapter):
    """
    Connections that wait for their next call. Threads may share them: each is lent to one call at a time.

    To read all the authorities' certificates takes longer than to connect, so it is done once, and not by requests.
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
        """Leave it to the TLS context, which always verifies."""

    def get_connection_with_tls_context(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        origin = urlsplit(str(request.url))[:2]
        if origin not in self._pools:
            pool: Any = super().get_connection_with_tls_context(request, *args, **kwargs)
            pool.ConnectionCls = _HTTPSConnection if pool.scheme == 'https' else _HTTPConnection
            self._pools[origin] = pool
        return self._pools[origin]


@functools.cache
def _kept_connections(process_id: int, ca_bundle: str) -> _Connections:
    """Return those of this process: over one that was there before a fork, two processes would talk at once."""
    return _Connections(ca_bundle)


@functools.cache
def _tls_context(ca_bundle: str) -> ssl.SSLContext:
    context = urllib3.util.create_urllib3_context()  # which demands a certificate, for the host's name
    if Path(ca_bundle).is_dir():
        context.load_verify_locations(capath=ca_bundle)
    else:
        context.load_verify_locations(cafile=ca_bundle)
    return context


# --- The time limits --- #


@dataclass
class _Call:
    """What a thread is about: when it has to be over (monotonic time), and what it goes over."""

    deadline: float
    over_a_kept_connection: bool = False

    def time_left(self) -> float:
        return self.deadline - time.monotonic()


_call: ContextVar[_Call] = ContextVar('_call')


class _TimedStream(io.RawIOBase):
    """
    A socket's stream that ends with the time for the call.

    A socket's timeout alone starts anew with each byte that arrives: a server that sends one every few seconds would
    hold its caller for hours.
    """

    def __init__(self, sock: socket.socket, stream: io.RawIOBase) -> None:
        self._socket, self._stream = sock, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = _call.get().time_left()
        if left <= 0:
            raise TimeoutError('the time for the whole call is over')
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
        Count each interim answer as "100 Continue", the only one that http.client skips (RFC 9110, section 15.2).

        It would take a 103 for the answer itself, and the answer for the next one's: that of another user's call.
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
        Tell whether a kept connection can be used; urllib3 asks before it does, and else makes a new one.

        One that has something to read cannot. It may have been decrypted already: the system does not know of that.
        """
        decrypted = isinstance(self.sock, ssl.SSLSocket) and self.sock.pending()
        good = super().is_connected and not decrypted and time.monotonic() < self._good_until
        _call.get().over_a_kept_connection = good
        return good


class _HTTPSConnection(_HTTPConnection, urllib3.connection.HTTPSConnection):
    pass
