"""The baseline's request and page in a Flask view. The difference from the baseline is the cost of Flask."""

from __future__ import annotations

import baseline
from flask import Flask

app = Flask(__name__)


@app.route('/profile')
def profile() -> str:
    user = baseline.zendesk.get(baseline.URL, headers=baseline.HEADERS, timeout=14).json()['user']
    return baseline.page(user)
