"""
The steps of an exchange: arrows between browser, app and Zendesk, the app's checks, and what users.json holds.

Each step has a name, which `web.explanations` explains. Steps contain fingerprints instead of secrets.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from web.explanations import NOTABLE, SUMMARIES, TEXTS, Text
from zendesk_oauth import fingerprint

AUTHORIZE, CALLBACK, PROFILE, DISCONNECT = '/zendesk/auth', '/zendesk/oauth/callback', '/profile', '/disconnect'
LANES = {
    'browser': ('Browser', 'Others may see its URLs'),
    'app': ('App', 'Holds the client secret and the tokens'),
    'zendesk': ('Zendesk', 'Asks you, and issues tokens'),
}
MAX_COOKIES, MAX_PARAMETERS = 4, 20  # of one request; the others are left out
MIN_WAIT = 0.05  # seconds; a shorter wait for the lock is not shown
SHOWN_HEADERS = ('Set-Cookie', 'Content-Type', 'Retry-After')  # of the app's responses
USERS_JSON = 'users.json'
COLORS = 12  # in panel.css
MAX_COLORED = 1000  # secrets that keep their color

Secret = tuple[str, str]  # the kind, and the fingerprint

# The kinds of secrets, by the names of fields and parameters.
KINDS = {
    'access_token': 'access token',
    'refresh_token': 'refresh token',
    'code': 'code',
    'state': 'state',
    'code_verifier': 'verifier',
    'client_secret': 'client secret',
}

ACTIONS = {
    PROFILE: 'opened the profile page',
    AUTHORIZE: 'clicked Grant access',
    DISCONNECT: 'clicked Disconnect from Zendesk',
}


@dataclass(frozen=True)
class Step:
    """
    One step. `kind` is "message" (an arrow from `source` to `target`), "action" (of the user), "check", or "change" (of
    what `source` has, such as users.json).

    `secrets` are the secrets that the step carries, and `ended` those that it removes. `text` is the message in full.
    `outcome` is "good", "bad", "lost" or empty. `waited` is the time in seconds that a visit has waited for the lock.
    `visit` is the number of the visit, for concurrent visits, and `at` the time (monotonic seconds).
    """

    name: str
    label: str
    source: str = ''
    target: str = ''
    kind: str = 'message'
    secrets: tuple[Secret, ...] = ()
    ended: tuple[Secret, ...] = ()
    text: str = ''
    outcome: str = ''
    waited: float = 0
    visit: int = 0
    at: float = 0

    @property
    def explanation(self) -> Text:
        return TEXTS.get(self.name, Text(''))


# --- The browser and the app --- #


def action(path: str) -> Step:
    """Return what the user did to open one of the ACTIONS."""
    return Step('action', ACTIONS[path], kind='action')


def request_to_app(method: str, path: str, query: str, headers: Mapping[str, str], cookies: Mapping[str, str]) -> Step:
    """Return the arrow of a request from the browser."""
    secrets, shown = _redact_query(query)
    lines = [f'{method} {path}{f"?{shown}" if shown else ""} HTTP/1.1']
    lines += [f'{name}: {headers[name]}' for name in ('Host', 'Origin', 'Sec-Fetch-Site') if name in headers]
    if cookies:
        shown_cookies = itertools.islice(cookies.items(), MAX_COOKIES)
        lines.append('Cookie: ' + '; '.join(f'{name}={fingerprint(value)}' for name, value in shown_cookies))
    names = {AUTHORIZE: 'auth', CALLBACK: 'callback', PROFILE: 'profile', DISCONNECT: 'disconnect'}
    return Step(
        names.get(path, 'page request'), f'{method} {path}', 'browser', 'app', secrets=secrets, text='\n'.join(lines)
    )


def response_of_app(status: int, location: str, headers: Iterable[tuple[str, str]]) -> list[Step]:
    """Return the arrow of the app's response. A redirect to Zendesk also has the arrow of the next request."""
    address = urlsplit(location)
    secrets, shown = _redact_query(address.query)
    redirect = address._replace(query='').geturl() + (f'\n  ?{shown}'.replace('&', '\n  &') if shown else '')
    lines = [f'HTTP/1.1 {status} {_phrase(status)}', *([f'Location: {redirect}'] if location else [])]
    lines += [
        f'{name}: {_redact_cookie(value) if name == "Set-Cookie" else value}'
        for name, value in headers
        if name in SHOWN_HEADERS
    ]
    text = '\n'.join(lines)
    if address.netloc:
        follow = f'GET {address.path}?{shown} HTTP/1.1\nHost: {address.netloc}'
        return [
            Step('authorization request', f'{status} to Zendesk', 'app', 'browser', secrets=secrets, text=text),
            Step('consent', f'GET {address.path}', 'browser', 'zendesk', secrets=secrets, text=follow),
        ]
    if location:
        return [Step('redirect', f'{status} to {address.path}', 'app', 'browser', text=text)]
    text += '\n\n(this page)'
    outcome = 'good' if status < 400 else 'bad'
    return [Step('page', f'{status}, the page', 'app', 'browser', text=text, outcome=outcome)]


def before_callback(url: str, query: str, *, is_own: bool, repeated: bool) -> list[Step]:
    """
    Return what happened before a callback.

    `is_own` is whether this browser started the request, and `repeated` whether it has already come back.
    """
    secrets, shown = _redact_query(query)
    if not is_own:
        return [Step('foreign callback', 'opened a callback link that this browser did not request', kind='action')]
    if repeated:
        return [Step('repeated callback', 'opened the callback again', kind='action')]
    error = dict(parse_qsl(query)).get('error')
    denied = error == 'access_denied'
    text = f'HTTP/1.1 302 Found\nLocation: {url}\n  ?{shown}'.replace('&', '\n  &')
    name, outcome = ('denial', 'bad') if denied else ('authorization error', 'bad') if error else ('code', '')
    callback = Step(name, '302 to the app', 'zendesk', 'browser', secrets=secrets, text=text, outcome=outcome)
    if name == 'authorization error':
        return [callback]
    decision = 'POST /oauth/authorizations/new'
    return [
        Step('consent page', '200, the consent page', 'zendesk', 'browser'),
        Step('action', 'clicked Deny' if denied else 'clicked Allow', kind='action'),
        Step('decision', decision, 'browser', 'zendesk', text=f'{decision} HTTP/1.1'),
        callback,
    ]


# --- The app and Zendesk --- #


def exchange_with_zendesk(
    request: Mapping[str, Any], response: Mapping[str, Any] | None, visited: str, source: str = 'app'
) -> list[Step]:
    """
    Return the two arrows of one record of the logger `zendesk_oauth.exchange`.

    `visited` is the path of the app's page. `source` is "thief" for a request that the app did not send.
    """
    form, headers = request['form'], request['headers']
    sent = secrets_in(form) + secrets_in({'access_token': headers.get('Authorization', '').removeprefix('Bearer ')})
    grant_type = form.get('grant_type')
    name = {'authorization_code': 'code exchange', 'refresh_token': 'refresh'}.get(grant_type, 'API request')
    name = 'revocation' if request['method'] == 'DELETE' else name
    label = f'{request["method"]} {request["path"]}'
    carried = tuple(secret for secret in sent if secret[0] != 'client secret')
    asked = Step(
        name if source == 'app' else 'theft', label, source, 'zendesk', secrets=carried, text=_request_text(request)
    )
    if response is None:
        name = 'no response to a refresh' if name == 'refresh' else 'no response'
        return [asked, Step(name, 'no response', 'zendesk', source, outcome='lost')]
    status, body = response['status'], response['body'] or {}
    issued = secrets_in(body)
    name, outcome, what = _outcome(name, status, body.get('error'), visited)
    if source != 'app':
        stolen = 'code' if grant_type == 'authorization_code' else 'refresh token'
        name = f'stolen {stolen} {"accepted" if outcome == "good" else "rejected"}'
    label = f'{status}{what or ("" if outcome == "good" else f" {_phrase(status)}")}'
    return [asked, Step(name, label, 'zendesk', source, secrets=issued, text=_response_text(response), outcome=outcome)]


def _outcome(name: str, status: int, error: Any, visited: str) -> tuple[str, str, str]:
    """Return the name of the response to a request with this name, its outcome, and words for its label."""
    if name == 'API request' and status == 200 and visited == DISCONNECT:
        return 'revocation not verified', 'bad', ''
    if 200 <= status < 300:
        return {
            'code exchange': ('first tokens', 'good', ', the first tokens'),
            'refresh': ('new tokens', 'good', ', new tokens'),
            'revocation': ('revocation confirmed', 'good', ', revoked'),
        }.get(name, ('API response', 'good', ''))
    words = f' {error}' if isinstance(error, str) and re.fullmatch('[a-z_]{1,40}', error) else ''
    if status == 401 and name == 'API request':
        rejected = ('revocation verified', 'good') if visited == DISCONNECT else ('access token rejected', 'bad')
        return *rejected, words
    if status == 401 and name == 'revocation':
        return 'revocation rejected', 'bad', words
    if error == 'invalid_grant':
        return 'code rejected' if name == 'code exchange' else 'refresh token rejected', 'bad', words
    return 'failure' if status >= 500 or status in (408, 429) else 'rejection', 'bad', words


# --- Checks, and users.json --- #


def state_check(error: str = '', *, is_own: bool = True) -> Step:
    """Return the check of a callback's state. `error` is the message of the error with which the app refused it."""
    question = 'Does the callback have the state of a pending request of this browser?'
    if not error:
        return Step('state accepted', f'{question} Yes.', kind='check', outcome='good')
    name = 'state no longer valid' if is_own else 'state refused'
    return Step(name, f'{question} No.', kind='check', outcome='bad', text=error)


def lock_check(waited: float, *, same: bool) -> Step:
    """Return the check under the refresh lock. `same` is whether the refresh token is still the stored one."""
    question = 'Locked. Is this still the stored refresh token?'
    if same:
        return Step('lock', f'{question} Yes.', kind='check', outcome='good', waited=waited)
    return Step('lock, tokens replaced', f'{question} No.', kind='check', waited=waited)


def held(tokens: tuple[Secret, ...]) -> Step:
    """Return the box of users.json with the tokens that it holds."""
    if not tokens:
        return Step('holds nothing', 'no tokens of this user', USERS_JSON, kind='change')
    return Step('holds', 'current tokens', USERS_JSON, kind='change', secrets=tokens)


def changed(before: tuple[Secret, ...], after: tuple[Secret, ...]) -> Step:
    """Return the box of users.json with the change that the visit made."""
    name = 'deletes' if not after else 'replaces' if before else 'stores'
    label = {'deletes': 'deleted', 'replaces': 'replaced', 'stores': 'stored'}[name]
    return Step(name, label, USERS_JSON, kind='change', secrets=after, ended=before)


def store_failure(error: str) -> Step:
    return Step('store failure', 'not available', USERS_JSON, kind='change', text=error, outcome='bad')


def replaced_code(before: str, after: str) -> Step:
    """Return the box of an attacker who has replaced a code. The arguments are fingerprints."""
    old, new = secrets_in({'code': before}), secrets_in({'code': after})
    return Step('code replaced', 'replaced', 'Attacker', kind='change', secrets=new, ended=old, outcome='bad')


def tokens_of(record: Mapping[str, Any]) -> tuple[Secret, ...]:
    """Return the tokens of a stored record."""
    names = ('access_token', 'refresh_token')
    return secrets_in({name: fingerprint(record[name]) for name in names if record.get(name)})


# --- A whole exchange --- #


def summary(steps: Sequence[Step]) -> str:
    """Return what happened, in one sentence."""
    names = Counter(step.name for step in steps)
    if names['profile'] > 1:
        visits = f'{names["profile"]} visits at once'
        if names['new tokens'] == names['refresh'] == 1:
            return f'{visits}: one of them refreshed the tokens, and the others used its result.'
        return f'{visits}, with {names["refresh"]} refreshes.'
    if names['disconnect'] and not names['deletes']:
        return 'The app had no tokens to delete.'
    return next((sentence for name, sentence in SUMMARIES.items() if names[name]), '')


def is_notable(steps: Sequence[Step]) -> bool:
    """Return True for a grant, a refresh or a failure."""
    return any(step.name in NOTABLE for step in steps)


def changes_tokens(steps: Sequence[Step]) -> bool:
    """Return True if the app changes its stored tokens after these steps."""
    return any(step.name in ('first tokens', 'new tokens', 'refresh token rejected') for step in steps)


@dataclass(frozen=True)
class Row:
    """A step, and how often it occurs. `waits` are the visits that waited for the lock, with the seconds."""

    step: Step
    count: int
    waits: tuple[tuple[int, float], ...]


def rows(steps: Sequence[Step], *, merged: bool) -> list[Row]:
    """Return the rows of the drawing. With `merged`, the same step of several visits is one row."""
    if not merged:
        return [Row(step, 1, _waits([step])) for step in steps]
    groups: dict[Any, list[Step]] = {}
    before: dict[Any, set[Any]] = {}  # the rows that must stand above this one
    last: dict[int, Any] = {}  # the previous row of each visit
    for step in steps:
        key = (step.name, step.label, step.source, step.target, step.secrets, step.ended)
        groups.setdefault(key, []).append(step)
        before.setdefault(key, set()).update({last[step.visit]} if step.visit in last else ())
        last[step.visit] = key
    for key, group in groups.items():
        if group[0].name == 'holds':  # no visit can find tokens before another one has stored them
            before[key] |= {other for other, [step, *_] in groups.items() if key[4] == step.secrets and step.ended}
    result = []
    while before:
        free = (key for key, others in before.items() if not (others - {key}) & before.keys())
        key = next(free, next(iter(before)))
        del before[key]
        result.append(Row(groups[key][0], len(groups[key]), _waits(groups[key])))
    return result


def _waits(steps: Sequence[Step]) -> tuple[tuple[int, float], ...]:
    return tuple(sorted((step.visit, step.waited) for step in steps if step.waited >= MIN_WAIT))


def with_attacks(steps: Sequence[Step], attacks: Sequence[Sequence[Step]]) -> list[Step]:
    """
    Insert the attacks that used a secret of these steps.

    The panel learns of a code only when the browser brings it back, so an attack on a code stands where the code first
    appears. Other attacks stand where they happened.
    """
    result = list(steps)
    for attack in attacks:
        used = set(attack[0].secrets)
        carriers = [number for number, step in enumerate(result) if used & set(step.secrets)]
        if not carriers:
            continue
        position = carriers[0] + (attack[0].name == 'theft')
        if not any(kind == 'code' for kind, _ in used):
            later = (number for number, step in enumerate(result) if step.at > attack[0].at)
            position = next(later, len(result))
        result[position:position] = attack
    return result


# --- Secrets --- #

# By fingerprint: the kind of the secret, and its color.
_colors: OrderedDict[str, tuple[str, int | None]] = OrderedDict()
_lock = threading.Lock()
_next_color = itertools.cycle(range(COLORS))


def color(secret: Secret) -> int | None:
    """Return the number of the color of this secret. A verifier and its challenge have the same."""
    return _remember(*secret)[1]


def _remember(kind: str, digits: str) -> tuple[str, int | None]:
    with _lock:
        if digits not in _colors:
            _colors[digits] = (kind, None if kind == 'client secret' else next(_next_color))
            if len(_colors) > MAX_COLORED:
                _colors.popitem(last=False)
        return _colors[digits]


def parts(text: str) -> list[str | Secret]:
    """Split a message into text and the secrets whose fingerprints it contains."""
    pieces = re.split('(#[0-9a-f]{8})', text)
    known = [(_colors.get(piece), piece) for piece in pieces if piece]
    return [(secret[0], piece) if secret else piece for secret, piece in known]


def secrets_in(fields: Mapping[str, Any]) -> tuple[Secret, ...]:
    """Return the secrets among the fields of a form or a JSON body, whose values are fingerprints."""
    found = tuple(
        (kind, fields[name])
        for name, kind in KINDS.items()
        if isinstance(fields.get(name), str) and re.fullmatch('#[0-9a-f]{8}', fields[name])
    )
    for secret in found:
        _remember(*secret)
    return found


def _redact_query(query: str) -> tuple[tuple[Secret, ...], str]:
    """Return the secrets in a query, and the query with their fingerprints."""
    secrets: list[Secret] = []
    shown = []
    for name, value in parse_qsl(query, keep_blank_values=True)[:MAX_PARAMETERS]:
        if name == 'code_challenge':
            secrets.append(('challenge', _verifier_of(value)))
            _remember('verifier', secrets[-1][1])
            value = f'SHA-256 of {secrets[-1][1]}'
        elif name in KINDS:
            secrets.append((KINDS[name], fingerprint(value)))
            _remember(*secrets[-1])
            value = secrets[-1][1]
        elif name not in SHOWN_PARAMETERS:
            name = value = '...'
        shown.append(f'{name}={value}')
    return tuple(secrets), '&'.join(shown)


SHOWN_PARAMETERS = (
    'response_type', 'client_id', 'redirect_uri', 'scope', 'expires_in', 'code_challenge_method', 'error', 'ended',
)  # fmt: skip


def _verifier_of(challenge: str) -> str:
    """Return the fingerprint of the verifier: a challenge is the SHA-256 of its verifier, in base64url."""
    try:
        return '#' + base64.urlsafe_b64decode(challenge + '==')[:4].hex()
    except (binascii.Error, ValueError):
        return fingerprint(challenge)


def _redact_cookie(value: str) -> str:
    """Replace the value of a Set-Cookie header with its fingerprint."""
    return re.sub('=([^;]*)', lambda match: f'={fingerprint(match[1]) if match[1] else ""}', value, count=1)


# --- Messages in full --- #


def _request_text(request: Mapping[str, Any]) -> str:
    lines = [f'{request["method"]} {request["path"]} HTTP/1.1']
    lines += [f'{name}: {value}' for name, value in request['headers'].items()]
    lines += ['', *(f'{name}={value}' for name, value in request['form'].items())] if request['form'] else []
    return '\n'.join(lines)


def _response_text(response: Mapping[str, Any]) -> str:
    lines = [f'HTTP/1.1 {response["status"]} {_phrase(response["status"])}']
    lines += [f'{name}: {value}' for name, value in response['headers'].items()]
    if response['body'] is not None:
        lines += ['', json.dumps(response['body'], indent=2, ensure_ascii=False)]
    return '\n'.join(lines)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ''
