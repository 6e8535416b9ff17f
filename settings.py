"""Read the app's settings from the environment and `.env`. Report all problems in one message."""

from __future__ import annotations

import io
import os
import re
import secrets
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import dotenv_values
from filelock import FileLock, Timeout
from loguru import logger

from zendesk_oauth.stores import REMEDIES, owner_is_trusted, write_private_file

if sys.version_info < (3, 11):  # noqa: UP036 - pip does not check this
    raise SystemExit(f'Python 3.11 or newer is required. This is Python {sys.version_info[0]}.{sys.version_info[1]}')

ENV_FILE = Path(__file__).with_name('.env')
CALLBACK_PATH = '/zendesk/oauth/callback'
SECRET_KEY_FILE = '.secret_key'  # noqa: S105 - the file's name, not a key

# The required variables. The text follows "is missing:" or "Set it to".
REQUIRED = {
    'ZENDESK_CLIENT_ID': "the Identifier of your OAuth client, from Zendesk's Admin Center",
    'ZENDESK_CLIENT_SECRET': "the Secret of your OAuth client, from Zendesk's Admin Center",
    'ZENDESK_SUBDOMAIN': 'the first part of your Zendesk address: mondocam for https://mondocam.zendesk.com',
    'REDIRECT_URI': f'one of the redirect URLs of your OAuth client, such as http://localhost:3000{CALLBACK_PATH}',
}

# The values in .env.example, which the user must replace.
PLACEHOLDERS = ('your_client_identifier', 'your_client_secret', 'your_subdomain')

# The default OAuth client of the practice Zendesk.
PRACTICE = {
    'ZENDESK_CLIENT_ID': 'practice_client',
    'ZENDESK_CLIENT_SECRET': 'practice_secret',
    'ZENDESK_SUBDOMAIN': 'practice',
    'REDIRECT_URI': f'http://localhost:3000{CALLBACK_PATH}',
    'ZENDESK_BASE_URL': 'http://localhost:3001',
    # Practice mode always uses users.json, and the port of its redirect URI.
    'DATABASE_URL': '',
    'PORT': '',
}

OPTIONAL = (
    'ZENDESK_BASE_URL',
    'SECRET_KEY',
    'SECRET_KEY_FALLBACKS',
    'DATABASE_URL',
    'TOKEN_ENCRYPTION_KEYS',
    'PROXY_HOPS',
    'PORT',
)
NEW_KEY = f'{sys.executable} -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'


class SettingsError(ValueError):
    """Some settings are missing or malformed; the message names each of them and its remedy, and no value."""


@dataclass(frozen=True)
class Settings:
    """
    The app's settings. `repr` leaves out the secrets.

    `zendesk_url` and `redirect_uri` are absolute URLs. `zendesk_url` has no trailing slash. `secret_key_fallbacks` are
    previous values of `secret_key`. If `database_url` is empty, the app stores tokens in users.json. In a database, the
    first of the `token_encryption_keys` encrypts the tokens. `proxy_hops` is the number of trusted proxies in front of
    the app. The app listens on `port`.
    """

    client_id: str
    client_secret: str = field(repr=False)
    zendesk_url: str
    redirect_uri: str
    practice_mode: bool
    secret_key: str = field(repr=False)
    secret_key_fallbacks: tuple[str, ...] = field(default=(), repr=False)
    database_url: str = field(default='', repr=False)
    token_encryption_keys: tuple[str, ...] = field(default=(), repr=False)
    proxy_hops: int = 0
    port: int = 3000

    @property
    def address(self) -> str:
        """Where to open the app on this machine."""
        return self.origin if self.on_localhost else f'http://localhost:{self.port}'

    @property
    def origin(self) -> str:
        """The scheme, host and port at which browsers reach the app, in the form of the `Origin` header."""
        parts = urlsplit(self.redirect_uri)
        return f'{parts.scheme}://{parts.netloc.lower().removesuffix(":443" if self.https else ":80")}'

    @property
    def browser_port(self) -> int:
        """The port at which browsers reach the app."""
        return urlsplit(self.redirect_uri).port or (443 if self.https else 80)

    @property
    def https(self) -> bool:
        return urlsplit(self.redirect_uri).scheme == 'https'

    @property
    def on_localhost(self) -> bool:
        return is_loopback(urlsplit(self.redirect_uri).hostname)


def load_settings(practice_allowed: bool = False) -> Settings:
    """
    Read the settings at the first call, or exit. The message lists all missing or malformed settings, or names the
    first malformed line of `.env`.

    The exit status 4 makes gunicorn stop instead of restarting the worker again and again.
    """
    global _current
    if _current:
        return _current
    note = ''
    try:
        environ = dict(os.environ)
        for name, value in _read_env_file().items():
            if name in (*REQUIRED, *OPTIONAL):
                environ[name] = environ.get(name, '').strip() or value  # an empty variable does not hide it
            else:
                os.environ.setdefault(name, value)  # of a library, such as HTTPS_PROXY
        # A user who has a .env wants to use their own Zendesk.
        has_env_file = os.path.lexists(ENV_FILE)
        if has_env_file and not any(environ.get(name) for name in REQUIRED):
            note = f'\nThe file {ENV_FILE} sets none of the required variables. Correct or delete it.'
        _current = read_settings(environ, practice_allowed and not has_env_file)
    except SettingsError as error:
        problem = f'{error}{note}'
    except (OSError, Timeout) as error:
        name, cause = str(error.filename or SECRET_KEY_FILE), error.strerror or error
        alternative = '' if name == str(ENV_FILE) else ' and to the working directory, or set SECRET_KEY'
        remedy = REMEDIES.get(error.errno or 0, f'Give the app access to it{alternative}')
        problem = f'The file {name} cannot be read or written ({cause}). {remedy}.'
    else:
        return _current
    print(problem, file=sys.stderr)
    raise SystemExit(4)


def _read_env_file() -> dict[str, str]:
    """
    Return the variables in `.env`. Each is on one line. A value can contain `$`, because nothing is expanded.

    Raises:
        SettingsError: a line is malformed, or the file is a folder or not UTF-8 text.
    """
    if ENV_FILE.is_dir():  # Docker creates a folder if the file to mount does not exist
        raise SettingsError(f'{ENV_FILE} is a folder. Rename or delete it, and create a file (see .env.example).')
    text = _read_private_file(ENV_FILE).decode('utf-8-sig', 'replace')  # Notepad adds a BOM
    if re.search('[\0\ufffd]', text):
        raise SettingsError(f'The file {ENV_FILE} is not UTF-8 text. Save it again with the encoding UTF-8.')
    variables: dict[str, str] = {}
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        if not line.strip() or line.lstrip().startswith('#'):
            continue
        found = None
        if re.match(r'\s*(export\s+)?[A-Za-z_][A-Za-z0-9_.-]*\s*=', line):
            # Preceded by empty comments, so that dotenv's warning about an open quotation mark has the right number.
            found = dotenv_values(stream=io.StringIO('#\n' * (number - 1) + line), interpolate=False)
        if not found:
            raise SettingsError(
                f'Line {number} of {ENV_FILE} is malformed. Write NAME=value, such as ZENDESK_SUBDOMAIN=mondocam, '
                'without "set" or "$env:". Close each quotation mark on the same line. A comment starts with #.'
            )
        variables |= {name: value or '' for name, value in found.items()}
    return variables


_current: Settings | None = None


def read_settings(environ: Mapping[str, str], practice_allowed: bool = False) -> Settings:
    """
    Check the variables in `environ` and return them as Settings.

    If `practice_allowed` is true and none of the four required variables is set, return the settings of practice mode.

    Raises:
        SettingsError: at least one variable is missing or malformed.
        OSError, filelock.Timeout: the file with the secret key cannot be read or created.
    """
    practice_mode = practice_allowed and not any(name in environ for name in REQUIRED)
    if practice_mode:
        logger.info('Found neither settings nor a file .env: starting practice mode')
        environ = {**environ, **PRACTICE}

    values = {name: environ.get(name, '').strip() for name in (*REQUIRED, *OPTIONAL)}
    problems = [f'  {name} {problem}' for name, value in values.items() if (problem := _problem_of(name, value))]
    if values['DATABASE_URL']:
        database_problems = _problems_of_database(values['DATABASE_URL'], values['TOKEN_ENCRYPTION_KEYS'])
        problems += [f'  {problem}' for problem in database_problems]
    if problems:
        raise SettingsError(
            'These settings are missing or malformed:\n'
            + '\n'.join(problems)
            + '\nSet them in the file .env (start from .env.example) or in the environment. '
            'To try the app without an account, remove .env and unset these variables: "python app.py" then starts '
            'practice mode.'
        )

    if 0 < len(values['SECRET_KEY']) < 16:
        logger.warning(
            'SECRET_KEY is short. Anyone who guesses it can sign in as any user. Use at least 32 random characters'
        )

    redirect = urlsplit(values['REDIRECT_URI'])
    settings = Settings(
        client_id=values['ZENDESK_CLIENT_ID'],
        client_secret=values['ZENDESK_CLIENT_SECRET'],
        zendesk_url=values['ZENDESK_BASE_URL'].rstrip('/')
        or f'https://{values["ZENDESK_SUBDOMAIN"].lower()}.zendesk.com',
        redirect_uri=values['REDIRECT_URI'],
        practice_mode=practice_mode,
        secret_key=values['SECRET_KEY'] or _secret_key_from_file(),
        secret_key_fallbacks=tuple(values['SECRET_KEY_FALLBACKS'].split()),
        database_url=values['DATABASE_URL'],
        token_encryption_keys=tuple(values['TOKEN_ENCRYPTION_KEYS'].split()),
        proxy_hops=int(values['PROXY_HOPS'] or 0),
        # Under https, a proxy uses the port of the redirect URI.
        port=int(values['PORT'] or 0) or (redirect.port if redirect.scheme == 'http' else None) or 3000,
    )
    if settings.client_id.isdigit():  # each OAuth client also has a number, which is not valid here
        logger.warning(
            'ZENDESK_CLIENT_ID is a number. If Zendesk responds with "No such client" or invalid_client, use the '
            'Identifier of the OAuth client, such as my_oauth_app'
        )
    if settings.https and settings.on_localhost and settings.port == settings.browser_port:
        raise SettingsError(f'A proxy uses port {settings.port} of the https REDIRECT_URI. Set PORT to another port.')
    if settings.on_localhost and settings.port != settings.browser_port:
        logger.info('Open the app at {}, which a proxy must forward to port {}', settings.origin, settings.port)
    return settings


def _problem_of(name: str, value: str) -> str | None:
    """Return what is wrong with the value of a variable, or None. The text does not contain the value."""
    if name in REQUIRED and not value:
        return f'is missing: {REQUIRED[name]}'
    if name in REQUIRED and value in PLACEHOLDERS:
        return f'is still the placeholder from .env.example. Set it to {REQUIRED[name]}'
    if name in REQUIRED and re.search('^["\']|["\']$', value):
        return 'starts or ends with a quotation mark, which docker --env-file keeps. Remove the quotation marks'
    if name in ('ZENDESK_CLIENT_ID', 'ZENDESK_CLIENT_SECRET') and not re.fullmatch(r'[!-~]+', value):
        return 'contains a space or another invalid character. Copy it again'
    if name == 'ZENDESK_SUBDOMAIN' and not re.fullmatch('[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?', value):
        return 'is not a subdomain. Use mondocam if your address is https://mondocam.zendesk.com'
    if name == 'REDIRECT_URI':
        return _problem_of_url(value, path=CALLBACK_PATH)
    if name == 'ZENDESK_BASE_URL' and value:
        return _problem_of_url(value.rstrip('/'), path='')
    if name == 'PROXY_HOPS' and not re.fullmatch('[0-9]?', value):
        return 'is not a number of proxies, such as 1'
    if name == 'PORT' and value and not (re.fullmatch('[0-9]{1,5}', value) and 0 < int(value) < 65536):
        return 'is not a port number, such as 8000'
    return None


def _problems_of_database(url: str, keys: str) -> list[str]:
    problems = []
    try:
        from zendesk_oauth import database, sql_store

        database.parse_url('DATABASE_URL', url)
    except ImportError as error:
        cause = ' '.join(str(error).split())
        return [f'DATABASE_URL needs more packages ({cause}). Run pip install -r requirements-sql.txt, or unset it']
    except ValueError as error:
        problems.append(str(error))
    try:
        sql_store.parse_keys('TOKEN_ENCRYPTION_KEYS', keys.split())
    except ValueError:
        how = f'For a new database, create a key with {NEW_KEY}'
        problems.append(f'TOKEN_ENCRYPTION_KEYS must contain keys, separated by spaces. {how}')
    return problems


def _problem_of_url(url: str, path: str) -> str | None:
    """
    Return what is wrong with the URL, or None. It must have this path, no query, and https unless it is on localhost.

    Zendesk has the same rule for redirect URLs (https://support.zendesk.com/hc/en-us/articles/4408845965210).
    """
    try:
        parts = urlsplit(url)
        valid = parts.port != 0 and re.fullmatch(r'[a-z0-9.-]+|[0-9a-f:]+', parts.hostname or '')
    except ValueError:
        valid = False
    if not valid or '@' in parts.netloc or not re.fullmatch(r'[!-~]+', url):
        return 'is not an absolute URL of the form https://host/path. It must not contain spaces or a user name'
    if parts.scheme != 'https' and not (parts.scheme == 'http' and is_loopback(parts.hostname)):
        return 'must start with https:// to protect the codes and tokens. Only localhost may use http://'
    if parts.path != path or '?' in url or '#' in url:
        if path and parts.path.endswith(path):
            return f'must have the path {path}, without a prefix. Use a subdomain for the app instead of a path'
        return f'must have the path {path}, the callback route' if path else 'must not have a path'
    return None


def is_loopback(hostname: str | None) -> bool:
    """Return True if a host name, as urlsplit returns it, is this machine."""
    return hostname in ('localhost', '127.0.0.1', '::1')


def _secret_key_from_file() -> str:
    """
    Return the key in the working directory's `.secret_key`. Create the file if it is missing.

    Sessions stay valid after a restart, and all workers use the same key: the lock lets only one of them create it.
    """
    with FileLock(f'{SECRET_KEY_FILE}.lock', timeout=10, mode=0o600):
        key = _read_private_file(Path(SECRET_KEY_FILE)).decode('utf-8', 'replace').strip()
        if not re.fullmatch('[!-~]{32,}', key):  # missing, truncated, or zeros after a crash
            if Path(SECRET_KEY_FILE).is_symlink():
                raise SettingsError(f'{SECRET_KEY_FILE} is a symbolic link to a file without a key. Set SECRET_KEY.')
            logger.info('Creating the key that signs session cookies in {}', SECRET_KEY_FILE)
            key = secrets.token_hex(32)
            write_private_file(SECRET_KEY_FILE, key)
    return key


def _read_private_file(path: Path) -> bytes:
    """
    Return the content of a file with secrets, or `b''` if it is missing. Log a warning if every account can read it.

    Raises:
        SettingsError: the file belongs to an account that is not trusted.
    """
    try:
        with path.open('rb') as file:
            status, content = os.fstat(file.fileno()), file.read()
    except FileNotFoundError:
        return b''
    if not all(owner_is_trusted(path, owner) for owner in (status.st_uid, path.lstat().st_uid)):
        raise SettingsError(
            f'The file {path.absolute()} belongs to another account, which can read and change it. Check its content, '
            "then use chown to give it to the app's account."
        )
    if os.name == 'posix' and status.st_mode & stat.S_IRWXO:
        logger.warning('Every account on this machine can read {}. As its owner, run chmod 600', path.absolute())
    return content
