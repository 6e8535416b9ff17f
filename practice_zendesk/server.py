"""
A practice Zendesk for this machine: enough of Zendesk's OAuth to run the tutorial, and its tests, without an account.

    python zendesk_simulator.py [--port 3001]

It shows a consent page where one picks a practice user, issues codes and tokens, rotates, expires and revokes them, and
answers "show self", with Zendesk's statuses and error bodies. A restart changes nothing of what it has issued. The one
client it knows is the practice client below, or the one in the environment variables ZENDESK_CLIENT_ID,
ZENDESK_CLIENT_SECRET and REDIRECT_URI.

http://localhost:3001/practice is its control page (simulator_controls.py); simulator_script.py lets it fail on purpose,
and tells which calls it got.

It knows nothing of the app, and takes nothing from it. Where Zendesk's documentation is silent, a comment says so.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import sqlite3
import threading
import time
from urllib.parse import urlencode, urlsplit

from flask import Flask, Response, jsonify, redirect, render_template, request
from flask.typing import ResponseReturnValue
from loguru import logger
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from practice_zendesk import controls as simulator_controls
from practice_zendesk import faults as simulator_script
from practice_zendesk.database import database, users
from web import ports

PORT = 3001

CLIENT_ID = os.environ.get('ZENDESK_CLIENT_ID', 'practice_client')
CLIENT_SECRET = os.environ.get('ZENDESK_CLIENT_SECRET', 'practice_secret')
REDIRECT_URI = os.environ.get('REDIRECT_URI', 'http://localhost:3000/zendesk/oauth/callback')
APP_ORIGIN = '{0.scheme}://{0.netloc}'.format(urlsplit(REDIRECT_URI))

CODE_LIFETIME = 120  # seconds
# The bounds that Zendesk sets to the lifetimes it is asked for, and what it takes unasked; all in seconds.
ACCESS_TOKEN_LIFETIME = {'least': 300, 'most': 172_800, 'default': 1_800}
REFRESH_TOKEN_LIFETIME = {'least': 604_800, 'most': 7_776_000, 'default': 2_592_000}
KNOWN_SCOPES = {'read', 'write', 'users:read', 'users:write', 'tickets:read', 'tickets:write'}

# The bodies that Zendesk sends with its refusals.
ERRORS = {
    'invalid_grant': 'The provided access grant is invalid, expired, or revoked (e.g. invalid assertion, expired '
    'authorization token, bad end-user password credentials, or mismatching authorization code and redirection URI).',
    'invalid_client': 'The client identifier provided is invalid, the client failed to authenticate, the client did '
    'not include its credentials, provided multiple client credentials, or used unsupported credentials type.',
    'invalid_scope': 'The requested scope is invalid, unknown, malformed, or exceeds the previously granted scope.',
    'invalid_request': 'The request is missing a required parameter, includes an unsupported parameter or parameter '
    'value, repeats a parameter, includes multiple credentials, utilizes more than one mechanism for authenticating '
    'the client, or is otherwise malformed.',
    'unsupported_grant_type': 'The access grant included - its type or another attribute - is not supported by the '
    'authorization server.',
    'unsupported_response_type': 'The requested response type is not supported by the authorization server.',
    'access_denied': 'The end-user or authorization server denied the request.',
    'invalid_token': 'The access token provided is expired, revoked, malformed or invalid for other reasons.',
}

app = Flask(__name__)
app.json.ensure_ascii = False  # type: ignore[attr-defined]
app.jinja_env.globals['app_origin'] = APP_ORIGIN
simulator_script.follow_scripts(app)
simulator_controls.add_control_page(app)


# --- The consent page: GET and POST /oauth/authorizations/new --- #


@app.get('/oauth/authorizations/new')
def ask_for_consent() -> ResponseReturnValue:
    """Show who may allow the app to do what; or why nobody can."""
    problem = check_authorization_request()
    if problem is not None:
        return problem
    with database() as db:
        candidates = users(db).values()
    return render_template('consent.html', client_id=CLIENT_ID, scope=request.args['scope'], users=candidates)


@app.post('/oauth/authorizations/new')
def answer_consent() -> ResponseReturnValue:
    """Send the browser back to the app: with a code after "Allow", with an error after "Deny"."""
    problem = check_authorization_request()
    if problem is not None:
        return problem
    if request.form.get('decision') != 'allow':
        logger.info('Practice Zendesk: the user denied access')
        return refuse_to_the_app('access_denied')
    code = secrets.token_hex(32)
    with database() as db:
        user = next((user for user in users(db).values() if str(user['id']) == request.form.get('user_id')), None)
        if user is None:
            return invalid_authorization_request('There is no such practice user.')
        db.execute(
            'INSERT INTO codes VALUES (?, ?, ?, ?, ?, ?)',
            (
                code,
                user['id'],
                request.args['redirect_uri'],
                request.args['scope'],
                request.args.get('code_challenge'),
                time.time() + CODE_LIFETIME,
            ),
        )
    logger.info('Practice Zendesk: {} allowed access, a code was issued', user['name'])
    return back_to_the_app(code=code)


def check_authorization_request() -> ResponseReturnValue | None:
    """Return the refusal that an authorization request deserves, if any (RFC 6749, section 4.1.2.1)."""
    # As long as the address to go back to is in doubt, nobody is sent there.
    if request.args.get('client_id') != CLIENT_ID:
        return invalid_authorization_request('No such client')
    if request.args.get('redirect_uri') != REDIRECT_URI:
        return invalid_authorization_request('invalid_request: the redirect URI is not one of the client’s.')
    if request.args.get('response_type') != 'code':
        return refuse_to_the_app('unsupported_response_type')
    if not request.args.get('scope', '').split():
        return render_template('invalid.html', title='Forbidden', reason='The scope is missing.'), 403
    if 'code_challenge' in request.args or 'code_challenge_method' in request.args:
        challenge = request.args.get('code_challenge', '')
        if request.args.get('code_challenge_method') != 'S256' or not re.fullmatch(r'[\w-]{43}', challenge, re.ASCII):
            return refuse_to_the_app('invalid_request')
    return None


def invalid_authorization_request(reason: str) -> ResponseReturnValue:
    return render_template('invalid.html', title='Invalid Authorization Request', reason=reason), 400


def refuse_to_the_app(error: str) -> ResponseReturnValue:
    return back_to_the_app(error=error, error_description=ERRORS[error])


def back_to_the_app(**answer: str) -> ResponseReturnValue:
    """Redirect to the app with the answer, and the `state` it came with."""
    if 'state' in request.args:
        answer['state'] = request.args['state']
    return redirect(f'{REDIRECT_URI}?{urlencode(answer)}')


# --- The token endpoint: POST /oauth/tokens --- #


class Refusal(Exception):
    """An error answer of the token endpoint (RFC 6749, section 5.2)."""


@app.errorhandler(Refusal)
def refuse(refusal: Refusal) -> ResponseReturnValue:
    error = str(refusal)
    logger.info('Practice Zendesk: the token endpoint answers {}', error)
    headers = {'WWW-Authenticate': 'Basic realm="OAuth2 Token Endpoint"'} if error == 'invalid_client' else {}
    body = jsonify(error=error, error_description=ERRORS[error])
    return body, 401 if error == 'invalid_client' else 400, headers


@app.post('/oauth/tokens')
def issue_tokens() -> ResponseReturnValue:
    """Trade a code or a refresh token for a new pair of tokens."""
    form = read_token_request()
    grant_type = form.get('grant_type')
    if grant_type not in ('authorization_code', 'refresh_token'):
        raise Refusal('unsupported_grant_type' if grant_type else 'invalid_request')
    check_client(form)
    access_lifetime = lifetime(form, 'expires_in', ACCESS_TOKEN_LIFETIME)
    refresh_lifetime = lifetime(form, 'refresh_token_expires_in', REFRESH_TOKEN_LIFETIME)

    with database() as db:
        redeem = redeem_code if grant_type == 'authorization_code' else redeem_refresh_token
        user_id, scope = redeem(db, form)
        access_token, refresh_token = secrets.token_hex(32), secrets.token_hex(32)
        now = time.time()
        db.execute(
            'INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?)',
            (access_token, refresh_token, user_id, scope, now + access_lifetime, now + refresh_lifetime),
        )
    logger.info('Practice Zendesk: a new pair of tokens for a grant of type {}', grant_type)
    body = {
        'access_token': access_token,
        'refresh_token': refresh_token,
        'token_type': 'bearer',
        'scope': scope,
        'expires_in': access_lifetime,
        'refresh_token_expires_in': refresh_lifetime,
    }
    return body, 201, {'Cache-Control': 'no-store', 'Pragma': 'no-cache'}


def read_token_request() -> dict[str, str]:
    """Return the parameters, sent as JSON or as a form, as texts. None may stand there twice."""
    if request.is_json:
        data = request.get_json(silent=True)
        if not isinstance(data, dict):
            raise Refusal('invalid_request')
        return {name: str(value) for name, value in data.items() if isinstance(value, (str, int))}
    if any(len(values) > 1 for _, values in request.form.lists()):
        raise Refusal('invalid_request')
    return request.form.to_dict()


def check_client(form: dict[str, str]) -> None:
    """Demand the client's secret; in its place a code verifier will do when a code is traded."""
    secret = form.get('client_secret')
    by_pkce = secret is None and form.get('grant_type') == 'authorization_code' and 'code_verifier' in form
    if form.get('client_id') != CLIENT_ID or not (by_pkce or same(secret or '', CLIENT_SECRET)):
        raise Refusal('invalid_client')


def lifetime(form: dict[str, str], name: str, bounds: dict[str, int]) -> int:
    """Return the lifetime asked for. Zendesk does not say what it does beyond its bounds; here it is an error."""
    text = form.get(name, str(bounds['default']))
    if not re.fullmatch('[0-9]{1,9}', text) or not bounds['least'] <= int(text) <= bounds['most']:
        raise Refusal('invalid_request')
    return int(text)


def redeem_code(db: sqlite3.Connection, form: dict[str, str]) -> tuple[int, str]:
    """Use up a code and return the user and the scope that it stands for."""
    if not form.get('scope'):
        raise Refusal('invalid_request')
    row = db.execute('SELECT * FROM codes WHERE code = ?', (form.get('code'),)).fetchone()
    if row is None or row['expires_at'] <= time.time() or row['redirect_uri'] != form.get('redirect_uri'):
        raise Refusal('invalid_grant')
    # A challenge obliges to a verifier, and without one a verifier has no business here (RFC 9700, section 2.1.1).
    verifier, challenge = form.get('code_verifier'), row['code_challenge']
    if (verifier is None) != (challenge is None):
        raise Refusal('invalid_grant')
    if verifier is not None and not same(s256(verifier), challenge):
        raise Refusal('invalid_grant')
    db.execute('DELETE FROM codes WHERE code = ?', (row['code'],))
    # Of names that it does not know, Zendesk makes a token that opens nothing.
    return row['user_id'], ' '.join(scope for scope in row['scope'].split() if scope in KNOWN_SCOPES)


def redeem_refresh_token(db: sqlite3.Connection, form: dict[str, str]) -> tuple[int, str]:
    """Delete the pair of a refresh token, both tokens of it, and return the user and the scope that it stood for."""
    row = db.execute('SELECT * FROM tokens WHERE refresh_token = ?', (form.get('refresh_token'),)).fetchone()
    if row is None or row['refresh_expires_at'] <= time.time():
        raise Refusal('invalid_grant')
    if not set(form.get('scope', '').split()) <= set(row['scope'].split()):
        raise Refusal('invalid_scope')
    db.execute('DELETE FROM tokens WHERE refresh_token = ?', (row['refresh_token'],))
    return row['user_id'], form.get('scope') or row['scope']


def s256(verifier: str) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b'=').decode()


def same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


# --- Show self: GET /api/v2/users/me --- #


@app.get('/api/v2/users/me')
@app.get('/api/v2/users/me.json')
def show_self() -> ResponseReturnValue:
    """Show the user whose access token this is; without credentials, an anonymous one."""
    if 'Authorization' not in request.headers:
        # What else Zendesk tells of its anonymous user is not documented.
        return {'user': {'id': None, 'name': 'Anonymous user', 'role': 'end-user'}}
    with database() as db:
        row = living_token(db)
        user = users(db)[row['user_id']]
    if not {'read', 'users:read'} & set(row['scope'].split()):
        return {'error': 'Forbidden', 'description': 'Missing the following required scopes: read'}, 403

    logger.info('Practice Zendesk: 200, showing the user their profile')
    more = {
        'authenticity_token': secrets.token_urlsafe(32),
        'active': True,
        'verified': True,
        'locale': 'en-US',
    }
    return {'user': {**user, **more}}


# --- Revoking: DELETE /api/v2/oauth/tokens/current --- #


@app.delete('/api/v2/oauth/tokens/current')
@app.delete('/api/v2/oauth/tokens/current.json')
def revoke_token() -> ResponseReturnValue:
    """Delete the access token that the request is made with; its refresh token goes with it."""
    with database() as db:
        db.execute('DELETE FROM tokens WHERE access_token = ?', (living_token(db)['access_token'],))
    logger.info('Practice Zendesk: 204, the tokens are revoked')
    return '', 204


# --- Who calls --- #


class Unauthorized(Exception):
    """The request has no access token that is alive; holds the body and the challenge of the 401."""


@app.errorhandler(Unauthorized)
def refuse_credentials(refusal: Unauthorized) -> ResponseReturnValue:
    body, challenge = refusal.args
    return body, 401, {'WWW-Authenticate': challenge}


def living_token(db: sqlite3.Connection) -> sqlite3.Row:
    """Return what was issued with the request's access token."""
    kind, _, token = request.headers.get('Authorization', '').partition(' ')
    if kind.lower() != 'bearer':
        raise Unauthorized({'error': "Couldn't authenticate you"}, 'Basic realm="Web Password"')
    row: sqlite3.Row | None
    row = db.execute('SELECT * FROM tokens WHERE access_token = ?', (token.strip(),)).fetchone()
    if row is None or row['access_expires_at'] <= time.time():
        logger.info('Practice Zendesk: 401, the access token is expired or unknown')
        body = {'error': 'invalid_token', 'error_description': ERRORS['invalid_token']}
        raise Unauthorized(body, 'Bearer realm="Zendesk", error="invalid_token"')
    return row


# --- Serving --- #


@app.errorhandler(HTTPException)
def show_http_error(error: HTTPException) -> ResponseReturnValue:
    """Show Flask's own errors, such as an address without a page, as a page of ours."""
    response = error.get_response()
    response.content_type = 'text/html; charset=utf-8'
    response.set_data(render_template('invalid.html', title=error.name, reason=error.description))
    return response


@app.after_request
def add_headers(response: Response) -> Response:
    # The consent form's answer redirects to the app, and browsers hold form-action against that, too.
    response.headers['Content-Security-Policy'] = (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'; "
        f"form-action 'self' {APP_ORIGIN}"
    )
    response.headers['X-Content-Type-Options'] = 'nosniff'
    response.headers.setdefault('Cache-Control', 'no-store')  # tokens and calls go on
    # With no-referrer, browsers would not tell where the control page's forms come from.
    response.headers['Referrer-Policy'] = 'same-origin'
    return response


class QuietHandler(WSGIRequestHandler):
    """The built-in server without its log: the lines above tell the story, and addresses here hold codes."""

    def log(self, type: str, message: str, *args: object) -> None:
        pass


def server(port: int) -> BaseWSGIServer:
    """Return the server, listening on this machine only."""
    return make_server('127.0.0.1', port, app, threaded=True, request_handler=QuietHandler)


def serve_in_background(port: int = PORT) -> None:
    """Serve the practice Zendesk for as long as the process lives."""
    threading.Thread(target=server(port).serve_forever, name='practice Zendesk', daemon=True).start()


def main() -> None:
    parser = argparse.ArgumentParser(description='A practice Zendesk on this machine.')
    parser.add_argument('--port', type=int, choices=range(1, 65536), metavar='PORT', default=PORT)
    port = parser.parse_args().port
    ports.stop_if_taken(port, 'With --port it can have another one')
    logger.info('The practice Zendesk is at http://localhost:{} (client {})', port, CLIENT_ID)
    with contextlib.suppress(KeyboardInterrupt):
        server(port).serve_forever()


if __name__ == '__main__':
    main()
