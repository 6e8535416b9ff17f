"""Run the practice Zendesk: `python -m practice_zendesk`."""

import argparse
import contextlib
import sys


def main() -> None:
    """Serve the practice Zendesk until the process ends, with short log lines."""
    version = sys.version_info[:2]
    if version < (3, 11):
        sys.exit('Python 3.11 or newer is required. This is Python {}.{}'.format(*version))

    # Imported late: an older Python fails with a traceback in these modules.
    from loguru import logger

    from practice_zendesk import clients, server

    logger.remove()
    logger.add(sys.stderr, format='{time:HH:mm:ss} {message}')
    parser = argparse.ArgumentParser(prog='python -m practice_zendesk', description='A fake Zendesk on localhost.')
    parser.add_argument(
        '--port', type=int, choices=range(1, 65536), metavar='PORT', default=server.PORT, help='default: %(default)s'
    )
    parser.add_argument('--client-kind', choices=clients.KINDS, default='new', help='default: %(default)s')
    arguments = parser.parse_args()
    clients.use_kind(arguments.client_kind)
    server.serve(arguments.port)


if __name__ == '__main__':
    with contextlib.suppress(KeyboardInterrupt):
        main()
