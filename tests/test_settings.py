"""Settings: all problems named at once, no value repeated."""

from __future__ import annotations

import importlib.util
import os
import runpy
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from servers import PROJECT, environment

import settings as settings_module
from practice_zendesk import server as zendesk_simulator
from settings import SettingsError, read_settings
from zendesk_oauth import token_store
from zendesk_oauth import transport as http_client

GOOD = {
    'ZENDESK_CLIENT_ID': 'my_client',
    'ZENDESK_CLIENT_SECRET': 'canary-secret',
    'ZENDESK_SUBDOMAIN': 'mondocam',
    'REDIRECT_URI': 'http://localhost:3000/zendesk/oauth/callback',
    'SECRET_KEY': 'canary-key',
}


def test_good_settings_are_taken_as_they_are():
    settings = read_settings(GOOD)
    assert settings.client_id == 'my_client'
    assert settings.client_secret == 'canary-secret'
    assert settings.zendesk_url == 'https://mondocam.zendesk.com'
    assert settings.redirect_uri == 'http://localhost:3000/zendesk/oauth/callback'
    assert settings.origin == 'http://localhost:3000'
    assert settings.secret_key == 'canary-key'
    assert (settings.port, settings.https, settings.practice_mode) == (3000, False, False)


def test_spaces_around_values_do_not_count():
    assert read_settings({name: f' {value} ' for name, value in GOOD.items()}) == read_settings(GOOD)


def test_secrets_are_not_in_the_repr():
    assert 'canary' not in repr(read_settings(GOOD))


@pytest.mark.parametrize('name', settings_module.REQUIRED)
@pytest.mark.parametrize('value', [None, '', '  ', *settings_module.PLACEHOLDERS])
def test_a_missing_setting_is_named_with_its_remedy(name, value):
    environ = {**GOOD, name: value} if value is not None else {n: v for n, v in GOOD.items() if n != name}
    with pytest.raises(SettingsError) as raised:
        read_settings(environ)
    assert name in str(raised.value)
    if name != 'REDIRECT_URI':
        assert f'{name} is missing' in str(raised.value)
        assert settings_module.REQUIRED[name] in str(raised.value)


def test_a_short_secret_key_is_warned_of_and_not_repeated(log):
    read_settings({**GOOD, 'SECRET_KEY': 'canary-key'})
    read_settings({**GOOD, 'SECRET_KEY': 'canary-key' * 2})
    assert len(log) == 1
    assert 'SECRET_KEY is short' in log[0]
    assert 'canary' not in log[0]


def test_all_problems_are_named_in_one_message():
    with pytest.raises(SettingsError) as raised:
        read_settings(
            {'ZENDESK_CLIENT_ID': 'a b', 'ZENDESK_SUBDOMAIN': 'https://acme.zendesk.com', 'ZENDESK_BASE_URL': 'x'}
        )
    for name in (*settings_module.REQUIRED, 'ZENDESK_BASE_URL'):
        assert f'  {name} ' in str(raised.value)


@pytest.mark.parametrize(
    ('name', 'value', 'remedy'),
    [
        ('ZENDESK_SUBDOMAIN', 'https://canary.zendesk.com', 'give only mondocam'),
        ('ZENDESK_SUBDOMAIN', 'canary.zendesk.com', 'give only mondocam'),
        ('ZENDESK_SUBDOMAIN', 'evil.example/canary', 'give only mondocam'),
        ('ZENDESK_SUBDOMAIN', 'canary@evil', 'give only mondocam'),
        ('ZENDESK_SUBDOMAIN', '-canary', 'give only mondocam'),
        ('ZENDESK_SUBDOMAIN', 'canarý', 'give only mondocam'),
        ('ZENDESK_SUBDOMAIN', 'canar\u212a', 'give only mondocam'),
        ('ZENDESK_CLIENT_ID', 'canary canary', 'copy it again'),
        ('ZENDESK_CLIENT_SECRET', 'canary\ncanary', 'copy it again'),
        ('REDIRECT_URI', 'http://canary.example/zendesk/oauth/callback', 'https://'),
        ('REDIRECT_URI', 'http://localhost.canary.example/zendesk/oauth/callback', 'https://'),
        ('REDIRECT_URI', 'http://10.0.0.1/zendesk/oauth/callback', 'https://'),
        ('REDIRECT_URI', 'http://192.168.1.1/zendesk/oauth/callback', 'https://'),
        ('REDIRECT_URI', 'http://[0:0:0:0:0:0:0:1]/zendesk/oauth/callback', 'https://'),
        ('REDIRECT_URI', 'ftp://localhost/zendesk/oauth/callback', 'https://'),
        ('REDIRECT_URI', 'canary', 'absolute URL'),
        ('REDIRECT_URI', '/zendesk/oauth/callback', 'absolute URL'),
        ('REDIRECT_URI', 'https://canary.exa\tmple/zendesk/oauth/callback', 'absolute URL'),
        ('REDIRECT_URI', 'https:///zendesk/oauth/callback', 'absolute URL'),
        ('REDIRECT_URI', 'https://[canary/zendesk/oauth/callback', 'absolute URL'),
        ('REDIRECT_URI', 'https://canary.example:99999/zendesk/oauth/callback', 'absolute URL'),
        ('REDIRECT_URI', 'https://me:canary@host/zendesk/oauth/callback', 'absolute URL'),
        ('REDIRECT_URI', 'http://localhost:3000/canary', 'must end in /zendesk/oauth/callback'),
        ('REDIRECT_URI', 'http://localhost:3000/zendesk/oauth/callback/', 'must end in /zendesk/oauth/callback'),
        (
            'REDIRECT_URI',
            'http://localhost:3000/zendesk/oauth/callback?canary=1',
            'must end in /zendesk/oauth/callback',
        ),
        ('REDIRECT_URI', 'http://localhost:3000/zendesk/oauth/callback#', 'must end in /zendesk/oauth/callback'),
        ('ZENDESK_BASE_URL', 'http://canary.example', 'https://'),
        ('ZENDESK_BASE_URL', 'https://canary.example/path', 'without a path'),
        ('ZENDESK_BASE_URL', 'canary', 'absolute URL'),
        ('ZENDESK_BASE_URL', 'https://canary.example\\', 'absolute URL'),
        ('ZENDESK_BASE_URL', 'https://%65canary.example', 'absolute URL'),
        ('ZENDESK_BASE_URL', 'https://*', 'absolute URL'),
    ],
)
def test_a_malformed_setting_is_explained_and_not_repeated(name, value, remedy):
    with pytest.raises(SettingsError) as raised:
        read_settings({**GOOD, name: value})
    message = str(raised.value)
    assert f'  {name} ' in message
    assert remedy in message
    assert 'canar' not in message


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('ZENDESK_SUBDOMAIN', 'd3v-zenpydev'),
        ('ZENDESK_SUBDOMAIN', '3com'),
        ('ZENDESK_SUBDOMAIN', 'x'),
        ('REDIRECT_URI', 'https://app.example.com/zendesk/oauth/callback'),
        ('REDIRECT_URI', 'http://127.0.0.1:3000/zendesk/oauth/callback'),
        ('ZENDESK_BASE_URL', 'https://mondocam.zendesk.com/'),
        ('ZENDESK_BASE_URL', 'http://localhost:3001'),
        ('ZENDESK_BASE_URL', 'http://[::1]:3001'),
    ],
)
def test_a_good_setting_is_not_refused(name, value):
    assert read_settings({**GOOD, name: value})


def test_a_subdomain_in_capitals_is_the_same_subdomain():
    assert read_settings({**GOOD, 'ZENDESK_SUBDOMAIN': 'MondoCam'}).zendesk_url == 'https://mondocam.zendesk.com'


def test_a_scheme_in_capitals_is_the_same_scheme():
    assert read_settings({**GOOD, 'REDIRECT_URI': 'HTTPS://app.example.com/zendesk/oauth/callback'}).https


def test_a_base_url_takes_the_subdomains_place():
    assert read_settings({**GOOD, 'ZENDESK_BASE_URL': 'http://127.0.0.1:9/'}).zendesk_url == 'http://127.0.0.1:9'


@pytest.mark.parametrize(
    ('redirect_uri', 'port'),
    [
        ('http://localhost:3000/zendesk/oauth/callback', 3000),
        ('http://localhost:5000/zendesk/oauth/callback', 5000),
        ('http://127.0.0.1/zendesk/oauth/callback', 3000),
        ('https://app.example.com:8443/zendesk/oauth/callback', 3000),
    ],
)
def test_the_port_is_the_one_that_the_browser_comes_back_to(redirect_uri, port):
    assert read_settings({**GOOD, 'REDIRECT_URI': redirect_uri}).port == port


def test_with_none_of_the_four_practice_mode_fits_the_practice_zendesk():
    settings = read_settings({'SECRET_KEY': 'key', 'PATH': '/bin'}, practice_allowed=True)
    assert settings.practice_mode
    assert settings.zendesk_url == f'http://localhost:{zendesk_simulator.PORT}'
    program = 'import practice_zendesk.server as z; print(z.CLIENT_ID, z.CLIENT_SECRET, z.REDIRECT_URI)'
    practice_client = subprocess.check_output(
        [sys.executable, '-c', program], cwd=PROJECT, env=environment(), text=True
    )
    assert practice_client.split() == [settings.client_id, settings.client_secret, settings.redirect_uri]


def test_practice_mode_is_never_a_fallback():
    with pytest.raises(SettingsError):
        read_settings({})
    with pytest.raises(SettingsError):
        read_settings({'REDIRECT_URI': GOOD['REDIRECT_URI']}, practice_allowed=True)
    with pytest.raises(SettingsError):
        read_settings(dict.fromkeys(settings_module.REQUIRED, ''), practice_allowed=True)


def test_the_key_that_was_made_is_kept_and_private(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environ = {**GOOD, 'SECRET_KEY': ''}
    key = read_settings(environ).secret_key
    assert len(key) == 64
    assert read_settings(environ).secret_key == key
    if os.name == 'posix':
        assert stat.S_IMODE(Path('.secret_key').stat().st_mode) == 0o600


def test_a_key_file_cut_short_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('.secret_key').write_text('short')
    assert len(read_settings({**GOOD, 'SECRET_KEY': ''}).secret_key) == 64


def test_a_key_file_in_another_encoding_is_a_key_all_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('.secret_key').write_bytes(b'\xff' * 32)
    key = read_settings({**GOOD, 'SECRET_KEY': ''}).secret_key
    assert read_settings({**GOOD, 'SECRET_KEY': ''}).secret_key == key


def test_several_processes_agree_on_the_key(tmp_path):
    program = f'import settings; print(settings.read_settings({GOOD | {"SECRET_KEY": ""}}).secret_key)'
    processes = [
        subprocess.Popen([sys.executable, '-c', program], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    assert len({process.communicate(timeout=60)[0] for process in processes}) == 1


@pytest.fixture
def start(processes):
    """Start a copy of the app with these variables, and a .env, and return how it ended."""

    def start(command=('app.py',), env_file: bytes | None = None, **variables):
        if env_file is not None:
            (processes.folder / '.env').write_bytes(env_file)
        return processes.run(*command, **variables)

    return start


def test_the_app_ends_with_one_message_and_without_a_traceback(start):
    ended = start(**(GOOD | {'ZENDESK_SUBDOMAIN': 'https://canary.zendesk.com', 'ZENDESK_CLIENT_ID': ''}))
    assert ended.returncode != 0
    assert 'ZENDESK_SUBDOMAIN' in ended.stderr
    assert 'ZENDESK_CLIENT_ID' in ended.stderr
    assert 'Traceback' not in ended.stderr
    assert 'canary' not in ended.stdout + ended.stderr


def test_the_example_copied_and_left_as_it_is_is_refused(start):
    ended = start(env_file=(PROJECT / '.env.example').read_bytes())
    assert ended.returncode != 0
    for name in ('ZENDESK_CLIENT_ID', 'ZENDESK_CLIENT_SECRET', 'ZENDESK_SUBDOMAIN'):
        assert f'{name} is missing' in ended.stderr
    assert 'REDIRECT_URI' not in ended.stderr


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_a_variable_in_env_counts_with_and_without_a_byte_order_mark(start, encoding):
    lines = '\n'.join(f'{name}={value}' for name, value in GOOD.items())
    program = 'import settings; print(settings.load_settings().client_id)'
    assert start(['-c', program], env_file=lines.encode(encoding)).stdout == 'my_client\n'


def test_a_env_that_is_not_utf_8_is_explained(start):
    ended = start(env_file='ZENDESK_CLIENT_ID=ä'.encode('utf-16'))
    assert ended.returncode != 0
    assert 'UTF-8' in ended.stderr
    assert 'Traceback' not in ended.stderr


def test_under_another_server_missing_settings_refuse_to_start(start):
    ended = start(['-m', 'flask', 'run', '--port', '0'])
    assert ended.returncode == 4
    assert 'ZENDESK_CLIENT_ID is missing' in ended.stderr
    assert 'Traceback' not in ended.stderr


def test_a_env_that_can_not_be_read_is_named(monkeypatch, capsys):
    def refuse(path, encoding):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(settings_module, 'load_dotenv', refuse)
    with pytest.raises(SystemExit):
        settings_module.load_settings()
    assert "/.env can't be read" in capsys.readouterr().err.replace(os.sep, '/')


def test_a_key_file_that_can_not_be_used_is_explained(start, tmp_path):
    (tmp_path / '.secret_key').mkdir()
    ended = start(**(GOOD | {'SECRET_KEY': ''}))
    assert ended.returncode == 4
    assert 'SECRET_KEY' in ended.stderr
    assert 'Traceback' not in ended.stderr


# --- Those of production --- #


@pytest.mark.parametrize(
    ('variables', 'name', 'expected'),
    [
        ({}, 'secret_key_fallbacks', ()),
        (
            {'SECRET_KEY_FALLBACKS': 'former-key even-older-key'},
            'secret_key_fallbacks',
            ('former-key', 'even-older-key'),
        ),
        ({}, 'proxy_hops', 0),
        ({'PROXY_HOPS': '2'}, 'proxy_hops', 2),
        ({}, 'database_url', ''),
        *(
            pytest.param({'DATABASE_URL': url}, 'database_url', url)
            for url in ('postgresql://app:pass%20word@db.example:5432/app?sslmode=require', 'postgres://localhost/app')
        ),
    ],
)
def test_settings_of_production_are_taken(variables, name, expected, packages_for_postgresql):
    assert getattr(read_settings({**GOOD, **variables}), name) == expected


@pytest.mark.parametrize('hops', ['-1', 'one', '1.5', '10', '١'])
def test_a_number_of_proxies_that_is_none_is_refused(hops):
    with pytest.raises(SettingsError, match='PROXY_HOPS is not the number of proxies'):
        read_settings({**GOOD, 'PROXY_HOPS': hops})


@pytest.mark.parametrize(
    'url',
    [
        'canary',
        'mysql://canary/app',
        'postgresql://canary host/app',
        'postgresql://canary:port/app',
        'postgresql:',
        'postgresql://app:can@ry-canary@db.example/app',
        'postgresql://canary:/app',
        'postgresql://[canary/app',
    ],
)
def test_the_address_of_another_database_is_refused_without_repeating_it(url, packages_for_postgresql):
    with pytest.raises(SettingsError, match='DATABASE_URL is not the URL of a PostgreSQL database') as raised:
        read_settings({**GOOD, 'DATABASE_URL': url})
    assert 'canary' not in str(raised.value)


def test_postgresql_without_its_packages_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SettingsError, match='needs sqlalchemy and psycopg: run pip install -r requirements-postgresql'):
        read_settings({**GOOD, 'DATABASE_URL': 'postgresql://localhost/app'})


def test_without_a_database_its_packages_are_not_imported(tmp_path):
    program = 'import sys, app; raise SystemExit("sqlalchemy" in sys.modules or "psycopg" in sys.modules)'
    subprocess.run([sys.executable, '-c', program], cwd=tmp_path, env=environment(**GOOD), check=True)


def test_practice_mode_is_about_users_json_whatever_the_environment_says():
    assert read_settings({'DATABASE_URL': 'postgresql://localhost/app'}, practice_allowed=True).database_url == ''


@pytest.fixture
def packages_for_postgresql(monkeypatch):
    """They are there, as far as one can see."""
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)


def test_gunicorn_listens_here_only_and_gives_a_slow_visit_its_time(monkeypatch):
    monkeypatch.setenv('LOGURU_LEVEL', 'INFO')
    gunicorn = runpy.run_path(str(PROJECT / 'gunicorn.conf.py'))
    assert gunicorn['bind'] == '127.0.0.1:3000'
    assert gunicorn['preload_app'] is True
    assert gunicorn['threads'] > 1
    # Disconnecting: revoke, refresh, store, revoke, check, remove.
    longest = 4 * http_client.CALL_TIMEOUT + token_store.REFRESH_TIMEOUT + 2 * token_store.WRITE_TIMEOUT
    assert gunicorn['timeout'] == gunicorn['graceful_timeout'] > longest
