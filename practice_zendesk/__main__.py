"""Run the practice Zendesk: `python -m practice_zendesk`."""

import argparse
import contextlib
import sys

DESCRIPTION = """
A fake Zendesk on localhost for testing OAuth clients. It has a consent page, a token endpoint, revocation, "Show Self"
and tickets. Open /practice to expire tokens and make requests fail.
"""


def main() -> None:
    """Serve the practice Zendesk until the process ends."""
    version = sys.version_info[:2]
    if version < (3, 11):
        sys.exit('Python 3.11 or newer is required. This is Python {}.{}'.format(*version))

    # Imported late: an older Python fails with a traceback in these modules.
    from loguru import logger

    from practice_zendesk import clients, database, server

    logger.remove()
    logger.add(sys.stderr, format='{time:HH:mm:ss} {message}')
    parser = argparse.ArgumentParser(prog='python -m practice_zendesk', description=DESCRIPTION)
    parser.add_argument('--port', type=port, default=server.PORT, help='0: any free port (default: %(default)s)')
    parser.add_argument('--config', metavar='FILE', help='a TOML file with the OAuth clients and the users')
    parser.add_argument(
        '--database', metavar='FILE', default=database.DATABASE, help='the codes and tokens (default: %(default)s)'
    )
    parser.add_argument('--client-kind', choices=clients.KINDS, default='new', help='the tokens that it issues')
    arguments = parser.parse_args()
    if arguments.config:
        try:
            clients.read_file(arguments.config)
        except (OSError, ValueError) as error:
            parser.error(f'{arguments.config} cannot be used: {error}')
    database.use(arguments.database)
    clients.use_kind(arguments.client_kind)
    server.serve(arguments.port)


def port(text: str) -> int:
    """Return the port number. Raise ValueError if it is not valid, which argparse reports."""
    if not 0 <= int(text) < 65536:
        raise ValueError
    return int(text)


if __name__ == '__main__':
    with contextlib.suppress(KeyboardInterrupt):
        main()
