"""TCP proxies between the app and the practice Zendesk: one damages responses, one keeps connections open."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

from servers import serving

Proxy = TypeVar('Proxy', 'FaultyProxy', 'KeepAliveProxy')

KINDS = {b'GET /api/v2/users/me': 'profile', b'DELETE /api/v2/oauth/tokens/current': 'revoke'}


@dataclass
class FaultyProxy:
    """Forward requests to `upstream`, and damage the next response to a chosen kind of request."""

    upstream: str
    address: str = ''
    pending: list[tuple[str, dict]] = field(default_factory=list)

    def damage_next(self, call: str, **damage: float) -> None:
        """
        Damage the response to the next request of this kind: exchange, refresh, profile, revoke or any.

        `cut`: send only this many bytes of the response. A negative number omits bytes at the end.
        `hold`: seconds before the connection is closed. No more bytes are sent.
        `trickle`: seconds between two bytes.
        """
        self.pending.append((call, damage))

    def forward(self, connection: socket.socket) -> None:
        """Forward one request: the practice Zendesk closes the connection after each response."""
        with contextlib.suppress(OSError), connection:  # either side may close its connection
            head, body = read_request(connection)
            # Take the damage before forwarding: a test may set the next damage once Zendesk has the request.
            damage = self.take_damage(kind_of(head, body))
            send(connection, response_of(self.upstream, head + body), **damage)

    def take_damage(self, kind: str | None) -> dict:
        for call, damage in self.pending:
            if kind is not None and call in (kind, 'any'):
                self.pending.remove((call, damage))
                return damage
        return {}


@dataclass
class KeepAliveProxy:
    """Forward requests to `upstream`. Keep connections open, and record the app's requests on each connection."""

    upstream: str
    address: str = ''
    closes_after_401: bool = False  # when the next request arrives
    connections: list[list[str]] = field(default_factory=list)

    def forward(self, connection: socket.socket) -> None:
        kinds: list[str] = []
        response = b''
        with contextlib.suppress(OSError), connection:  # the client may disconnect
            while True:
                head, body = read_request(connection)
                kind = kind_of(head, body)
                if kind is not None:
                    if not kinds:
                        self.connections.append(kinds)
                    kinds.append(kind)
                if self.closes_after_401 and response.startswith(b'HTTP/1.1 401 '):
                    return
                response = response_of(self.upstream, head + body)
                connection.sendall(response.replace(b'\r\nConnection: close\r\n', b'\r\n'))


@contextlib.contextmanager
def proxy_to(upstream: str, proxy_class: type[Proxy]) -> Iterator[Proxy]:
    """Run a proxy on a free port of the loopback interface."""
    proxy = proxy_class(upstream)
    with serving(proxy.forward) as port:
        proxy.address = f'http://127.0.0.1:{port}'
        yield proxy


def response_of(upstream: str, request: bytes) -> bytes:
    """Return the response to one request. The practice Zendesk closes the connection after each response."""
    address = urlsplit(upstream)
    with socket.create_connection((address.hostname, address.port), timeout=120) as zendesk:
        zendesk.sendall(request)
        return b''.join(iter(lambda: zendesk.recv(65536), b''))


def read_request(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return the head (request line and headers) and the body."""
    with connection.makefile('rb') as stream:
        head = b''
        while not head.endswith(b'\r\n\r\n'):
            line = stream.readline()
            if not line:
                raise ConnectionError('the client has closed the connection')
            head += line
        length = re.search(rb'\r\nContent-Length: *(\d+)', head, re.IGNORECASE)
        return head, stream.read(int(length[1])) if length else b''


def kind_of(head: bytes, body: bytes) -> str | None:
    """Return the kind of a request from the app, or None for a request from a browser."""
    method, path, _ = head.split(b' ', 2)
    if path == b'/oauth/tokens':
        return 'refresh' if re.search(rb'grant_type\W+refresh_token\b', body) else 'exchange'
    return KINDS.get(method + b' ' + path.removesuffix(b'.json'))


def send(connection: socket.socket, response: bytes, cut: int | None = None, hold: float = 0, trickle: float = 0):
    for byte in response[:cut] if trickle else b'':
        connection.sendall(bytes([byte]))
        time.sleep(trickle)
    if not trickle:
        connection.sendall(response[:cut])
    if hold:
        connection.settimeout(hold)
        connection.recv(1)  # returns early if the client closes the connection
