"""Measure the duration of pages with a distant Zendesk, in round trips."""

from __future__ import annotations

import secrets
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import requests
from processes import EXPIRING_USER_ID, Bench, Server
from zendesk_stand_in import NAME

from servers import HttpBrowser  # isort: skip - importing processes extends sys.path

ROUND_TRIP = 0.08  # seconds

WARM = 'profile'
FIRST = 'first profile after the grant'
EXPIRED = 'profile with an expired access token (401, refresh, retry)'
CALLBACK = 'callback, over a new connection'
# One round trip for each request, and two for each new connection (TCP and TLS).
MINIMUM = {WARM: 1, FIRST: 1, EXPIRED: 3, CALLBACK: 3}


def measure_round_trips(bench: Bench, start: Callable[..., Server], samples: int) -> dict[str, list[float]]:
    """
    Start a server that reaches the stand-in through the delaying proxy. Return the times of each page, in round trips.

    Raises:
        RuntimeError: a page has the wrong content, or causes the wrong number of requests to Zendesk.
    """
    proxy, port = bench.start_distant_zendesk(ROUND_TRIP)
    server = start(ZENDESK_BASE_URL=f'https://localhost:{port}')
    home = f'http://localhost:{server.port}'
    times: dict[str, list[float]] = defaultdict(list)

    def request(browser: requests.Session, page: str, path: str, gets: int, posts: int, **query: str) -> None:
        before, begin = bench.stand_in.counts(), time.perf_counter()
        response = browser.get(home + path, params=query, allow_redirects=False)
        times[page].append((time.perf_counter() - begin) / ROUND_TRIP)
        counted = bench.stand_in.counts() - before
        is_expected_page = NAME in response.text if path == '/profile' else response.status_code == 302
        if not is_expected_page or (counted['gets'], counted['posts']) != (gets, posts):
            raise RuntimeError(f'{server.name}, {page}: {response.status_code}, {counted}, {response.text}')

    for _ in range(samples):
        browser = HttpBrowser(home).http
        authorization = browser.get(f'{home}/zendesk/auth', allow_redirects=False).headers['Location']
        [state] = parse_qs(urlsplit(authorization).query).get('state', [''])
        proxy.send_signal(signal.SIGUSR1)  # closes the connections of the previous sample
        time.sleep(2 * ROUND_TRIP)  # until the server notices, so that the callback opens a new connection
        request(browser, CALLBACK, '/zendesk/oauth/callback', 0, 1, code=secrets.token_hex(16), state=state)
        request(browser, FIRST, '/profile', 1, 0)
        request(browser, WARM, '/profile', 1, 0)

    browser = HttpBrowser(home).http
    browser.headers['Cookie'] = server.cookie(EXPIRING_USER_ID)
    browser.get(f'{home}/profile')  # the first access token expires after this request
    for _ in range(samples):
        request(browser, EXPIRED, '/profile', 2, 1)
    bench.stop(server)
    bench.processes.stop(proxy)
    return times
