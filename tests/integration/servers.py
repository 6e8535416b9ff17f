"""Run the app and the practice Zendesk as processes, and click through their pages."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urljoin

import requests

from settings import OPTIONAL

PROJECT = Path(__file__).parents[2]
FOLDERS = ('examples', 'practice_zendesk', 'static', 'templates', 'web', 'zendesk_oauth')
SETTINGS = ('ZENDESK_CLIENT_ID', 'ZENDESK_CLIENT_SECRET', 'ZENDESK_SUBDOMAIN', 'REDIRECT_URI')

# The practice users.
AGENT, ADMIN, END_USER = 'Amara Okafor', 'Tomás Herrera', 'Zoë Żółkiewska'


class Processes:
    """Servers that run in a separate copy of the project, without a developer's .env and users.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.zendesk = 'http://localhost:3001'
        self.running: dict[int, subprocess.Popen] = {}
        copy_project(folder)

    def start(self, *command: str, port: int, folder: str = '.', **variables: str) -> None:
        """Start a server in a folder of the copy, and wait until it listens on the port."""
        with (self.folder / 'output.txt').open('ab') as output:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self.folder / folder,
                env=environment(**{'PYTHONPATH': '', **variables}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.running[port] = process
        wait_until(lambda: listens(port) or process.poll() is not None)
        assert process.poll() is None, self.output

    def start_zendesk(self) -> dict[str, str]:
        """Start a practice Zendesk on a free port, and return the settings of an app on another port."""
        zendesk_port, app_port = free_port(), free_port()
        settings = {
            'ZENDESK_CLIENT_ID': 'flow_client',
            'ZENDESK_CLIENT_SECRET': 'canary-client-secret',
            'ZENDESK_SUBDOMAIN': 'practice',
            'REDIRECT_URI': f'http://localhost:{app_port}/zendesk/oauth/callback',
            'ZENDESK_BASE_URL': f'http://127.0.0.1:{zendesk_port}',
        }
        self.zendesk = settings['ZENDESK_BASE_URL']
        self.start('-m', 'practice_zendesk', '--port', str(zendesk_port), port=zendesk_port, **settings)
        return settings

    def run(self, *command: str, folder: str = '.', **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program in a folder of the copy to its end, and return its exit code and output."""
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.folder / folder,
            env=environment(**{'PYTHONPATH': '', **variables}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def stop(self, port: int) -> None:
        """Stop a server. Kill it with all its processes if it has not ended after 10 seconds."""
        process = self.running.pop(port)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:  # gunicorn waits for a worker that is still starting
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)

    def stop_all(self) -> None:
        for port in list(self.running):
            self.stop(port)

    @property
    def output(self) -> str:
        """The output of all servers."""
        return (self.folder / 'output.txt').read_text()

    @property
    def users(self) -> dict[str, dict[str, str]]:
        return json.loads((self.folder / 'users.json').read_text())

    def edit_users(self, *names: str) -> None:
        """Change a digit in these tokens of every user, as a developer would with an editor."""
        users = self.users
        for record in users.values():
            for name in names:
                digit = re.search('[0-9]', record[name])[0]
                record[name] = record[name].replace(digit, str((int(digit) + 1) % 10), 1)
        (self.folder / 'users.json').write_text(json.dumps(users, indent=2))

    def set_faults(self, *faults: dict) -> None:
        """Set how the practice Zendesk fails at the next requests (see practice_zendesk/faults.py)."""
        response = requests.post(f'{self.zendesk}/practice/faults', json=faults, timeout=60)
        assert response.status_code == 204, response.text

    def wait_until_faults_are_used(self) -> None:
        wait_until(lambda: requests.get(f'{self.zendesk}/practice/faults', timeout=60).json() == [])

    def expire_access_tokens(self) -> None:
        """Expire all access tokens that the practice Zendesk has issued."""
        with contextlib.closing(sqlite3.connect(self.folder / 'practice_zendesk.db', timeout=60)) as db, db:
            db.execute('UPDATE tokens SET access_expires_at = 0')

    def end_grants(self) -> None:
        """Make all tokens invalid that the practice Zendesk has issued."""
        with contextlib.closing(sqlite3.connect(self.folder / 'practice_zendesk.db', timeout=60)) as db, db:
            db.execute('DELETE FROM tokens')

    def valid_grants(self) -> int:
        """Return the number of valid refresh tokens at the practice Zendesk."""
        with contextlib.closing(sqlite3.connect(self.folder / 'practice_zendesk.db', timeout=60)) as db:
            return db.execute('SELECT count(*) FROM tokens').fetchone()[0]

    def request_log(self, call: str) -> list[dict]:
        """Return the completed requests of this kind from the practice Zendesk's log, including lost responses."""
        entries = requests.get(f'{self.zendesk}/practice/request_log', timeout=60).json()
        return [entry for entry in entries if entry['call'] == call and entry['ended']]

    def refreshes(self) -> int:
        return len(self.request_log('refresh'))

    def count_refreshes(self, visit: Callable[[], None], times: int = 5) -> list[int]:
        """Call `visit` several times, each time with expired access tokens. Return the refreshes of each call."""
        counted = []
        for _ in range(times):
            before = self.refreshes()
            self.expire_access_tokens()
            visit()
            counted.append(self.refreshes() - before)
        return counted


class HttpBrowser:
    """A browser without JavaScript: it keeps cookies, follows links and submits the consent form."""

    def __init__(self, address: str, authority: Path | None = None) -> None:
        """Open the address. `authority` is the certificate file of an authority to trust."""
        self.http = requests.Session()
        self.http.trust_env = False
        self.http.verify = str(authority) if authority else True
        self.visit(address)

    def visit(self, address: str) -> None:
        self.page = self.http.get(address, timeout=60)

    def click(self, label: str) -> None:
        link = re.search(rf'<a[^>]* href="([^"]+)"[^>]*>{label}</a>', self.page.text)[1]
        self.visit(urljoin(self.page.url, html.unescape(link)))

    def decide(self, decision: str, user: str = AGENT) -> None:
        """Pick a user on the consent page, and press the button of the decision: allow or deny."""
        self.page = self.submit(decision, user)

    def submit(self, decision: str, user: str = AGENT, **kwargs) -> requests.Response:
        users = re.findall(r'name="user_id" value="(\d+)"[^>]*>\s*([^(]+?) \(', self.page.text)
        user_id = next(user_id for user_id, name in users if html.unescape(name) == user)
        return self.http.post(self.page.url, {'user_id': user_id, 'decision': decision}, timeout=60, **kwargs)

    def grant(self, user: str = AGENT) -> None:
        """Grant access, from the home page and back to it."""
        self.click('Get my profile')
        self.click('Grant access')
        self.decide('allow', user)

    def start_again(self) -> None:
        """Start again from an error page, grant access and open the profile."""
        self.click('Start again')
        self.click('Grant access')
        self.decide('allow')
        self.click('Get my profile')

    @property
    def status(self) -> int:
        return self.page.status_code

    @property
    def address(self) -> str:
        return self.page.url

    @property
    def text(self) -> str:
        return self.page.text

    @property
    def greeting(self) -> str:
        return html.unescape(re.search('<h1>(.*)</h1>', self.text)[1])


def copy_project(folder: Path) -> None:
    """Copy the project's code, without the files it has written."""
    for path in PROJECT.glob('*.py'):
        shutil.copy(path, folder)
    for name in FOLDERS:
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__', 'instance'))


def request_profiles(home: str, browsers: list[HttpBrowser], times: int) -> list[requests.Response]:
    """Request the profile with the cookies of each browser, `times` times, all concurrently."""
    cookies = [browser.http.cookies.get_dict() for browser in browsers] * times

    def visit(cookies: dict) -> requests.Response:
        return requests.get(f'{home}profile', cookies=cookies, timeout=120)

    with ThreadPoolExecutor(len(cookies)) as pool:
        return list(pool.map(visit, cookies))


def environment(**variables: str) -> dict[str, str]:
    """Return an environment with the project's modules, and with no settings except these variables."""
    unset = (*SETTINGS, *OPTIONAL)
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    return {**inherited, 'PYTHONPATH': str(PROJECT), **variables}


def overlap(calls: list[dict]) -> bool:
    """Return True if the requests overlapped: together they took less than half the sum of their durations."""
    sum_of_durations = sum(call['ended'] - call['began'] for call in calls)
    elapsed = max(call['ended'] for call in calls) - min(call['began'] for call in calls)
    return elapsed < sum_of_durations / 2


@contextlib.contextmanager
def serving(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen on a free port, and call `talk` with each connection in a separate thread."""
    listener = listening()

    def accept() -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                threading.Thread(target=talk, args=listener.accept()[:1], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def listening() -> socket.socket:
    """Return a socket that listens on a free port of this machine."""
    return socket.create_server(('127.0.0.1', 0))


def wait_until(condition: Callable[[], bool], pause: float = 0.02) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(pause)


def listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(('127.0.0.1', port)) == 0


def free_port() -> int:
    with listening() as listener:
        return listener.getsockname()[1]


def port_of(variables: dict[str, str]) -> int:
    return int(variables['REDIRECT_URI'].split(':')[2].split('/')[0])
