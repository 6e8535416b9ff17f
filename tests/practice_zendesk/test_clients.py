"""The file with OAuth clients and users."""

from __future__ import annotations

import socket

import pytest
import requests

from practice_zendesk import clients, server

FILE = """
[[clients]]
id = "shop"
secret = "shop-secret"
name = "My shop"
redirect_uris = ["http://localhost:5000/callback", "https://shop.example.com/callback"]

[[clients]]
id = "reports"
secret = "reports-secret"
redirect_uris = ["http://localhost:5001/callback"]
scope = "tickets:read"

[[users]]
id = 1
name = "Ana"
role = "admin"
email = "ana@example.com"

[[users]]
id = 2
name = "Ben"
role = "end-user"
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Return a function that reads a file with this content."""
    for name in ('CLIENTS', 'USERS'):
        monkeypatch.setattr(clients, name, dict(getattr(clients, name)))
    monkeypatch.setattr(server, 'CLIENTS', clients.CLIENTS)
    monkeypatch.setattr(server, 'USERS', clients.USERS)
    monkeypatch.setattr('practice_zendesk.database.USERS', clients.USERS)

    def read(text: str) -> None:
        path = tmp_path / 'practice.toml'
        path.write_text(text, encoding='utf-8')
        clients.read_file(path)

    return read


def test_each_client_has_its_own_secret_redirect_uris_and_scope(client, read):
    read(FILE)
    shop = {'client_id': 'shop', 'redirect_uri': 'https://shop.example.com/callback'}
    reports = {'client_id': 'reports', 'redirect_uri': 'http://localhost:5001/callback'}
    assert 'Allow My shop to access' in client.authorize(**shop).text
    assert 'Allow reports to access' in client.authorize(**reports).text
    assert client.authorize(**{**shop, 'redirect_uri': reports['redirect_uri']}).status_code == 400

    location = client.decide(user_id=1, **reports).location
    assert location.startswith('http://localhost:5001/callback?')
    code = location.split('code=')[1].split('&')[0]
    assert client.exchange(code, **reports, client_secret='shop-secret').json['error'] == 'invalid_client'
    tokens = client.exchange(code, **reports, client_secret='reports-secret').json
    assert tokens['scope'] == 'tickets:read'
    assert client.tickets(tokens).json['count'] == 120


def test_the_users_of_the_file_replace_the_practice_users(client, read):
    read(FILE)
    page = client.authorize(client_id='shop', redirect_uri='http://localhost:5000/callback').text
    assert 'Ana (admin)' in page
    assert 'Ben (end-user)' in page
    assert 'Amara' not in page


def test_tokens_of_a_user_who_is_not_in_the_file_are_invalid(client, read):
    tokens = client.grant()
    read(FILE)
    assert client.show_self(tokens).status_code == 401
    assert client.get('/practice').status_code == 200


def test_a_file_with_users_only_keeps_the_clients(client, read):
    read(FILE[FILE.index('[[users]]') :])
    assert 'Ana (admin)' in client.authorize().text


def test_the_browser_may_be_redirected_to_each_app(client, read):
    read(FILE)
    policy = client.get('/practice').headers['Content-Security-Policy']
    assert "form-action 'self' http://localhost:5000 https://shop.example.com http://localhost:5001" in policy


def test_running_restores_the_clients_and_the_database(client, tmp_path):
    path = tmp_path / 'other.toml'
    path.write_text(FILE, encoding='utf-8')
    before = dict(clients.CLIENTS), dict(clients.USERS)
    with server.running(config=path, database=tmp_path / 'other.db') as url:
        assert list(clients.CLIENTS) == ['shop', 'reports']
        assert requests.get(f'{url}/practice', timeout=60).status_code == 200
        assert (tmp_path / 'other.db').exists()
    assert before == (clients.CLIENTS, clients.USERS)
    assert not (tmp_path / 'practice_zendesk.db').exists()
    assert client.get('/practice').status_code == 200
    assert (tmp_path / 'practice_zendesk.db').exists()


def test_running_restores_the_clients_if_the_port_is_taken(client, tmp_path):
    path = tmp_path / 'other.toml'
    path.write_text(FILE, encoding='utf-8')
    before = dict(clients.CLIENTS), dict(clients.USERS)
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit), server.running(port, config=path):
            pass
    assert before == (clients.CLIENTS, clients.USERS)


@pytest.mark.parametrize(
    ('text', 'problem'),
    [
        ('', 'must contain'),
        ('x', 'Expected'),
        ('apps = 1', 'must contain'),
        ('[clients]\nid = "a"', 'with two brackets'),
        ('[[clients]]\nid = "a"\nredirect_uris = ["http://localhost/"]', 'the key secret of client 1 must be a string'),
        (
            '[[clients]]\nid = "a"\nsecret = "b"\nredirect_uris = "http://localhost/"',
            'the key redirect_uris of client 1 must be a list',
        ),
        ('[[clients]]\nid = "a"\nsecret = "b"\nredirect_uris = []', 'redirect_uris of client 1'),
        (
            '[[clients]]\nid = ""\nsecret = "b"\nredirect_uris = ["http://a/"]',
            'client 1 needs a secret and a unique id',
        ),
        (
            '[[clients]]\nid = "a"\nsecret = ""\nredirect_uris = ["http://a/"]',
            'client 1 needs a secret and a unique id',
        ),
        (
            '[[clients]]\nid = "a"\nsecret = "b"\nredirect_uris = ["http://a/"]\n' * 2,
            'client 2 needs a secret and a unique id',
        ),
        ('[[clients]]\nid = "a"\nsecret = "b"\nredirect_uris = ["/x"]', 'redirect_uris of client 1'),
        ('[[clients]]\nid = "a"\nsecret = "b"\nredirect_uris = ["http://a/"]\nx = 1', 'unknown key x'),
        ('[[users]]\nid = "1"\nname = "Ana"\nrole = "admin"', 'the key id of user 1 must be an integer'),
        ('[[users]]\nid = true\nname = "Ana"\nrole = "admin"', 'the key id of user 1 must be an integer'),
        *(
            (f'[[clients]]\nid = "a"\nsecret = "b"\nredirect_uris = ["{uri}"]', 'redirect_uris of client 1')
            for uri in ('http://a; script-src *', 'http://a b', 'javascript://a/', 'http://ü.example/', 'http://a/\\n')
        ),
        ('[[users]]\nid = 0\nname = "Ana"\nrole = "admin"', 'the id or the name of user 1'),
        ('[[users]]\nid = 9223372036854775808\nname = "Ana"\nrole = "admin"', 'the id or the name of user 1'),
        ('[[users]]\nid = 1\nname = "A\\nna"\nrole = "admin"', 'the id or the name of user 1'),
        ('[[users]]\nid = 1\nname = "Ana"\nrole = "boss"', 'the role of user 1 must be one of admin, agent, end-user'),
    ],
)
def test_a_malformed_file_is_rejected_and_changes_nothing(read, text, problem):
    before = dict(clients.CLIENTS), dict(clients.USERS)
    with pytest.raises(ValueError, match=problem):
        read(text)
    assert before == (clients.CLIENTS, clients.USERS)
