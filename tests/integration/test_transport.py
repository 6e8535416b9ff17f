"""HTTP requests and their limits, against servers that misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import io
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

import pytest
import requests
from servers import serving

from zendesk_oauth import Response, transport

HEAD = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n'
NO_CONTENT = b'HTTP/1.1 204 No Content\r\n\r\n'


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
    response = transport.send('GET', serve(*pieces, pause=0.001))
    assert (response.status_code, response.content, response.json()) == (418, b'{"a": 1}', {'a': 1})
    assert response.headers['content-length'] == '8'


@pytest.mark.parametrize('content', [b'', b'{', b'\xff\xfe\x00', b'[' * 200_000, b'1' * 5000])
def test_json_returns_none_for_invalid_content(content):
    assert Response(200, {}, content).json() is None


def test_repr_shows_neither_headers_nor_content():
    assert repr(Response(200, {'Set-Cookie': 'canary'}, b'canary')) == 'Response(status_code=200)'


def test_a_redirect_is_not_followed(serve):
    target = serve(NO_CONTENT, then_close=True).encode()
    response = transport.send('GET', serve(b'HTTP/1.1 302 Found\r\nLocation: ' + target + b'\r\n\r\n', then_close=True))
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
    with pytest.raises(TimeoutError):
        transport.send('GET', serve(*pieces, pause=pause), timeout=0.15)
    assert time.monotonic() - before < 10  # the servers would send for 20 seconds or more


def test_the_timeout_applies_over_tls(serve, tls, trusted):
    before = time.monotonic()
    with pytest.raises(TimeoutError):
        transport.send('GET', serve(HEAD, *single_bytes(b'x' * 1000), pause=0.02, tls=tls), timeout=0.3)
    assert time.monotonic() - before < 10


@pytest.mark.parametrize(('timeout', 'total'), [(None, 14), (3, 3)])
def test_a_request_has_a_connect_timeout_and_a_total_timeout(monkeypatch, timeout, total):
    limits = []

    def record(self, request, **kwargs):
        limits.append((kwargs['timeout'].connect_timeout, kwargs['timeout'].total, kwargs['stream']))
        raise requests.ConnectionError

    now = time.monotonic()
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    monkeypatch.setattr(requests.adapters.HTTPAdapter, 'send', record)
    with pytest.raises(ConnectionError):
        transport.send('POST', 'http://localhost/', timeout=timeout)
    assert limits == [(3, pytest.approx(total), True)]


def test_each_read_can_take_the_remaining_time(monkeypatch):
    class Socket:
        timeouts: list[float] = []  # noqa: RUF012

        def settimeout(self, seconds):
            self.timeouts.append(seconds)

    now = [100.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    transport._call.set(transport._Call(114.0))
    stream = transport._TimedStream(Socket(), io.BytesIO(b'abcdef'))
    for now[0] in (100.0, 103.0, 113.5):
        assert stream.readinto(bytearray(1)) == 1
    now[0] = 114.0
    with pytest.raises(TimeoutError):
        stream.readinto(bytearray(1))
    assert Socket.timeouts == [14.0, 11.0, 0.5]


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems handle a full connection queue differently')
def test_connecting_has_a_separate_timeout(monkeypatch):
    monkeypatch.setattr(transport, 'CONNECT_TIMEOUT', 0.1)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(('127.0.0.1', 0), backlog=0))
        for _ in range(3):  # fill the queue, so that no more connections are accepted
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        before = time.monotonic()
        with pytest.raises(TimeoutError):
            transport.send('GET', f'http://127.0.0.1:{listener.getsockname()[1]}/')
    assert time.monotonic() - before < 10


def test_a_response_of_the_maximum_size_is_returned(serve):
    content = b'x' * transport.MAX_RESPONSE_SIZE
    response = transport.send('GET', serve(b'HTTP/1.1 200 OK\r\n\r\n' + content, then_close=True))
    assert response.content == content


def test_an_endless_response_raises_at_the_size_limit(serve):
    with pytest.raises(ConnectionError, match='larger than 1048576 bytes'):
        transport.send('GET', serve(b'HTTP/1.1 200 OK\r\n\r\n', *[b'x' * 65536] * 10_000, pause=0.001), timeout=5)


# --- Errors --- #


@pytest.mark.parametrize(
    'pieces',
    [
        pytest.param([], id='no response'),
        pytest.param([HEAD + b'{'], id='half a body'),
        pytest.param([b'SSH-2.0-OpenSSH_9.2\r\n'], id='not HTTP'),
        pytest.param([b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n'], id='invalid chunk'),
        pytest.param([b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nno gzip'], id='invalid gzip'),
        pytest.param([b'HTTP/1.1 200 OK\r\n' + b'X: y\r\n' * 1000 + b'\r\n'], id='a thousand headers'),
        pytest.param([b'HTTP/1.1 200 OK\r\n\r\n' + b'x' * (1024 * 1024 + 1)], id='more than 1 MiB'),
    ],
)
def test_a_malformed_response_raises_a_connection_error(serve, pieces):
    with pytest.raises(ConnectionError):
        transport.send('GET', serve(*pieces, then_close=True))


def test_a_closed_port_raises_a_connection_error():
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        with pytest.raises(ConnectionError, match='check the network'):
            transport.send('GET', f'http://127.0.0.1:{taken.getsockname()[1]}/')


def test_a_server_without_tls_raises_an_error_about_certificates(serve):
    address = serve(b'HTTP/1.1 400 Bad Request\r\n\r\n', then_close=True).replace('http://', 'https://')
    with pytest.raises(ConnectionError, match='REQUESTS_CA_BUNDLE'):
        transport.send('GET', address)


def test_a_certificate_from_an_unknown_authority_is_rejected(serve, tls):
    with pytest.raises(ConnectionError, match='certificate is not trusted'):
        transport.send('GET', serve(NO_CONTENT, tls=tls))


def test_a_certificate_from_a_trusted_authority_is_accepted(serve, tls, trusted):
    assert transport.send('GET', serve(NO_CONTENT, tls=tls)).status_code == 204


def test_a_missing_ca_bundle_raises_a_connection_error(monkeypatch):
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', '/no/such/file')
    with pytest.raises(ConnectionError):
        transport.send('GET', 'https://localhost:1/')


def test_malformed_headers_are_not_logged(serve, capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        transport.send('GET', serve(b'HTTP/1.1 200 OK\r\nX: y\r\ncanary-token\r\n\r\n', then_close=True))
    assert 'canary' not in caplog.text + ''.join(capfd.readouterr())


# --- Kept connections --- #

OK = b'HTTP/1.1 200 OK\r\nSet-Cookie: canary=1; Path=/\r\nContent-Length: 2\r\n\r\n{}'


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
                while not request.endswith(b'grant=x' if b'Content-Length' in request else b'\r\n\r\n'):
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


def test_get_requests_share_a_connection(either_server):
    for _ in range(5):
        assert transport.send('GET', either_server.address).content == b'{}'
    assert either_server.request_counts == [5]


def test_threads_never_share_a_connection_at_the_same_time(server):
    transport.send('GET', server.address)
    with ThreadPoolExecutor(8) as pool:
        responses = pool.map(lambda _: transport.send('GET', server.address).content, range(200))
        assert list(responses) == [b'{}'] * 200
    assert len(server.request_counts) <= 8
    assert sum(server.request_counts) == 201


def test_no_header_or_cookie_is_sent_with_the_next_request(server):
    transport.send('GET', server.address, headers={'Authorization': 'Bearer canary'})
    transport.send('GET', server.address)
    [[first, second]] = server.connections
    assert 'Authorization: Bearer canary\r\n' in first
    assert 'canary' not in second


def test_no_password_from_netrc_is_sent(server, monkeypatch, tmp_path):
    (tmp_path / 'netrc').write_text('machine localhost login canary-login password canary-password\n')
    monkeypatch.setenv('NETRC', str(tmp_path / 'netrc'))
    transport.send('GET', server.address)
    assert 'Authorization' not in server.connections[0][0]


def test_data_is_sent_as_a_form(server):
    transport.send('POST', server.address, data={'scope': 'a b', 'grant': 'x'})
    [[request]] = server.connections
    assert '\r\nContent-Type: application/x-www-form-urlencoded\r\n' in request
    assert request.endswith('\r\n\r\nscope=a+b&grant=x')


def test_a_get_succeeds_after_the_server_closes_a_kept_connection(server):
    server.closes_after = 1
    for _ in range(3):
        assert transport.send('GET', server.address).status_code == 200
        time.sleep(0.02)
    assert server.request_counts == [1, 1, 1]


def test_a_get_is_resent_once_if_a_kept_connection_breaks(server):
    transport.send('GET', server.address)
    server.closes_on = lambda requests: len(requests) == 2
    assert transport.send('GET', server.address).status_code == 200
    assert server.request_counts == [2, 1]
    server.closes_on = lambda requests: True
    with pytest.raises(ConnectionError, match='connection failed'):
        transport.send('GET', server.address)
    assert sum(server.request_counts) <= 5


def test_a_get_is_not_resent_if_a_new_connection_breaks(server):
    server.closes_on = lambda requests: True
    with pytest.raises(ConnectionError, match='connection failed'):
        transport.send('GET', server.address)
    assert server.request_counts == [1]


def test_a_post_uses_a_new_connection_and_is_never_resent(server):
    for method in ('GET', 'POST', 'DELETE'):
        transport.send(method, server.address, data={'grant': 'x'})
    assert server.request_counts == [1, 1, 1]
    server.closes_on = lambda requests: True
    with pytest.raises(ConnectionError, match='connection failed'):
        transport.send('POST', server.address, data={'grant': 'x'})
    assert server.request_counts == [1, 1, 1, 1]


def test_a_late_response_is_not_returned_for_the_next_request(server):
    transport.send('GET', server.address)
    server.response = OK[:-1]
    with pytest.raises(TimeoutError):
        transport.send('GET', server.address, timeout=0.1)
    server.response = OK
    assert transport.send('GET', server.address).content == b'{}'
    assert server.request_counts == [2, 1]


def test_a_connection_is_not_reused_after_an_unread_response(server):
    server.response = OK.replace(b': 2\r', b': 9999999\r') + b'x' * 2 * transport.MAX_RESPONSE_SIZE
    with pytest.raises(ConnectionError, match='larger than'):
        transport.send('GET', server.address)
    server.response = OK
    assert transport.send('GET', server.address).content == b'{}'
    assert server.request_counts == [1, 1]


@pytest.mark.parametrize('interim', [b'100 Continue', b'102 Processing', b'103 Early Hints'])
def test_an_interim_response_is_skipped(either_server, interim):
    either_server.response = b'HTTP/1.1 ' + interim + b'\r\nLink: </x>\r\n\r\n' + OK.replace(b'{}', b'[]')
    assert transport.send('GET', either_server.address).content == b'[]'
    either_server.response = OK
    assert transport.send('GET', either_server.address).content == b'{}'


def test_extra_bytes_after_a_response_are_not_the_next_response(either_server):
    # The response fills one read of 8192 bytes. Over TLS, the extra bytes stay in the buffer of the TLS connection.
    head = OK.replace(b'Content-Length: 2\r\n\r\n{}', b'Content-Length: 2\r\nX: ')
    filled = head + b'x' * (8192 - len(head) - 6) + b'\r\n\r\n{}'
    either_server.response = filled + OK.replace(b'{}', b'[]')
    assert transport.send('GET', either_server.address).content == b'{}'
    either_server.response = OK
    time.sleep(0.02)
    assert transport.send('GET', either_server.address).content == b'{}'
    assert either_server.request_counts == [1, 1]


def test_a_connection_is_not_reused_after_30_idle_seconds(server, monkeypatch):
    began = now = time.monotonic()
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    for seconds, connections in ((0, 1), (29, 1), (58, 1), (88, 2)):
        now = began + seconds
        transport.send('GET', server.address)
        assert len(server.request_counts) == connections


def test_both_attempts_of_a_get_share_one_timeout(server, monkeypatch):
    transport.send('GET', server.address)
    totals, real_send = [], requests.adapters.HTTPAdapter.send
    now = time.monotonic()

    def send(self, request, **kwargs):
        nonlocal now
        totals.append(kwargs['timeout'].total)
        now += 5
        return real_send(self, request, **kwargs)

    server.closes_on = lambda requests: len(requests) == 2
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    monkeypatch.setattr(requests.adapters.HTTPAdapter, 'send', send)
    transport.send('GET', server.address)
    assert totals == pytest.approx([14, 9])


def test_each_process_has_its_own_connections(server, monkeypatch):
    parent, child = os.getpid(), os.getpid() + 1
    for process_id in (parent, child, parent, child):
        monkeypatch.setattr(os, 'getpid', lambda process_id=process_id: process_id)
        transport.send('GET', server.address)
    assert server.request_counts == [2, 2]


def test_the_ca_bundle_is_read_once(tls_server, tmp_path):
    transport.send('POST', tls_server.address, data={'grant': 'x'})
    (tmp_path / 'authority.pem').unlink()
    transport.send('POST', tls_server.address, data={'grant': 'x'})
    assert tls_server.request_counts == [1, 1]


def test_the_ca_bundle_can_be_a_folder(tls, authority, monkeypatch, tmp_path):
    from cryptography import x509  # a dependency of trustme

    # OpenSSL names the file after a hash of the lowercase subject without its outer sequence.
    subject = x509.load_pem_x509_certificate(authority.cert_pem.bytes()).subject
    lower = x509.Name([x509.NameAttribute(part.oid, str(part.value).lower()) for part in subject]).public_bytes()
    name = int.from_bytes(hashlib.sha1(lower[2:], usedforsecurity=False).digest()[:4], 'little')
    authority.cert_pem.write_to_path(str(tmp_path / f'{name:08x}.0'))
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', str(tmp_path))
    with keep_alive_server(tls) as server:
        assert transport.send('GET', server.address).status_code == 200


# --- Proxies --- #


def test_no_proxy_is_used_for_localhost(server, monkeypatch):
    monkeypatch.setenv('HTTP_PROXY', 'http://127.0.0.1:1')
    monkeypatch.setenv('NO_PROXY', '')
    assert transport.send('GET', server.address).status_code == 200


def test_a_request_does_not_change_the_environment(server, monkeypatch):
    """The environment is shared by all threads."""

    def forbid(*args):
        raise AssertionError('the environment was changed')

    with monkeypatch.context() as patch:
        patch.setattr(type(os.environ), '__setitem__', forbid)
        assert transport.send('GET', server.address).status_code == 200


def test_the_proxy_of_the_environment_is_used_for_other_hosts(monkeypatch):
    monkeypatch.setenv('HTTPS_PROXY', 'http://127.0.0.1:1')
    monkeypatch.setenv('NO_PROXY', '')
    with pytest.raises(ConnectionError, match='HTTPS_PROXY'):
        transport.send('GET', 'https://zendesk.example/')


@pytest.fixture
def tunnel(tls, request, monkeypatch) -> Iterator[None]:
    """A proxy, with or without TLS, that connects every request to this machine."""

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
        yield


@pytest.mark.parametrize('tunnel', ['http', 'https'], indirect=True)
@pytest.mark.parametrize(('name', 'valid'), [('zendesk.example', True), ('another.example', False)])
def test_certificates_are_verified_through_a_proxy(tunnel, authority, trusted, name, valid):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    with keep_alive_server(context) as server:
        address = server.address.replace('localhost', 'zendesk.example')
        if valid:
            for _ in range(2):
                assert transport.send('GET', address).content == b'{}'
            assert server.request_counts == [2]
        else:
            with pytest.raises(ConnectionError, match='certificate is not trusted'):
                transport.send('GET', address)
            assert server.request_counts in ([], [0])
