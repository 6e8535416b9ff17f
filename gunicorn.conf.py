"""Settings for gunicorn, which reads them from the working directory: gunicorn -w 4 app:app"""

import os
from typing import Any

# INFO logs changes and errors. DEBUG logs every step and makes a page about 40% slower.
os.environ.setdefault('LOGURU_LEVEL', 'INFO')

from settings import load_settings

# If settings are missing, gunicorn exits here.
settings = load_settings()
# A hosting platform sets PORT, and sends requests from other machines. PORT in .env does not count.
host = '0.0.0.0' if os.environ.get('PORT', '').strip() and not settings.on_localhost else '127.0.0.1'  # noqa: S104
bind = f'{host}:{settings.port}'
# Load the app once, before the workers start.
preload_app = True
# A request mostly waits for Zendesk or for another request's refresh. Other threads serve requests in the meantime.
threads = 16
# Longer than the slowest request. A worker that is killed during a refresh loses the new tokens.
timeout = graceful_timeout = 240  # seconds
# Longer than the idle timeout of a load balancer (usually 60 seconds). Otherwise it can send a POST on a connection
# that gunicorn is closing, and it does not repeat a POST.
keepalive = 75  # seconds
# %(U)s is the path without the query: the query of the callback contains the authorization code.
access_log_format = '%(h)s "%(m)s %(U)s" %(s)s'


def on_starting(server: Any) -> None:
    """Exit if the worker class is not supported: the app needs WSGI and blocking locks."""
    worker = server.worker_class.__name__
    if worker not in ('ThreadWorker', 'SyncWorker'):
        server.log.error('The %s of gunicorn is not supported. Remove the option -k (--worker-class)', worker)
        raise SystemExit(4)
