"""What all pages of this app share: session cookie, headers, canonical host, cross-site checks, error pages."""

from __future__ import annotations

import secrets
import socket
import time
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

import click
from flask import Flask, Request, Response, g, redirect, render_template, request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from flask.typing import ResponseReturnValue
from itsdangerous import SignatureExpired, TimestampSigner, URLSafeTimedSerializer
from loguru import logger
from werkzeug.exceptions import Forbidden, HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Response as BaseResponse

from settings import Settings, is_loopback
from web import panel
from web.drawing import AUTHORIZE, CALLBACK
from zendesk_oauth import AuthorizationRequest, Store, cookie_prefix
from zendesk_oauth.errors import StoreError, ZendeskOAuthError

HEADERS = {
    # Allow only styles, images and forms of this site.
    'Content-Security-Policy': "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
    # The callback URL contains the code. This keeps it out of the Referer header.
    'Referrer-Policy': 'strict-origin',
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Permissions-Policy': 'camera=(), geolocation=(), microphone=()',
}
SESSION_LIFETIME = 604800  # seconds: the lifetime that the app requests for a refresh token
CLOCK_SKEW = 60  # seconds by which the clocks of two machines may differ
HEALTH = '/health'


def init_app(app: Flask, settings: Settings, store: Store) -> None:
    """
    Set up what all pages share: session cookie, headers, canonical host, cross-site checks and error pages.

    Exit if `store.check_setup` fails, or if options of `flask run` or `uvicorn` are wrong.
    """
    stop_if_store_is_unusable(store)
    stop_if_server_options_are_wrong(settings)
    configure_cookies(app, settings)
    app.url_map.merge_slashes = False  # otherwise /zendesk//auth redirects to the host in the request
    if settings.proxy_hops:
        # Anyone can send these headers, so trust only the values that this number of proxies added.
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=settings.proxy_hops, x_proto=settings.proxy_hops, x_host=settings.proxy_hops
        )
    app.before_request(partial(redirect_to_canonical_host, settings))
    app.before_request(partial(refuse_prefetches_and_other_sites, settings))
    app.after_request(partial(add_headers, settings))
    app.add_url_rule(HEALTH, 'health', partial(show_health, store))
    app.register_error_handler(ZendeskOAuthError, show_error)
    app.register_error_handler(HTTPException, show_http_error)
    app.jinja_env.globals['practice_mode'] = settings.practice_mode
    if settings.practice_mode:
        panel.init_app(app, store, controls=f'{settings.zendesk_url}/practice')


# --- Every request, every response --- #


def redirect_to_canonical_host(settings: Settings) -> ResponseReturnValue | None:
    """
    Redirect from 127.0.0.1 to localhost if the redirect URI uses localhost, and vice versa.

    Browsers treat the two as different hosts, so the cookies of one are missing at the other. If the host has another
    port, a proxy has changed it, and a redirect would lead back here.
    """
    canonical = urlsplit(settings.origin)
    host = request.host.removesuffix(f':{canonical.port}').strip('[]')
    is_alias = host != canonical.hostname and is_loopback(host) and settings.on_localhost
    if request.method == 'GET' and is_alias and request.path != HEALTH:
        query = '?' + request.query_string.decode('latin-1') if request.query_string else ''
        return redirect(settings.origin + quote(request.path) + query)
    return None


def refuse_prefetches_and_other_sites(settings: Settings) -> ResponseReturnValue | None:
    """Refuse prefetches of the grant routes, and cross-site requests that start a grant or change something."""
    if request.path in (AUTHORIZE, CALLBACK) and not is_navigation(request):
        return 'Open this page in a browser tab.\n', 503, {'Content-Type': 'text/plain'}
    if request.path == AUTHORIZE and not comes_from_this_site(request):
        return redirect('/grant_access')
    if request.method not in ('GET', 'HEAD', 'OPTIONS') and not is_same_origin_form(request, settings.origin):
        raise Forbidden('This request came from another site, so nothing was changed.')
    return None


def add_headers(settings: Settings, response: Response) -> Response:
    """Add the security headers, and keep pages out of all caches."""
    response.headers.extend(HEADERS)
    if response.location:
        response.set_data('')  # Werkzeug puts the URL in the body, with states and codes
    response.headers.setdefault('Cache-Control', 'no-store')  # static files may be cached
    if request.method == 'POST':
        # Browsers keep pages in memory for "Back", even with no-store, until an HttpOnly cookie changes.
        name, value = cookie_prefix(settings.redirect_uri) + 'changed', secrets.token_hex(8)
        response.set_cookie(name, value, max_age=60, secure=settings.https, httponly=True, samesite='Lax')
    if settings.https and not settings.on_localhost:  # it would apply to all ports of localhost
        response.headers['Strict-Transport-Security'] = 'max-age=31536000'
    return response


# --- Cookies --- #


def configure_cookies(app: Flask, settings: Settings) -> None:
    app.config.update(
        SECRET_KEY_FALLBACKS=list(settings.secret_key_fallbacks),
        SESSION_COOKIE_NAME=cookie_prefix(settings.redirect_uri) + 'session',
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE='Lax',
        SESSION_COOKIE_SECURE=settings.https,
        SESSION_REFRESH_EACH_REQUEST=False,
        PERMANENT_SESSION_LIFETIME=SESSION_LIFETIME,
        MAX_CONTENT_LENGTH=16 * 1024,  # bytes
    )
    app.session_interface = Sessions()


class Sessions(SecureCookieSessionInterface):
    """Flask's sessions, with tolerance for clock skew. A malformed cookie results in an empty session."""

    def get_signing_serializer(self, app: Flask) -> URLSafeTimedSerializer | None:
        serializer = super().get_signing_serializer(app)
        if serializer is not None:
            serializer.signer = SkewTolerantSigner
        return serializer

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        try:
            session = super().open_session(app, request)
        except (TypeError, ValueError):
            session = self.session_class()
        if session is not None and not session.permanent:
            session.permanent, session.modified = True, False
        return session


class SkewTolerantSigner(TimestampSigner):
    """Accept signatures from up to CLOCK_SKEW seconds in the future, which itsdangerous treats as expired."""

    def unsign(self, signed_value: str | bytes, max_age: int | None = None, return_timestamp: bool = False) -> Any:
        value, signed_at = super().unsign(signed_value, return_timestamp=True)
        age = time.time() - signed_at.timestamp()
        if max_age is not None and not -CLOCK_SKEW <= age <= max_age:
            raise SignatureExpired(f'The signature is {age:.0f} seconds old', payload=value, date_signed=signed_at)
        return (value, signed_at) if return_timestamp else value


def remember(response: BaseResponse, pending: AuthorizationRequest) -> BaseResponse:
    """Set the cookie of a pending authorization request."""
    pending.set_cookies(response, request.cookies)
    return response


# --- Where a request comes from --- #


def is_navigation(request: Request) -> bool:
    """
    Return True if the request opens a page in a tab: no HEAD request, prefetch, image or frame.

    Browsers send Sec-Fetch-Dest and Sec-Purpose (https://www.w3.org/TR/fetch-metadata/). A request without these
    headers counts as a navigation.
    """
    return (
        request.method == 'GET'
        and request.headers.get('Sec-Fetch-Dest', 'document') == 'document'
        and 'Sec-Purpose' not in request.headers
    )


def comes_from_this_site(request: Request) -> bool:
    """Return False if the browser reports that another site, or another port of localhost, sent the request."""
    return request.headers.get('Sec-Fetch-Site', 'none') in ('same-origin', 'none')


def is_same_origin_form(request: Request, origin: str) -> bool:
    """
    Return True if a page of this origin sent the form, or a client other than a browser.

    The check follows Go's http.CrossOriginProtection. It refuses `same-site`: all ports of localhost are one site.
    """
    if 'Sec-Fetch-Site' in request.headers:
        return comes_from_this_site(request)
    return request.headers.get('Origin', origin) == origin


# --- Error pages --- #


def show_error(error: ZendeskOAuthError) -> ResponseReturnValue:
    """Render the error page and log the cause."""
    logger.warning('{}: {}', error.title, error)
    g.error = error  # for the panel
    headers = {'Retry-After': str(error.retry_after)} if error.retry_after else {}
    return render_template('error.html', error=error), error.status, headers


def show_http_error(error: HTTPException) -> ResponseReturnValue:
    """Render HTTP errors, such as 404 and 500, as a page of this app."""
    logger.info('{} {}', error.code, error.name)
    response = error.get_response()
    response.content_type = 'text/html; charset=utf-8'
    advice = 'Go back to the home page and try again.'
    if isinstance(error, Forbidden):
        advice = f'{error.description} {advice}'
    response.set_data(render_template('error.html', error={'title': error.name, 'advice': advice}))
    return response


# --- Health --- #


def show_health(store: Store) -> ResponseReturnValue:
    """Return 200 if the store can be read, else 503. Change nothing, and do not use the session."""
    try:
        store.check_readable()
    except StoreError as error:
        logger.warning('{}: {}', error.title, error)
        return 'unavailable\n', 503, {'Content-Type': 'text/plain'}
    return 'ok\n', {'Content-Type': 'text/plain'}


# --- Start-up --- #


def stop_if_store_is_unusable(store: Store) -> None:
    """Exit with the store's message if `check_setup` fails."""
    try:
        store.check_setup()
    except StoreError as error:
        logger.error('{}', error)
        raise SystemExit(4) from None  # gunicorn does not restart a worker that exits with 4


def stop_if_server_options_are_wrong(settings: Settings) -> None:
    """
    Exit if `flask run` or `uvicorn` would listen on another port, or if `uvicorn` would use ASGI.

    With another port, the browser finds no app after "Allow". Both are commands of click, so their options are known.
    """
    context = click.get_current_context(silent=True)
    options = context.params if context else {}
    uses_port = not settings.https and not options.get('uds') and not options.get('fd')
    if options.get('interface', 'wsgi') != 'wsgi':
        problem = 'This is a WSGI app. Use uvicorn --interface wsgi --no-access-log'
    elif uses_port and options.get('port') not in (None, 0, settings.port, settings.browser_port):
        problem = (
            f'The server would listen on port {options["port"]} instead of {settings.port}. Use --port {settings.port}'
        )
    else:
        return
    logger.error(problem)
    raise SystemExit(4)


def stop_if_port_is_taken(port: int) -> None:
    """
    Exit if another program listens on `port` of localhost, because browsers would show its pages.

    "localhost" has two addresses. Browsers try ::1 first, but this app listens on 127.0.0.1. Werkzeug reports all other
    problems with the port.
    """
    for address in ('127.0.0.1', '::1'):
        try:
            socket.create_connection((address, port), timeout=1).close()
        except OSError:
            continue
        logger.error('Port {} is in use, perhaps by this app in another terminal. Stop that program first', port)
        raise SystemExit(1)
