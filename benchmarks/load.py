"""
Request the profile page repeatedly with concurrent clients, in a separate process.

    python load.py '{"port": 8000, "cookies": ["", ""], "name": "Amara", "seconds": 3, "at_least": 0, "at_most": 100}'

There is one client with one connection for each cookie. The clients stop after `seconds` or after `at_most` pages, but
not before they have received `at_least` pages. The output is a JSON list: the durations of all pages, then the total
duration, in seconds. All clients share one thread and use no HTTP library, to leave the CPU to the server.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
from typing import Any


class Client:
    def __init__(self, port: int, cookie: str) -> None:
        self.socket = socket.create_connection(('127.0.0.1', port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = f'GET /profile HTTP/1.1\r\nHost: localhost:{port}\r\nCookie: {cookie}\r\n\r\n'.encode()

    def send(self) -> None:
        self.received = b''
        self.sent_at = time.perf_counter()
        self.socket.sendall(self.request)

    def receive(self, name: bytes) -> bool:
        """
        Receive data and return True if the page is complete.

        Raises:
            SystemExit: the page is not the profile.
        """
        data = self.socket.recv(65536)
        self.received += data
        head, end, body = self.received.partition(b'\r\n\r\n')
        length = re.search(rb'\r\nContent-Length: (\d+)', head, re.IGNORECASE)
        if data and not (end and length and len(body) >= int(length[1])):
            return False
        if not head.startswith(b'HTTP/1.1 200 ') or name not in body:
            raise SystemExit(f'This page is not the profile: {self.received[:2000]!r}')
        return True


def request_pages(
    port: int, cookies: list[str], name: str, seconds: float, at_least: int, at_most: int
) -> tuple[list[float], float]:
    """Return the duration of each page and the total duration, in seconds."""
    selector = selectors.DefaultSelector()
    clients = [Client(port, cookie) for cookie in cookies]
    start = time.perf_counter()
    for client in clients:
        selector.register(client.socket, selectors.EVENT_READ, client)
        client.send()
    times: list[float] = []
    sent = len(clients)
    while len(times) < sent:
        ready = selector.select(60)
        if not ready:
            raise SystemExit('No response within 60 seconds')
        for key, _ in ready:
            client = key.data
            if client.receive(name.encode()):
                now = time.perf_counter()
                times.append(now - client.sent_at)
                if sent < at_least or (sent < at_most and now < start + seconds):
                    client.send()
                    sent += 1
    return times, time.perf_counter() - start


if __name__ == '__main__':
    options: dict[str, Any] = json.loads(sys.argv[1])
    json.dump(request_pages(**options), sys.stdout)
