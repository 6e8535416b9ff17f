"""HTTP requests and their limits, against servers that misbehave."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import hashlib
import logging
import os
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import urllib3
from servers import serving

from zendesk_oauth import Response, endpoints, transport
from zendesk_oauth.errors import ZendeskError, ZendeskTimeout

HEAD = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n'
NO_CONTENT = b'HTTP/1.1 204 No Content\r\n\r\n'
CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'
ZIPPED = b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n'


def send(method: str, address: str, **options) -> Response:
    return endpoints.send(address.removesuffix('/'), method, '/', **options)


def maybe_tls(connection: socket.socket, tls: ssl.SSLContext | None) -> socket.socket:
    return connection if tls is None else tls.wrap_socket(connection, server_side=True)


@pytest.fixture
def serve():
    """A function that starts a server. It sends the pieces, then closes the connection or keeps it open."""
    finished = threading.Event()
    with contextlib.ExitStack() as stack:

        def start(*pieces: bytes, pause: float = 0, then_close: bool = False, tls: ssl.SSLContext | None = None) -> str:
            def talk(connection: socket.socket) -> None:
                # The client may disconnect or reject the certificate.
                with contextlib.suppress(OSError), maybe_tls(connection, tls) as stream:
                    stream.recv(65536)
                    for piece in pieces:
                        stream.sendall(piece)
                        if finished.wait(pause):
                            return
                    if not then_close:
                        finished.wait(30)

            return f'{"https" if tls else "http"}://localhost:{stack.enter_context(serving(talk))}/'

        yield start
        finished.set()


@pytest.fixture(autouse=True)
def empty_caches() -> None:
    """Forget the connections and settings of the previous test."""
    transport._Connections.cache_clear()
    transport._tls_context.cache_clear()


@pytest.fixture
def trusted(authority, monkeypatch, tmp_path) -> None:
    """Trust the certificate authority."""
    authority.cert_pem.write_to_path(str(tmp_path / 'authority.pem'))
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', str(tmp_path / 'authority.pem'))


def single_bytes(text: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in text]


# --- The response --- #


def test_a_response_with_any_status_is_returned(serve):
    pieces = single_bytes(b'HTTP/1.1 418 Teapot\r\nContent-Length: 8\r\n\r\n{"a": 1}')
    response = send('GET', serve(*pieces, pause=0.001))
    assert (response.status_code, response.content, response.json()) == (418, b'{"a": 1}', {'a': 1})
    assert response.headers['content-length'] == '8'


def test_a_malformed_header_is_not_logged(serve, caplog):
    """urllib3 would log the rest of the headers, here the body with a token."""
    headers = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nbroken header\r\n{"access_token": "canary"}\r\n\r\n{}'
    level = logging.getLogger('urllib3.connection').level
    with caplog.at_level(logging.DEBUG):
        assert send('GET', serve(headers)).content == b'{}'
    assert 'canary' not in caplog.text
    assert logging.getLogger('urllib3.connection').level == level == logging.NOTSET


def test_repr_shows_neither_headers_nor_content():
    assert repr(Response(200, {'Set-Cookie': 'canary'}, b'canary')) == 'Response(status_code=200)'


def test_a_redirect_is_not_followed(serve):
    target = serve(NO_CONTENT, then_close=True).encode()
    response = send('GET', serve(b'HTTP/1.1 302 Found\r\nLocation: ' + target + b'\r\n\r\n', then_close=True))
    assert response.status_code == 302


# --- The limits --- #


@pytest.mark.parametrize(
    ('pieces', 'pause'),
    [
        pytest.param([], 0, id='never responds'),
        pytest.param([HEAD[:20]], 0, id='stops in the headers'),
        pytest.param([HEAD + b'{'], 0, id='stops in the body'),
        pytest.param(single_bytes(b'HTTP/1.1 200 OK\r\nX: ' + b'y' * 1000), 0.02, id='sends headers byte by byte'),
        pytest.param([HEAD, *single_bytes(b'x' * 1000)], 0.02, id='sends the body byte by byte'),
        pytest.param([CHUNKED + b'5\r\n', *single_bytes(b'x' * 1000)], 0.02, id='sends a chunk byte by byte'),
        pytest.param([CHUNKED + b'0\r\n', *[b'X: y\r\n'] * 1000], 0.02, id='sends endless trailers'),
        pytest.param([ZIPPED + gzip.compress(b'') * 500_000], 0, id='sends many empty gzip members'),
        pytest.param([b'HTTP/1.1 100 Continue\r\n\r\n'] * 1000, 0.02, id='repeats 100 Continue'),
        pytest.param(
            [b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n', *[b'1\r\nx\r\n'] * 1000],
            0.02,
            id='slow chunks',
        ),
    ],
)
def test_one_timeout_limits_the_whole_request(serve, pieces, pause):
    before = time.monotonic()
    with pytest.raises(ZendeskTimeout):
        send('GET', serve(*pieces, pause=pause), timeout=0.15)
    assert time.monotonic() - before < 10  # the servers would send for 20 seconds or more


def test_the_timeout_applies_over_tls(serve, tls, trusted):
    before = time.monotonic()
    with pytest.raises(ZendeskTimeout):
        send('GET', serve(HEAD, *single_bytes(b'x' * 1000), pause=0.02, tls=tls), timeout=0.3)
    assert time.monotonic() - before < 10


def test_the_timeout_applies_to_a_large_request(serve, tls, trusted):
    """The server reads only the first bytes, so the client cannot send the rest."""
    address = serve(tls=tls)
    before = time.monotonic()
    with pytest.raises(ZendeskError):
        send('POST', address, body={'grant': 'x' * 30_000_000}, timeout=0.5)
    assert time.monotonic() - before < 3  # less than CONNECT_TIMEOUT: the deadline also limits sending


def test_sending_may_take_longer_than_connecting(tls, trusted, monkeypatch):
    monkeypatch.setattr(transport, 'CONNECT_TIMEOUT', 0.2)
    size = 30_000_000

    def read_slowly(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), tls.wrap_socket(connection, server_side=True) as stream:
            time.sleep(0.5)
            received = 0
            while received < size:
                received += len(stream.recv(65536))
            stream.sendall(NO_CONTENT)

    with serving(read_slowly) as port:
        address = f'https://localhost:{port}/'
        assert send('POST', address, body={'grant': 'x' * size}).status_code == 204


@pytest.mark.parametrize('tls_to_proxy', [False, True])
def test_the_timeout_applies_to_the_response_of_a_proxy(serve, tls, trusted, monkeypatch, tls_to_proxy):
    slow = single_bytes(b'HTTP/1.1 200 OK\r\nX: ' + b'y' * 1000)
    monkeypatch.setenv('HTTPS_PROXY', serve(*slow, pause=0.02, tls=tls if tls_to_proxy else None))
    monkeypatch.setenv('NO_PROXY', '')
    before = time.monotonic()
    with pytest.raises(ZendeskError):
        send('GET', 'https://zendesk.example/', timeout=0.3)
    assert time.monotonic() - before < 10


@pytest.mark.parametrize(
    ('addresses', 'timeout', 'expected'),
    [(1, 14, 3), (3, 14, 3), (8, 14, 14 / 9), (1, 3, 1.5)],
)
def test_the_connect_timeout_depends_on_the_addresses_and_the_deadline(monkeypatch, addresses, timeout, expected):
    timeouts = []

    def record(address, timeout, **options):
        timeouts.append(timeout)
        raise TimeoutError

    now = time.monotonic()
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    monkeypatch.setattr(socket, 'getaddrinfo', lambda host, port, **options: [()] * addresses)
    monkeypatch.setattr(urllib3.util.connection, 'create_connection', record)
    with pytest.raises(ZendeskTimeout):
        send('POST', 'http://zendesk.example/', timeout=timeout)
    assert timeouts == [pytest.approx(expected)]


def test_an_unknown_host_raises_a_zendesk_error():
    with pytest.raises(ZendeskError, match=r'\(.*(known|resolution).*\): check the network'):
        send('GET', 'http://zendesk.invalid/')


@pytest.fixture
def silent_address() -> Iterator[tuple[str, int]]:
    """A host and a port that accept no connections: the queue of the listener is full."""
    if sys.platform != 'linux':
        pytest.skip('other systems handle a full connection queue differently')
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(('127.0.0.1', 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()


def test_connecting_has_a_separate_timeout(silent_address, monkeypatch):
    monkeypatch.setattr(transport, 'CONNECT_TIMEOUT', 0.1)
    before = time.monotonic()
    with pytest.raises(ZendeskTimeout):
        send('GET', f'http://127.0.0.1:{silent_address[1]}/')
    assert time.monotonic() - before < 10


def test_eight_silent_addresses_of_a_host_stay_within_the_timeout(silent_address, monkeypatch):
    entry = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, '', silent_address)
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **options: [entry] * 8)
    before = time.monotonic()
    with pytest.raises(ZendeskTimeout):
        send('POST', 'http://zendesk.example/', timeout=1)
    assert time.monotonic() - before < 10  # 8 times CONNECT_TIMEOUT are 24 seconds


def chunks(content: bytes) -> bytes:
    pieces = [content[begin : begin + 5000] for begin in range(0, len(content), 5000)]
    return b''.join(b'%x\r\n%s\r\n' % (len(piece), piece) for piece in [*pieces, b''])


@pytest.mark.parametrize(
    ('head', 'encode'),
    [(b'HTTP/1.1 200 OK\r\n\r\n', bytes), (CHUNKED, chunks), (ZIPPED, gzip.compress)],
    ids=['until closed', 'chunked', 'gzip'],
)
@pytest.mark.parametrize('limit', [10_000, endpoints.MAX_BYTES])
def test_the_size_limit_applies_to_the_decompressed_content(serve, head, encode, limit):
    content = b'x' * limit
    assert send('GET', serve(head + encode(content), then_close=True), max_bytes=limit).content == content
    with pytest.raises(ZendeskError, match=f'larger than {limit} bytes'):
        send('GET', serve(head + encode(content + b'x'), then_close=True), max_bytes=limit)


@pytest.mark.parametrize(
    'head', [b'HTTP/1.1 200 OK\r\n\r\n', CHUNKED + b'-1\r\n'], ids=['until closed', 'chunk of size -1']
)
def test_an_endless_response_raises_at_the_size_limit(serve, head):
    with pytest.raises(ZendeskError, match='larger than 1048576 bytes'):
        send('GET', serve(head, *[b'x' * 65536] * 10_000, pause=0.001), timeout=5)


# --- Errors --- #


@pytest.mark.parametrize(
    'pieces',
    [
        pytest.param([], id='no response'),
        pytest.param([HEAD + b'{'], id='half a body'),
        pytest.param([b'SSH-2.0-OpenSSH_9.2\r\n'], id='not HTTP'),
        pytest.param([CHUNKED + b'zz\r\n'], id='invalid chunk'),
        pytest.param([CHUNKED + b'-2\r\n'], id='chunk of size -2'),
        pytest.param([CHUNKED + b'-ffffffffffffffffffff\r\n'], id='chunk of a large negative size'),
        pytest.param([CHUNKED + b'ffffffffffffffffffff\r\n'], id='chunk of a large size'),
        pytest.param([b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nno gzip'], id='invalid gzip'),
        pytest.param([ZIPPED.replace(b'gzip', b'gzip, gzip') + gzip.compress(gzip.compress(b'{}'))], id='gzip twice'),
        pytest.param([b'HTTP/1.1 200 OK\r\n' + b'X: y\r\n' * 1000 + b'\r\n'], id='a thousand headers'),
        pytest.param([b'HTTP/1.1 200 OK\r\n\r\n' + b'x' * (1024 * 1024 + 1)], id='more than 1 MiB'),
    ],
)
def test_a_malformed_response_raises_a_zendesk_error(serve, pieces):
    with pytest.raises(ZendeskError):
        send('GET', serve(*pieces, then_close=True))


def test_a_closed_port_raises_a_zendesk_error():
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        with pytest.raises(ZendeskError, match=r'\(Connection refused\): check the network'):
            send('GET', f'http://127.0.0.1:{taken.getsockname()[1]}/')


NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
UNKNOWN_AUTHORITY = r'(unable to get local issuer|self.signed) certificate.*\. If a proxy .* REQUESTS_CA_BUNDLE'


@pytest.mark.parametrize(
    ('host', 'validity', 'is_trusted', 'message'),
    [
        ('localhost', {'not_after': NOW - DAY}, True, "failed: certificate has expired. Check this machine's clock"),
        (
            'localhost',
            {'not_before': NOW + DAY},
            True,
            "failed: certificate is not yet valid. Check this machine's clock",
        ),
        ('other.example', {}, True, "failed: Hostname mismatch, .* 'localhost'. Check the configured address"),
        ('localhost', {}, False, UNKNOWN_AUTHORITY),
    ],
)
def test_a_rejected_certificate_is_explained(serve, authority, request, host, validity, is_trusted, message):
    if is_trusted:
        request.getfixturevalue('trusted')
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host, **validity).configure_cert(tls)
    with pytest.raises(ZendeskError, match=message):
        send('GET', serve(NO_CONTENT, tls=tls))


def test_a_server_without_tls_is_explained(serve):
    address = serve(b'HTTP/1.1 400 Bad Request\r\n\r\n', then_close=True).replace('http://', 'https://')
    with pytest.raises(ZendeskError, match=r'TLS connection failed: .*\. Check the configured address'):
        send('GET', address)


def test_a_certificate_from_a_trusted_authority_is_accepted(serve, tls, trusted):
    assert send('GET', serve(NO_CONTENT, tls=tls)).status_code == 204


def test_a_missing_ca_bundle_raises_a_zendesk_error(monkeypatch):
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', '/no/such/file')
    with pytest.raises(
        ZendeskError, match=r'cannot be read: No such file or directory\. Check the path in REQUESTS_CA_BUNDLE'
    ):
        send('GET', 'https://localhost:1/')


def test_an_empty_ca_bundle_raises_a_zendesk_error(monkeypatch, tmp_path):
    (tmp_path / 'empty.pem').touch()
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', str(tmp_path / 'empty.pem'))
    with pytest.raises(ZendeskError, match=r'cannot be read: .*no certificate.* REQUESTS_CA_BUNDLE'):
        send('GET', 'https://localhost:1/')


@pytest.mark.parametrize(
    ('proxy', 'message'),
    [
        ('socks5://127.0.0.1:1', r'uses SOCKS: run pip install "requests\[socks\]"'),
        ('http://127.0.0.1:1', r'The proxy connection failed \(Connection refused\): check HTTPS_PROXY'),
        ('ftp://127.0.0.1:1', r'The proxy connection failed \(.*\): check HTTPS_PROXY'),
        ('http://canary:canary@proxy.invalid', r'The proxy connection failed \(.*known.*\): check HTTPS_PROXY'),
    ],
)
def test_an_unusable_proxy_is_explained_without_its_password(monkeypatch, proxy, message):
    monkeypatch.setenv('HTTPS_PROXY', proxy)
    monkeypatch.setenv('NO_PROXY', '')
    with pytest.raises(ZendeskError, match=message) as raised:
        send('GET', 'https://zendesk.example/')
    assert 'canary' not in str(raised.value)


def test_malformed_headers_are_not_logged(serve, capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        send('GET', serve(b'HTTP/1.1 200 OK\r\nX: y\r\ncanary-token\r\n\r\n', then_close=True))
    assert 'canary' not in caplog.text + ''.join(capfd.readouterr())


# --- Persistent connections --- #

OK = b'HTTP/1.1 200 OK\r\nSet-Cookie: canary=1; Path=/\r\nContent-Length: 2\r\n\r\n{}'


def is_complete(request: bytes) -> bool:
    head, _, body = request.partition(b'\r\n\r\n')
    length = re.search(rb'Content-Length: (\d+)', head)
    return b'\r\n\r\n' in request and len(body) == int(length[1] if length else 0)


class KeepAliveServer:
    """A server that keeps its connections open and records the requests on each."""

    address: str

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.connections: list[list[str]] = []
        self.closes_after = 1000  # responses on a connection
        self.closes_on = lambda requests: False
        self.response = OK
        self.tls = tls

    def talk(self, connection: socket.socket) -> None:
        requests: list[str] = []
        self.connections.append(requests)
        with contextlib.suppress(OSError), maybe_tls(connection, self.tls) as stream:
            for _ in range(self.closes_after):
                request = b''
                while not is_complete(request):
                    piece = stream.recv(65536)
                    if not piece:
                        return
                    request += piece
                requests.append(request.decode())
                if self.closes_on(requests):
                    return
                stream.sendall(self.response)

    @property
    def request_counts(self) -> list[int]:
        """The number of requests on each connection."""
        return [len(requests) for requests in self.connections]


@contextlib.contextmanager
def keep_alive_server(tls: ssl.SSLContext | None = None) -> Iterator[KeepAliveServer]:
    server = KeepAliveServer(tls)
    with serving(server.talk) as port:
        server.address = f'{"https" if tls else "http"}://localhost:{port}/'
        yield server


@pytest.fixture
def monotonic_clock(monkeypatch) -> SimpleNamespace:
    """A clock that moves only when the test advances it."""
    clock = SimpleNamespace(now=time.monotonic())
    monkeypatch.setattr(time, 'monotonic', lambda: clock.now)
    return clock


@pytest.fixture
def server() -> Iterator[KeepAliveServer]:
    with keep_alive_server() as server:
        yield server


@pytest.fixture
def tls_server(tls, trusted) -> Iterator[KeepAliveServer]:
    with keep_alive_server(tls) as server:
        yield server


@pytest.fixture(params=['server', 'tls_server'])
def either_server(request) -> KeepAliveServer:
    return request.getfixturevalue(request.param)


def test_all_requests_share_a_connection(either_server):
    for method in ('GET', 'POST', 'GET', 'DELETE', 'POST', 'GET'):
        assert send(method, either_server.address, body={'grant': 'x'}).content == b'{}'
    assert either_server.request_counts == [6]


def test_threads_never_share_a_connection_at_the_same_time(server):
    send('GET', server.address)
    with ThreadPoolExecutor(8) as pool:
        responses = pool.map(lambda _: send('GET', server.address).content, range(200))
        assert list(responses) == [b'{}'] * 200
    assert len(server.request_counts) <= 8
    assert sum(server.request_counts) == 201


def test_no_header_or_cookie_is_sent_with_the_next_request(server):
    send('GET', server.address, headers={'Authorization': 'Bearer canary'})
    send('GET', server.address)
    [[first, second]] = server.connections
    assert 'Authorization: Bearer canary\r\n' in first
    assert 'canary' not in second


def test_no_password_from_netrc_is_sent(server, monkeypatch, tmp_path):
    (tmp_path / 'netrc').write_text('machine localhost login canary-login password canary-password\n')
    monkeypatch.setenv('NETRC', str(tmp_path / 'netrc'))
    send('GET', server.address)
    assert 'Authorization' not in server.connections[0][0]


def test_the_form_is_sent_in_the_body(server):
    send('POST', server.address, body={'scope': 'a b', 'grant': 'x'})
    [[request]] = server.connections
    assert '\r\nContent-Type: application/x-www-form-urlencoded\r\n' in request
    assert '\r\nAccept-Encoding: gzip, ' in request
    assert request.endswith('\r\n\r\nscope=a+b&grant=x')


def test_a_body_of_bytes_is_sent_unchanged(server):
    send('POST', server.address, headers={'Content-Type': 'application/json'}, body=b'{"a": 1}')
    [[request]] = server.connections
    assert '\r\nContent-Length: 8\r\n' in request
    assert request.count('Content-Type: application/json') == request.count('Content-Type') == 1
    assert request.endswith('\r\n\r\n{"a": 1}')


def test_a_get_succeeds_after_the_server_closes_a_persistent_connection(server):
    server.closes_after = 1
    for _ in range(3):
        assert send('GET', server.address).status_code == 200
        time.sleep(0.02)
    assert server.request_counts == [1, 1, 1]


def test_a_get_is_resent_once_if_a_persistent_connection_breaks(server):
    send('GET', server.address)
    server.closes_on = lambda requests: len(requests) == 2
    assert send('GET', server.address).status_code == 200
    assert server.request_counts == [2, 1]
    server.closes_on = lambda requests: True
    with pytest.raises(ZendeskError, match='connection failed'):
        send('GET', server.address)
    assert server.request_counts == [2, 2, 1]


@pytest.mark.parametrize('method', ['GET', 'POST'])
def test_requests_succeed_if_the_server_announces_each_close(server, method):
    server.response = OK.replace(b'\r\n', b'\r\nConnection: close\r\n', 1)
    server.closes_after = 1
    for _ in range(3):
        assert send(method, server.address, body={'grant': 'x'}).content == b'{}'
    assert server.request_counts == [1, 1, 1]


def test_a_get_is_not_resent_if_a_new_connection_breaks(server):
    server.closes_on = lambda requests: True
    with pytest.raises(ZendeskError, match='connection failed'):
        send('GET', server.address)
    assert server.request_counts == [1]


def test_the_second_attempt_of_a_get_uses_a_new_connection(server):
    ready = threading.Barrier(2)
    server.closes_on = lambda requests: ready.wait() and False  # both wait, so neither reuses the other's connection
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: send('GET', server.address), range(2)))
    assert server.request_counts == [1, 1]
    server.closes_on = lambda requests: len(requests) == 2
    assert send('GET', server.address).content == b'{}'
    assert sorted(server.request_counts) in ([1, 1, 2], [1, 2])


@pytest.mark.parametrize('method', ['POST', 'PUT', 'PATCH', 'DELETE'])
def test_other_methods_are_never_resent(server, method):
    server.closes_on = lambda requests: True
    with pytest.raises(ZendeskError, match='connection failed'):
        send(method, server.address, body={'grant': 'x'})
    assert server.request_counts == [1]
    server.closes_on = lambda requests: len(requests) == 2
    send('GET', server.address)
    with pytest.raises(ZendeskError, match='connection failed'):
        send(method, server.address, body={'grant': 'x'})
    assert server.request_counts == [1, 2]


def test_post_and_delete_reuse_a_connection_only_within_two_seconds(server, monotonic_clock):
    for seconds, method, connections in [
        (0, 'GET', 1),
        (1.9, 'POST', 1),
        (2.1, 'POST', 2),
        (2.1, 'GET', 2),
        (2.1, 'DELETE', 3),
        (1.9, 'DELETE', 3),
    ]:
        monotonic_clock.now += seconds
        send(method, server.address, body={'grant': 'x'})
        assert len(server.connections) == connections, (seconds, method)


def test_post_and_delete_use_new_connections_for_ten_minutes_after_a_failure(server, monotonic_clock):
    send('GET', server.address)
    server.closes_on = lambda requests: len(requests) == 2
    with pytest.raises(ZendeskError):
        send('POST', server.address, body={'grant': 'x'})
    server.closes_on = lambda requests: False
    for seconds, method, connections in [
        (0, 'POST', 2),
        (0, 'POST', 3),
        (0, 'GET', 3),
        (599, 'GET', 4),  # the connection was idle for too long
        (0, 'DELETE', 5),
        (2, 'GET', 5),
        (0, 'DELETE', 5),  # ten minutes have passed
    ]:
        monotonic_clock.now += seconds
        send(method, server.address, body={'grant': 'x'})
        assert len(server.connections) == connections, (seconds, method)


@pytest.mark.parametrize(
    'broken',
    [OK[:-1], b'HTTP/1.1 103 Early Hints\r\n\r\n', b''],
    ids=['half a response', 'interim response', 'new connection'],
)
def test_post_still_reuses_connections_after_other_failures(server, broken):
    """Only a persistent connection that fails before the response shows that the server closes connections early."""
    if broken:
        send('GET', server.address)
        server.response = broken
    server.closes_on = lambda requests: not broken
    with pytest.raises(ZendeskError):
        send('POST', server.address, body={'grant': 'x'}, timeout=0.3)
    server.response, server.closes_on = OK, lambda requests: False
    before = len(server.connections)
    for _ in range(2):
        send('POST', server.address, body={'grant': 'x'})
    assert len(server.connections) == before + 1


def test_a_failure_does_not_stop_reuse_for_other_hosts(server):
    with keep_alive_server() as other:
        for each in (server, other):
            send('GET', each.address)
        server.closes_on = lambda requests: len(requests) == 2
        with pytest.raises(ZendeskError):
            send('POST', server.address, body={'grant': 'x'})
        send('POST', other.address, body={'grant': 'x'})
        assert other.request_counts == [2]


def test_a_connection_is_not_reused_after_a_timeout(server):
    send('GET', server.address)
    server.response = OK[:-1]
    with pytest.raises(ZendeskTimeout):
        send('GET', server.address, timeout=0.1)
    server.response = OK
    assert send('GET', server.address).content == b'{}'
    assert server.request_counts == [2, 1]


def test_a_connection_is_not_reused_after_a_response_that_is_too_large(server):
    server.response = OK.replace(b': 2\r', b': 9999999\r') + b'x' * 2 * endpoints.MAX_BYTES
    with pytest.raises(ZendeskError, match='larger than'):
        send('GET', server.address)
    server.response = OK
    assert send('GET', server.address).content == b'{}'
    assert server.request_counts == [1, 1]


def test_100_continue_is_skipped(either_server):
    either_server.response = b'HTTP/1.1 100 Continue\r\n\r\n' + OK
    for _ in range(2):
        assert send('GET', either_server.address).content == b'{}'
    assert either_server.request_counts == [2]


@pytest.mark.parametrize('interim', [b'101 Switching Protocols', b'102 Processing', b'103 Early Hints'])
@pytest.mark.parametrize('method', ['GET', 'POST'])
def test_other_interim_responses_raise_and_close_the_connection(either_server, interim, method):
    send('GET', either_server.address)
    either_server.response = b'HTTP/1.1 ' + interim + b'\r\nLink: </x>\r\n\r\n' + OK.replace(b'{}', b'[]')
    with pytest.raises(ZendeskError, match='closed early'):
        send(method, either_server.address, body={'grant': 'x'})
    either_server.response = OK
    assert send('GET', either_server.address).content == b'{}'
    assert either_server.request_counts == [2, 1]


# The response fills one read of 8192 bytes. Over TLS, the extra bytes stay in the buffer of the TLS connection.
UNFINISHED_HEAD = OK.replace(b'Content-Length: 2\r\n\r\n{}', b'Content-Length: 2\r\nX: ')
OK_AND_EXTRA_BYTES = UNFINISHED_HEAD.ljust(8192 - 6, b'x') + b'\r\n\r\n{}' + OK.replace(b'{}', b'[]')


@pytest.mark.parametrize('method', ['GET', 'POST'])
def test_extra_bytes_after_a_response_are_not_the_next_response(either_server, method):
    either_server.response = OK_AND_EXTRA_BYTES
    assert send('GET', either_server.address).content == b'{}'
    either_server.response = OK
    time.sleep(0.02)
    assert send(method, either_server.address, body={'grant': 'x'}).content == b'{}'
    assert either_server.request_counts == [1, 1]


UNCLEAR = [
    (b'200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: identity\r\n\r\n{}', b'{}'),
    (b'200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n', b'{}'),
    (b'204 No Content\r\nContent-Length: 2\r\n\r\n', b''),
]
CLEAR = [
    (b'200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n', b'{}'),
    (b'204 No Content\r\nContent-Length: 0\r\n\r\n', b''),
    (b'204 No Content\r\n\r\n', b''),
]


@pytest.mark.parametrize(
    ('response', 'content', 'connections'),
    [*((*each, 2) for each in UNCLEAR), *((*each, 1) for each in CLEAR)],
)
def test_a_connection_is_reused_only_if_the_end_of_the_response_is_clear(
    server, monotonic_clock, response, content, connections
):
    monotonic_clock.now = 1  # the machine has just started
    server.response = b'HTTP/1.1 ' + response
    for _ in range(2):
        assert send('DELETE', server.address, body={'grant': 'x'}).content == content
    assert len(server.connections) == connections


def test_a_connection_is_not_reused_after_30_idle_seconds(server, monotonic_clock):
    for seconds, connections in ((0, 1), (29, 1), (29, 1), (31, 2)):
        monotonic_clock.now += seconds
        send('GET', server.address)
        assert len(server.request_counts) == connections


def test_both_attempts_of_a_get_share_one_timeout(server, monotonic_clock):
    send('GET', server.address)

    def close_after_15_seconds(requests: list[str]) -> bool:
        monotonic_clock.now += 15
        return True

    server.closes_on = close_after_15_seconds
    with pytest.raises(ZendeskTimeout):
        send('GET', server.address)
    assert server.request_counts == [2]


def test_each_process_has_its_own_connections(server, monkeypatch):
    parent, child = os.getpid(), os.getpid() + 1
    for process_id in (parent, child, parent, child):
        monkeypatch.setattr(os, 'getpid', lambda process_id=process_id: process_id)
        send('GET', server.address)
    assert server.request_counts == [2, 2]


def test_the_ca_bundle_is_read_once(tls_server, tls, tmp_path):
    tls_server.closes_after = 1
    send('GET', tls_server.address)
    (tmp_path / 'authority.pem').unlink()
    send('GET', tls_server.address)
    assert tls_server.request_counts == [1, 1]
    with keep_alive_server(tls) as another:
        send('GET', another.address)


def test_only_the_ca_bundle_is_trusted(tls_server, tmp_path):
    send('GET', tls_server.address)
    context = transport._tls_context(str(tmp_path / 'authority.pem'))
    assert context.cert_store_stats()['x509_ca'] == 1


def test_the_ca_bundle_can_be_a_folder(tls, authority, monkeypatch, tmp_path):
    from cryptography import x509  # a dependency of trustme

    # OpenSSL names the file after a hash of the lowercase subject without its outer sequence.
    subject = x509.load_pem_x509_certificate(authority.cert_pem.bytes()).subject
    lower = x509.Name([x509.NameAttribute(part.oid, str(part.value).lower()) for part in subject]).public_bytes()
    name = int.from_bytes(hashlib.sha1(lower[2:], usedforsecurity=False).digest()[:4], 'little')
    authority.cert_pem.write_to_path(str(tmp_path / f'{name:08x}.0'))
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', str(tmp_path))
    with keep_alive_server(tls) as server:
        assert send('GET', server.address).status_code == 200


# --- Proxies --- #


def test_no_proxy_is_used_for_localhost(server, monkeypatch):
    monkeypatch.setenv('HTTP_PROXY', 'http://127.0.0.1:1')
    monkeypatch.setenv('NO_PROXY', '')
    assert send('GET', server.address).status_code == 200


def test_a_request_does_not_change_the_environment(server, monkeypatch):
    """The environment is shared by all threads."""

    def forbid(*args):
        raise AssertionError('the environment was changed')

    with monkeypatch.context() as patch:
        patch.setattr(type(os.environ), '__setitem__', forbid)
        assert send('GET', server.address).status_code == 200


@pytest.mark.parametrize('address', ['http://127.0.0.1:1', '127.0.0.1:1'])
def test_the_proxy_of_the_environment_is_used_for_other_hosts(monkeypatch, address):
    monkeypatch.setenv('HTTPS_PROXY', address)
    monkeypatch.setenv('NO_PROXY', '')
    with pytest.raises(ZendeskError, match='HTTPS_PROXY'):
        send('GET', 'https://zendesk.example/')


def test_a_proxy_receives_the_whole_address_of_an_http_request(server, monkeypatch):
    monkeypatch.setenv('HTTP_PROXY', server.address)
    monkeypatch.setenv('NO_PROXY', '')
    send('GET', 'http://zendesk.example/')
    assert server.connections[0][0].startswith('GET http://zendesk.example/ HTTP/1.1\r\n')


@pytest.fixture
def tunnel(tls, request, monkeypatch) -> Iterator[str]:
    """A proxy, with or without TLS, that connects every request to this machine. Its value is the scheme."""

    def pass_on(source, target) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)

    def talk(connection: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            maybe_tls(connection, tls if request.param == 'https' else None) as client,
        ):
            port = int(re.search(rb'^CONNECT zendesk.example:(\d+) ', client.recv(65536))[1])
            with socket.create_connection(('127.0.0.1', port)) as origin:
                client.sendall(b'HTTP/1.1 200 OK\r\n\r\n')
                threading.Thread(target=pass_on, args=(origin, client), daemon=True).start()
                pass_on(client, origin)

    with serving(talk) as port:
        monkeypatch.setenv('HTTPS_PROXY', f'{request.param}://localhost:{port}')
        monkeypatch.setenv('NO_PROXY', '')
        yield request.param


@pytest.fixture
def distant_server(authority, trusted) -> Iterator[KeepAliveServer]:
    """A server named zendesk.example, which only the tunnel can reach."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert('zendesk.example').configure_cert(context)
    with keep_alive_server(context) as server:
        server.address = server.address.replace('localhost', 'zendesk.example')
        yield server


@pytest.mark.parametrize('tunnel', ['http', 'https'], indirect=True)
def test_extra_bytes_through_a_proxy_are_not_the_next_response(tunnel, distant_server):
    distant_server.response = OK_AND_EXTRA_BYTES
    assert send('GET', distant_server.address).content == b'{}'
    distant_server.response = OK
    time.sleep(0.02)
    assert send('GET', distant_server.address).content == b'{}'
    assert distant_server.request_counts == [1, 1]


@pytest.mark.parametrize('tunnel', ['http'], indirect=True)
def test_requests_through_a_proxy_share_a_connection(tunnel, distant_server):
    for method in ('GET', 'POST', 'GET'):
        assert send(method, distant_server.address, body={'grant': 'x'}).content == b'{}'
    assert distant_server.request_counts == [3]


@pytest.mark.parametrize('tunnel', ['http', 'https'], indirect=True)
@pytest.mark.parametrize(('name', 'valid'), [('zendesk.example', True), ('another.example', False)])
def test_certificates_are_verified_through_a_proxy(tunnel, authority, trusted, name, valid):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    with keep_alive_server(context) as server:
        address = server.address.replace('localhost', 'zendesk.example')
        if valid:
            for _ in range(2):
                assert send('GET', address).content == b'{}'
            assert server.request_counts == ([2] if tunnel == 'http' else [1, 1])  # no reuse with TLS to the proxy
        else:
            with pytest.raises(ZendeskError, match='Hostname mismatch'):
                send('GET', address)
            assert server.request_counts in ([], [0])
