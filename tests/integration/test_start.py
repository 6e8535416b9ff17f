"""Start of the app: missing or malformed settings, ports in use, and an old Python."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest
from helpers import KEY, OLD, PROJECT
from servers import environment, listening, listens

from settings import SettingsError, read_settings

GOOD = {
    'ZENDESK_CLIENT_ID': 'my_client',
    'ZENDESK_CLIENT_SECRET': 'canary-secret',
    'ZENDESK_SUBDOMAIN': 'mondocam',
    'REDIRECT_URI': 'http://localhost:3000/zendesk/oauth/callback',
    'SECRET_KEY': 'canary-key',
}


@pytest.fixture
def start(processes):
    """A function that runs a copy of the app with variables and a .env file, and returns the ended process."""

    def start(command=('app.py',), env_file: bytes | None = None, **variables):
        if env_file is not None:
            (processes.folder / '.env').write_bytes(env_file)
        return processes.run(*command, **variables)

    return start


# --- Settings --- #


def test_one_message_lists_every_problem_with_the_settings(start):
    ended = start(**(GOOD | {'ZENDESK_SUBDOMAIN': 'https://canary.zendesk.com', 'ZENDESK_CLIENT_ID': ''}))
    assert ended.returncode == 4
    assert 'ZENDESK_SUBDOMAIN' in ended.stderr
    assert 'ZENDESK_CLIENT_ID' in ended.stderr
    assert 'Traceback' not in ended.stderr
    assert 'canary' not in ended.stdout + ended.stderr


def test_an_unchanged_copy_of_env_example_is_refused(start):
    ended = start(env_file=(PROJECT / '.env.example').read_bytes())
    assert ended.returncode == 4
    for name in ('ZENDESK_CLIENT_ID', 'ZENDESK_CLIENT_SECRET', 'ZENDESK_SUBDOMAIN'):
        assert f'{name} is still the placeholder' in ended.stderr
    assert 'REDIRECT_URI' not in ended.stderr


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_an_env_file_can_start_with_a_byte_order_mark(start, encoding):
    lines = '\n'.join(f'{name}={value}' for name, value in GOOD.items())
    program = 'import settings; print(settings.load_settings().client_id)'
    assert start(['-c', program], env_file=lines.encode(encoding)).stdout == 'my_client\n'


def test_an_env_file_in_another_encoding_is_reported(start):
    ended = start(env_file='ZENDESK_CLIENT_ID=ä'.encode('utf-16'))
    assert ended.returncode == 4
    assert 'UTF-8' in ended.stderr
    assert 'Traceback' not in ended.stderr


@pytest.mark.parametrize(
    'command', [('-m', 'flask', '--app', 'app', 'run', '--port', '0'), ('-m', 'waitress', '--port=0', 'app:app')]
)
def test_other_servers_refuse_to_start_without_settings(start, command):
    ended = start(command)
    assert ended.returncode == 4
    assert 'ZENDESK_CLIENT_ID is missing' in ended.stderr
    assert 'Traceback' not in ended.stderr


def test_an_unusable_key_file_is_reported(start, tmp_path):
    (tmp_path / '.secret_key').mkdir()
    ended = start(**(GOOD | {'SECRET_KEY': ''}))
    assert ended.returncode == 4
    assert 'SECRET_KEY' in ended.stderr
    assert 'Traceback' not in ended.stderr


def test_concurrent_processes_generate_one_secret_key(tmp_path):
    program = f'import settings; print(settings.read_settings({GOOD | {"SECRET_KEY": ""}}).secret_key)'
    processes = [
        subprocess.Popen([sys.executable, '-c', program], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    assert len({process.communicate(timeout=60)[0] for process in processes}) == 1


def test_practice_mode_uses_the_client_of_the_practice_zendesk(start):
    program = (
        'from practice_zendesk import clients, server; import settings; client_id, client = clients.main_client(); '
        's = settings.read_settings({"SECRET_KEY": "x" * 32}, practice_allowed=True); '
        'print((s.client_id, s.client_secret, (s.redirect_uri,)) == (client_id, client.secret, client.redirect_uris), '
        's.zendesk_url == f"http://localhost:{server.PORT}")'
    )
    assert start(['-c', program]).stdout == 'True True\n'


# --- DATABASE_URL --- #


@pytest.mark.parametrize(
    'url',
    [
        'sqlite:///tokens.db',
        'postgres://localhost/app',
        'postgresql://app:pass%20word@db.example:5432/app?sslmode=require',
        'postgresql://app:password@one.example:5432,two.example:5433/app?target_session_attrs=read-write',
    ],
)
def test_a_database_url_and_its_keys_are_read(url):
    settings = read_settings({**GOOD, 'DATABASE_URL': url, 'TOKEN_ENCRYPTION_KEYS': f'{KEY} {KEY}'})
    assert (settings.database_url, settings.token_encryption_keys) == (url, (KEY, KEY))
    assert KEY not in repr(settings)


@pytest.mark.parametrize(
    ('variables', 'problems'),
    [
        ({'DATABASE_URL': 'mysql://canary/app'}, ['DATABASE_URL is not a database URL of the form']),
        (
            {'DATABASE_URL': 'postgresql://app:canary@db/app?sslmod=x'},
            ['DATABASE_URL has an invalid URI query parameter: "sslmod"'],
        ),
        (
            {'TOKEN_ENCRYPTION_KEYS': ''},
            ['TOKEN_ENCRYPTION_KEYS must contain keys, separated by spaces. For a new database, create'],
        ),
        ({'TOKEN_ENCRYPTION_KEYS': f'{KEY}canary'}, ['TOKEN_ENCRYPTION_KEYS must contain keys']),
        (
            {'DATABASE_URL': 'canary', 'TOKEN_ENCRYPTION_KEYS': 'canary', 'PROXY_HOPS': 'canary'},
            ['DATABASE_URL is not', 'TOKEN_ENCRYPTION_KEYS must contain', 'PROXY_HOPS is not'],
        ),
    ],
)
def test_problems_of_the_database_settings_are_named_without_their_values(variables, problems):
    good = {**GOOD, 'DATABASE_URL': 'sqlite:///tokens.db', 'TOKEN_ENCRYPTION_KEYS': KEY}
    with pytest.raises(SettingsError) as raised:
        read_settings({**good, **variables})
    assert all(f'\n  {problem}' in str(raised.value) for problem in problems)
    assert 'canary' not in str(raised.value)
    assert KEY not in str(raised.value)


def test_the_command_in_the_message_creates_a_key():
    with pytest.raises(SettingsError) as raised:
        read_settings({**GOOD, 'DATABASE_URL': 'sqlite:///tokens.db'})
    code = re.search('create a key with .+ -c "(.*)"', str(raised.value))[1]
    key = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()
    settings = read_settings({**GOOD, 'DATABASE_URL': 'sqlite:///tokens.db', 'TOKEN_ENCRYPTION_KEYS': key})
    assert settings.token_encryption_keys == (key,)


def test_psycopg_without_libpq_is_refused_with_the_reason(start):
    """PSYCOPG_IMPL=python uses the libpq of the system, which this program hides."""
    program = (
        'import ctypes.util; ctypes.util.find_library = lambda name: None; import settings; settings.load_settings()'
    )
    database = {'DATABASE_URL': 'postgresql://localhost/app', 'TOKEN_ENCRYPTION_KEYS': KEY}
    ended = start(['-c', program], PSYCOPG_IMPL='python', **GOOD, **database)
    assert ended.returncode == 4
    assert 'DATABASE_URL needs more packages (' in ended.stderr
    assert 'libpq library not found' in ended.stderr
    assert 'Traceback' not in ended.stderr


def test_a_wrong_key_ends_the_start(start, processes, open_db):
    database = {'DATABASE_URL': 'sqlite:///tokens.db', 'TOKEN_ENCRYPTION_KEYS': KEY}
    open_db(f'sqlite:///{processes.folder}/tokens.db', keys=[KEY[::-1].strip('=') + '=']).save('alice', OLD)
    ended = start(**GOOD, **database)
    assert ended.returncode == 4
    assert 'None of the encryption keys decrypts a record in' in ended.stderr
    assert 'Traceback' not in ended.stderr


def test_database_packages_are_not_imported_without_a_database_url(tmp_path):
    program = 'import sys, app; raise SystemExit("sqlalchemy" in sys.modules or "psycopg" in sys.modules)'
    subprocess.run([sys.executable, '-c', program], cwd=tmp_path, env=environment(**GOOD), check=True)


def test_an_exception_is_logged_without_the_values_of_variables(tmp_path):
    program = tmp_path / 'program.py'  # a file, because loguru shows values only if it finds the source
    program.write_text("""if True:
        import app
        token = 'canary' + '-token'
        try:
            print(token.missing_attribute)
        except AttributeError:
            app.logger.exception('failed')
    """)
    ended = subprocess.run(
        [sys.executable, program], env=environment(**GOOD), cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert 'print(token.missing_attribute)' in ended.stderr
    assert 'canary-token' not in ended.stderr


# --- Files --- #


@pytest.mark.parametrize(
    'command',
    [
        ('app.py',),
        ('-m', 'flask', '--app', 'app', 'run', '--port', '0'),
        ('-m', 'gunicorn', '-b', '127.0.0.1:0', 'app:app'),
        ('-m', 'waitress', '--port=0', 'app:app'),
    ],
    ids=['app.py', 'flask', 'gunicorn', 'waitress'],
)
def test_a_users_file_that_cannot_be_replaced_is_refused(start, tmp_path, command):
    (tmp_path / 'data.json').write_text('{}')
    (tmp_path / 'users.json').symlink_to('data.json')
    ended = start(command, **GOOD)
    assert ended.returncode == 4
    assert f'{tmp_path}/users.json is a symbolic link. Remove it' in re.sub(r'\s+', ' ', ended.stderr)
    assert 'Traceback' not in ended.stderr


def test_an_env_file_that_every_account_can_read_causes_a_warning(start, tmp_path):
    lines = '\n'.join(f'{name}={value}' for name, value in GOOD.items())
    (tmp_path / '.env').write_text(lines)
    (tmp_path / '.env').chmod(0o644)
    ended = start(['-c', 'import settings; print(settings.load_settings().client_id)'])
    assert f'Every account on this machine can read {tmp_path}/.env. As its owner, run chmod 600' in ended.stderr
    assert ended.stdout == 'my_client\n'


# --- Servers --- #


@pytest.mark.parametrize('worker', ['gevent', 'asgi'])
def test_gunicorn_ends_with_one_line_if_its_worker_class_is_not_supported(start, worker):
    ended = start(['-m', 'gunicorn', '-k', worker, '-b', '127.0.0.1:0', 'app:app'], **GOOD)
    assert ended.returncode == 4
    assert re.search(r'The \w+Worker of gunicorn is not supported. Remove the option -k', ended.stderr)
    assert 'Traceback' not in ended.stderr


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--port', '3000'], 'This is a WSGI app. Use uvicorn --interface wsgi'),
        (
            ['--port', '8000', '--interface', 'wsgi'],
            'The server would listen on port 8000 instead of 3000. Use --port 3000',
        ),
    ],
)
def test_uvicorn_ends_with_one_line(start, options, message):
    ended = start(['-m', 'uvicorn', 'app:app', *options], **GOOD)
    assert ended.returncode == 4
    assert message in ended.stderr
    assert 'Traceback' not in ended.stderr


@pytest.mark.parametrize('options', [[], ['--port', '5000'], ['--debug']])
def test_flask_run_ends_with_one_line_if_its_port_is_wrong(start, options):
    ended = start(['-m', 'flask', '--app', 'app', 'run', *options], **GOOD)
    assert ended.returncode == 4
    assert 'The server would listen on port 5000 instead of 3000. Use --port 3000' in ended.stderr
    assert 'Traceback' not in ended.stderr


# --- Ports --- #


def test_a_port_in_use_is_reported_without_a_traceback(start):
    with listening() as taken:
        port = taken.getsockname()[1]
        ended = start(**(GOOD | {'REDIRECT_URI': f'http://localhost:{port}/zendesk/oauth/callback'}))
    assert ended.returncode == 1
    assert f'Port {port} is in use' in ended.stderr
    assert 'Traceback' not in ended.stderr


def test_practice_mode_reports_that_port_3001_is_in_use(start):
    for port in (3000, 3001):
        if listens(port):
            pytest.skip(f'port {port}, which practice mode uses, is taken on this machine')
    with socket.create_server(('127.0.0.1', 3001)):
        ended = start()
    assert ended.returncode == 1
    assert 'Port 3001 is in use' in ended.stderr
    assert 'Traceback' not in ended.stderr


# --- Python --- #


def test_an_old_python_is_refused_with_one_line():
    """Run this Python with an older version number."""
    program = 'import sys; sys.version_info = (3, 10, 13); import settings'
    ended = subprocess.run(
        [sys.executable, '-c', program], cwd=PROJECT, env=environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == 'Python 3.11 or newer is required. This is Python 3.10\n'
