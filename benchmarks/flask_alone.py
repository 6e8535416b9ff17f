"""The floor's request and page in a Flask view. The difference from the floor is the cost of Flask."""

from __future__ import annotations

import floor
from flask import Flask

app = Flask(__name__)


@app.route('/profile')
def profile() -> str:
    user = floor.zendesk.get(floor.URL, headers=floor.HEADERS, timeout=14).json()['user']
    return floor.page(user)
