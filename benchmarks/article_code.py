"""
The callback and the profile page as the article writes them: each page parses users.json and opens a new connection for
each request.

Some changes make it comparable. Zendesk's address and the secret key come from the environment. The authorization
request has no parameters, because the benchmark does not follow the redirect. Storing one user's tokens keeps the
tokens of the other users: the article deletes them, so one refresh would make the file small.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

import requests
from flask import Flask, redirect, request, session
from flask.typing import ResponseReturnValue
from loguru import logger

ZENDESK = os.environ['ZENDESK_BASE_URL']
USERS = Path('users.json')

app = Flask(__name__)
app.secret_key = os.environ['SECRET_KEY']


@app.route('/profile')
def profile() -> ResponseReturnValue:
    logger.info('Looking up the tokens')
    tokens = stored_tokens()
    if tokens is None:
        return redirect('/grant_access')

    logger.info('Requesting the profile')
    response = show_self(tokens)
    if response.status_code == 401:
        logger.info('The access token has expired: refreshing')
        tokens = refresh(tokens['refresh_token'])
        if tokens is None:
            return redirect('/grant_access')
        logger.info('Retrying the request')
        response = show_self(tokens)

    logger.info('Showing the profile')
    user = response.json()['user']
    return f'<p>👋 Hi, {user["name"]}!</p><p>Your role at Zendesk: <strong>{user["role"]}</strong>.</p>'


def show_self(tokens: dict[str, str]) -> requests.Response:
    headers = {'Authorization': f'Bearer {tokens["access_token"]}'}
    return requests.get(f'{ZENDESK}/api/v2/users/me', headers=headers)  # noqa: S113 - the article has no timeout


@app.route('/zendesk/auth')
def auth() -> ResponseReturnValue:
    session.setdefault('user_id', secrets.token_hex(16))
    return redirect(f'{ZENDESK}/oauth/authorizations/new')


@app.route('/zendesk/oauth/callback')
def callback() -> ResponseReturnValue:
    logger.info('Sending the code')
    tokens = request_tokens({'grant_type': 'authorization_code', 'code': request.args['code']})
    if tokens is None:
        return redirect('/grant_access')
    store(tokens)
    return redirect('/')


def refresh(refresh_token: str) -> dict[str, str] | None:
    logger.info('Sending the refresh token')
    tokens = request_tokens({'grant_type': 'refresh_token', 'refresh_token': refresh_token})
    if tokens is not None:
        store(tokens)
    return tokens


def request_tokens(grant: dict[str, str]) -> dict[str, str] | None:
    form = {
        **grant,
        'client_id': os.environ['ZENDESK_CLIENT_ID'],
        'client_secret': os.environ['ZENDESK_CLIENT_SECRET'],
        'scope': 'users:read',
        'expires_in': 360,
        'refresh_token_expires_in': 604800,
    }
    response = requests.post(f'{ZENDESK}/oauth/tokens', data=form)  # noqa: S113
    if response.status_code == 400 and 'invalid_grant' in response.text:
        return None
    return {name: response.json()[name] for name in ('access_token', 'refresh_token')}


def read_users() -> dict[str, Any]:
    if not USERS.exists():
        return {}
    with USERS.open() as file:
        users: dict[str, Any] = json.load(file)
    return users


def stored_tokens() -> dict[str, str] | None:
    return read_users().get(str(session.get('user_id')))


def store(tokens: dict[str, str]) -> None:
    logger.info('Storing the new tokens')
    users = {**read_users(), str(session.get('user_id')): tokens}
    with USERS.open('w') as file:
        json.dump(users, file, sort_keys=True, indent=2)
