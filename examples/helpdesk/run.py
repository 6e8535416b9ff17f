"""Run the helpdesk at http://localhost:3010, with a practice Zendesk at http://localhost:3011."""

from __future__ import annotations

import os
from pathlib import Path

from dotenv import load_dotenv
from helpdesk import create_app

FOLDER = Path(__file__).absolute().parent

load_dotenv(FOLDER / 'practice.env')
app = create_app()
if app.config['ZENDESK_URL'] != 'http://localhost:3011':
    raise SystemExit('run.py is only for the practice Zendesk. Unset HELPDESK_ZENDESK_URL')

# The practice Zendesk reads its OAuth client from these variables.
os.environ |= {
    'ZENDESK_CLIENT_NAME': 'Helpdesk',
    'ZENDESK_CLIENT_ID': 'helpdesk',
    'ZENDESK_CLIENT_SECRET': app.config['ZENDESK_CLIENT_SECRET'],
    'REDIRECT_URI': app.config['ZENDESK_REDIRECT_URI'],
}
from practice_zendesk.server import serve_in_background  # noqa: E402

os.chdir(app.instance_path)  # the practice Zendesk keeps its database in the working directory
serve_in_background(3011)
print('The helpdesk is at http://localhost:3010. Press Ctrl+C to stop', flush=True)
app.run(port=3010)
