"""Settings for gunicorn, which reads this file by itself: gunicorn -w 4 app:app"""

bind = '127.0.0.1:3000'
# Load the app once, before the workers start: missing settings are told once, and nothing starts.
preload_app = True
# %(U)s is the path without its query: the callback's query holds the authorization code.
access_log_format = '%(h)s "%(m)s %(U)s" %(s)s'
