"""
The floor: the least that Python takes to show a profile that it has to ask Zendesk for.

One WSGI function and one call over a kept connection, by a session of requests that need not look into the
environment. No framework, no store, no log, no user.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

import requests
from requests.adapters import HTTPAdapter

URL = f'{os.environ["ZENDESK_BASE_URL"]}/api/v2/users/me'
HEADERS = {'Authorization': f'Bearer {os.environ["ACCESS_TOKEN"]}'}
THREADS = 8

zendesk = requests.Session()
zendesk.mount('https://', HTTPAdapter(pool_maxsize=THREADS))
zendesk.trust_env = False  # else it would look for proxies and passwords at each call
zendesk.verify = os.environ['REQUESTS_CA_BUNDLE']


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    user = zendesk.get(URL, headers=HEADERS, timeout=14).json()['user']
    name, role = escape(user['name']), escape(user['role'])
    page = f'<!doctype html><title>Your profile</title><p>Hi, {name}!</p><p>Role: {role}</p>'.encode()
    start_response('200 OK', [('Content-Type', 'text/html; charset=utf-8'), ('Content-Length', str(len(page)))])
    return [page]
