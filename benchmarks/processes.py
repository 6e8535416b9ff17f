"""
Start and stop the processes of the benchmarks: the stand-in for Zendesk and the servers under test.

They run in a temporary folder, on free ports and with a clean environment. They are stopped and the folder is deleted
even if the benchmark fails. CPU time and memory are read from /proc, so this needs Linux.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import certifi
from cryptography.fernet import Fernet
from flask import Flask
from flask.sessions import SecureCookieSessionInterface
from sqlalchemy import create_engine, delete, insert
from zendesk_stand_in import CA_FILE, ONCE, TOKEN_LENGTH

HERE = Path(__file__).parent
PROJECT = HERE.parent
sys.path[:0] = [str(PROJECT / 'tests' / 'integration'), str(PROJECT)]

from servers import copy_project, free_port, listens, wait_until  # noqa: E402

from zendesk_oauth.sql_store import TOKENS, SqlStore  # noqa: E402

SECRET_KEY = 'signs the sessions of a benchmark'  # noqa: S105
ENCRYPTION_KEY = Fernet.generate_key().decode()
THREADS = 8

USER_IDS = [f'user-{number:032x}' for number in range(8)]
EXPIRING_USER_ID = f'user-{8:032x}'  # each of this user's access tokens is valid for one request
MIN_USERS = len(USER_IDS) + 1


class Processes:
    """The running processes, each in a separate session: Ctrl+C reaches only the benchmark, which stops them."""

    def __init__(self) -> None:
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, folder: Path, port: int, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a Python program in the folder and wait until it listens on the port."""
        with (folder / 'output.txt').open('ab') as output:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, *command],
                cwd=folder,
                env=environment(folder, **variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.running.append(process)
        wait_until(lambda: process.poll() is not None or listens(port))
        if process.poll() is not None:
            raise RuntimeError(f'{" ".join(command)} exited during startup')
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):  # all processes of the group have exited
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.running.remove(process)

    def stop_all(self) -> None:
        for process in list(self.running):
            self.stop(process)


class StandIn:
    """The running stand-in for Zendesk. A server needs `variables` in its environment to use it."""

    def __init__(self, processes: Processes, folder: Path, all_authorities: bool) -> None:
        self.port = port = free_port()
        self.process = processes.start(folder, port, str(HERE / 'zendesk_stand_in.py'), str(port), str(folder))
        ca_file = folder / CA_FILE
        if all_authorities:
            ca_file.write_text(ca_file.read_text() + Path(certifi.where()).read_text())
        self.variables = {'ZENDESK_BASE_URL': f'https://localhost:{port}', 'REQUESTS_CA_BUNDLE': str(ca_file)}
        context = ssl.create_default_context(cafile=ca_file)
        self._connection = http.client.HTTPSConnection('localhost', port, timeout=60, context=context)

    def counts(self) -> Counter[str]:
        """Return the numbers of requests and connections so far. One kept connection leaves the counts unchanged."""
        self._connection.request('GET', '/counts')
        return Counter(json.load(self._connection.getresponse()))


@dataclass
class Server:
    """A gunicorn server with one worker. CPU time and memory are measured for the worker only."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    worker: int
    cookie_name: str

    def cookie(self, user_id: str) -> str:
        """Return the session cookie of this user."""
        flask = Flask('benchmark')
        flask.secret_key = SECRET_KEY
        serializer = SecureCookieSessionInterface().get_signing_serializer(flask)
        return f'{self.cookie_name}={serializer.dumps({"user_id": user_id})}' if serializer else ''

    def memory(self) -> tuple[float, float]:
        """Return the current and the peak memory of the worker in MiB, including shared memory."""
        status = dict(line.split(':', 1) for line in Path(f'/proc/{self.worker}/status').read_text().splitlines())
        current, peak = (int(status[name].split()[0]) / 1024 for name in ('VmRSS', 'VmHWM'))
        return current, peak


class Bench:
    """The stand-in for Zendesk, and methods to start and stop the servers under test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes = Processes()
        for name in ('zendesk', 'baseline', 'article', 'app'):
            (folder / name).mkdir()
        for name, destination in {'baseline': 'baseline', 'flask_alone': 'baseline', 'article_code': 'article'}.items():
            shutil.copy(HERE / f'{name}.py', folder / destination)
        copy_project(folder / 'app')

    def start_stand_in(self, all_authorities: bool) -> None:
        self.stand_in = StandIn(self.processes, self.folder / 'zendesk', all_authorities)

    def start_distant_zendesk(self, round_trip: float) -> tuple[subprocess.Popen[bytes], int]:
        """Start a proxy to the stand-in with this round-trip time, in seconds. Return its process and its port."""
        port = free_port()
        command = [str(HERE / 'distant_zendesk.py'), str(port), str(self.stand_in.port), str(round_trip)]
        return self.processes.start(self.folder / 'zendesk', port, *command), port

    def start_baseline(self) -> Server:
        return self._start('baseline', 'baseline', 'baseline:app', ACCESS_TOKEN=secrets.token_hex(TOKEN_LENGTH // 2))

    def start_flask_alone(self) -> Server:
        token = secrets.token_hex(TOKEN_LENGTH // 2)
        return self._start(
            "Flask alone, with the baseline's request", 'baseline', 'flask_alone:app', ACCESS_TOKEN=token
        )

    def start_article_code(self, **variables: str) -> Server:
        return self._start("the article's code", 'article', 'article_code:app', **variables)

    def start_app(self, name: str = 'this app', **variables: str) -> Server:
        return self._start(name, 'app', 'app:app', 'zendesk_oauth_{port}_session', **variables)

    def stop(self, server: Server) -> None:
        self.processes.stop(server.process)

    def settings(self, port: int) -> dict[str, str]:
        """Return the environment variables of a server on this port."""
        return {
            'ZENDESK_CLIENT_ID': 'benchmark',
            'ZENDESK_CLIENT_SECRET': 'benchmark_secret',
            'ZENDESK_SUBDOMAIN': 'benchmark',
            'REDIRECT_URI': f'http://localhost:{port}/zendesk/oauth/callback',
            'TOKEN_ENCRYPTION_KEYS': ENCRYPTION_KEY,
            'SECRET_KEY': SECRET_KEY,
            **self.stand_in.variables,
        }

    def _start(self, name: str, folder: str, app: str, cookie_name: str = 'session', **variables: str) -> Server:
        port = free_port()
        process = self.processes.start(
            self.folder / folder,
            port,
            *('-m', 'gunicorn', '-w', '1', '--threads', str(THREADS), '-b', f'127.0.0.1:{port}', app),
            **{**self.settings(port), **variables},
        )
        wait_until(lambda: bool(children(process.pid)))
        [worker] = children(process.pid)
        return Server(name, port, process, worker, cookie_name.format(port=port))


@contextlib.contextmanager
def new_bench(all_authorities: bool = False) -> Iterator[Bench]:
    """
    Yield a Bench with a running stand-in. Afterwards, stop all processes and delete all files.

    With `all_authorities`, the servers also trust the CAs that requests trusts by default.
    """
    signals = (signal.SIGINT, signal.SIGTERM)
    for signum in signals:
        signal.signal(signum, lambda *_: sys.exit('Interrupted'))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        try:
            bench.start_stand_in(all_authorities)
            yield bench
        except Exception:
            for output in Path(folder).glob('*/output.txt'):
                print(f'--- {output.parent.name}', *output.read_text().splitlines()[-20:], sep='\n', file=sys.stderr)
            raise
        finally:
            for signum in signals:
                signal.signal(signum, signal.SIG_IGN)  # a second Ctrl+C would leave processes running
            bench.processes.stop_all()


def users(number: int) -> dict[str, dict[str, Any]]:
    """Return the records of `number` users by user id."""
    in_a_week = int(time.time()) + 7 * 24 * 3600

    def token(user_id: str) -> str:
        prefix = ONCE if user_id == EXPIRING_USER_ID else ''
        return (prefix + secrets.token_hex(TOKEN_LENGTH // 2))[:TOKEN_LENGTH]

    user_ids = [*USER_IDS, EXPIRING_USER_ID, *(f'user-{secrets.token_hex(16)}' for _ in range(number - MIN_USERS))]
    return {
        user_id: {
            'access_token': token(user_id),
            'refresh_token': token(user_id),
            'refresh_token_expires_at': in_a_week,
        }
        for user_id in user_ids
    }


def write_users(folder: Path, number: int) -> None:
    """Write a users.json with `number` users, in the format of the app and the article."""
    (folder / 'users.json').write_text(json.dumps(users(number), sort_keys=True, indent=2) + '\n')


def fill_database(url: str, number: int) -> None:
    """Fill the app's table with `number` users."""
    store = SqlStore(url, encryption_keys=[ENCRYPTION_KEY])
    store.find('user')  # creates the tables
    rows = [{'user_id': user_id, **store._encrypt(user_id, record)} for user_id, record in users(number).items()]
    engine = create_engine(url.replace('postgresql:', 'postgresql+psycopg:'))
    with engine.begin() as connection:
        connection.execute(delete(TOKENS))
        connection.execute(insert(TOKENS), rows)
    with engine.connect().execution_options(isolation_level='AUTOCOMMIT') as connection:
        connection.exec_driver_sql('VACUUM')
    engine.dispose()


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Return the environment of a process. HOME is its folder, to exclude the developer's settings and passwords."""
    return {'PATH': os.environ['PATH'], 'LANG': 'C.UTF-8', 'HOME': str(folder), **variables}


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process so far, in user and kernel mode."""
    fields = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f'/proc/{process}/task/{process}/children').read_text().split()]
