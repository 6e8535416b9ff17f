"""What holds for every page of the app: its session cookie, its headers, its host, and a log without secrets."""

from __future__ import annotations

import logging
import re
import sys
from urllib.parse import quote, urlsplit

from flask import Flask, Request, Response, redirect, request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from itsdangerous import BadSignature, Signer
from loguru import logger
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.wrappers import Response as BaseResponse

from settings import Settings, current_settings, is_loopback
from zendesk_oauth.errors import Problem

HEADERS = {
    # Styles and pictures of our own, and nothing else: no script, no frame, no form that leads elsewhere.
    'Content-Security-Policy': "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
    # The callback's address holds the code: no other page may learn it from a Referer.
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Permissions-Policy': 'camera=(), geolocation=(), microphone=()',
}


def protect(app: Flask, settings: Settings) -> None:
    """Set up the session cookie, the answers' headers, the canonical host and the log."""
    canonical = urlsplit(settings.origin).hostname
    app.secret_key = settings.secret_key
    app.config['SECRET_KEY_FALLBACKS'] = list(settings.secret_key_fallbacks)
    app.session_interface = ForgivingSessions()
    if settings.proxy_hops:
        # What these headers say is true only where so many proxies have each added to them.
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=settings.proxy_hops, x_proto=settings.proxy_hops, x_host=settings.proxy_hops
        )
    app.url_map.merge_slashes = False  # else /zendesk//auth would be redirected, to whatever host the request names
    app.config.update(
        # Cookies do not know ports: "session" would collide with other apps on localhost.
        SESSION_COOKIE_NAME=f'{settings.cookie_prefix}zendesk_oauth_session',
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE='Lax',
        SESSION_COOKIE_SECURE=settings.https,
        MAX_CONTENT_LENGTH=16 * 1024,  # bytes; the one form there is has less
    )

    @app.before_request
    def go_to_the_canonical_host() -> BaseResponse | None:
        """
        Send a visit on 127.0.0.1 to localhost, if that is where Zendesk will send the browser back to.

        The two are different hosts to a browser, so the cookies of one would be missing on the other.
        """
        host = re.sub(r':\d*$', '', request.host).strip('[]')
        if request.method == 'GET' and host != canonical and is_loopback(host) and is_loopback(canonical):
            query = '?' + request.query_string.decode('latin-1') if request.query_string else ''
            return redirect(settings.origin + quote(request.path) + query)
        return None

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.extend(HEADERS)
        if response.location:
            response.set_data('')  # it would repeat the address, and with it states and codes
        response.headers.setdefault('Cache-Control', 'no-store')  # static files have a rule of their own
        if settings.https:
            response.headers['Strict-Transport-Security'] = 'max-age=31536000'
        return response

    keep_secrets_out_of_the_log()


class FormTooOld(Problem):
    """The form does not belong to this session: an old page, or one of another site's."""

    status = 400
    title = 'This page is out of date'
    advice = 'Nothing was changed. Please open the page anew, and try again.'
    way_on = ('/profile', 'Open my profile')


def sign(text: str, user_id: str | None) -> str:
    """
    Return the text with a signature that makes it good for this user, and nobody else.

    No other site can forge that, as it can know neither the id nor the key. Where the user id is an account's, which
    stays the same, sign something of the session along with it.
    """
    return _signer(user_id).sign(text).decode()


def unsign(text: str, user_id: str | None) -> str | None:
    """Return what was signed for this user, or None."""
    try:
        return _signer(user_id).unsign(text).decode()
    except BadSignature:
        return None


def _signer(user_id: str | None) -> Signer:
    return Signer(current_settings().secret_key, salt=f'for {user_id}')


def csrf_token(user_id: str | None) -> str:
    """Return what a form must hold to be taken."""
    return sign('form', user_id)


def check_csrf_token(user_id: str | None) -> None:
    """
    Check that the request's form was sent from a page of this session.

    Raises:
        FormTooOld: it was not.
    """
    try:
        token = request.form.get('csrf_token', '')
    except HTTPException:  # it is too long
        raise
    except Exception as error:  # each server has its own for a body that is none
        raise FormTooOld('the form broke off, or was none. Nothing was done') from error
    if user_id is None or unsign(token, user_id) != 'form':
        raise FormTooOld("the form's token is not that of the session: an old page, or another site. Nothing was done")


class ForgivingSessions(SecureCookieSessionInterface):
    """
    Flask's sessions; a cookie that holds something else than a session counts as none.

    One that was signed with a former key is signed anew with the present one, so that the former can be given up. That
    is done on the home page: a page that takes long could overwrite the session of a grant made meanwhile.
    """

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        try:
            session = super().open_session(app, request)
        except (TypeError, ValueError):
            return self.session_class()
        present = self.get_signing_serializer(app)
        if session and request.path == '/' and present and len(present.secret_keys) > 1:
            del present.secret_keys[:-1]
            try:
                present.loads(request.cookies[self.get_cookie_name(app)])
            except BadSignature:
                session.modified = True
        return session


def is_a_visit(request: Request) -> bool:
    """
    Tell whether a person is on the way to this page: not a HEAD, a picture's or a frame's address, or a prefetch.

    Browsers say so in Sec-Fetch-Dest and Sec-Purpose (https://www.w3.org/TR/fetch-metadata/); a client that sends
    neither is believed.
    """
    purpose = ' '.join(request.headers.get(name, '') for name in ('Sec-Purpose', 'Purpose', 'X-Purpose', 'X-Moz'))
    return (
        request.method == 'GET'
        and request.headers.get('Sec-Fetch-Dest', 'document') == 'document'
        and not re.search('prefetch|preview|prerender', purpose)
    )


def keep_secrets_out_of_the_log() -> None:
    """
    Log no variables with an exception, as loguru does by default, no query (the callback's holds a code), and one line
    per event, whatever stands in it.
    """
    try:
        logger.remove(0)  # loguru's default handler
        logger.add(sys.stderr, diagnose=False, backtrace=False)
        logger.configure(patcher=lambda record: record.update({'message': one_line(record['message'])}))
    except ValueError:  # the handlers are somebody's own choice already
        pass
    logging.getLogger('werkzeug').addFilter(drop_query)  # adding it again changes nothing
    for name in ('gunicorn.access', 'gunicorn.error'):
        logging.getLogger(name).addFilter(drop_query)
        logging.getLogger(name).addFilter(escape_controls)


def drop_query(record: logging.LogRecord) -> bool:
    """Shorten the address in a line of a server's log to its path."""
    record.msg, record.args = re.sub(r'\?.*(?= HTTP/)|\?.*$', '', record.getMessage(), flags=re.DOTALL), ()
    return True


def escape_controls(record: logging.LogRecord) -> bool:
    """Let nobody forge a line, or colour the terminal, with a path. (The built-in server sees to that itself.)"""
    record.msg, record.args = one_line(record.getMessage()), ()
    return True


def one_line(text: str) -> str:
    return re.sub(r'[\x00-\x1f\x7f-\x9f\u2028\u2029]', lambda control: repr(control[0])[1:-1], text)
