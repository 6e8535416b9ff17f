"""
Benchmark the app against a minimal app (the baseline) and the article's code, with a distant and a nearby Zendesk,
and with growing numbers of users. Measure the CPU time of an API request.

    .venv/bin/pip install -r benchmarks/requirements.txt && .venv/bin/python benchmarks/run.py

It needs Linux and PostgreSQL (on Debian, apt install postgresql), and starts a temporary database server.

It prints Markdown tables. Short rounds alternate between the servers, so other load on the machine affects all of
them equally. Each server is gunicorn with one worker and eight threads. It calls a stand-in for Zendesk on this machine
over TLS, so the results include the CPU time of the request but no network latency. The first table is the exception: a
proxy adds 80 ms to each round trip. The benchmark fails if a page has the wrong content or causes the wrong number of
requests to Zendesk.

By default, the servers trust only the CA of the stand-in. With the real Zendesk, a server trusts about 140 CAs, and
requests parses all their certificates for each new connection. --all-authorities includes that cost.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from processes import (
    ENCRYPTION_KEY,
    EXPIRING_USER_ID,
    USER_IDS,
    Bench,
    Server,
    cpu_seconds,
    fill_database,
    new_bench,
    write_users,
)
from round_trips import MINIMUM, ROUND_TRIP, measure_round_trips
from session_cost import measure_session_cost
from zendesk_stand_in import NAME

from postgresql import Postgresql  # isort: skip - importing processes extends sys.path

from zendesk_oauth import JsonFileStore, MemoryStore, SqlStore

LOAD = Path(__file__).with_name('load.py')


class Plan(NamedTuple):
    """The duration and size of a run. Times are in seconds."""

    rounds: int
    concurrent: float  # time with all users, for each server in each round
    single: float  # time with one user
    stored_users: tuple[int, ...]  # numbers of users to measure
    passes: int  # through these numbers
    growth: float  # time for each kind of page with each number of users
    at_least: int  # pages of each kind, even if they take longer than `growth`
    distant: int  # pages of each kind with a distant Zendesk


FULL = Plan(
    rounds=7,
    concurrent=3,
    single=1,
    stored_users=(10, 1_000, 10_000, 100_000),
    passes=2,
    growth=2,
    at_least=5,
    distant=15,
)
QUICK = Plan(
    rounds=3, concurrent=1, single=0.4, stored_users=(10, 1_000, 10_000), passes=1, growth=0.5, at_least=3, distant=5
)


class Measurement(NamedTuple):
    """The result of one measurement. Times are in seconds; `times` has the duration of each page."""

    times: list[float]
    seconds: float
    cpu: float
    zendesk_cpu: float
    connections: int

    @property
    def rate(self) -> float:
        return len(self.times) / self.seconds


class Store(NamedTuple):
    """A store to measure with a growing number of users."""

    name: str
    fill: Callable[[int], None]
    start: Callable[[], Server]


def main(plan: Plan, all_authorities: bool) -> None:
    with new_bench(all_authorities) as bench, postgresql() as database_url:
        print(f'{system_info()}\n')
        for name in ('article', 'app'):
            write_users(bench.folder / name, 10)
        print(round_trips(bench, plan), end='\n\n', flush=True)
        servers = [
            bench.start_baseline(),
            bench.start_article_code(),
            bench.start_app(),
            bench.start_app('this app, with debug logging (LOGURU_LEVEL=DEBUG)', LOGURU_LEVEL='DEBUG'),
            bench.start_flask_alone(),
        ]
        print(compare(bench, servers, plan), end='\n\n', flush=True)
        memory = {f'{server.name}, 10 users': server.memory() for server in servers}
        for server in servers:
            bench.stop(server)
        print(growth(stores(bench, database_url), bench, plan, memory), end='\n\n', flush=True)
        rows = ([name, *(f'{size:.0f}' for size in sizes)] for name, sizes in memory.items())
        print(table(['worker memory', 'MiB', 'peak MiB'], rows), end='\n\n', flush=True)
        print(session_cost(bench, plan, database_url))


def system_info() -> str:
    releases = [f'{name} {importlib.metadata.version(name)}' for name in ('gunicorn', 'flask', 'requests', 'urllib3')]
    machine = f'{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f} at the start'
    return ', '.join([f'Python {platform.python_version()}', *releases, machine])


def stores(bench: Bench, database_url: str) -> list[Store]:
    return [
        Store("the article's code", partial(write_users, bench.folder / 'article'), bench.start_article_code),
        Store('this app, users.json', partial(write_users, bench.folder / 'app'), bench.start_app),
        Store(
            'this app, SQLite',
            partial(fill_database, sqlite_url(bench)),
            partial(bench.start_app, DATABASE_URL=sqlite_url(bench)),
        ),
        Store(
            'this app, PostgreSQL',
            partial(fill_database, database_url),
            partial(bench.start_app, DATABASE_URL=database_url),
        ),
    ]


def sqlite_url(bench: Bench) -> str:
    return f'sqlite:///{bench.folder}/tokens.db'


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Yield the URL of a temporary PostgreSQL server with default settings."""
    server = Postgresql()
    try:
        yield server.url
    finally:
        server.remove()


# --- Round trips --- #


def round_trips(bench: Bench, plan: Plan) -> str:
    times = [
        measure_round_trips(bench, start, plan.distant)
        for start in (partial(bench.start_app, 'this app'), bench.start_article_code)
    ]
    return table(
        [
            f'median of {plan.distant} pages, in round trips of {1000 * ROUND_TRIP:.0f} ms',
            'this app',
            "the article's code",
            'minimum',
        ],
        [[page, *(f'{median(each[page]):.1f}' for each in times), str(minimum)] for page, minimum in MINIMUM.items()],
    )


# --- Comparison --- #


def compare(bench: Bench, servers: list[Server], plan: Plan) -> str:
    for server in servers:
        measure(bench, server, USER_IDS, seconds=plan.single)
    concurrent: dict[str, list[Measurement]] = {server.name: [] for server in servers}
    single: dict[str, list[Measurement]] = {server.name: [] for server in servers}
    for _ in range(plan.rounds):
        for server in servers:
            concurrent[server.name].append(measure(bench, server, USER_IDS, seconds=plan.concurrent))
            single[server.name].append(measure(bench, server, USER_IDS[:1], seconds=plan.single))

    baseline, article, *_ = concurrent.values()
    rows = []
    for name, rounds in concurrent.items():
        pages = sum(len(each.times) for each in rounds)
        rates = [each.rate for each in rounds]
        rows.append(
            [
                name,
                f'{median(rates):.0f} ({min(rates):.0f}–{max(rates):.0f})',
                f'{ratio(rounds, baseline):.0%}',
                f'{ratio(rounds, article):.2f}',
                milliseconds(time for each in rounds for time in each.times),
                milliseconds(time for each in single[name] for time in each.times),
                f'{1000 * sum(each.cpu for each in rounds) / pages:.2f}',
                f'{1000 * sum(each.zendesk_cpu for each in rounds) / pages:.2f}',
                f'{100 * sum(each.connections for each in rounds) / pages:.1f}',
            ]
        )
    head = [
        f'profile page, median of {plan.rounds} rounds',
        'pages per second (min–max)',
        'relative to the baseline',
        "relative to the article's code",
        f'ms per page, {len(USER_IDS)} concurrent users',
        'ms per page, one user',
        'worker CPU ms per page',
        'stand-in CPU ms per page',
        'new TLS connections per 100 pages',
    ]
    return table(head, rows)


def ratio(rounds: list[Measurement], others: list[Measurement]) -> float:
    """Return the median ratio of the page rates. Rates are compared within a round, because machine load varies."""
    return median(mine.rate / other.rate for mine, other in zip(rounds, others, strict=True))


# --- Growth --- #


def growth(stores: list[Store], bench: Bench, plan: Plan, memory: dict[str, tuple[float, float]]) -> str:
    """Measure each store with a growing number of users. Add the memory for the largest number to `memory`."""
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for pass_number in range(plan.passes):
        # Alternate the direction, so that a machine that slows down does not look like a slow store.
        for number in reversed(plan.stored_users) if pass_number % 2 else plan.stored_users:
            for store in stores:
                store.fill(number)
                server = store.start()
                measure(bench, server, USER_IDS[:1], at_most=5)
                # Use up this user's first access token, so that each measured page needs a refresh.
                measure(bench, server, [EXPIRING_USER_ID], at_most=1)
                pages = partial(measure, bench, server, seconds=plan.growth, at_least=plan.at_least, at_most=500)
                times[f'{store.name}: profile', number] += pages(USER_IDS[:1]).times
                times[f'{store.name}: refresh', number] += pages([EXPIRING_USER_ID], refreshes=1).times
                if number == plan.stored_users[-1]:
                    memory[f'{store.name}, {number:,} users'] = server.memory()
                bench.stop(server)

    columns = list(dict.fromkeys(column for column, _ in times))
    rows = [
        [f'{number:,}', *(milliseconds(times[column, number]) for column in columns)] for number in plan.stored_users
    ]
    first, last = plan.stored_users[0], plan.stored_users[-1]
    ratios = (median(times[column, last]) / median(times[column, first]) for column in columns)
    return table(
        ['ms per page, by number of stored users', *columns],
        [*rows, [f'{last:,} : {first:,}', *(f'{each:.1f}' for each in ratios)]],
    )


# --- The cost of a session --- #


def session_cost(bench: Bench, plan: Plan, database_url: str) -> str:
    urls = {'`SqlStore` with SQLite': sqlite_url(bench), '`SqlStore` with PostgreSQL': database_url}
    databases = {name: SqlStore(url, encryption_keys=[ENCRYPTION_KEY]) for name, url in urls.items()}
    json_file = JsonFileStore(bench.folder / 'tokens.json')
    stores = {'`MemoryStore`': MemoryStore(), '`JsonFileStore`': json_file, **databases}
    times = measure_session_cost(bench, stores, plan.rounds)
    bare, *_ = times.values()
    return table(
        ['CPU time of one API request', 'ms', 'relative to a bare request'],
        [[name, f'{time:.2f}', f'{time / bare:.2f}'] for name, time in times.items()],
    )


# --- Measuring --- #


def measure(
    bench: Bench,
    server: Server,
    user_ids: list[str],
    seconds: float = 60,
    at_least: int = 0,
    at_most: int = sys.maxsize,
    refreshes: int = 0,
) -> Measurement:
    """
    Measure the profile page with these users, concurrently. Each page must cause one GET and `refreshes` refreshes.

    Raises:
        RuntimeError: a page has the wrong content, or the number of requests to Zendesk is wrong.
    """
    options = {
        'port': server.port,
        'cookies': [server.cookie(user_id) for user_id in user_ids],
        'name': NAME,
        'seconds': seconds,
        'at_least': at_least,
        'at_most': at_most,
    }
    zendesk = bench.stand_in
    counts, cpu, zendesk_cpu = zendesk.counts(), cpu_seconds(server.worker), cpu_seconds(zendesk.process.pid)
    load = subprocess.run(  # noqa: S603
        [sys.executable, '-I', LOAD, json.dumps(options)], capture_output=True, text=True, start_new_session=True
    )
    cpu, zendesk_cpu = cpu_seconds(server.worker) - cpu, cpu_seconds(zendesk.process.pid) - zendesk_cpu
    if load.returncode:
        raise RuntimeError(f'{server.name}: {load.stderr}')
    times, duration = json.loads(load.stdout)
    counted = {name: number - counts[name] for name, number in zendesk.counts().items()}
    # Each refresh adds one GET, which returns 401.
    expected = {'gets': len(times) * (1 + refreshes), 'posts': len(times) * refreshes}
    if any(counted[name] != number for name, number in expected.items()):
        raise RuntimeError(f'{server.name}: {len(times)} pages should cause {expected}, but caused {counted}')
    return Measurement(times, duration, cpu, zendesk_cpu, counted['connections'])


# --- Printing --- #


def milliseconds(times: Iterable[float]) -> str:
    return f'{1000 * median(times):.2f}'


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in (head, ['---'] + ['--:'] * (len(head) - 1), *rows))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Benchmark the profile page and print the results as Markdown tables.')
    parser.add_argument('--quick', action='store_true', help='run for about one minute, with rough results')
    parser.add_argument(
        '--all-authorities', action='store_true', help='also trust the public CAs, as with the real Zendesk'
    )
    arguments = parser.parse_args()
    main(QUICK if arguments.quick else FULL, arguments.all_authorities)
