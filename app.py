"""
The web app of Zendesk's tutorial "Using OAuth to authenticate Zendesk API requests in a web app".

The steps are in the article's order, under its headings. Comments mark what the article does not have.
"""

import secrets
from urllib.parse import urlencode

from flask import Flask, redirect, render_template, request, session
from flask.typing import ResponseReturnValue
from loguru import logger

import web.logs
from settings import load_settings
from zendesk_oauth import Response, user_from

web.logs.init(terminal=__name__ == '__main__')  # not in the article: short log lines under `python app.py`
# --- Setting your environment variables --- #
# Read the environment and .env. Without a .env and the four required variables, `python app.py` starts practice mode.
settings = load_settings(practice_allowed=__name__ == '__main__')

import backend_code  # noqa: E402 - needs the settings
from backend_code import oauth  # noqa: E402

app = Flask(__name__)
app.secret_key = settings.secret_key  # not in the article: the same after a restart, so sessions stay valid
web.init_app(app, settings, oauth.store)


# --- Application routes --- #
@app.route('/')
def index() -> ResponseReturnValue:
    """Show the home page."""
    logger.debug('Opening the home page')
    granted = backend_code.has_tokens()
    if backend_code.current_user_id() is None:
        session['user_id'] = f'user-{secrets.token_hex(16)}'  # provided at sign-in. Not in the article: one per browser
    return render_template('home.html', granted=granted)


@app.route('/profile')
def show_profile() -> ResponseReturnValue:
    """Show the user's Zendesk name and role. If Zendesk returns 401, refresh the tokens and retry once."""
    logger.debug("Retrieving the user's access and refresh tokens")
    tokens = backend_code.retrieve_oauth_tokens_from_db()
    if tokens.get('error') == 'tokens_not_found':
        logger.info('The user has not granted access: redirecting to /grant_access')
        return redirect('/grant_access')

    logger.debug('Making the API request')
    response = show_self(tokens['access_token'])
    if response.status_code == 401:
        logger.info("The access token has expired: refreshing the user's tokens")
        tokens = backend_code.refresh_tokens(tokens['refresh_token'], tokens['access_token'])
        if tokens.get('error') == 'invalid_refresh_token':
            logger.info('Redirecting to /grant_access: the user must grant access again')
            return redirect('/grant_access?ended=1')

        logger.info('Retrying the API request with the new token')
        response = show_self(tokens['access_token'])
        # Not in the article: renew the session cookie after a refresh, unless another grant has replaced the tokens.
        session.modified = response.status_code == 200 and backend_code.retrieve_oauth_tokens_from_db() == tokens

    logger.debug('Using the response data')
    return render_template('profile.html', user=user_from(response))  # not in the article: can raise ZendeskError


def show_self(access_token: str) -> Response:
    """Request the user's Zendesk profile."""
    return oauth.api_request('GET', '/api/v2/users/me', headers={'Authorization': f'Bearer {access_token}'})


# --- Authorization code flow routes --- #
@app.route('/grant_access')
def grant_access() -> ResponseReturnValue:
    """Ask the user to grant access."""
    logger.debug('Asking the user to grant access')
    return render_template('grant_access.html', settings=settings, ended='ended' in request.args)


@app.route('/zendesk/auth')
def auth() -> ResponseReturnValue:
    """
    Redirect the user to Zendesk with an authorization request (RFC 6749, section 4.1.1).

    The request is bound to this browser. A product must also bind it to the signed-in account.
    """
    logger.info('Kicking off the authorization code flow')
    pending = oauth.authorization_request(user_id=None)
    parameters = {
        'response_type': 'code',
        'client_id': settings.client_id,
        'redirect_uri': settings.redirect_uri,
        'expires_in': 360,  # 6 minutes
        'scope': 'users:read',
        # Not in the article: state ties the callback to this browser (RFC 9700); PKCE protects the code (RFC 7636).
        'state': pending.state,
        'code_challenge': pending.code_challenge,
        'code_challenge_method': 'S256',
    }
    response = redirect(f'{settings.zendesk_url}/oauth/authorizations/new?{urlencode(parameters)}')
    return web.remember(response, pending)  # not in the article: set the cookie that binds the state to this browser


@app.route('/zendesk/oauth/callback')
def auth_callback() -> ResponseReturnValue:
    """Exchange the authorization code for tokens and store them (RFC 6749, section 4.1.3)."""
    # Not in the article: until the state is verified, anyone could have sent this browser here (RFC 9700, section 4.7).
    code_verifier = oauth.consume_state(request.args, request.cookies)  # the PKCE verifier of this state
    code = oauth.authorization_code(request.args)  # not in the article: raises AccessDenied if the user clicked Deny

    logger.info('Exchanging the authorization code for access and refresh tokens')
    data = {
        'grant_type': 'authorization_code',
        'client_id': settings.client_id,
        'client_secret': settings.client_secret,
        'redirect_uri': settings.redirect_uri,
        'code': code,
        'scope': 'users:read',
        # Not in the article: without these, Zendesk uses its default lifetimes for the tokens.
        'expires_in': 360,
        'refresh_token_expires_in': 604800,
        'code_verifier': code_verifier,  # not in the article: PKCE (RFC 7636, section 4.5)
    }
    tokens = oauth.request_tokens(data)  # POST /oauth/tokens
    # Not in the article: a new user id, because an attacker may know the old one (session fixation).
    with backend_code.new_user_id():
        backend_code.store_oauth_tokens_in_db(tokens)
    return redirect('/')


# --- Not in the article: disconnecting --- #
@app.post('/disconnect')
def disconnect() -> ResponseReturnValue:
    """Delete the user's tokens, revoke them at Zendesk, and show whether Zendesk confirmed the revocation."""
    logger.info("Deleting and revoking the user's tokens")
    tokens = backend_code.delete_oauth_tokens_from_db()
    return render_template('disconnected.html', tokens=tokens, revoked=oauth.revoke_tokens(tokens))


# --- Starting the app --- #
if __name__ == '__main__':
    # Not in the article: practice mode, and an error message if a port is in use.
    web.stop_if_port_is_taken(settings.port)
    if settings.practice_mode:
        from practice_zendesk.server import PORT, serve_in_background

        web.stop_if_port_is_taken(PORT)
        serve_in_background()
    logger.info('Serving the app at {}. Press Ctrl+C to stop', settings.address)
    # Not in the article: no debugger (it runs any code sent to it), and connections from this machine only.
    app.run(host='127.0.0.1', port=settings.port, debug=False, load_dotenv=False)
