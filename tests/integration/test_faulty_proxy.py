"""The faulty proxy damages responses as the other tests expect."""

from __future__ import annotations

import socket
import time

import pytest
from faulty_proxy import FaultyProxy, proxy_to
from servers import serving

RESPONSE = b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n0123456789'
PROFILE = b'GET /api/v2/users/me HTTP/1.1\r\nHost: x\r\n\r\n'
TOKENS = b'POST /oauth/tokens HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s'


def token_request(body: bytes) -> bytes:
    return TOKENS % (len(body), body)


@pytest.fixture
def proxy():
    """A proxy to a server that sends the same response to every request."""

    def respond(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            connection.sendall(RESPONSE)

    with serving(respond) as port, proxy_to(f'http://127.0.0.1:{port}', FaultyProxy) as proxy:
        yield proxy


def response_of(proxy, request: bytes = PROFILE) -> bytes:
    """Return all bytes sent before the proxy closes the connection."""
    port = int(proxy.address.rpartition(':')[2])
    with socket.create_connection(('127.0.0.1', port), timeout=30) as connection:
        connection.sendall(request)
        return b''.join(iter(lambda: connection.recv(65536), b''))


@pytest.mark.parametrize(('cut', 'sent'), [(20, RESPONSE[:20]), (-3, RESPONSE[:-3]), (0, b'')])
def test_the_proxy_cuts_a_response(proxy, cut, sent):
    proxy.damage_next('profile', cut=cut)
    assert response_of(proxy) == sent
    assert response_of(proxy) == RESPONSE


def test_the_proxy_holds_the_connection_after_a_cut(proxy):
    proxy.damage_next('any', cut=20, hold=0.3)
    before = time.monotonic()
    assert response_of(proxy) == RESPONSE[:20]
    assert time.monotonic() - before >= 0.3


def test_the_proxy_sends_a_response_byte_by_byte(proxy):
    proxy.damage_next('any', trickle=0.002)
    before = time.monotonic()
    assert response_of(proxy) == RESPONSE
    assert time.monotonic() - before >= 0.002 * len(RESPONSE)


@pytest.mark.parametrize(
    ('call', 'request_bytes'),
    [
        ('exchange', token_request(b'grant_type=authorization_code&refresh_token_expires_in=604800')),
        ('refresh', token_request(b'grant_type=refresh_token&refresh_token=x')),
        ('refresh', token_request(b'{"grant_type": "refresh_token"}')),
        ('profile', PROFILE),
        ('revoke', b'DELETE /api/v2/oauth/tokens/current HTTP/1.1\r\nHost: x\r\n\r\n'),
    ],
)
def test_the_proxy_damages_only_the_chosen_kind_of_request(proxy, call, request_bytes):
    browser_request = b'GET /oauth/authorizations/new HTTP/1.1\r\nHost: x\r\n\r\n'
    for other in {'exchange', 'refresh', 'profile', 'revoke'} - {call}:
        proxy.damage_next(other, cut=1)
    assert response_of(proxy, request_bytes) == RESPONSE
    proxy.damage_next('any', cut=2)
    assert response_of(proxy, browser_request) == RESPONSE
    assert response_of(proxy, request_bytes) == RESPONSE[:2]
