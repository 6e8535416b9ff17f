"""
Zendesk's OAuth endpoints, "Show Self" and tickets, with Zendesk's status codes and error bodies.

Comments mark behavior that Zendesk does not document.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import math
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from flask import Flask, Response, abort, jsonify, make_response, redirect, render_template, request
from flask.typing import ResponseReturnValue
from loguru import logger
from werkzeug.exceptions import HTTPException
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from practice_zendesk import attacks, clients, experiments, faults
from practice_zendesk import database as database_module
from practice_zendesk.clients import CLIENTS, USERS, Kind, app_origins, current_kind, main_client
from practice_zendesk.controls import add_control_page
from practice_zendesk.database import DATABASE, database, end_tokens, users
from practice_zendesk.faults import add_fault_injection, fingerprint
from practice_zendesk.tickets import cursor_page, offset_page, tickets_of

PORT = 3001

CODE_LIFETIME = 120  # seconds
# Zendesk's limits and defaults for the lifetimes that a client requests, in seconds.
ACCESS_TOKEN_LIFETIME = {'min': 300, 'max': 172_800, 'default': 1_800}
REFRESH_TOKEN_LIFETIME = {'min': 604_800, 'max': 7_776_000, 'default': 2_592_000}
RATE_LIMIT = 700  # API requests per minute. It is only shown in headers: to get a 429, use a fault
# The scopes that the practice Zendesk knows, with the explanations for the consent page.
SCOPES = {
    'read': 'Read all your Zendesk data',
    'write': 'Create, change and delete your Zendesk data',
    'users:read': 'Read users, including your name, role and email address',
    'users:write': 'Create, change and delete users',
    'tickets:read': 'Read tickets',
    'tickets:write': 'Create, change and delete tickets',
}

# Zendesk's error descriptions.
ERRORS = {
    'invalid_grant': 'The provided access grant is invalid, expired, or revoked (e.g. invalid assertion, expired '
    'authorization token, bad end-user password credentials, or mismatching authorization code and redirection URI).',
    'invalid_client': 'The client identifier provided is invalid, the client failed to authenticate, the client did '
    'not include its credentials, provided multiple client credentials, or used unsupported credentials type.',
    'invalid_scope': 'The requested scope is invalid, unknown, malformed, or exceeds the previously granted scope.',
    'invalid_request': 'The request is missing a required parameter, includes an unsupported parameter or parameter '
    'value, repeats a parameter, includes multiple credentials, utilizes more than one mechanism for authenticating '
    'the client, or is otherwise malformed.',
    'unauthorized_client': 'The authenticated client is not authorized to use the access grant type provided.',
    'unsupported_grant_type': 'The access grant included - its type or another attribute - is not supported by the '
    'authorization server.',
    'unsupported_response_type': 'The requested response type is not supported by the authorization server.',
    'access_denied': 'The end-user or authorization server denied the request.',
    'invalid_token': 'The access token provided is expired, revoked, malformed or invalid for other reasons.',
}

app = Flask(__name__)
app.json.ensure_ascii = False  # type: ignore[attr-defined]
add_fault_injection(app)
add_control_page(app)


# --- The consent page: GET and POST /oauth/authorizations/new --- #


@app.get('/oauth/authorizations/new')
def ask_for_consent() -> ResponseReturnValue:
    """Show the consent page, or an error page if the authorization request is invalid."""
    error = check_authorization_request()
    if error is not None:
        return error
    with database() as db:
        candidates = users(db).values()
    scopes = {name: SCOPES.get(name, 'Nothing: this scope is unknown') for name in request.args['scope'].split()}
    client = CLIENTS[request.args['client_id']]
    return render_template('consent.html', client_name=client.name, scopes=scopes, users=candidates)


@app.post('/oauth/authorizations/new')
def submit_consent() -> ResponseReturnValue:
    """Redirect to the client with a code after "Allow", or with an error after "Deny"."""
    error = check_authorization_request()
    if error is not None:
        return error
    if request.form.get('decision') != 'allow':
        logger.info('The user denied access')
        return redirect_with_error('access_denied')
    code = secrets.token_hex(32)
    with database() as db:
        user = next((user for user in users(db).values() if str(user['id']) == request.form.get('user_id')), None)
        if user is None:
            return invalid_authorization_request('There is no such practice user.')
        db.execute(
            'INSERT INTO codes VALUES (?, ?, ?, ?, ?, ?, ?)',
            (
                code,
                user['id'],
                request.args['redirect_uri'],
                request.args['scope'],
                request.args.get('code_challenge'),
                time.time() + CODE_LIFETIME,
                request.args['client_id'],
            ),
        )
    logger.info('{} allowed access: issued code {}', user['name'], fingerprint(code))
    if 'Sec-Fetch-Site' in request.headers:  # a browser, and not an attacker of an experiment
        experiments.remember('grant', again=False)
    return redirect_to_client(code=attacks.code_for_client(code))


def check_authorization_request() -> ResponseReturnValue | None:
    """Return an error response if the authorization request is invalid (RFC 6749, section 4.1.2.1)."""
    # Do not redirect to an unverified address.
    if request.args.get('client_id') not in CLIENTS:
        return invalid_authorization_request('No such client')
    if request.args.get('redirect_uri') not in CLIENTS[request.args['client_id']].redirect_uris:
        return invalid_authorization_request(
            'invalid_request: the redirect URI does not match any of the client’s redirect URLs.'
        )
    if request.args.get('response_type') != 'code':
        return redirect_with_error('unsupported_response_type')
    if not request.args.get('scope', '').split():
        return render_template('invalid.html', title='Forbidden', reason='The scope is missing.'), 403
    if 'code_challenge' in request.args or 'code_challenge_method' in request.args:
        challenge = request.args.get('code_challenge', '')
        if request.args.get('code_challenge_method') != 'S256' or not re.fullmatch(r'[\w-]{43}', challenge, re.ASCII):
            return redirect_with_error('invalid_request')
    return None


def invalid_authorization_request(reason: str) -> ResponseReturnValue:
    return render_template('invalid.html', title='Invalid Authorization Request', reason=reason), 400


def redirect_with_error(error: str) -> ResponseReturnValue:
    return redirect_to_client(error=error, error_description=ERRORS[error])


def redirect_to_client(**parameters: str) -> ResponseReturnValue:
    """Redirect to the client's redirect URI with these parameters and the request's `state`."""
    if 'state' in request.args:
        parameters['state'] = request.args['state']
    return redirect(f'{request.args["redirect_uri"]}?{urlencode(parameters)}')


# --- The token endpoint: POST /oauth/tokens --- #


class TokenError(Exception):
    """An error response of the token endpoint (RFC 6749, section 5.2)."""


@app.errorhandler(TokenError)
def show_token_error(exception: TokenError) -> ResponseReturnValue:
    error = str(exception)
    headers = {'WWW-Authenticate': 'Basic realm="OAuth2 Token Endpoint"'} if error == 'invalid_client' else {}
    body = jsonify(error=error, error_description=ERRORS[error])
    return body, 401 if error == 'invalid_client' else 400, headers


@app.post('/oauth/tokens')
def issue_tokens() -> ResponseReturnValue:
    """Exchange a code or a refresh token for new tokens."""
    form = read_token_request()
    grant_type = form.get('grant_type')
    if grant_type not in ('authorization_code', 'refresh_token', 'client_credentials'):
        raise TokenError('unsupported_grant_type' if grant_type else 'invalid_request')
    check_client(form)
    kind = current_kind()
    if grant_type == 'client_credentials' or (grant_type == 'refresh_token' and not kind.expires):
        raise TokenError('unauthorized_client')
    tokens = new_tokens(kind, form)

    with database() as db:
        redeem = redeem_code if grant_type == 'authorization_code' else redeem_refresh_token
        user_id, tokens['scope'] = redeem(db, form)
        now = time.time()
        db.execute(
            'INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)',
            (
                tokens['access_token'],
                tokens.get('refresh_token'),
                user_id,
                tokens['scope'],
                now + tokens.get('expires_in', math.inf),
                now + tokens.get('refresh_token_expires_in', math.inf),
                form['client_id'],
            ),
        )
    if kind.jwt and 'expires_in' not in form:
        del tokens['expires_in']
    # Zendesk documents 201, but has been seen to send 200.
    return tokens, 200, {'Cache-Control': 'no-store', 'Pragma': 'no-cache'}


def new_tokens(kind: Kind, form: dict[str, str]) -> dict[str, Any]:
    """Return the body of a token response, without the scope."""
    tokens: dict[str, Any] = {'access_token': secrets.token_hex(32), 'token_type': 'bearer'}
    if kind.expires:
        tokens['expires_in'] = kind.access_token_lifetime or lifetime(form, 'expires_in', ACCESS_TOKEN_LIFETIME)
        tokens['refresh_token'] = secrets.token_hex(32)
        tokens['refresh_token_expires_in'] = lifetime(form, 'refresh_token_expires_in', REFRESH_TOKEN_LIFETIME)
    if kind.jwt:
        header, claims = {'typ': 'at+jwt', 'alg': 'EdDSA'}, {'exp': int(time.time()) + tokens['expires_in']}
        # The signature is random, because only this server checks the token, in its database.
        parts = (json.dumps(header).encode(), json.dumps(claims).encode(), secrets.token_bytes(64))
        tokens['access_token'] = '.'.join(base64url(part) for part in parts)
    return tokens


def read_token_request() -> dict[str, str]:
    """Return the parameters of a JSON or form body as strings. A repeated parameter is an error."""
    if request.is_json:
        data = request.get_json(silent=True)
        if not isinstance(data, dict):
            raise TokenError('invalid_request')
        return {name: str(value) for name, value in data.items() if isinstance(value, (str, int))}
    if any(len(values) > 1 for _, values in request.form.lists()):
        raise TokenError('invalid_request')
    return request.form.to_dict()


def check_client(form: dict[str, str]) -> None:
    """Check the client secret. A code exchange may have a code verifier instead."""
    secret = form.get('client_secret')
    by_pkce = secret is None and form.get('grant_type') == 'authorization_code' and 'code_verifier' in form
    client = CLIENTS.get(form.get('client_id', ''))
    if client is None or not (by_pkce or same(secret or '', client.secret)):
        raise TokenError('invalid_client')


def lifetime(form: dict[str, str], name: str, limits: dict[str, int]) -> int:
    """Return the requested lifetime, or the default."""
    text = form.get(name, str(limits['default']))
    # Zendesk does not document what it does with a lifetime outside its limits.
    if not re.fullmatch('[0-9]{1,9}', text) or not limits['min'] <= int(text) <= limits['max']:
        raise TokenError('invalid_request')
    return int(text)


def redeem_code(db: sqlite3.Connection, form: dict[str, str]) -> tuple[int, str]:
    """Delete the code and return its user and scope."""
    row = db.execute('SELECT * FROM codes WHERE code = ?', (form.get('code'),)).fetchone()
    if row is None or row['expires_at'] <= time.time() or row['client_id'] != form['client_id']:
        raise TokenError('invalid_grant')
    if row['redirect_uri'] != form.get('redirect_uri'):
        raise TokenError('invalid_grant')
    # A challenge requires a verifier. A verifier without a challenge may be a PKCE downgrade (RFC 9700, section 2.1.1).
    verifier, challenge = form.get('code_verifier'), row['code_challenge']
    if (verifier is None) != (challenge is None):
        raise TokenError('invalid_grant')
    if verifier is not None and not same(s256(verifier), challenge):
        raise TokenError('invalid_grant')
    db.execute('DELETE FROM codes WHERE code = ?', (row['code'],))
    scope = CLIENTS[row['client_id']].scope or row['scope']
    # Zendesk accepts unknown scope names, but they give the token no access.
    return row['user_id'], ' '.join(name for name in scope.split() if name in SCOPES)


def redeem_refresh_token(db: sqlite3.Connection, form: dict[str, str]) -> tuple[int, str]:
    """Delete the refresh token and its access token, and return their user and scope."""
    row = db.execute('SELECT * FROM tokens WHERE refresh_token = ?', (form.get('refresh_token'),)).fetchone()
    if row is None or row['refresh_expires_at'] <= time.time() or row['client_id'] != form['client_id']:
        raise TokenError('invalid_grant')
    if not set(form.get('scope', '').split()) <= set(row['scope'].split()):
        raise TokenError('invalid_scope')
    end_tokens(db, [row], 'replaced by a refresh')
    return row['user_id'], form.get('scope') or row['scope']


def s256(verifier: str) -> str:
    return base64url(hashlib.sha256(verifier.encode()).digest())


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b'=').decode()


def same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


# --- Show Self: GET /api/v2/users/me --- #


@app.get('/api/v2/users/me')
@app.get('/api/v2/users/me.json')
def show_self() -> ResponseReturnValue:
    """Return the access token's user, or an anonymous user if the request has no credentials."""
    if 'Authorization' not in request.headers:
        # Zendesk does not document the other fields of its anonymous user.
        return {'user': {'id': None, 'name': 'Anonymous user', 'role': 'end-user'}}
    with database() as db:
        row = require_access_token(db)
        user = users(db)[row['user_id']]
    require_scope(row, 'users:read')
    token = secrets.token_urlsafe(32)
    return {'user': {**user, 'authenticity_token': token, 'active': True, 'verified': True, 'locale': 'en-US'}}


# --- Tickets: GET /api/v2/tickets and /api/v2/search --- #


@app.get('/api/v2/tickets')
@app.get('/api/v2/tickets.json')
def list_tickets() -> ResponseReturnValue:
    """Return a page of the user's tickets, with cursor pagination if the request has `page[size]`."""
    tickets = require_tickets()
    return cursor_page(tickets) if 'page[size]' in request.args else offset_page('tickets', tickets)


@app.get('/api/v2/search')
@app.get('/api/v2/search.json')
def search_tickets() -> ResponseReturnValue:
    """Return a page of the user's tickets. Ignore the query. There is no cursor pagination."""
    # Zendesk has been seen to reject `page[size]` here with a 400. This server ignores it.
    return offset_page('results', require_tickets())


def require_tickets() -> list[dict[str, Any]]:
    """Return the tickets of the access token's user. Abort if the scope or the user's role does not allow it."""
    with database() as db:
        row = require_access_token(db)
    require_scope(row, 'tickets:read')
    if USERS[row['user_id']]['role'] == 'end-user':
        message = (
            'You do not have access to this page. Please contact the account owner of this help desk for further help.'
        )
        abort(make_response({'error': {'title': 'Forbidden', 'message': message}}, 403))
    return tickets_of(row['user_id'])


# --- Revoking: DELETE /api/v2/oauth/tokens/current --- #


@app.delete('/api/v2/oauth/tokens/current')
@app.delete('/api/v2/oauth/tokens/current.json')
def revoke_token() -> ResponseReturnValue:
    """Delete the request's access token and its refresh token."""
    with database() as db:
        end_tokens(db, [require_access_token(db)], 'revoked')
    return '', 204


# --- Access tokens --- #


class Unauthorized(Exception):
    """The request has no valid access token. The arguments are the body and the challenge of the 401."""


@app.errorhandler(Unauthorized)
def show_unauthorized(exception: Unauthorized) -> ResponseReturnValue:
    body, challenge = exception.args
    return body, 401, {'WWW-Authenticate': challenge}


def require_access_token(db: sqlite3.Connection) -> sqlite3.Row:
    """Return the database row of the request's access token. Raise Unauthorized if it is missing or not valid."""
    kind, _, token = request.headers.get('Authorization', '').partition(' ')
    if kind.lower() != 'bearer':
        raise Unauthorized({'error': "Couldn't authenticate you"}, 'Basic realm="Web Password"')
    row: sqlite3.Row | None
    row = db.execute('SELECT * FROM tokens WHERE access_token = ?', (token.strip(),)).fetchone()
    if row is None or row['access_expires_at'] <= time.time() or row['user_id'] not in USERS:
        body = {'error': 'invalid_token', 'error_description': ERRORS['invalid_token']}
        challenge = ', '.join(f'{name}="{value}"' for name, value in body.items())
        raise Unauthorized(body, f'Bearer realm="Zendesk::OAuth Bearer Token Authentication", {challenge}')
    return row


def require_scope(row: sqlite3.Row, scope: str) -> None:
    """Abort if the access token has neither this scope nor `read`."""
    if not {'read', scope} & set(row['scope'].split()):
        body = {'error': 'Forbidden', 'description': 'Missing the following required scopes: read'}
        abort(make_response(body, 403))


# --- Serving --- #


@app.errorhandler(HTTPException)
def show_http_error(error: HTTPException) -> ResponseReturnValue:
    """Show HTTP errors such as 404 in the style of the other pages."""
    response = error.get_response()
    response.content_type = 'text/html; charset=utf-8'
    response.set_data(render_template('invalid.html', title=error.name, reason=error.description))
    return response


@app.before_request
def reject_other_hosts() -> ResponseReturnValue | None:
    """Reject control requests with a foreign Host header: another site's name may point here (DNS rebinding)."""
    local = re.sub(r':\d*$', '', request.host) in ('localhost', '127.0.0.1')
    return None if local or not request.path.startswith('/practice') else ({'error': 'unknown host'}, 400)


@app.after_request
def add_headers(response: Response) -> Response:
    # Browsers apply form-action also to redirects after a form, and the consent form redirects to the app.
    response.headers['Content-Security-Policy'] = (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'; "
        f"form-action 'self' {' '.join(app_origins())}"
    )
    response.headers['X-Content-Type-Options'] = 'nosniff'
    response.headers.setdefault('Cache-Control', 'no-store')  # tokens and requests change
    # With no-referrer, browsers send "Origin: null" with the control page's forms.
    response.headers['Referrer-Policy'] = 'same-origin'
    return response


_rate_lock = threading.Lock()
_api_requests: dict[int, int] = {}  # the current minute: the number of API requests in it


@app.after_request
def add_rate_limit_headers(response: Response) -> Response:
    """Add the headers of Zendesk's rate limit to API responses."""
    if request.path.startswith('/api/'):
        minute, second = divmod(int(time.time()), 60)
        with _rate_lock:
            count = _api_requests.pop(minute, 0) + 1
            _api_requests.clear()
            _api_requests[minute] = count
        limit, remaining = str(RATE_LIMIT), str(max(RATE_LIMIT - count, 0))
        response.headers['X-Rate-Limit'] = response.headers['ratelimit-limit'] = limit
        response.headers['X-Rate-Limit-Remaining'] = response.headers['ratelimit-remaining'] = remaining
        response.headers['ratelimit-reset'] = str(60 - second)
    return response


class QuietHandler(WSGIRequestHandler):
    """A request handler without Werkzeug's access log, whose URLs contain authorization codes."""

    def log(self, type: str, message: str, *args: object) -> None:
        pass

    def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
        """Close the connection after a lost response. Werkzeug would wait for another request on it."""
        self.close_connection = True


def server(port: int) -> BaseWSGIServer:
    """Return a server that listens on the loopback interface. Exit with a message if the port is in use."""
    return make_server('127.0.0.1', port, app, threaded=True, request_handler=QuietHandler)


def serve(port: int) -> None:
    """Serve the practice Zendesk until the process ends."""
    listening = server(port)
    url = f'http://localhost:{listening.port}'
    logger.info('Serving the practice Zendesk at {} for the OAuth client {}', url, main_client()[0])
    listening.serve_forever()


@contextlib.contextmanager
def running(
    port: int = 0, *, config: str | os.PathLike[str] | None = None, database: str | os.PathLike[str] = DATABASE
) -> Iterator[str]:
    """
    Serve the practice Zendesk in a thread, without faults and with an empty request log, and yield its URL.

    Port 0 is a free port. `config` is the file with clients and users (see `clients.read_file`). `database` is the file
    with the tokens. One process can run only one practice Zendesk at a time.
    """
    before = clients.CLIENTS.copy(), clients.USERS.copy()
    try:
        if config is not None:
            clients.read_file(config)
        clients.use_kind('new')
        faults.reset()
        attacks.arm(None)
        database_module.use(database)
        with server(port) as listening:
            threading.Thread(target=listening.serve_forever, name='practice Zendesk', daemon=True).start()
            try:
                yield f'http://localhost:{listening.port}'
            finally:
                listening.shutdown()
    finally:
        clients.replace(*before)
        database_module.use(DATABASE)


def serve_in_background(port: int = PORT) -> None:
    """Serve the practice Zendesk in a thread until the process ends. The app logs the API requests itself."""
    logger.disable('practice_zendesk.faults')
    logger.info('Serving the practice Zendesk at http://localhost:{}', port)
    threading.Thread(target=server(port).serve_forever, name='practice Zendesk', daemon=True).start()
