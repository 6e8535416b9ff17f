"""Set up loguru: no secrets, and short lines in the terminal. Also pass on the package's standard log records."""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
import textwrap
from typing import Any

from loguru import logger

COLUMNS = 80  # of the terminal


def init(terminal: bool = False) -> None:
    """
    Set up the log. If `terminal` is true, use short lines and no access log, else loguru's format, one line per event.

    The log shows no values of variables, which loguru shows by default, and no URL queries, which can hold an
    authorization code. The environment variable LOGURU_LEVEL sets the lowest level.
    """
    options: dict[str, Any] = {'format': terminal_format} if terminal else {}
    try:
        logger.remove(0)  # loguru's default handler
        logger.add(sys.stderr, diagnose=False, backtrace=False, **options)
        logger.configure(patcher=lambda record: record.update({'message': one_line(record['message'])}))
    except ValueError:  # the handlers are already configured
        pass
    package = logging.getLogger('zendesk_oauth')
    package.handlers = [InterceptHandler()]
    package.propagate = False
    package.setLevel(logger.level(os.environ.get('LOGURU_LEVEL', 'DEBUG')).no)
    logging.getLogger('werkzeug').addFilter(drop_query)  # adding it again changes nothing
    if terminal:
        logging.getLogger('werkzeug').setLevel(logging.WARNING)  # the steps of a request are already in the log
    for name in ('gunicorn.access', 'gunicorn.error'):
        logging.getLogger(name).addFilter(drop_query)
        logging.getLogger(name).addFilter(escape_controls)


class InterceptHandler(logging.Handler):
    """Pass a standard log record on to loguru (from loguru's documentation, "Entirely compatible with logging")."""

    def emit(self, record: logging.LogRecord) -> None:
        frame, depth = inspect.currentframe(), 0
        while frame and (depth == 0 or frame.f_code.co_filename == logging.__file__):
            frame, depth = frame.f_back, depth + 1
        exchange = record.name == 'zendesk_oauth.exchange'
        logger.bind(exchange=exchange).opt(depth=depth, exception=record.exc_info).log(
            record.levelname, record.getMessage()
        )


def terminal_format(record: Any) -> str:
    """
    Return the format of an event: the time, "app" or "Zendesk", and the message, wrapped at COLUMNS.

    An exchange with Zendesk becomes two lines: the app's request and Zendesk's response.
    """
    message, level = record['message'], record['level']
    if record['extra'].get('exchange'):
        request, _, response = message.partition(': ')
        events = [('app', request), ('Zendesk', response)]
    else:
        source = 'Zendesk' if (record['name'] or '').startswith('practice_zendesk') else 'app'
        events = [(source, f'{level.name}: {message}' if level.no >= logging.WARNING else message)]
    lines = []
    wrapper = textwrap.TextWrapper(COLUMNS, break_long_words=False, break_on_hyphens=False)  # keep paths in one piece
    for source, text in events:
        wrapper.initial_indent = f'{record["time"]:HH:mm:ss} {source:<7} '
        wrapper.subsequent_indent = ' ' * len(wrapper.initial_indent)
        lines += wrapper.wrap(text) or [wrapper.initial_indent]
    record['extra']['lines'] = '\n'.join(lines)  # loguru would interpret braces and tags in the format
    color = 'yellow' if level.no >= logging.WARNING else 'normal'
    return f'<{color}>{{extra[lines]}}</{color}>\n{{exception}}'


def drop_query(record: logging.LogRecord) -> bool:
    """Shorten the URL in a line of a server's log to its path."""
    record.msg, record.args = re.sub(r'\?.*(?= HTTP/)|\?.*$', '', record.getMessage(), flags=re.DOTALL), ()
    return True


def escape_controls(record: logging.LogRecord) -> bool:
    """Escape control characters: a path could forge a line of the log or change the terminal's colors."""
    record.msg, record.args = one_line(record.getMessage()), ()
    return True


def one_line(text: str) -> str:
    return re.sub(r'[\x00-\x1f\x7f-\x9f\u2028\u2029]', lambda control: repr(control[0])[1:-1], text)
