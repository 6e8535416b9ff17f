"""
Practice mode's panel: the last exchange of each browser, drawn as a sequence diagram on every page.

An exchange is one visit, or several visits that redirects join, also through Zendesk. Its steps come from the requests
to the app, from the records of the logger `zendesk_oauth.exchange`, and from the store, which the panel reads before
each of them. All this stays in memory, which works because practice mode has only one process.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from flask import Flask, Response, abort, g, has_request_context, render_template, request, session
from flask.typing import ResponseReturnValue
from markupsafe import escape

from web import drawing
from web.drawing import Secret, Step
from zendesk_oauth import Store
from zendesk_oauth.errors import AuthorizationError, StoreError

COOKIE = 'zendesk_oauth_panel'
MARKERS = ('<!-- summary -->', '<!-- panel -->')  # in base.html
NOTICE_PATHS = (drawing.PROFILE, '/grant_access')  # the pages to which the experiments lead
MAX_REMEMBERED = 200  # browsers, exchanges and pending grants; the oldest are forgotten first
MAX_STEPS = 400  # of one exchange
MAX_LABEL, MAX_TEXT = 200, 20_000  # characters of one step
MAX_ATTACKS = 20


@dataclass
class Exchange:
    """The steps of one exchange. It began at `path`. `continues_at` is the path to which a redirect leads, or empty."""

    path: str
    key: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    steps: list[Step] = field(default_factory=list)
    continues_at: str = ''
    running: int = 0  # visits
    visits: int = 0

    def add(self, steps: Sequence[Step], visit: int) -> None:
        """Add the steps of the visit with this number."""
        now = time.monotonic()
        for step in steps[: MAX_STEPS - len(self.steps)]:
            label, text = _printable(step.label, MAX_LABEL), _printable(step.text, MAX_TEXT)
            self.steps.append(dataclasses.replace(step, label=label, text=text, visit=visit, at=now))


@dataclass
class Browser:
    """A browser: its newest exchange, the exchange on its pages, and whether the user left the panel open."""

    key: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    current: Exchange = field(default_factory=lambda: Exchange(''))
    shown: Exchange = field(default_factory=lambda: Exchange(''))
    is_open: bool = False


@dataclass
class Visit:
    """
    One request to the app. `number` counts the visits of the exchange.

    `tokens` are the stored tokens of its user when the panel last looked. `changes_tokens` is true if this visit makes
    the next change: it refreshes the tokens, or Zendesk has issued new ones to it.
    """

    browser: Browser
    exchange: Exchange
    number: int
    is_own_callback: bool
    tokens: tuple[Secret, ...] = ()
    changes_tokens: bool = False
    state_accepted: bool = False


@dataclass
class Pending:
    """An authorization request. `used` is whether the browser has come back with its state."""

    browser: Browser
    exchange: Exchange
    used: bool = False


_lock = threading.Lock()
_browsers: OrderedDict[str, Browser] = OrderedDict()
_exchanges: OrderedDict[str, Exchange] = OrderedDict()
_pending: OrderedDict[str, Pending] = OrderedDict()  # by state
_attacks: list[list[Step]] = []
_notice = ''  # what the user can do next in an experiment, for the next page


def init_app(app: Flask, store: Store, controls: str) -> None:
    """
    Draw the last exchange on every page.

    `controls` is the URL of the practice Zendesk's control page.
    """
    app.jinja_env.globals['practice_controls'] = controls
    recorder = Recorder(store)
    for name in ('zendesk_oauth', 'practice_zendesk.exchange'):
        logging.getLogger(name).addHandler(recorder)
        logging.getLogger(name).setLevel(logging.DEBUG)

    @app.before_request
    def begin() -> None:
        if request.endpoint not in ('static', 'health', 'remember_panel', 'show_exchange'):
            g.visit = _begin_visit()
            recorder.begin()

    @app.after_request
    def finish(response: Response) -> Response:
        if 'visit' in g:
            recorder.end(response)
            _end_visit(response)
        if response.mimetype == 'text/html' and not response.location and not response.direct_passthrough:
            page = response.get_data(as_text=True)
            for marker, html in zip(MARKERS, _panel(), strict=True):
                page = page.replace(marker, html)
            response.set_data(page)
        return response

    @app.get('/exchange/<key>')
    def show_exchange(key: str) -> ResponseReturnValue:
        """Show an exchange of any browser. Its responses link to this page."""
        g.exchange = _exchanges.get(key) or abort(404)
        return render_template('exchange.html')

    @app.get('/panel/<any(open, closed):state>')
    def remember_panel(state: str) -> ResponseReturnValue:
        """Remember whether the panel is open. The style sheet requests this when the user opens or closes it."""
        if request.headers.get('Sec-Fetch-Site', 'same-origin') == 'same-origin':
            _browser().is_open = state == 'open'
        return '', 204


# --- Browsers and visits --- #


def _browser() -> Browser:
    """Return the request's browser. A new one is remembered, and gets its cookie, at the end of a visit."""
    if 'browser' not in g:
        g.browser = _browsers.get(request.cookies.get(COOKIE, '')) or Browser()
    browser: Browser = g.browser
    return browser


def _begin_visit() -> Visit:
    """Continue an exchange after a redirect, join a concurrent visit to the same page, or begin a new exchange."""
    browser = _browser()
    with _lock:
        pending = _pending.get(request.args.get('state', '')) if request.path == drawing.CALLBACK else None
        is_own = pending is not None and pending.browser is browser
        current = browser.current
        if pending and is_own and not pending.used:
            exchange, pending.used = pending.exchange, True
        elif current.continues_at == request.path or (current.running and current.path == request.path):
            exchange = current
        else:
            exchange = _remember(_exchanges, Exchange(request.path))
        exchange.running += 1
        exchange.visits += 1
        exchange.continues_at = ''
        browser.current = exchange
        return Visit(browser, exchange, exchange.visits, is_own)


def _end_visit(response: Response) -> None:
    """
    Remember where a redirect leads. If this exchange has steps, show it from now on. Open the panel if it is notable.

    Set the cookie of the browser, and link to the exchange.
    """
    visit: Visit = g.pop('visit')  # an error in this function leads here again
    target = urlsplit(response.location or '')
    with _lock:
        _remember(_browsers, visit.browser)
        visit.exchange.running -= 1
        if visit.exchange.steps:
            visit.browser.shown = visit.exchange
            visit.browser.is_open |= drawing.is_notable(visit.exchange.steps)
        if not target.netloc:
            visit.exchange.continues_at = target.path
        for state in parse_qs(target.query).get('state', [])[:1]:
            _pending[state] = Pending(visit.browser, visit.exchange)
            _forget_oldest(_pending)
    if request.cookies.get(COOKIE) != visit.browser.key:
        response.set_cookie(COOKIE, visit.browser.key, httponly=True, samesite='Lax')
    response.headers['Link'] = f'</exchange/{visit.exchange.key}>; rel="describedby"'


def _printable(text: str, length: int) -> str:
    """Shorten the text, and replace lone surrogates, which are valid in JSON but not in UTF-8."""
    return text[:length].encode('utf-8', 'replace').decode()


def _remember(found: OrderedDict[str, Any], value: Any) -> Any:
    found[value.key] = value
    found.move_to_end(value.key)
    _forget_oldest(found)
    return value


def _forget_oldest(found: OrderedDict[str, Any]) -> None:
    while len(found) > MAX_REMEMBERED:
        found.popitem(last=False)


# --- Steps --- #


class Recorder(logging.Handler):
    """Add the exchanges with Zendesk, the package's checks and the changes of the store to the visit's exchange."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def begin(self) -> None:
        """Add what the user did, and the request."""
        visit: Visit = g.visit
        visit.tokens = self._stored_tokens()
        new = not visit.exchange.steps
        path, query = request.path, request.query_string.decode('latin-1')
        if path == drawing.CALLBACK:
            self._add(drawing.before_callback(request.base_url, query, is_own=visit.is_own_callback, repeated=new))
        elif path in drawing.ACTIONS:
            self._add([drawing.action(path)])
        elif new:
            return  # only pages that a redirect leads to are part of an exchange
        # The session, and the newest authorization requests.
        cookies = {name: request.cookies[name] for name in sorted(request.cookies, reverse=True) if name != COOKIE}
        self._add([drawing.request_to_app(request.method, path, query, dict(request.headers), cookies)])
        if path in (drawing.PROFILE, drawing.DISCONNECT):
            self._add([drawing.held(visit.tokens)])

    def handle(self, record: logging.LogRecord) -> bool:
        """Use no lock: a thread that holds the lock of users.json can log, and `emit` reads users.json."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._record(record)
        except Exception:  # the panel must not break the request that it shows
            self.handleError(record)

    def _record(self, record: logging.LogRecord) -> None:
        data: dict[str, Any] = vars(record)
        if record.name == 'practice_zendesk.exchange':
            global _notice
            if 'notice' in data:
                _notice = data['notice']
                return
            if 'replaced_code' in data:
                steps = [drawing.replaced_code(*data['replaced_code'])]
            else:
                steps = drawing.exchange_with_zendesk(data['request'], data['response'], '', 'thief')
            with _lock:
                _attacks.append([dataclasses.replace(step, at=time.monotonic()) for step in steps])
                del _attacks[:-MAX_ATTACKS]
        elif not has_request_context() or 'visit' not in g:
            return  # a thread of the practice Zendesk
        elif 'response' in data:
            self._look()
            steps = drawing.exchange_with_zendesk(data['request'], data['response'], request.path)
            g.visit.changes_tokens |= drawing.changes_tokens(steps)
            self._add(steps)
        elif 'verified_state' in data:
            g.visit.state_accepted = True
            self._add([drawing.state_check()])
        elif 'waited' in data:
            before = g.visit.tokens
            self._look()
            g.visit.changes_tokens |= g.visit.tokens == before  # the others wait
            self._add([drawing.lock_check(data['waited'], same=g.visit.tokens == before)])

    def end(self, response: Response) -> None:
        """Add what the app stored or refused last, and the response."""
        visit: Visit = g.visit
        if not visit.exchange.steps:
            return
        error = g.get('error')
        if request.path == drawing.CALLBACK and isinstance(error, AuthorizationError) and not visit.state_accepted:
            self._add([drawing.state_check(str(error), is_own=visit.is_own_callback)])
        elif isinstance(error, StoreError):
            self._add([drawing.store_failure(str(error))])
        self._look()
        self._add(drawing.response_of_app(response.status_code, response.location or '', response.headers))

    def _look(self) -> None:
        """Add the box of users.json if the user's tokens have changed since the last look."""
        visit: Visit = g.visit
        before, visit.tokens = visit.tokens, self._stored_tokens()
        if visit.tokens != before:
            own = visit.changes_tokens or request.path != drawing.PROFILE
            self._add([drawing.changed(before, visit.tokens) if own else drawing.held(visit.tokens)])

    def _stored_tokens(self) -> tuple[Secret, ...]:
        user_id = session.get('user_id')
        try:
            record = self._store.find(user_id) if isinstance(user_id, str) else None
        except StoreError:
            record = None
        return drawing.tokens_of(record or {})

    def _add(self, steps: Sequence[Step]) -> None:
        with _lock:
            g.visit.exchange.add(steps, g.visit.number)


# --- The panel --- #


def _panel() -> tuple[str, str]:
    """Return the HTML of the summary and of the panel."""
    browser = _browser()
    exchange: Exchange = g.get('exchange') or browser.shown
    global _notice
    with _lock:
        notice = _notice if request.path in NOTICE_PATHS else ''
        if notice:
            _notice, exchange = '', browser.current  # the notice is about the next exchange
        steps = drawing.with_attacks(exchange.steps, _attacks)
    is_concurrent = sum(step.name == 'profile' for step in steps) > 1
    lines = [drawing.summary(steps), notice]
    panel = render_template(
        'panel.html',
        rows=drawing.rows(steps, merged=is_concurrent),
        is_open=browser.is_open or 'exchange' in g,
        lanes=drawing.LANES,
        color=drawing.color,
        parts=drawing.parts,
    )
    return ''.join(f'<p class="summary">{escape(line)}</p>' for line in lines if line), panel
