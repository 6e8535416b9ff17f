"""The Zendesk part of the helpdesk: connect, list the tickets, disconnect."""

from flask import Blueprint, current_app, flash, redirect, render_template, url_for
from flask_login import current_user, login_required

from zendesk_oauth import SqlStore, ZendeskOAuth
from zendesk_oauth.errors import ZendeskOAuthError

blueprint = Blueprint('zendesk', __name__, url_prefix='/zendesk')


def init_app(app):
    app.register_blueprint(blueprint)
    store = SqlStore(f'sqlite:///{app.instance_path}/tokens.db', encryption_keys=app.config['TOKEN_KEYS'].split())
    app.extensions['zendesk_oauth'] = ZendeskOAuth(
        zendesk_url=app.config['ZENDESK_URL'],
        client_id=app.config['ZENDESK_CLIENT_ID'],
        client_secret=app.config['ZENDESK_CLIENT_SECRET'],
        redirect_uri=app.config['ZENDESK_REDIRECT_URI'],
        scope='tickets:read',
        store=store,
    )


def oauth() -> ZendeskOAuth:
    return current_app.extensions['zendesk_oauth']


@blueprint.post('/connect')
@login_required
def connect():
    return oauth().begin_authorization(current_user.get_id(), next_url=url_for('zendesk.tickets'))


@blueprint.get('/callback')  # no login_required: it would put the code into a URL. get_id() may be None
def callback():
    return redirect(oauth().complete_authorization(current_user.get_id()).next_url)


@blueprint.get('/tickets')
@login_required
def tickets():
    page = next(oauth().session(current_user.get_id()).pages('/api/v2/tickets.json'))
    return render_template('tickets.html', tickets=page['tickets'])


@blueprint.post('/disconnect')
@login_required
def disconnect():
    if not oauth().disconnect(current_user.get_id()):
        flash('Zendesk did not confirm the revocation. Check the connected apps in your Zendesk profile.')
    return redirect(url_for('home'))


@blueprint.app_errorhandler(ZendeskOAuthError)
def show_error(error):
    current_app.logger.warning('%s: %s', error.title, error)
    return render_template('zendesk_error.html', error=error), error.status
