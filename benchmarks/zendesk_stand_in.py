"""
A stand-in for Zendesk that uses little CPU time, so that the benchmarks measure its clients.

    python zendesk_stand_in.py PORT FOLDER

It serves HTTPS on localhost and writes its CA certificate to FOLDER. One thread serves all connections and parses only
what it needs. With asyncio, a response would cost 50% more CPU time.

An access token that starts with `once-` expires after one request. A refresh token that starts with `once-` returns new
tokens that also start with `once-`. Each refresh token and each authorization code is valid once.

GET /counts returns the numbers of `gets`, `posts` and `connections` so far.
"""

from __future__ import annotations

import json
import re
import secrets
import selectors
import socket
import ssl
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs

import trustme

CA_FILE = 'ca.pem'
NAME, ROLE = 'Amara Okafor', 'agent'
ONCE = 'once-'
TOKEN_LENGTH = 64

# As large as a real response: https://developer.zendesk.com/api-reference/ticketing/users/users/#show-self
USER = {
    'id': 35436,
    'url': 'https://localhost/api/v2/users/35436.json',
    'name': NAME,
    'email': 'amara.okafor@example.com',
    'created_at': '2023-07-20T22:55:29Z',
    'updated_at': '2026-05-05T10:38:52Z',
    'time_zone': 'Copenhagen',
    'iana_time_zone': 'Europe/Copenhagen',
    'phone': '+45 5555 0134',
    'shared_phone_number': False,
    'photo': {
        'url': 'https://localhost/api/v2/attachments/928374.json',
        'id': 928374,
        'file_name': 'amara.png',
        'content_url': 'https://localhost/system/photos/9283/7400/amara.png',
        'mapped_content_url': 'https://localhost/system/photos/9283/7400/amara.png',
        'content_type': 'image/png',
        'size': 15132,
        'width': 80,
        'height': 80,
        'inline': False,
        'deleted': False,
        'thumbnails': [],
    },
    'locale_id': 1,
    'locale': 'en-US',
    'organization_id': 57542,
    'role': ROLE,
    'verified': True,
    'external_id': 'sai989sur98w9',
    'tags': ['second_line', 'nordics'],
    'alias': 'Amara',
    'active': True,
    'shared': False,
    'shared_agent': False,
    'last_login_at': '2026-05-05T09:12:03Z',
    'two_factor_auth_enabled': True,
    'signature': 'Kind regards, Amara',
    'details': '',
    'notes': 'Back-up for the billing team',
    'role_type': 4,
    'custom_role_id': 123456,
    'moderator': True,
    'ticket_restriction': None,
    'only_private_comments': False,
    'restricted_agent': False,
    'suspended': False,
    'default_group_id': 98738,
    'report_csv': True,
    'user_fields': {'employee_number': 4711, 'languages': ['da', 'en', 'ig'], 'on_call': False},
    'authenticity_token': None,
}


def json_response(status: str, data: object) -> bytes:
    body = json.dumps(data).encode()
    head = f'HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n'
    return head.encode() + body


PROFILE = json_response('200 OK', {'user': USER})
EXPIRED = json_response('401 Unauthorized', {'error': 'invalid_token', 'error_description': 'The access token expired'})
INVALID_GRANT = json_response(
    '400 Bad Request', {'error': 'invalid_grant', 'error_description': 'The refresh token is not valid'}
)
NOT_FOUND = json_response('404 Not Found', {'error': 'InvalidEndpoint'})

counts: Counter[str] = Counter(gets=0, posts=0, connections=0)
used_tokens: set[str] = set()


def respond(head: bytes, body: bytes) -> bytes:
    """Return the response to a request, and count the request."""
    if head.startswith(b'GET /api/v2/users/me '):
        counts['gets'] += 1
        found = re.search(rb'\r\nAuthorization: Bearer ([!-~]+)', head, re.IGNORECASE)
        token = found[1].decode() if found else ''
        return PROFILE if token and not is_used(token, single_use=token.startswith(ONCE)) else EXPIRED
    if head.startswith(b'POST /oauth/tokens '):
        counts['posts'] += 1
        form = parse_qs(body.decode())
        [credential] = form.get('refresh_token') or form.get('code') or ['']
        return INVALID_GRANT if not credential or is_used(credential) else new_tokens(credential)
    return json_response('200 OK', counts) if head.startswith(b'GET /counts ') else NOT_FOUND


def is_used(token: str, single_use: bool = True) -> bool:
    """Return True if the token was used before. Mark it as used if it is for one use."""
    if not single_use:
        return False
    if token in used_tokens:
        return True
    used_tokens.add(token)
    return False


def new_tokens(credential: str) -> bytes:
    prefix = ONCE if credential.startswith(ONCE) else ''
    access_token, refresh_token = ((prefix + secrets.token_hex(TOKEN_LENGTH // 2))[:TOKEN_LENGTH] for _ in range(2))
    return json_response(
        '200 OK',
        {
            'access_token': access_token,
            'refresh_token': refresh_token,
            'token_type': 'bearer',
            'scope': 'users:read',
            'expires_in': 360,
            'refresh_token_expires_in': 604800,
        },
    )


class Connection:
    """A non-blocking connection to one client."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self.socket = connection
        self.handshake_done = False
        self.received = b''

    def receive(self) -> bool:
        """Process the available data. Return False if the connection must be closed."""
        try:
            if not self.handshake_done:
                self.socket.do_handshake()
                self.handshake_done = True
                counts['connections'] += 1
            data = self.socket.recv(65536)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        self.received += data
        return bool(data) and self.handle_request()

    def handle_request(self) -> bool:
        head, end, body = self.received.partition(b'\r\n\r\n')
        length = re.search(rb'\r\nContent-Length: (\d+)', head, re.IGNORECASE)
        if not end or (length and len(body) < int(length[1])):
            return True
        self.received = b''  # no pipelining: a client sends nothing before it has the response
        self.socket.sendall(respond(head, body))
        return b'\r\nConnection: close' not in head


def serve(port: int, context: ssl.SSLContext) -> None:
    selector = selectors.DefaultSelector()
    listener = socket.create_server(('127.0.0.1', port), backlog=128)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.setblocking(False)
                wrapped = context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
                selector.register(wrapped, selectors.EVENT_READ, Connection(wrapped))
            elif not key.data.receive():
                selector.unregister(key.data.socket)
                key.data.socket.close()


def main(port: int, folder: Path) -> None:
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert('localhost').configure_cert(context)
    ca.cert_pem.write_to_path(str(folder / CA_FILE))
    serve(port, context)


if __name__ == '__main__':
    main(int(sys.argv[1]), Path(sys.argv[2]))
