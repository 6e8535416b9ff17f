"""
Flask alone: the floor's call and page in a view of Flask. What it has beyond the floor is the price of the framework.
"""

from __future__ import annotations

import floor
from flask import Flask

app = Flask(__name__)


@app.route('/profile')
def profile() -> str:
    user = floor.zendesk.get(floor.URL, headers=floor.HEADERS, timeout=14).json()['user']
    return floor.page(user)
