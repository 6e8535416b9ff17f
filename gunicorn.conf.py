"""Settings for gunicorn, which reads them from the working directory: gunicorn -w 4 app:app"""

import os

# INFO logs changes and errors. DEBUG logs every step and makes a page about 40% slower.
os.environ.setdefault('LOGURU_LEVEL', 'INFO')

from settings import load_settings

# If settings are missing, gunicorn exits here.
bind = f'127.0.0.1:{load_settings().port}'
# Load the app once, before the workers start.
preload_app = True
# A request mostly waits for Zendesk or for another request's refresh. Other threads serve requests in the meantime.
threads = 16
# Longer than the slowest request. A worker that is killed during a refresh loses the new tokens.
timeout = graceful_timeout = 240  # seconds
# %(U)s is the path without the query: the query of the callback contains the authorization code.
access_log_format = '%(h)s "%(m)s %(U)s" %(s)s'
