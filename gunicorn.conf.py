"""gunicorn's settings, which it reads from the working directory: gunicorn -w 4 app:app"""

import os

# INFO logs changes and errors. DEBUG logs every step and makes a page about two thirds slower.
os.environ.setdefault('LOGURU_LEVEL', 'INFO')

from settings import load_settings

# Missing settings end it here, before anything starts.
bind = f'127.0.0.1:{load_settings().port}'
# Load the app once, before the workers start.
preload_app = True
# A request mostly waits for Zendesk or for another request's refresh. Its worker serves others during that time.
threads = 16
# Longer than a visit takes, with all its calls and locks slow: a worker that is killed in the middle of a refresh takes
# the new pair with it.
timeout = graceful_timeout = 240  # seconds
# %(U)s is the path without its query: the callback's query holds the authorization code.
access_log_format = '%(h)s "%(m)s %(U)s" %(s)s'
