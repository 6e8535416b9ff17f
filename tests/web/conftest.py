"""A small app with an https redirect URI."""

from __future__ import annotations

import dataclasses

import pytest
from flask import Flask, session
from helpers import PROJECT, Browser

import app as app_module
import web


@pytest.fixture
def https_app(app) -> Flask:
    """Return a small app with an https redirect URI and a page that sets the session cookie."""
    settings = dataclasses.replace(app_module.settings, redirect_uri='https://app.example.com/zendesk/oauth/callback')
    https_app = Flask('https_app', template_folder=PROJECT / 'templates')
    https_app.secret_key = settings.secret_key
    https_app.test_client_class = Browser
    web.init_app(https_app, settings, app_module.oauth.store)

    @https_app.get('/')
    def index():
        session['user_id'] = 'alice'
        return ''

    return https_app
