"""The log: loguru, one line per event, no secrets; the standard loggers of the package and of the servers go along."""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys

from loguru import logger


def init() -> None:
    """
    Set up the log, with one line per event.

    It has no values of variables, which loguru shows by default, and no queries, which hold the code. LOGURU_LEVEL in
    the environment is the lowest level that is logged.
    """
    try:
        logger.remove(0)  # loguru's default handler
        logger.add(sys.stderr, diagnose=False, backtrace=False)
        logger.configure(patcher=lambda record: record.update({'message': one_line(record['message'])}))
    except ValueError:  # somebody else has configured the handlers
        pass
    package = logging.getLogger('zendesk_oauth')
    package.handlers = [InterceptHandler()]
    package.propagate = False
    package.setLevel(logger.level(os.environ.get('LOGURU_LEVEL', 'DEBUG')).no)
    logging.getLogger('werkzeug').addFilter(drop_query)  # adding it again changes nothing
    for name in ('gunicorn.access', 'gunicorn.error'):
        logging.getLogger(name).addFilter(drop_query)
        logging.getLogger(name).addFilter(escape_controls)


class InterceptHandler(logging.Handler):
    """Pass a standard log record on to loguru (from loguru's documentation, "Entirely compatible with logging")."""

    def emit(self, record: logging.LogRecord) -> None:
        frame, depth = inspect.currentframe(), 0
        while frame and (depth == 0 or frame.f_code.co_filename == logging.__file__):
            frame, depth = frame.f_back, depth + 1
        logger.opt(depth=depth, exception=record.exc_info).log(record.levelname, record.getMessage())


def drop_query(record: logging.LogRecord) -> bool:
    """Shorten the address in a line of a server's log to its path."""
    record.msg, record.args = re.sub(r'\?.*(?= HTTP/)|\?.*$', '', record.getMessage(), flags=re.DOTALL), ()
    return True


def escape_controls(record: logging.LogRecord) -> bool:
    """Escape control characters, so that a path can neither forge a line nor color the terminal."""
    record.msg, record.args = one_line(record.getMessage()), ()
    return True


def one_line(text: str) -> str:
    return re.sub(r'[\x00-\x1f\x7f-\x9f\u2028\u2029]', lambda control: repr(control[0])[1:-1], text)
