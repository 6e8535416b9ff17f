"""The accounts of the helpdesk: sign up, sign in and sign out. Nothing here is about Zendesk."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from flask import Blueprint, Flask, flash, redirect, render_template, url_for
from flask_login import LoginManager, UserMixin, login_required, login_user, logout_user
from flask_sqlalchemy import SQLAlchemy
from flask_wtf import FlaskForm
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column
from werkzeug.security import check_password_hash, generate_password_hash
from wtforms import PasswordField, StringField, SubmitField
from wtforms.validators import DataRequired, Length

db = SQLAlchemy()
login_manager = LoginManager()
login_manager.login_view = 'accounts.sign_in'
login_manager.login_message = None
blueprint = Blueprint('accounts', __name__)


class Account(UserMixin, db.Model):
    # Random, because a number could be used again after the database is deleted. Its tokens would still be stored.
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: uuid4().hex)
    email: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]


class AccountForm(FlaskForm):
    email = StringField('Email', [DataRequired(), Length(max=200)])
    password = PasswordField('Password', [DataRequired(), Length(max=200)])
    sign_in = SubmitField('Sign in')
    sign_up = SubmitField('Create an account')


def init_app(app: Flask) -> None:
    db.init_app(app)
    login_manager.init_app(app)
    app.register_blueprint(blueprint)
    with app.app_context():
        db.create_all()


@login_manager.user_loader
def load_account(account_id: str) -> Account | None:
    return db.session.get(Account, account_id)


@blueprint.route('/sign-in', methods=['GET', 'POST'])
def sign_in() -> Any:
    form = AccountForm()
    if form.validate_on_submit():
        account = sign_up(form) if form.sign_up.data else find(form)
        if account is not None:
            login_user(account)
            return redirect(url_for('home'))
        flash('This email address is already in use.' if form.sign_up.data else 'The email or the password is wrong.')
    return render_template('sign_in.html', form=form)


@blueprint.post('/sign-out')
@login_required
def sign_out() -> Any:
    logout_user()
    return redirect(url_for('accounts.sign_in'))


def find(form: AccountForm) -> Account | None:
    account = db.session.scalar(db.select(Account).filter_by(email=form.email.data))
    return account if account and check_password_hash(account.password_hash, form.password.data) else None


def sign_up(form: AccountForm) -> Account | None:
    account = Account(email=form.email.data, password_hash=generate_password_hash(form.password.data))
    db.session.add(account)
    try:
        db.session.commit()
    except IntegrityError:
        db.session.rollback()
        return None
    return account
