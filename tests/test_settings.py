"""Settings: one message names all problems and repeats no value."""

from __future__ import annotations

import errno
import os
import re
import runpy
import stat
import sys
from pathlib import Path

import pytest
from helpers import PROJECT

import settings as settings_module
import zendesk_oauth
from settings import REQUIRED, Settings, SettingsError, read_settings
from zendesk_oauth import endpoints, stores, tokens

GOOD = {
    'ZENDESK_CLIENT_ID': 'my_client',
    'ZENDESK_CLIENT_SECRET': 'canary-secret',
    'ZENDESK_SUBDOMAIN': 'mondocam',
    'REDIRECT_URI': 'http://localhost:3000/zendesk/oauth/callback',
    'SECRET_KEY': 'canary-key',
}


def test_valid_settings_are_returned_unchanged():
    settings = read_settings(GOOD)
    assert settings.client_id == 'my_client'
    assert settings.client_secret == 'canary-secret'
    assert settings.zendesk_url == 'https://mondocam.zendesk.com'
    assert settings.redirect_uri == 'http://localhost:3000/zendesk/oauth/callback'
    assert settings.origin == 'http://localhost:3000'
    assert settings.secret_key == 'canary-key'
    assert (settings.port, settings.https, settings.practice_mode) == (3000, False, False)


def test_spaces_around_values_are_ignored():
    assert read_settings({name: f' {value} ' for name, value in GOOD.items()}) == read_settings(GOOD)


def test_the_repr_contains_no_secrets():
    assert 'canary' not in repr(read_settings(GOOD))


@pytest.mark.parametrize('name', settings_module.REQUIRED)
@pytest.mark.parametrize('value', [None, '', '  ', *settings_module.PLACEHOLDERS])
def test_a_missing_setting_is_named_with_its_remedy(name, value):
    environ = {**GOOD, name: value} if value is not None else {n: v for n, v in GOOD.items() if n != name}
    with pytest.raises(SettingsError) as raised:
        read_settings(environ)
    assert name in str(raised.value)
    if name != 'REDIRECT_URI':
        problem = 'is missing' if not value or value.isspace() else 'is still the placeholder from .env.example'
        assert f'{name} {problem}' in str(raised.value)
        assert settings_module.REQUIRED[name] in str(raised.value)


def test_a_short_secret_key_causes_a_warning_without_the_key(log):
    read_settings({**GOOD, 'SECRET_KEY': 'canary-key'})
    read_settings({**GOOD, 'SECRET_KEY': 'canary-key' * 2})
    assert len(log) == 1
    assert 'SECRET_KEY is short' in log[0]
    assert 'canary' not in log[0]


def test_a_numeric_client_id_causes_a_warning(log):
    read_settings({**GOOD, 'SECRET_KEY': 'x' * 32, 'ZENDESK_CLIENT_ID': '360001234567'})
    assert 'ZENDESK_CLIENT_ID is a number' in ''.join(log)
    assert 'Identifier' in ''.join(log)
    log.clear()
    read_settings({**GOOD, 'SECRET_KEY': 'x' * 32, 'ZENDESK_CLIENT_ID': 'client2'})
    assert log == []


def test_one_message_names_all_problems():
    with pytest.raises(SettingsError) as raised:
        read_settings(
            {'ZENDESK_CLIENT_ID': 'a b', 'ZENDESK_SUBDOMAIN': 'https://acme.zendesk.com', 'ZENDESK_BASE_URL': 'x'}
        )
    for name in (*settings_module.REQUIRED, 'ZENDESK_BASE_URL'):
        assert f'  {name} ' in str(raised.value)


@pytest.mark.parametrize(
    ('name', 'value', 'remedy'),
    [
        ('ZENDESK_SUBDOMAIN', 'https://canary.zendesk.com', 'Use mondocam if'),
        ('ZENDESK_SUBDOMAIN', 'canary.zendesk.com', 'Use mondocam if'),
        ('ZENDESK_SUBDOMAIN', 'evil.example/canary', 'Use mondocam if'),
        ('ZENDESK_SUBDOMAIN', 'canary@evil', 'Use mondocam if'),
        ('ZENDESK_SUBDOMAIN', '-canary', 'Use mondocam if'),
        ('ZENDESK_SUBDOMAIN', 'canarý', 'Use mondocam if'),
        ('ZENDESK_SUBDOMAIN', 'canar\u212a', 'Use mondocam if'),
        ('ZENDESK_CLIENT_ID', 'canary canary', 'Copy it again'),
        ('ZENDESK_CLIENT_SECRET', 'canary\ncanary', 'Copy it again'),
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
        ('REDIRECT_URI', 'http://localhost:3000/canary', 'must have the path /zendesk/oauth/callback'),
        ('REDIRECT_URI', 'http://localhost:3000/zendesk/oauth/callback/', 'must have the path /zendesk/oauth/callback'),
        (
            'REDIRECT_URI',
            'http://localhost:3000/zendesk/oauth/callback?canary=1',
            'must have the path /zendesk/oauth/callback',
        ),
        ('REDIRECT_URI', 'http://localhost:3000/zendesk/oauth/callback#', 'must have the path /zendesk/oauth/callback'),
        ('REDIRECT_URI', 'https://canary.example/canary/zendesk/oauth/callback', 'without a prefix. Use a subdomain'),
        *((name, f'{quote}canary{quote}', 'Remove the quotation marks') for name in REQUIRED for quote in '"\''),
        ('ZENDESK_CLIENT_SECRET', 'canary"', 'Remove the quotation marks'),
        ('ZENDESK_BASE_URL', 'http://canary.example', 'https://'),
        ('ZENDESK_BASE_URL', 'https://canary.example/path', 'must not have a path'),
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
def test_a_valid_setting_is_accepted(name, value):
    assert read_settings({**GOOD, name: value})


def test_the_case_of_the_subdomain_is_ignored():
    assert read_settings({**GOOD, 'ZENDESK_SUBDOMAIN': 'MondoCam'}).zendesk_url == 'https://mondocam.zendesk.com'


def test_the_case_of_the_scheme_is_ignored():
    assert read_settings({**GOOD, 'REDIRECT_URI': 'HTTPS://app.example.com/zendesk/oauth/callback'}).https


def test_a_base_url_replaces_the_subdomain():
    assert read_settings({**GOOD, 'ZENDESK_BASE_URL': 'http://127.0.0.1:9/'}).zendesk_url == 'http://127.0.0.1:9'


@pytest.mark.parametrize(
    ('redirect_uri', 'origin'),
    [
        ('http://localhost:3000/zendesk/oauth/callback', 'http://localhost:3000'),
        ('https://App.example.com:443/zendesk/oauth/callback', 'https://app.example.com'),
        ('https://app.example.com:8443/zendesk/oauth/callback', 'https://app.example.com:8443'),
        ('http://localhost:80/zendesk/oauth/callback', 'http://localhost'),
    ],
)
def test_the_origin_has_the_form_that_browsers_send(redirect_uri, origin):
    assert read_settings({**GOOD, 'REDIRECT_URI': redirect_uri}).origin == origin


@pytest.mark.parametrize(
    ('redirect_uri', 'port'),
    [
        ('http://localhost:3000/zendesk/oauth/callback', 3000),
        ('http://localhost:5000/zendesk/oauth/callback', 5000),
        ('http://127.0.0.1/zendesk/oauth/callback', 3000),
        ('https://app.example.com:8443/zendesk/oauth/callback', 3000),
        ('https://localhost:8443/zendesk/oauth/callback', 3000),
    ],
)
def test_the_port_comes_from_an_http_redirect_uri(redirect_uri, port):
    assert read_settings({**GOOD, 'REDIRECT_URI': redirect_uri}).port == port


@pytest.mark.parametrize('redirect_uri', [GOOD['REDIRECT_URI'], 'https://app.example.com/zendesk/oauth/callback'])
def test_port_overrides_the_port_of_the_redirect_uri(redirect_uri):
    assert read_settings({**GOOD, 'REDIRECT_URI': redirect_uri, 'PORT': '8000'}).port == 8000


@pytest.mark.parametrize(('redirect_port', 'port'), [(3000, ''), (8000, '8000')])
def test_the_app_does_not_take_the_port_of_a_local_proxy(redirect_port, port):
    redirect_uri = f'https://localhost:{redirect_port}/zendesk/oauth/callback'
    with pytest.raises(SettingsError, match=f'A proxy uses port {redirect_port} .* Set PORT to another port'):
        read_settings({**GOOD, 'REDIRECT_URI': redirect_uri, 'PORT': port})
    assert read_settings({**GOOD, 'REDIRECT_URI': redirect_uri, 'PORT': '3003'}).port == 3003


@pytest.mark.parametrize(
    ('redirect_uri', 'address'),
    [
        ('http://localhost:5000', 'http://localhost:5000'),
        ('http://127.0.0.1:3000', 'http://127.0.0.1:3000'),
        ('https://localhost:8443', 'https://localhost:8443'),
        ('https://app.example.com', 'http://localhost:3000'),
    ],
)
def test_the_address_is_where_to_open_the_app_on_this_machine(redirect_uri, address):
    assert read_settings({**GOOD, 'REDIRECT_URI': f'{redirect_uri}/zendesk/oauth/callback'}).address == address


@pytest.mark.parametrize('port', ['0', '65536', '-1', '80a', '8000.0', '8' * 5000, '\u0663'])
def test_a_malformed_port_is_refused(port):
    with pytest.raises(SettingsError, match='PORT is not a port number, such as 8000'):
        read_settings({**GOOD, 'PORT': port})


def test_practice_mode_ignores_port():
    assert read_settings({'PORT': '8080', 'SECRET_KEY': 'key'}, practice_allowed=True).port == 3000


@pytest.mark.parametrize(
    ('redirect_uri', 'port', 'line'),
    [
        ('https://localhost:8443', '', 'https://localhost:8443, which a proxy must forward to port 3000'),
        ('https://localhost', '', 'https://localhost, which a proxy must forward to port 3000'),
        ('http://localhost:3000', '8000', 'http://localhost:3000, which a proxy must forward to port 8000'),
        ('http://localhost', '', 'http://localhost, which a proxy must forward to port 3000'),
        ('http://localhost:3000', '3000', None),
        ('http://localhost:3000', '', None),
        ('https://app.example.com', '', None),
    ],
)
def test_the_log_names_the_address_that_a_local_proxy_must_forward(log, redirect_uri, port, line):
    read_settings(
        {**GOOD, 'SECRET_KEY': 'k' * 32, 'REDIRECT_URI': f'{redirect_uri}/zendesk/oauth/callback', 'PORT': port}
    )
    assert log == ([f'Open the app at {line}\n'] if line else [])


def test_practice_mode_starts_if_all_four_settings_are_missing():
    settings = read_settings({'SECRET_KEY': 'key', 'PATH': '/bin'}, practice_allowed=True)
    assert settings.practice_mode
    assert settings.zendesk_url == 'http://localhost:3001'


def test_practice_mode_does_not_hide_incomplete_settings():
    with pytest.raises(SettingsError):
        read_settings({})
    with pytest.raises(SettingsError):
        read_settings({'REDIRECT_URI': GOOD['REDIRECT_URI']}, practice_allowed=True)
    with pytest.raises(SettingsError):
        read_settings(dict.fromkeys(settings_module.REQUIRED, ''), practice_allowed=True)


def test_a_generated_key_is_stored_in_a_private_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environ = {**GOOD, 'SECRET_KEY': ''}
    key = read_settings(environ).secret_key
    assert len(key) == 64
    assert read_settings(environ).secret_key == key
    assert stat.S_IMODE(Path('.secret_key').stat().st_mode) == 0o600 or os.name != 'posix'


@pytest.mark.parametrize('content', [b'short', b'\0' * 64, b'\xff' * 64, b'two words' * 8])
def test_a_damaged_key_file_is_replaced(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path('.secret_key').write_bytes(content)
    key = read_settings({**GOOD, 'SECRET_KEY': ''}).secret_key
    assert re.fullmatch('[0-9a-f]{64}', key)
    assert Path('.secret_key').read_text() == key


def test_the_error_names_an_unreadable_env_file(monkeypatch, capsys):
    def refuse(path, mode):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(Path, 'open', refuse)
    monkeypatch.setattr(settings_module, '_current', None)
    monkeypatch.setattr(settings_module, 'ENV_FILE', PROJECT / '.env')
    with pytest.raises(SystemExit):
        settings_module.load_settings()
    assert '/.env cannot be read or written (Permission denied)' in capsys.readouterr().err.replace(os.sep, '/')


# --- .env --- #


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A function that loads the settings with this content of .env and these environment variables."""

    def load(content: bytes | str | None = None, **variables: str) -> Settings:
        if content is not None:
            Path('.env').write_bytes(content if isinstance(content, bytes) else content.encode())
            Path('.env').chmod(0o600)
        monkeypatch.setattr(os, 'environ', dict(variables))
        return settings_module.load_settings(practice_allowed=True)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings_module, 'ENV_FILE', tmp_path / '.env')
    monkeypatch.setattr(settings_module, '_current', None)
    return load


def lines(**variables: str) -> str:
    return ''.join(f'{name}={value}\n' for name, value in variables.items())


def test_without_an_env_file_practice_mode_starts(load):
    assert load(SECRET_KEY='canary-key').practice_mode


@pytest.mark.parametrize(
    'content',
    [
        '',
        '\n\n',
        '# ZENDESK_CLIENT_ID=canary\n',
        'SECRET_KEY=canary-key\n',
        'ZENDESK_CLIENTID=canary\nZENDESK_SECRET=canary\n',
        'zendesk_client_id=canary\n',
        'ZENDESK-CLIENT-ID=canary\n',
        'ZENDESK_CLIENT_ID=\n',
    ],
)
def test_an_env_file_without_the_required_variables_is_refused(load, tmp_path, capsys, content):
    with pytest.raises(SystemExit) as raised:
        load(content)
    message = capsys.readouterr().err
    assert raised.value.code == 4
    assert 'ZENDESK_CLIENT_ID is missing' in message
    assert f'The file {tmp_path}/.env sets none of the required variables' in message
    assert 'canary' not in message


def test_an_env_file_with_other_variables_is_accepted_if_the_environment_has_the_required_ones(load):
    settings = load('SECRET_KEY=from-the-file-from-the-file\n', **{**GOOD, 'SECRET_KEY': ''})
    assert (settings.secret_key, settings.client_id) == ('from-the-file-from-the-file', 'my_client')


@pytest.mark.parametrize(
    'line',
    [
        'set ZENDESK_CLIENT_ID=canary',
        'setx ZENDESK_CLIENT_ID canary',
        'ZENDESK_CLIENT_ID: canary',
        'ZENDESK_CLIENT_ID',
        'export ZENDESK_CLIENT_ID',
        'ZENDESK CLIENT ID=canary',
        'ZENDESK_CLIENT_SECRET="canary',
        "ZENDESK_CLIENT_SECRET='canary",
        'ZENDESK_CLIENT_SECRET="canary" canary',
        '=canary',
        "'A=B'=canary",
        '$env:ZENDESK_CLIENT_ID = "canary"',
        '"ZENDESK_CLIENT_ID"="canary"',
        '\u200bZENDESK_CLIENT_ID=canary',
        'canary',
        '[canary]',
        '// canary',
    ],
)
@pytest.mark.parametrize('number', [1, 3])
@pytest.mark.parametrize('line_break', ['\n', '\r\n', '\r'])
def test_a_malformed_line_is_named(load, tmp_path, capsys, log, line, number, line_break):
    before = ['# a comment', 'ZENDESK_SUBDOMAIN=mondocam'][: number - 1]
    with pytest.raises(SystemExit) as raised:
        load(line_break.join([*before, line, 'REDIRECT_URI=x']), ZENDESK_CLIENT_ID='my_client')
    message = capsys.readouterr().err
    assert raised.value.code == 4
    assert f'Line {number} of {tmp_path}/.env is malformed. Write NAME=value' in message
    assert 'canary' not in message + ''.join(log)


def test_the_warning_of_dotenv_names_the_same_line(load, caplog):
    with pytest.raises(SystemExit):
        load('\n# a comment\nZENDESK_CLIENT_ID="canary\n')
    assert [record.getMessage()[-6:] for record in caplog.records] == ['line 3']


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('my$client', 'my$client'),
        ('${HOME}$HOME', '${HOME}$HOME'),
        ("'my${HOME}client'", 'my${HOME}client'),
        ('"my${HOME}client"', 'my${HOME}client'),
        ('my#client', 'my#client'),
        ('my=client', 'my=client'),
        ('my\\client', 'my\\client'),
        ('my"client', 'my"client'),
        ('my_client  # a comment', 'my_client'),
    ],
)
def test_a_value_in_the_env_file_is_not_expanded(load, text, value):
    assert load(lines(**{**GOOD, 'ZENDESK_CLIENT_ID': text}), HOME='/home/canary').client_id == value


@pytest.mark.parametrize('line', ['export ZENDESK_CLIENT_ID=my_client', '  ZENDESK_CLIENT_ID = my_client  '])
def test_spaces_and_export_are_accepted(load, line):
    rest = {name: value for name, value in GOOD.items() if name != 'ZENDESK_CLIENT_ID'}
    assert load(f'{line}\n\n{lines(**rest)}').client_id == 'my_client'


def test_a_folder_instead_of_the_env_file_is_refused(load, tmp_path, capsys):
    Path('.env').mkdir()
    with pytest.raises(SystemExit) as raised:
        load()
    assert raised.value.code == 4
    assert f'{tmp_path}/.env is a folder. Rename or delete it' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('text', 'encoding'),
    [
        ('ZENDESK_CLIENT_ID=canarä', 'latin-1'),
        *(('ZENDESK_CLIENT_ID=canary', name) for name in ('utf-16', 'utf-16-le')),
    ],
)
def test_an_env_file_in_another_encoding_is_refused(load, tmp_path, capsys, text, encoding):
    with pytest.raises(SystemExit):
        load(text.encode(encoding))
    message = capsys.readouterr().err
    assert message == f'The file {tmp_path}/.env is not UTF-8 text. Save it again with the encoding UTF-8.\n'
    assert 'canar' not in message


def test_a_link_to_a_missing_env_file_does_not_start_practice_mode(load, capsys):
    Path('.env').symlink_to('no-such-file')
    with pytest.raises(SystemExit):
        load()
    assert 'sets none of the required variables' in capsys.readouterr().err


@pytest.mark.parametrize('empty', ['', ' '])
def test_an_empty_variable_does_not_hide_the_value_in_the_env_file(load, empty):
    variables = {**GOOD, 'PORT': '8000', 'PROXY_HOPS': '1'}
    settings = load(lines(**variables), **dict.fromkeys(variables, empty))
    assert (settings.client_id, settings.secret_key, settings.port, settings.proxy_hops) == (
        *('my_client', 'canary-key'),
        *(8000, 1),
    )


def test_variables_of_libraries_are_set_unless_the_environment_has_them(load):
    content = lines(**GOOD, HTTPS_PROXY='http://proxy.example', NO_PROXY='file.example')
    load(content, NO_PROXY='')
    assert (os.environ['HTTPS_PROXY'], os.environ['NO_PROXY']) == ('http://proxy.example', '')
    assert not settings_module.REQUIRED.keys() & os.environ.keys()  # child processes need no secrets


def test_the_environment_takes_precedence(load):
    assert load(lines(**GOOD), ZENDESK_CLIENT_ID='other_client').client_id == 'other_client'


def test_empty_variables_alone_do_not_start_practice_mode(load, capsys):
    with pytest.raises(SystemExit):
        load(**dict.fromkeys(settings_module.REQUIRED, ''))
    assert 'ZENDESK_CLIENT_ID is missing' in capsys.readouterr().err


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(load, monkeypatch, capsys, number):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr('fcntl.flock', fail)
    with pytest.raises(SystemExit):
        load(lines(**{**GOOD, 'SECRET_KEY': ''}))
    assert f'({os.strerror(number)}). The file system has no locks. Use a folder' in capsys.readouterr().err


# --- Files of secrets --- #

posix = pytest.mark.skipif(os.name != 'posix', reason='file modes and owners need a POSIX system')


@pytest.fixture
def private_files(tmp_path, monkeypatch):
    """Return, for each file, a function that makes the app read it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings_module, 'ENV_FILE', tmp_path / '.env')
    monkeypatch.setattr(settings_module, '_current', None)
    for name in GOOD:
        monkeypatch.delenv(name, raising=False)
    Path('.env').write_text('\n'.join(f'{name}={value}' for name, value in GOOD.items()))
    Path('.secret_key').write_text('k' * 64)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'environ', dict(os.environ))
        yield {
            '.env': settings_module.load_settings,
            '.secret_key': lambda: read_settings({**GOOD, 'SECRET_KEY': ''}),
        }


@posix
@pytest.mark.parametrize('name', ['.env', '.secret_key'])
@pytest.mark.parametrize(('mode', 'warns'), [(0o600, False), (0o640, False), (0o644, True), (0o602, True)])
def test_a_file_that_every_account_can_read_causes_a_warning(private_files, log, name, mode, warns):
    Path(name).chmod(mode)
    private_files[name]()
    assert (f'/{name}. As its owner, run chmod 600' in ''.join(log)) == warns
    assert stat.S_IMODE(Path(name).stat().st_mode) == mode


@pytest.fixture
def owners(monkeypatch):
    """Pretend that files belong to these accounts: set the names of files, or of links with " (link)", to user ids."""
    owners, lstat, fstat = {}, Path.lstat, os.fstat

    def changed(status, name):
        return os.stat_result([*status[:4], owners.get(name, 1234), *status[5:]])

    def fstat_by_name(descriptor):
        return changed(fstat(descriptor), Path(f'/proc/self/fd/{descriptor}').readlink().name)

    monkeypatch.setattr(os, 'geteuid', lambda: 1234)
    monkeypatch.setattr(os, 'fstat', fstat_by_name)
    monkeypatch.setattr(Path, 'lstat', lambda path: changed(lstat(path), f'{path.name} (link)'))
    real = Path.stat
    monkeypatch.setattr(Path, 'stat', lambda path, **kwargs: changed(real(path, **kwargs), path.name))
    return owners


on_linux = pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='needs /proc/self/fd')


@on_linux
@pytest.mark.parametrize('name', ['.env', '.secret_key'])
@pytest.mark.parametrize('what', ['', ' (link)'], ids=['file', 'link'])
def test_a_file_of_another_account_is_refused(private_files, owners, capsys, name, what):
    owners[name + what] = 666
    with pytest.raises((SystemExit, SettingsError)) as raised:
        private_files[name]()
    message = capsys.readouterr().err if name == '.env' else str(raised.value)
    assert re.search(rf'The file /.*{name} belongs to another account, .*chown to give it', message)
    assert 'k' * 64 not in message


@on_linux
@pytest.mark.parametrize(('owner', 'folder_owner'), [(1234, 0), (0, 1234), (4321, 4321)])
def test_root_and_the_owner_of_the_folder_are_trusted(private_files, owners, owner, folder_owner):
    owners |= {'.secret_key': owner, '.secret_key (link)': owner, '': folder_owner}
    assert private_files['.secret_key']().secret_key == 'k' * 64


@posix
def test_a_link_to_a_file_of_secrets_is_followed(private_files):
    for name in ('.env', '.secret_key'):
        Path(name).rename(f'target{name}')
        Path(name).symlink_to(f'target{name}')
        assert private_files[name]()
        assert Path(name).is_symlink()


@posix
@pytest.mark.parametrize('content', [None, 'short'])
def test_a_link_to_a_file_without_a_key_is_not_replaced(private_files, content):
    Path('.secret_key').unlink()
    Path('.secret_key').symlink_to('target')
    if content:
        Path('target').write_text(content)
    with pytest.raises(SettingsError, match='symbolic link to a file without a key'):
        private_files['.secret_key']()
    assert Path('.secret_key').is_symlink()
    assert not content or Path('target').read_text() == content


# --- Production --- #


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
        ({'TOKEN_ENCRYPTION_KEYS': ''}, 'token_encryption_keys', ()),
    ],
)
def test_production_settings_are_read(variables, name, expected):
    assert getattr(read_settings({**GOOD, **variables}), name) == expected


@pytest.mark.parametrize('hops', ['-1', 'one', '1.5', '10', '١'])
def test_a_malformed_number_of_proxies_is_refused(hops):
    with pytest.raises(SettingsError, match='PROXY_HOPS is not a number of proxies'):
        read_settings({**GOOD, 'PROXY_HOPS': hops})


@pytest.mark.parametrize('url', ['sqlite:///tokens.db', 'postgresql://localhost/app'])
def test_a_database_url_is_refused_if_its_packages_are_missing(url, monkeypatch):
    monkeypatch.setitem(sys.modules, 'zendesk_oauth.database', None)
    monkeypatch.delattr(zendesk_oauth, 'database', raising=False)
    with pytest.raises(SettingsError, match=r'DATABASE_URL needs more packages \(.*\)\. Run pip install'):
        read_settings({**GOOD, 'DATABASE_URL': url})


def test_practice_mode_ignores_database_url():
    variables = {'DATABASE_URL': 'canary', 'TOKEN_ENCRYPTION_KEYS': 'canary'}
    assert read_settings(variables, practice_allowed=True).database_url == ''


@pytest.mark.parametrize(
    ('host', 'port', 'bind'),
    [
        ('http://localhost:3000', '', '127.0.0.1:3000'),
        ('http://localhost:3000', '8000', '127.0.0.1:8000'),
        ('https://localhost:8443', '8000', '127.0.0.1:8000'),
        ('https://app.example.com', '', '127.0.0.1:3000'),
        ('https://app.example.com', '8000', '0.0.0.0:8000'),
        ('https://app.example.com', ' ', '127.0.0.1:3000'),
    ],
)
def test_gunicorn_binds_to_all_addresses_only_if_port_is_set_and_not_on_localhost(monkeypatch, host, port, bind):
    variables = {**GOOD, 'REDIRECT_URI': f'{host}/zendesk/oauth/callback', 'PORT': port}
    monkeypatch.setattr(settings_module, '_current', read_settings(variables))
    monkeypatch.setenv('LOGURU_LEVEL', 'INFO')
    monkeypatch.setenv('PORT', port)
    assert runpy.run_path(str(PROJECT / 'gunicorn.conf.py'))['bind'] == bind


def test_port_in_the_env_file_does_not_open_gunicorn_to_other_machines(load, monkeypatch):
    load(lines(**{**GOOD, 'REDIRECT_URI': 'https://app.example.com/zendesk/oauth/callback', 'PORT': '8000'}))
    for _ in range(2):  # also after HUP
        assert runpy.run_path(str(PROJECT / 'gunicorn.conf.py'))['bind'] == '127.0.0.1:8000'


def test_gunicorn_binds_to_loopback_and_waits_for_slow_requests(monkeypatch):
    monkeypatch.setenv('LOGURU_LEVEL', 'INFO')
    gunicorn = runpy.run_path(str(PROJECT / 'gunicorn.conf.py'))
    assert gunicorn['bind'] == '127.0.0.1:3000'
    assert gunicorn['preload_app'] is True
    assert gunicorn['keepalive'] > 60  # for which load balancers keep idle connections
    assert gunicorn['threads'] > 1
    # A grant: check the store, exchange the code, store the tokens, delete and revoke the old ones.
    grant = 3 * stores.WRITE_TIMEOUT + endpoints.CALL_TIMEOUT + tokens.BEST_EFFORT_TIMEOUT
    # Disconnect: wait for a refresh, delete, revoke, check the store, refresh, revoke, verify.
    disconnect = stores.REFRESH_TIMEOUT + 2 * stores.WRITE_TIMEOUT + 4 * endpoints.CALL_TIMEOUT
    assert gunicorn['timeout'] == gunicorn['graceful_timeout'] > max(grant, disconnect)
