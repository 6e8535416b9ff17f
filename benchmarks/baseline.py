"""
The baseline: the minimum work for a profile page that sends one request to Zendesk.

A WSGI function sends the request with a `requests.Session`, which keeps its connections. There is no framework, no
store, no log and no user session.
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


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = page(zendesk.get(URL, headers=HEADERS, timeout=14).json()['user']).encode()
    start_response('200 OK', [('Content-Type', 'text/html; charset=utf-8'), ('Content-Length', str(len(body)))])
    return [body]


def page(user: dict[str, str]) -> str:
    name, role = escape(user['name']), escape(user['role'])
    return f'<!doctype html><title>Your profile</title><p>Hi, {name}!</p><p>Role: {role}</p>'
