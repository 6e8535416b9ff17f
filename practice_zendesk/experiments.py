"""
The experiments of the control page, in the order of the tour: the article's steps, failures and attacks.

In an attack, the practice Zendesk is the attacker: it sends real HTTP requests, with its own session in the app. Only
the theft is simulated, because the practice Zendesk has all codes and tokens.
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from flask import request

from practice_zendesk import attacks, clients, faults
from practice_zendesk.database import database, end_tokens, users

CALLBACK = '/zendesk/oauth/callback'  # of the tutorial app
VISITS = 20
USERS_JSON = Path('users.json')  # where the tutorial app keeps its tokens in practice mode


@dataclass(frozen=True)
class Experiment:
    """
    One experiment. `see` describes the result, which answers `question`.

    `run` sets it up and returns the next URL or path of the app, or None if the form is invalid. If `any_app` is true,
    the experiment works with any app, and otherwise only with the tutorial app.
    """

    title: str
    see: str
    button: str
    run: Callable[[], str | None]
    question: str
    any_app: bool = False
    needs_grant: bool = True


def _grant(text: str) -> str:
    """Ask the reader to grant access, after this text."""
    attacks.show_notice(f'{text} Click “Grant access”.'.lstrip())
    return '/grant_access'


# --- The article's steps --- #


def _expire_access() -> str:
    with database() as db:
        db.execute('UPDATE tokens SET access_expires_at = 0')
    return '/profile'


def _end_grants() -> str:
    with database() as db:
        end_tokens(db, db.execute('SELECT * FROM tokens'), 'expired in step 6')
    return '/profile'


def _visit_at_once() -> str:
    """Make all visits with one session and an expired access token. Return the page that draws them."""
    clients.use_kind('new')  # with refresh tokens
    faults.set_faults([])
    other = attacks.OtherBrowser()
    other.grant()
    with database() as db:
        db.execute('UPDATE tokens SET access_expires_at = 0 WHERE rowid = (SELECT MAX(rowid) FROM tokens)')
    faults.set_faults([{'call': 'refresh', 'delay': 1}])  # makes the waiting visible
    with ThreadPoolExecutor(VISITS) as pool:
        responses = list(pool.map(lambda _: other.get('/profile'), range(VISITS)))
    other.post('/disconnect')
    # In practice mode, the app's responses link to the drawing.
    return responses[0].links.get('describedby', {}).get('url', '/profile')


# --- Failures, and other users and clients --- #

# The faults to choose from: a label, and the keys of the fault (see faults.KEYS).
FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    '500': ('500 (internal server error)', {'status': 500, 'body': '<h1>Internal Server Error</h1>'}),
    '429': (
        '429 (too many requests)',
        {'status': 429, 'body': 'Number of allowed API requests per minute exceeded', 'headers': {'Retry-After': '5'}},
    ),
    # The app gives up before the delay ends.
    'silence': ('no response', {'status': 500, 'delay': 30, 'lost': True}),
    'lost': ('no response, although Zendesk processes the request', {'lost': True}),
}
CALLS = {
    'any': 'request',
    'profile': 'profile request',
    'tickets': 'ticket request',
    'refresh': 'refresh',
    'exchange': 'code exchange',
    'revoke': 'revocation',
}
MAX_NAME = 200  # characters


def _fail_next() -> str | None:
    call, fault = request.form.get('call'), request.form.get('fault')
    if call not in CALLS or fault not in FAULTS:
        return None
    if call != 'exchange':
        require_grant()
    faults.set_faults([{'call': call, **FAULTS[fault][1]}])
    if call == 'exchange':
        return _grant('The exchange of your next code will fail.')
    if call == 'revoke':
        attacks.show_notice('The next revocation will fail. Click “Disconnect from Zendesk”.')
    return _expire_access() if call == 'refresh' else '/profile'


def _lose_refresh() -> str:
    faults.set_faults([{'call': 'refresh', **FAULTS['lost'][1]}])
    return _expire_access()


def _rename() -> str | None:
    # Control characters could forge lines of the log.
    name = re.sub(r'[\x00-\x1f\x7f-\x9f\u2028\u2029]', '', request.form.get('name', '')).strip()[:MAX_NAME]
    with database() as db:
        user_id = next((user_id for user_id in users(db) if str(user_id) == request.form.get('user_id')), None)
        if not name or user_id is None:
            return None
        db.execute('INSERT OR REPLACE INTO names VALUES (?, ?)', (user_id, name))
    return '/profile'


def _use_kind() -> str | None:
    name = request.form.get('kind', '')
    if name not in clients.KINDS:
        return None
    clients.use_kind(name)
    return _grant(f'The kind of OAuth client is now {clients.KINDS[name].label}.')


# --- Attacks --- #


def _send_foreign_link() -> str:
    """Return the callback link of a grant that the attacker has begun."""
    return attacks.OtherBrowser().callback_link()


def _forge_callback() -> str:
    return f'{CALLBACK}?{urlencode({"code": secrets.token_hex(32)})}'


def _attack_next_code(attack: Callable[[str], str], text: str) -> str:
    """Set the attack on the reader's next grant, without other failures."""
    faults.set_faults([])
    attacks.arm(attack)
    return _grant(text)


def _inject_code() -> str:
    """Replace the code of the reader's next grant with a code of the attacker."""

    def replace(code: str) -> str:
        new_code = parse_qs(urlsplit(attacks.OtherBrowser().callback_link()).query)['code'][0]
        attacks.log_replaced_code(code, new_code)
        return new_code

    return _attack_next_code(replace, 'An attacker waits for your next code.')


def _steal_code() -> str:
    """Send the code of the reader's next grant as a thief, with the client secret but without the verifier."""
    client_id, client = clients.main_client()

    def steal(code: str) -> str:
        attacks.send_as_thief(
            {
                'grant_type': 'authorization_code',
                'code': code,
                'client_id': client_id,
                'client_secret': client.secret,
                'redirect_uri': request.args['redirect_uri'],
                'scope': request.args['scope'],
            }
        )
        return code

    return _attack_next_code(steal, 'A thief waits for your next code.')


def _steal_refresh_token() -> str:
    """Send the refresh token of the app as a thief, with the client secret."""
    with database() as db:
        rows = db.execute('SELECT * FROM tokens WHERE refresh_token IS NOT NULL ORDER BY rowid DESC').fetchall()
    held = tokens_of_app()
    row = next((row for row in rows if row['refresh_token'] in held), None)
    if row is None:
        raise GrantMissing
    faults.set_faults([])
    attacks.send_as_thief(
        {
            'grant_type': 'refresh_token',
            'refresh_token': row['refresh_token'],
            'client_id': row['client_id'],
            'client_secret': clients.CLIENTS[row['client_id']].secret,
            'scope': row['scope'],
        }
    )
    return '/profile'


EXPERIMENTS = {
    'grant': Experiment(
        'Grant access',
        'In the app, click “Grant access” and “Allow”. The panel then shows each message: Zendesk gives the app a '
        'code, and the app exchanges it for an access token and a refresh token.',
        'Start in the app',
        lambda: _grant(''),
        'How does an app get tokens without your password?',
        needs_grant=False,
    ),
    'profile': Experiment(
        'Get your profile',
        'One request to Zendesk, with the access token in a header. The app needs nothing else from you.',
        'Get my profile',
        lambda: '/profile',
        'What is the access token for?',
    ),
    'expire_access': Experiment(
        'Step 5: the access token expires',
        'The page looks the same. The panel shows that Zendesk rejects the access token, and that the app exchanges '
        'its refresh token for new tokens.',
        'Step 5: expire the access token',
        _expire_access,
        'What does Zendesk delete at a refresh?',
        any_app=True,
    ),
    'visit_at_once': Experiment(
        'Twenty visits at once, with an expired access token',
        'Twenty concurrent requests use the same expired access token. One of them refreshes, and the others wait for '
        'its result. The practice Zendesk sends these requests, with its own session in the app.',
        'Make twenty visits at once',
        _visit_at_once,
        'Why exactly one refresh?',
        needs_grant=False,
    ),
    'end_grants': Experiment(
        'Step 6: both tokens expire',
        'Zendesk rejects the access token and the refresh token. The app deletes both and asks you for access again.',
        'Step 6: expire both tokens',
        _end_grants,
        'When does a user have to grant access again?',
        any_app=True,
    ),
    'fail_next': Experiment(
        'The next request fails',
        'The app shows an error page and keeps its tokens: the next click works. After a failed code exchange, grant '
        'access again. After a failed revocation, the app has no tokens. The app waits at most 14 seconds.',
        'Make the next request fail',
        _fail_next,
        'Does a user lose access if Zendesk fails?',
        any_app=True,
        needs_grant=False,
    ),
    'lose_refresh': Experiment(
        'The response to a refresh is lost',
        'Zendesk has already deleted the old tokens, but the new ones do not arrive. The app shows an error page. '
        'Click “Try again”: the app has to ask you for access again. No client can prevent this.',
        'Lose the response to a refresh',
        _lose_refresh,
        'Why must the user grant access again?',
        any_app=True,
    ),
    'rename': Experiment(
        'Another user name',
        'Select the user whose profile you see, and change the name. The app shows the new name, because it requests '
        'the profile on each visit.',
        'Change the name',
        _rename,
        'Does the app store the profile?',
        any_app=True,
    ),
    'use_kind': Experiment(
        'Another kind of OAuth client',
        'Select another kind. After the click, grant access and look at the tokens: an “old” client gets no refresh '
        'token. Select “new” again before you continue.',
        'Use this kind of client',
        _use_kind,
        'Do all OAuth clients get the same tokens?',
        any_app=True,
        needs_grant=False,
    ),
    'send_foreign_link': Experiment(
        'Attack: a callback link of an attacker',
        'An attacker grants the app access to their own Zendesk account, but does not open the callback link and '
        'sends it to you instead. You open it. The app refuses it, because your browser did not start this request.',
        'Open the attacker’s link',
        _send_foreign_link,
        'What is the state for?',
        needs_grant=False,
    ),
    'forge_callback': Experiment(
        'Attack: a forged callback without a state',
        'A page makes your browser open the callback with a made-up code. The app refuses it before it sends anything '
        'to Zendesk.',
        'Open the forged callback',
        _forge_callback,
        'What stops a forged callback?',
        needs_grant=False,
    ),
    'inject_code': Experiment(
        'Attack: an attacker’s code with your state',
        'After the click, grant access. An attacker replaces the code on its way back to the app with a code of their '
        'own. The state is yours, so the app accepts it. Zendesk rejects the code, because it belongs to another '
        'verifier.',
        'Replace the next code',
        _inject_code,
        'What is the code verifier for?',
        needs_grant=False,
    ),
    'steal_code': Experiment(
        'Attack: a stolen code, without the verifier',
        'After the click, grant access. A thief reads the code on its way back to the app and sends it to Zendesk '
        'first, even with the client secret. Zendesk rejects it. Your own grant succeeds.',
        'Steal the next code',
        _steal_code,
        'What can a thief do with a stolen code?',
        needs_grant=False,
    ),
    'steal_refresh_token': Experiment(
        'Attack: a refresh token used twice',
        'A thief has copied the app’s refresh token and the client secret, and refreshes first. Your next visit uses '
        'the same refresh token, and Zendesk rejects it. For the app, this looks like an expired token: it deletes '
        'its tokens and asks you for access again.',
        'Use the refresh token before the app',
        _steal_refresh_token,
        'What happens if a thief uses the refresh token first?',
    ),
}


# --- The app --- #


def is_tutorial() -> bool:
    """Return whether the main client belongs to the tutorial app, which has the paths of these experiments."""
    return clients.main_client()[1].redirect_uris[0].endswith(CALLBACK)


def available() -> dict[str, Experiment]:
    """Return the experiments that work with the app of the main client."""
    return {name: experiment for name, experiment in EXPERIMENTS.items() if experiment.any_app or is_tutorial()}


def tokens_of_app() -> set[str]:
    """Return the tokens in users.json, which the tutorial app keeps in the working directory of practice mode."""
    try:
        records = json.loads(USERS_JSON.read_text(encoding='utf-8')).values()
        tokens = {record.get(name) for record in records for name in ('access_token', 'refresh_token')}
        return {token for token in tokens if token and isinstance(token, str)}
    except (OSError, ValueError, AttributeError, TypeError):
        return set()


def tried(db: sqlite3.Connection) -> list[str]:
    """Return the names of the available experiments that the reader has tried. The last one comes last."""
    found = [row['experiment'] for row in db.execute('SELECT experiment FROM tried ORDER BY rowid')]
    return [name for name in found if name in available()]


class GrantMissing(Exception):
    """The experiment needs tokens of the app."""


def run(name: str) -> str | None:
    """
    Set up an experiment, and mark it as tried. Return the next URL, or None if the form is invalid.

    Raises:
        GrantMissing: the reader must grant access first.
        requests.RequestException: the app does not respond.
    """
    attacks.arm(None)
    if EXPERIMENTS[name].needs_grant:
        require_grant()
    target = EXPERIMENTS[name].run()
    if target is None:
        return None
    remember(name)
    if not is_tutorial():  # other apps have other paths
        target = '/'
    return target if target.startswith('http') else attacks.app_origin() + target


def require_grant() -> None:
    """Raise GrantMissing if users.json has no tokens or, without that file, if the practice Zendesk has none."""
    with database() as db:
        has_tokens = db.execute('SELECT 1 FROM tokens').fetchone() is not None
    if not (tokens_of_app() if USERS_JSON.exists() else has_tokens):
        raise GrantMissing


def remember(name: str, *, again: bool = True) -> None:
    """Mark the experiment as tried. With `again`, the tour continues after it, even if it was tried before."""
    with database() as db:
        if again:
            db.execute('DELETE FROM tried WHERE experiment = ?', (name,))
        db.execute('INSERT OR IGNORE INTO tried VALUES (?)', (name,))


def next_experiment() -> str | None:
    """Return the next untried experiment after the last tried one. After the end of the list, start from the top."""
    names = list(available())
    with database() as db:
        found = tried(db)
    last = names.index(found[-1]) if found else -1
    untried = [name for name in (*names[last + 1 :], *names) if name not in found]
    return untried[0] if untried else None
