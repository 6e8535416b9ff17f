"""The package in other processes: installed with pip, copied, forked, and shared by several processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from helpers import KEY, OLD
from servers import PROJECT, HttpBrowser, environment, port_of

from zendesk_oauth import JsonFileStore, ZendeskOAuth
from zendesk_oauth.errors import ResponseError

posix = pytest.mark.skipif(os.name != 'posix', reason='needs os.fork')

CONNECT = """
import os, sys
from zendesk_oauth import JsonFileStore, ZendeskOAuth
oauth = ZendeskOAuth(zendesk_url=os.environ['ZENDESK_BASE_URL'], client_id=os.environ['ZENDESK_CLIENT_ID'],
    client_secret=os.environ['ZENDESK_CLIENT_SECRET'], redirect_uri=os.environ['REDIRECT_URI'],
    scope='users:read', store=JsonFileStore('tokens.json'))
def name():
    return oauth.session('alice').get('/api/v2/users/me.json').raise_for_status().json()['user']['name']
"""


@pytest.fixture
def alice(processes, variables, monkeypatch) -> ZendeskOAuth:
    """A client of the practice Zendesk to which alice is connected, with its tokens in tokens.json."""
    monkeypatch.chdir(processes.folder)
    oauth = ZendeskOAuth(
        zendesk_url=variables['ZENDESK_BASE_URL'],
        client_id=variables['ZENDESK_CLIENT_ID'],
        client_secret=variables['ZENDESK_CLIENT_SECRET'],
        redirect_uri=variables['REDIRECT_URI'],
        scope='users:read tickets:read',
        store=JsonFileStore('tokens.json'),
    )
    pending = oauth.authorization_request('alice')
    callback = HttpBrowser(pending.url).submit('allow', allow_redirects=False).headers['Location']
    assert f':{port_of(variables)}/' in callback
    query = dict(parse_qsl(urlsplit(callback).query))
    oauth.exchange('alice', query, {pending.cookie_name: pending.cookie_value})
    return oauth


def run(program: str, variables: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-c', CONNECT + program], env=environment(**variables), stdout=subprocess.PIPE, text=True
    )


@pytest.mark.usefixtures('alice')
def test_four_processes_refresh_an_expired_token_once(processes, variables, figure):
    program = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(15) as pool:
    print(set(pool.map(lambda _: name(), range(15))))
"""

    def visit() -> None:
        running = [run(program, variables) for _ in range(4)]
        assert {process.communicate(timeout=60)[0] for process in running} == {"{'Amara Okafor'}\n"}

    counts = processes.count_refreshes(visit, times=3)
    figure(f'package: 60 parallel calls on one expired token, 4 processes, three times: {counts} refreshes')
    assert counts == [1] * 3


@posix
@pytest.mark.usefixtures('alice')
def test_an_object_can_be_shared_across_a_fork(processes, variables):
    program = """
session = oauth.session('alice')
def ask():
    return session.get('/api/v2/users/me.json').raise_for_status().json()['user']['name']
ask()
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        os._exit(0 if [ask() for _ in range(20)] == ['Amara Okafor'] * 20 else 1)
    children.append(child)
assert [ask() for _ in range(20)] == ['Amara Okafor'] * 20
print([os.waitpid(child, 0)[1] for child in children])
"""
    processes.expire_access_tokens()
    assert run(program, variables).communicate(timeout=60)[0] == '[0, 0, 0, 0]\n'
    assert processes.refreshes() == 1


def test_pages_lists_all_tickets_and_rejects_a_list_without_cursors(processes, alice):
    pages = list(alice.session('alice').pages('/api/v2/tickets.json'))
    assert [len(page['tickets']) for page in pages] == [100, 20]
    processes.expire_access_tokens()
    resumed = alice.session('alice').pages(
        '/api/v2/tickets.json', params={'page[after]': pages[0]['meta']['after_cursor']}
    )
    assert next(iter(resumed))['tickets'] == pages[1]['tickets']
    with pytest.raises(ResponseError, match='no cursor pagination'):
        next(alice.session('alice').pages('/api/v2/search.json', params={'query': 'type:ticket'}))


# --- Installation --- #


def run_in(folder: Path, python: str | Path, program: str) -> str:
    """Run a program in this folder, without the modules of the project, and return its output."""
    ended = subprocess.run(
        [python, '-c', program], cwd=folder, env=environment(PYTHONPATH=''), capture_output=True, text=True, check=True
    )
    return ended.stdout.strip()


def test_pip_installs_the_package(tmp_path):
    subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'venv'], check=True)
    python = tmp_path / 'venv' / ('Scripts' if os.name == 'nt' else 'bin') / 'python'
    checkout = tmp_path / 'checkout'
    for name in ('zendesk_oauth', 'practice_zendesk'):
        shutil.copytree(PROJECT / name, checkout / name)
    for name in ('pyproject.toml', 'LICENSE'):
        shutil.copy(PROJECT / name, checkout)
    subprocess.run([python, '-m', 'pip', 'install', '--quiet', './checkout[sql,practice]'], cwd=tmp_path, check=True)
    program = (
        'from importlib.resources import files; import zendesk_oauth; '
        'assert (files(zendesk_oauth) / "py.typed").is_file(); print(zendesk_oauth.__file__); '
        f'zendesk_oauth.SqlStore("sqlite:///tokens.db", encryption_keys=[{KEY!r}]).save("alice", {OLD})'
    )
    path = subprocess.run(
        [python, '-c', program],
        cwd=tmp_path,
        env=environment(PYTHONPATH=''),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(path).is_relative_to(tmp_path / 'venv')
    program = (
        'import urllib.request; from practice_zendesk.server import running\n'
        'with running() as url: print(urllib.request.urlopen(f"{url}/practice").status)'
    )
    assert run_in(tmp_path, python, program) == '200'


def test_a_copy_of_the_folder_works(tmp_path):
    shutil.copytree(PROJECT / 'zendesk_oauth', tmp_path / 'zendesk_oauth')
    path = run_in(tmp_path, sys.executable, 'import zendesk_oauth; print(zendesk_oauth.__file__)')
    assert Path(path) == tmp_path / 'zendesk_oauth' / '__init__.py'


def test_the_requirements_of_the_app_include_those_of_the_package():
    project = tomllib.loads((PROJECT / 'pyproject.toml').read_text())['project']
    requirements = (PROJECT / 'requirements.txt').read_text() + (PROJECT / 'requirements-sql.txt').read_text()
    guide = (PROJECT / 'docs' / 'use-in-your-product.md').read_text()
    optional = project['optional-dependencies']
    assert all(requirement in requirements for requirement in optional['practice'])
    for requirement in project['dependencies'] + optional['sql']:
        assert requirement in requirements or requirement.startswith('blinker')  # Flask requires blinker
        assert f"'{requirement.split(',')[0].removesuffix('.0')}'" in guide
