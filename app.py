"""
The web app of Zendesk's tutorial "Using OAuth to authenticate Zendesk API requests in a web app".

Five pages, in the order in which a visitor meets them, and the way out again. The tokens are kept by backend_code.py,
what is said to Zendesk stands in zendesk.py, and what could go wrong in the browser is held off by
authorization_requests.py and security.py.
"""

from __future__ import annotations

from urllib.parse import urlencode

from flask import Flask, redirect, render_template, request, session
from flask.typing import ResponseReturnValue
from loguru import logger
from werkzeug.exceptions import HTTPException

import backend_code
import web as security
from settings import load_settings
from web import panel as what_happened
from web import ports
from zendesk_oauth import authorization as authorization_requests
from zendesk_oauth import endpoints as zendesk
from zendesk_oauth.errors import Problem

settings = load_settings(practice_allowed=__name__ == '__main__')

app = Flask(__name__)
app.jinja_env.globals['practice_mode'] = settings.practice_mode
OUTCOME = f'{settings.cookie_prefix}zendesk_oauth_disconnected'
security.protect(app, settings)
if settings.practice_mode:
    what_happened.tell(app, controls=f'{settings.zendesk_url}/practice')


# --- The app --- #


@app.route('/')
def index() -> ResponseReturnValue:
    """Show the home page, and give a new visitor a user id: the stand-in for signing in."""
    logger.debug('Showing the home page')
    if backend_code.current_user_id() is None:
        session['user_id'] = backend_code.new_user_id()
    return render_template('home.html')


@app.route('/profile')
def show_profile() -> ResponseReturnValue:
    """Show the visitor's Zendesk profile; refresh the tokens, or ask for access, where that takes it."""
    logger.debug("Looking up the visitor's access and refresh tokens")
    tokens = backend_code.retrieve_oauth_tokens_from_db()
    if tokens.get('error') == 'tokens_not_found':
        logger.info('There are none yet: asking the visitor to grant access')
        return redirect('/grant_access')

    logger.debug('Asking Zendesk for the profile, with the access token')
    user = zendesk.show_self(tokens['access_token'])
    if user.get('error') == 'invalid_token':
        logger.info('401, the access token has expired: refreshing the tokens, then asking again')
        tokens = backend_code.refresh_tokens(tokens['refresh_token'])
        if tokens.get('error') == 'invalid_refresh_token':
            logger.info('The refresh token has expired too: asking the visitor to grant access again')
            return redirect('/grant_access')

        logger.info('Asking Zendesk for the profile again, with the new access token')
        user = zendesk.show_self(tokens['access_token'])
        if user.get('error') == 'invalid_token':
            raise zendesk.AccessTokenRefused('401 for a new access token, too: not trying a third time')

    logger.debug('Showing the profile')
    return render_template('profile.html', user=user, csrf_token=security.csrf_token(backend_code.current_user_id()))


# --- The grant: authorization code flow --- #


@app.route('/grant_access')
def grant_access() -> ResponseReturnValue:
    """Ask the visitor to grant access."""
    logger.debug('Showing the page that asks for access')
    return render_template(
        'grant_access.html',
        client_id_is_a_number=settings.client_id_is_a_number,
        unanswered=authorization_requests.unanswered(),
        zendesk_url=settings.zendesk_url,
        redirect_uri=settings.redirect_uri,
    )


@app.route('/zendesk/auth')
def auth() -> ResponseReturnValue:
    """Send the visitor to Zendesk with an authorization request (RFC 6749, section 4.1.1; PKCE: RFC 7636)."""
    if not security.is_a_visit(request):
        return redirect('/grant_access')
    logger.info('Sending the visitor to Zendesk with an authorization request')
    state, code_verifier = authorization_requests.begin()
    parameters = urlencode(
        {
            'response_type': 'code',
            'client_id': settings.client_id,
            'redirect_uri': settings.redirect_uri,
            'scope': zendesk.SCOPE,
            'expires_in': zendesk.ACCESS_TOKEN_LIFETIME,
            'state': state,
            'code_challenge': authorization_requests.code_challenge(code_verifier),
            'code_challenge_method': 'S256',
        }
    )
    return redirect(f'{settings.zendesk_url}/oauth/authorizations/new?{parameters}')


@app.route('/zendesk/oauth/callback')
def auth_callback() -> ResponseReturnValue:
    """Take the authorization code that Zendesk sent the visitor back with, and trade it for tokens."""
    # Before anything else: this browser started the request, not long ago, and has not had an answer to it.
    code_verifier = authorization_requests.redeem(request.args)
    # Then: Zendesk has sent a code and not an error.
    code = authorization_requests.granted_code(request.args)

    # The code goes to the token endpoint, with the client's secret and the verifier (RFC 6749, section 4.1.3).
    logger.info('Trading the authorization code for tokens')
    tokens = zendesk.exchange_code(code, code_verifier)
    # Tokens never come to lie under an id that existed before: somebody else may know that one.
    with backend_code.fresh_user_id():
        backend_code.store_oauth_tokens_in_db(tokens)
    return redirect('/')


# --- The end of a grant --- #


@app.post('/disconnect')
def disconnect() -> ResponseReturnValue:
    """Forget the tokens, and have Zendesk revoke them."""
    user_id = backend_code.current_user_id()
    security.check_csrf_token(user_id)
    logger.info('Disconnecting')
    outcome = backend_code.revoke_tokens().get('error', 'revoked')
    response = redirect('/disconnected')
    # Not in the session: another tab may have been granted access meanwhile, and have a new one. But in a cookie: as
    # one changes, browsers drop the pages that they keep in memory for "Back".
    response.set_cookie(OUTCOME, security.sign(outcome, user_id), max_age=600, **settings.cookie_attributes)
    return response


@app.route('/disconnected')
def disconnected() -> ResponseReturnValue:
    """Tell the visitor honestly what came of it; or, if that is another's or out of date, show how things are now."""
    outcome = security.unsign(request.cookies.get(OUTCOME, ''), backend_code.current_user_id())
    if outcome is None or 'error' not in backend_code.retrieve_oauth_tokens_from_db():
        return redirect('/profile')
    logger.info('Showing what came of it')
    return render_template('disconnected.html', outcome=outcome)


# --- When something goes wrong --- #


@app.errorhandler(Problem)
def show_problem(problem: Problem) -> ResponseReturnValue:
    """Tell the visitor what happened and how to go on, and the developer why."""
    logger.warning('{}: {}', problem.title, problem)
    headers = {'Retry-After': str(problem.retry_after)} if problem.retry_after else {}
    page = render_template('problem.html', title=problem.title, advice=problem.advice, way_on=problem.way_on)
    return page, problem.status, headers


@app.errorhandler(HTTPException)
def show_http_error(error: HTTPException) -> ResponseReturnValue:
    """Show Flask's own errors (no such page, an exception nobody expected) as a page of ours."""
    logger.info('{} {}', error.code, error.name)
    response = error.get_response()
    response.content_type = 'text/html; charset=utf-8'
    response.set_data(
        render_template('problem.html', title=error.name, advice='The home page is a good place to go on.')
    )
    return response


if __name__ == '__main__':
    ports.stop_if_taken(settings.port, 'With settings of your own, REDIRECT_URI can name another port')
    if settings.practice_mode:
        from practice_zendesk import server as zendesk_simulator

        ports.stop_if_taken(
            zendesk_simulator.PORT, 'Practice mode needs this port for its Zendesk; perhaps one runs already'
        )
        logger.info('No settings found: practice mode, with a practice Zendesk at {}', settings.zendesk_url)
        zendesk_simulator.serve_in_background()
    logger.info('Serving http://localhost:{}: open {} in a browser', settings.port, settings.origin)
    app.run(host='127.0.0.1', port=settings.port, debug=False, load_dotenv=False)
