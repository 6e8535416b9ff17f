"""Measure the CPU time of an API request through a session, compared to a bare request with the library requests."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

import requests
from processes import Bench
from zendesk_stand_in import TOKEN_LENGTH

from zendesk_oauth import Store, ZendeskOAuth

PATH = '/api/v2/users/me'
BARE = 'a bare request with `requests.Session`'
REQUESTS = 400  # per round


def measure_session_cost(bench: Bench, stores: Mapping[str, Store], rounds: int) -> dict[str, float]:
    """Return the CPU time of a request with each store, in milliseconds, with valid tokens."""
    os.environ.update(bench.stand_in.variables)
    url = bench.stand_in.variables['ZENDESK_BASE_URL']
    token = 'a' * TOKEN_LENGTH
    bare = requests.Session()

    def send_bare() -> None:
        bare.get(url + PATH, headers={'Authorization': f'Bearer {token}'}, timeout=14).raise_for_status()

    def send(oauth: ZendeskOAuth) -> None:
        oauth.session('alice').get(PATH).raise_for_status()

    calls: dict[str, Callable[[], None]] = {BARE: send_bare}
    for name, store in stores.items():
        oauth = ZendeskOAuth(
            zendesk_url=url,
            client_id='benchmark',
            client_secret='benchmark_secret',  # noqa: S106
            redirect_uri='https://app.example.com/callback',
            scope='users:read',
            store=store,
        )
        oauth.import_tokens('alice', {'access_token': token, 'refresh_token': token, 'expires_in': 7200})
        calls[f'a session, {name}'] = partial(send, oauth)

    times: dict[str, list[float]] = defaultdict(list)
    for round_number in range(rounds + 1):
        for name, call in calls.items():
            before = time.process_time()
            for _ in range(REQUESTS):
                call()
            if round_number:  # the first round opens connections and fills caches
                times[name].append(1000 * (time.process_time() - before) / REQUESTS)
    return {name: median(values) for name, values in times.items()}
