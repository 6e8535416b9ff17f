"""
Visitors who ask for the profile page again and again, in a process of their own.

    python load.py '{"port": 8000, "cookies": ["", ""], "name": "Amara", "seconds": 3, "at_least": 0, "at_most": 100}'

As many visitors at once as there are cookies, each over a connection of its own. They go on for so many seconds, or
until `at_most` pages have come, but not before `at_least` have. What is printed is a list: how long each page took, in
seconds, and after it the time that all took together. One thread for all visitors and no HTTP library, because what is
spent here is missing where it is to be measured.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
from typing import Any


class Visitor:
    def __init__(self, port: int, cookie: str) -> None:
        self.socket = socket.create_connection(('127.0.0.1', port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = f'GET /profile HTTP/1.1\r\nHost: localhost:{port}\r\nCookie: {cookie}\r\n\r\n'.encode()

    def ask(self) -> None:
        self.received = b''
        self.asked = time.perf_counter()
        self.socket.sendall(self.request)

    def has_page(self, name: bytes) -> bool:
        """Take what has come; tell whether that was the rest of a page, and fail if it is not the profile."""
        data = self.socket.recv(65536)
        self.received += data
        head, end, body = self.received.partition(b'\r\n\r\n')
        length = re.search(rb'\r\nContent-Length: (\d+)', head, re.IGNORECASE)
        if data and not (end and length and len(body) >= int(length[1])):
            return False
        if not head.startswith(b'HTTP/1.1 200 ') or name not in body:
            raise SystemExit(f'That is not the profile: {self.received[:2000]!r}')
        return True


def visit(
    port: int, cookies: list[str], name: str, seconds: float, at_least: int, at_most: int
) -> tuple[list[float], float]:
    """Return how long each page took, and all together."""
    selector = selectors.DefaultSelector()
    visitors = [Visitor(port, cookie) for cookie in cookies]
    begin = time.perf_counter()
    for visitor in visitors:
        selector.register(visitor.socket, selectors.EVENT_READ, visitor)
        visitor.ask()
    times: list[float] = []
    asked = len(visitors)
    while len(times) < asked:
        ready = selector.select(60)
        if not ready:
            raise SystemExit('No page for a minute')
        for key, _ in ready:
            visitor = key.data
            if visitor.has_page(name.encode()):
                now = time.perf_counter()
                times.append(now - visitor.asked)
                if asked < at_least or (asked < at_most and now < begin + seconds):
                    visitor.ask()
                    asked += 1
    return times, time.perf_counter() - begin


if __name__ == '__main__':
    options: dict[str, Any] = json.loads(sys.argv[1])
    json.dump(visit(**options), sys.stdout)
