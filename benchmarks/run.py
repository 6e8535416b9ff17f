"""
Measure the profile page: beside the least that Python takes for it, beside the tutorial's way, and with many users.

    .venv/bin/pip install -r benchmarks/requirements.txt && .venv/bin/python benchmarks/run.py

It needs Linux, and PostgreSQL (on Debian, apt install postgresql), of which it starts one of its own.

What comes out are tables in Markdown. The three servers are measured in turn, a few seconds each, again and again, so
that whatever else the machine does hits all alike. All run under gunicorn with one worker of eight threads and call a
stand-in for Zendesk on this machine, over TLS; there is no way to it that takes time, so what is measured is the work.
Each page is looked at, and each has to have cost the calls to Zendesk that it should: a figure that comes of anything
else would be worth nothing.

The servers trust one authority, the stand-in's. Those who call the real Zendesk trust some 140, and whoever makes a
connection without care parses them all: with --all-authorities, that is measured, too.
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

from processes import EXPIRING, VISITORS, Bench, Server, bench, cpu_seconds, fill_database, write_users
from zendesk_stand_in import NAME

from postgresql import Postgresql  # isort: skip - processes has told where it is

LOAD = Path(__file__).with_name('load.py')


class Plan(NamedTuple):
    """How long it takes: times are in seconds."""

    rounds: int
    together: float  # with all visitors, for each server in each round
    alone: float  # with one visitor
    stored: tuple[int, ...]  # numbers of users
    passes: int  # through these numbers
    growing: float  # for each kind of page with each number of users
    at_least: int  # pages of that kind, however long they take


FULL = Plan(rounds=7, together=3, alone=1, stored=(10, 1_000, 10_000, 100_000), passes=2, growing=2, at_least=5)
QUICK = Plan(rounds=3, together=1, alone=0.4, stored=(10, 1_000, 10_000), passes=1, growing=0.5, at_least=3)


class Measured(NamedTuple):
    """What came of some pages; `times` are those of each page."""

    times: list[float]
    seconds: float
    cpu: float
    zendesk_cpu: float
    connections: int

    @property
    def rate(self) -> float:
        return len(self.times) / self.seconds


class Store(NamedTuple):
    """One of the stores that are filled with more and more users."""

    name: str
    fill: Callable[[int], None]
    start: Callable[[], Server]


def main(plan: Plan, all_authorities: bool) -> None:
    with bench(all_authorities) as made, postgresql() as database_url:
        print(f'{surroundings()}\n')
        for name in ('tutorial', 'app'):
            write_users(made.folder / name, 10)
        servers = [
            made.start_floor(),
            made.start_tutorial_way(),
            made.start_app(),
            made.start_app('this app, with all its log (LOGURU_LEVEL=DEBUG)', LOGURU_LEVEL='DEBUG'),
            made.start_flask_alone(),
        ]
        print(side_by_side(made, servers, plan), end='\n\n', flush=True)
        memory = {f'{server.name}, 10 users': server.memory() for server in servers}
        for server in servers:
            made.stop(server)
        print(growth(stores(made, database_url), made, plan, memory), end='\n\n', flush=True)
        rows = ([what, *(f'{size:.0f}' for size in sizes)] for what, sizes in memory.items())
        print(table(['memory of the worker', 'MiB', 'at most'], rows))


def surroundings() -> str:
    releases = [f'{name} {importlib.metadata.version(name)}' for name in ('gunicorn', 'flask', 'requests', 'urllib3')]
    machine = f'{os.cpu_count()} processors, which others had at a load of {os.getloadavg()[0]:.1f} at the start'
    return ', '.join([f'Python {platform.python_version()}', *releases, machine])


def stores(made: Bench, database_url: str) -> list[Store]:
    return [
        Store("the tutorial's way", partial(write_users, made.folder / 'tutorial'), made.start_tutorial_way),
        Store('this app, users.json', partial(write_users, made.folder / 'app'), made.start_app),
        Store(
            'this app, PostgreSQL',
            partial(fill_database, database_url),
            partial(made.start_app, DATABASE_URL=database_url),
        ),
    ]


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Lend the address of a PostgreSQL as it comes, in a folder of its own."""
    server = Postgresql()
    try:
        yield server.url
    finally:
        server.remove()


# --- Side by side --- #


def side_by_side(made: Bench, servers: list[Server], plan: Plan) -> str:
    for server in servers:
        measure(made, server, VISITORS, seconds=plan.alone)
    together: dict[str, list[Measured]] = {server.name: [] for server in servers}
    alone: dict[str, list[Measured]] = {server.name: [] for server in servers}
    for _ in range(plan.rounds):
        for server in servers:
            together[server.name].append(measure(made, server, VISITORS, seconds=plan.together))
            alone[server.name].append(measure(made, server, VISITORS[:1], seconds=plan.alone))

    floor, tutorial, *_ = together.values()
    rows = []
    for name, rounds in together.items():
        pages = sum(len(each.times) for each in rounds)
        rates = [each.rate for each in rounds]
        rows.append(
            [
                name,
                f'{median(rates):.0f} ({min(rates):.0f}–{max(rates):.0f})',
                f'{ratio(rounds, floor):.0%}',
                f'{ratio(rounds, tutorial):.2f}',
                milliseconds(time for each in rounds for time in each.times),
                milliseconds(time for each in alone[name] for time in each.times),
                f'{1000 * sum(each.cpu for each in rounds) / pages:.2f}',
                f'{1000 * sum(each.zendesk_cpu for each in rounds) / pages:.2f}',
                f'{100 * sum(each.connections for each in rounds) / pages:.1f}',
            ]
        )
    head = [
        f'profile page, median of {plan.rounds} rounds',
        'pages per second (min–max)',
        'of the floor',
        "times the tutorial's",
        f'ms per page, {len(VISITORS)} visitors at once',
        'ms, one alone',
        'CPU ms of the worker per page',
        'CPU ms of the stand-in',
        'new TLS connections per 100 pages',
    ]
    return table(head, rows)


def ratio(rounds: list[Measured], others: list[Measured]) -> float:
    """Return how many times the pages of the others came, by the median of the rounds: each has its own weather."""
    return median(one.rate / other.rate for one, other in zip(rounds, others, strict=True))


# --- Growth --- #


def growth(stores: list[Store], made: Bench, plan: Plan, memory: dict[str, tuple[float, float]]) -> str:
    """Measure each store with more and more users, and note in `memory` what the most of them take."""
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for turn in range(plan.passes):
        # Up, down, up: a machine that becomes slower meanwhile does not pass for a store that does.
        for number in reversed(plan.stored) if turn % 2 else plan.stored:
            for store in stores:
                store.fill(number)
                server = store.start()
                measure(made, server, VISITORS[:1], at_most=5)
                measure(made, server, [EXPIRING], at_most=1)  # from now on, each of this user's pages is a refresh
                pages = partial(measure, made, server, seconds=plan.growing, at_least=plan.at_least, at_most=500)
                times[f'{store.name}: profile', number] += pages(VISITORS[:1]).times
                times[f'{store.name}: refresh', number] += pages([EXPIRING], refreshes=1).times
                if number == plan.stored[-1]:
                    memory[f'{store.name}, {number:,} users'] = server.memory()
                made.stop(server)

    columns = list(dict.fromkeys(column for column, _ in times))
    rows = [[f'{number:,}', *(milliseconds(times[column, number]) for column in columns)] for number in plan.stored]
    first, last = plan.stored[0], plan.stored[-1]
    ratios = (median(times[column, last]) / median(times[column, first]) for column in columns)
    return table(
        ['ms per page, by stored users', *columns],
        [*rows, [f'{last:,} : {first:,}', *(f'{each:.1f}' for each in ratios)]],
    )


# --- Measuring --- #


def measure(
    made: Bench,
    server: Server,
    user_ids: list[str],
    seconds: float = 60,
    at_least: int = 0,
    at_most: int = sys.maxsize,
    refreshes: int = 0,
) -> Measured:
    """
    Let these users ask for the profile, all at once; each page has to cost one GET and so many refreshes.

    Raises:
        RuntimeError: a page was none, or cost something else.
    """
    options = {
        'port': server.port,
        'cookies': [server.cookie(user_id) for user_id in user_ids],
        'name': NAME,
        'seconds': seconds,
        'at_least': at_least,
        'at_most': at_most,
    }
    zendesk = made.stand_in
    counts, cpu, zendesk_cpu = zendesk.counts(), cpu_seconds(server.worker), cpu_seconds(zendesk.process.pid)
    load = subprocess.run(  # noqa: S603
        [sys.executable, '-I', LOAD, json.dumps(options)], capture_output=True, text=True, start_new_session=True
    )
    cpu, zendesk_cpu = cpu_seconds(server.worker) - cpu, cpu_seconds(zendesk.process.pid) - zendesk_cpu
    if load.returncode:
        raise RuntimeError(f'{server.name}: {load.stderr}')
    times, taken = json.loads(load.stdout)
    counted = {name: number - counts[name] for name, number in zendesk.counts().items()}
    # A GET more for each refresh: the one that is answered with 401.
    expected = {'gets': len(times) * (1 + refreshes), 'posts': len(times) * refreshes}
    if any(counted[name] != number for name, number in expected.items()):
        raise RuntimeError(f'{server.name}: {len(times)} pages should have cost {expected}, and did cost {counted}')
    return Measured(times, taken, cpu, zendesk_cpu, counted['connections'])


# --- Printing --- #


def milliseconds(times: Iterable[float]) -> str:
    return f'{1000 * median(times):.2f}'


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in (head, ['---'] + ['--:'] * (len(head) - 1), *rows))


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--quick', action='store_true', help='about a minute, for rough figures')
    parser.add_argument('--all-authorities', action='store_true', help='trust those of the internet, too')
    arguments = parser.parse_args()
    main(QUICK if arguments.quick else FULL, arguments.all_authorities)
