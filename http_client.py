"""One HTTP call: limited in time and size, following no redirect, with nothing sent along that nobody asked for."""

from __future__ import annotations

import http.client
import io
import logging
import socket
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from settings import is_loopback

CONNECT_TIMEOUT = 3  # seconds, for each address that the host has
CALL_TIMEOUT = 14  # seconds from the call to the last byte, so that a page which tells of it is out within 15
MAX_ANSWER = 1024 * 1024  # bytes

# urllib3 quotes headers that it can't parse, and in a mutilated answer those could be tokens.
logging.getLogger('urllib3.connection').setLevel(logging.ERROR)


class Answer(NamedTuple):
    """What the server sent; `body` is unpacked, and no longer than MAX_ANSWER."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def send(method: str, url: str, **kwargs: Any) -> Answer:
    """
    Send one request (`data`, `headers`: those of requests) and return the answer, whatever its status.

    Looking up the host's name has a time limit of its own, the resolver's.

    Raises:
        TimeoutError: no connection, or no whole answer, in time.
        ConnectionError: no answer, or one that is none. Both texts name the cause, and the second the remedy.
    """
    body = bytearray()
    _deadline.set(time.monotonic() + CALL_TIMEOUT)
    try:
        # A session of its own for each call: no cookie goes from one user to the next.
        with (
            _Session() as session,
            session.request(
                method,
                url,
                auth=_no_other_credentials,
                timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, total=CALL_TIMEOUT),  # type: ignore[arg-type]
                allow_redirects=False,
                stream=True,
                **kwargs,
            ) as response,
        ):
            for chunk in response.raw.stream(64 * 1024, decode_content=True):
                body += chunk
                if len(body) > MAX_ANSWER:
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
    if len(body) > MAX_ANSWER:
        raise ConnectionError(f'The answer has more than {MAX_ANSWER} bytes: who is it that answers there?')
    return Answer(response.status_code, response.headers, bytes(body))


class _Session(requests.Session):
    """
    A session that takes a redirect for an ordinary answer, and that holds an answer to the time limit as a whole.

    With `allow_redirects=False` alone, requests would still parse the address, and read the whole body, of any size.
    """

    def __init__(self) -> None:
        super().__init__()
        adapter = _Adapter()
        self.mount('https://', adapter)
        self.mount('http://', adapter)

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


def _no_other_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Leave the request as it is; without an `auth` of ours, requests would send a password from ~/.netrc."""
    return request


# --- The time limit --- #


_deadline: ContextVar[float] = ContextVar('_deadline')  # when the call under way has to be over, in monotonic time


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
        left = _deadline.get() - time.monotonic()
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


class _HTTPConnection(urllib3.connection.HTTPConnection):
    response_class = _TimedResponse


class _HTTPSConnection(urllib3.connection.HTTPSConnection):
    response_class = _TimedResponse


class _Adapter(HTTPAdapter):
    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        # Talk on this machine stays there. (To say so with `no_proxy`, requests would change the environment of all
        # threads for a moment.)
        if is_loopback(urlsplit(str(request.url)).hostname):
            kwargs['proxies'] = None
        return super().send(request, *args, **kwargs)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _HTTPSConnection if pool.scheme == 'https' else _HTTPConnection
        return pool
