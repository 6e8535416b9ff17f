"""Find out, before a server starts, whether its port can be had: the browser would show somebody else's pages."""

from __future__ import annotations

import socket

from loguru import logger


def stop_if_taken(port: int, remedy: str) -> None:
    """End the process, with a message that holds the `remedy`, if localhost's `port` can't be served on."""
    try:
        # "localhost" is two addresses, and browsers try ::1 first: who listens there would get the visits.
        taken = any(_answers(family, host, port) for family, host in LOOPBACK)
        if not taken:
            socket.create_server(('127.0.0.1', port)).close()
    except OSError as error:
        logger.error("Port {} can't be used: {}. {}", port, error.strerror, remedy)
    else:
        if not taken:
            return
        logger.error(
            'Port {} is taken by another program. Perhaps it is this app, still running in another terminal: end it '
            'there with Ctrl+C. {}',
            port,
            remedy,
        )
    raise SystemExit(1)


LOOPBACK = ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1'))


def _answers(family: socket.AddressFamily, host: str, port: int) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(1)
            return connection.connect_ex((host, port)) == 0
    except OSError:  # this machine has no IPv6
        return False
