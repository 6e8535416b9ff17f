"""Read the app's settings from the environment and `.env`, and report all problems in one message."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from dotenv import load_dotenv
from filelock import FileLock, Timeout
from loguru import logger

from zendesk_oauth.stores import write_private_file

if sys.version_info < (3, 11):  # noqa: UP036 - pip does not check this
    raise SystemExit(f'Python 3.11 or newer is needed, and this is Python {sys.version_info[0]}.{sys.version_info[1]}')

CALLBACK_PATH = '/zendesk/oauth/callback'
SECRET_KEY_FILE = '.secret_key'  # noqa: S105 - the file's name, not a key

# What each variable is, for the message that asks for it.
REQUIRED = {
    'ZENDESK_CLIENT_ID': "the Identifier of your OAuth client, from Zendesk's Admin Center",
    'ZENDESK_CLIENT_SECRET': "the Secret of your OAuth client, from Zendesk's Admin Center",
    'ZENDESK_SUBDOMAIN': 'the first part of your Zendesk address: mondocam for https://mondocam.zendesk.com',
    'REDIRECT_URI': f'one of the Redirect URLs of your OAuth client, such as http://localhost:3000{CALLBACK_PATH}',
}

# The values of .env.example: an unchanged one counts as missing.
PLACEHOLDERS = ('your_client_identifier', 'your_client_secret', 'your_subdomain')

# The client that the practice Zendesk knows by default.
PRACTICE = {
    'ZENDESK_CLIENT_ID': 'practice_client',
    'ZENDESK_CLIENT_SECRET': 'practice_secret',
    'ZENDESK_SUBDOMAIN': 'practice',
    'REDIRECT_URI': f'http://localhost:3000{CALLBACK_PATH}',
    'ZENDESK_BASE_URL': 'http://localhost:3001',
    'DATABASE_URL': '',  # ignore the environment: the tutorial uses users.json
}

OPTIONAL = ('ZENDESK_BASE_URL', 'SECRET_KEY', 'SECRET_KEY_FALLBACKS', 'DATABASE_URL', 'PROXY_HOPS')


class SettingsError(ValueError):
    """Some settings are missing or malformed; the message names each of them and its remedy, and no value."""


@dataclass(frozen=True)
class Settings:
    """
    What the app needs to know. Secrets stay out of its `repr`.

    `zendesk_url` and `redirect_uri` are absolute URLs; the first has no slash at its end. `secret_key_fallbacks` were
    `secret_key` before. Without a `database_url`, the tokens live in users.json. `proxy_hops` is how many proxies stand
    between a browser and the app.
    """

    client_id: str
    client_secret: str = field(repr=False)
    zendesk_url: str
    redirect_uri: str
    practice_mode: bool
    secret_key: str = field(repr=False)
    secret_key_fallbacks: tuple[str, ...] = field(default=(), repr=False)
    database_url: str = field(default='', repr=False)
    proxy_hops: int = 0

    @property
    def origin(self) -> str:
        """Scheme, host and port at which browsers reach the app, as they write it in the header `Origin`."""
        parts = urlsplit(self.redirect_uri)
        return f'{parts.scheme}://{parts.netloc.lower().removesuffix(":443" if self.https else ":80")}'

    @property
    def https(self) -> bool:
        return urlsplit(self.redirect_uri).scheme == 'https'

    @property
    def on_localhost(self) -> bool:
        return is_loopback(urlsplit(self.redirect_uri).hostname)

    @property
    def port(self) -> int:
        """Return the port to listen on: the redirect URI's port on localhost, else 3000, for a proxy."""
        return urlsplit(self.redirect_uri).port or 3000 if self.on_localhost else 3000


def load_settings(practice_allowed: bool = False) -> Settings:
    """
    Read the settings, and end the process with a message where they do not do.

    The exit status is 4 because gunicorn takes it for "the app can't be loaded" and stops, where it would start a
    worker that ends with another status again and again.
    """
    global _current
    env_file = Path(__file__).with_name('.env')
    try:
        load_dotenv(env_file, encoding='utf-8-sig')  # Notepad marks a UTF-8 file with a BOM
        _current = read_settings(os.environ, practice_allowed)
    except SettingsError as error:
        problem = str(error)
    except UnicodeDecodeError:
        problem = 'The file .env is not a text file in UTF-8. Save it again with that encoding.'
    except (OSError, Timeout) as error:
        problem = (
            f"The file {error.filename or SECRET_KEY_FILE} can't be read or written. Give the app access to it and to "
            f'the working directory; with SECRET_KEY set, it needs no {SECRET_KEY_FILE}.'
        )
    else:
        return _current
    print(problem, file=sys.stderr)
    raise SystemExit(4)


_current: Settings | None = None


def current_settings() -> Settings:
    """Return the settings that the app has loaded."""
    return _current or load_settings()


def read_settings(environ: Mapping[str, str], practice_allowed: bool = False) -> Settings:
    """
    Check the variables in `environ` and return them as Settings.

    If none of the four is set and `practice_allowed` is true, return the settings of practice mode.

    Raises:
        SettingsError: at least one variable is missing or malformed.
        OSError, filelock.Timeout: the file with the secret key can't be read or made.
    """
    practice_mode = practice_allowed and not any(name in environ for name in REQUIRED)
    if practice_mode:
        environ = {**environ, **PRACTICE}

    values = {name: environ.get(name, '').strip() for name in (*REQUIRED, *OPTIONAL)}
    problems = [f'  {name} {problem}' for name, value in values.items() if (problem := _problem_of(name, value))]
    if problems:
        raise SettingsError(
            'These settings are missing or malformed:\n'
            + '\n'.join(problems)
            + '\nSet them in the file .env (start from .env.example) or in the environment. '
            'Without a .env, and with none of the four set, "python app.py" runs with a practice Zendesk.'
        )

    if 0 < len(values['SECRET_KEY']) < 16:
        logger.warning(
            'SECRET_KEY is short: whoever guesses it can sign in as anybody. 32 random characters are better'
        )

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
        proxy_hops=int(values['PROXY_HOPS'] or 0),
    )
    if settings.client_id.isdigit():  # Zendesk also has a number for each OAuth client, and does not accept it here
        logger.warning(
            'ZENDESK_CLIENT_ID is a number. If Zendesk says "No such client" or invalid_client, set it to the '
            'Identifier of the OAuth client, which is a text such as my_oauth_app'
        )
    return settings


def _problem_of(name: str, value: str) -> str | None:
    """Return what is wrong with the value of one variable, without repeating it."""
    if name in REQUIRED and not value:
        return f'is missing: {REQUIRED[name]}'
    if name in REQUIRED and value in PLACEHOLDERS:
        return f'is missing (what stands there is from .env.example): {REQUIRED[name]}'
    if name in ('ZENDESK_CLIENT_ID', 'ZENDESK_CLIENT_SECRET') and not re.fullmatch(r'[!-~]+', value):
        return 'has a space or another character that it cannot have: copy it again'
    if name == 'ZENDESK_SUBDOMAIN' and not re.fullmatch('[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?', value):
        return 'is more than a subdomain: give only mondocam where your address is https://mondocam.zendesk.com'
    if name == 'REDIRECT_URI':
        return _problem_of_url(value, path=CALLBACK_PATH)
    if name == 'ZENDESK_BASE_URL' and value:
        return _problem_of_url(value.rstrip('/'), path='')
    if name == 'DATABASE_URL' and value:
        return _problem_of_database_url(value)
    if name == 'PROXY_HOPS' and not re.fullmatch('[0-9]?', value):
        return 'is not the number of proxies in front of the app, such as 1'
    return None


def _problem_of_database_url(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        valid = re.fullmatch('postgres(ql)?://[!-~]+', url) and parts.port != 0 and parts.netloc.count('@') < 2
    except ValueError:
        valid = False
    if not valid or parts.netloc.endswith(':'):
        return (
            'is not the URL of a PostgreSQL database, of the form postgresql://user:password@host/database, with %40 '
            'for an @ in the password'
        )
    missing = [package for package in ('sqlalchemy', 'psycopg') if not importlib.util.find_spec(package)]
    if missing:
        return f'needs {" and ".join(missing)}: run pip install -r requirements-postgresql.txt, or unset it'
    return None


def _problem_of_url(url: str, path: str) -> str | None:
    """
    Accept an https URL, or an http one on this machine, with exactly this path and nothing beyond it.

    Zendesk demands the same of redirect URLs: https except on localhost
    (https://support.zendesk.com/hc/en-us/articles/4408845965210).
    """
    try:
        parts = urlsplit(url)
        valid = parts.port != 0 and re.fullmatch(r'[a-z0-9.-]+|[0-9a-f:]+', parts.hostname or '')
    except ValueError:
        valid = False
    if not valid or '@' in parts.netloc or not re.fullmatch(r'[!-~]+', url):
        return 'is not an absolute URL of the form https://host/path, without spaces or a user name'
    if parts.scheme != 'https' and not (parts.scheme == 'http' and is_loopback(parts.hostname)):
        return 'must start with https:// (http:// is for localhost only), or others could read the codes and tokens'
    if parts.path != path or '?' in url or '#' in url:
        return f'must end in {path}, where this app answers' if path else 'must be a scheme and a host, without a path'
    return None


def is_loopback(hostname: str | None) -> bool:
    """Return True if a host name, as urlsplit returns it, is this machine."""
    return hostname in ('localhost', '127.0.0.1', '::1')


def _secret_key_from_file() -> str:
    """
    Return the key in the working directory's `.secret_key`; make it where there is none.

    So sessions survive a restart, and several workers agree on the key: the lock lets one of them make it.
    """
    with FileLock(f'{SECRET_KEY_FILE}.lock', timeout=10, mode=0o600):
        key_file = Path(SECRET_KEY_FILE)
        key = key_file.read_text(encoding='utf-8', errors='replace').strip() if key_file.exists() else ''
        if not re.fullmatch('[!-~]{32,}', key):  # missing, truncated, or zeros after a crash
            logger.info('Creating the key that signs session cookies in {}', SECRET_KEY_FILE)
            key = secrets.token_hex(32)
            write_private_file(SECRET_KEY_FILE, key)
    return key
