"""One HTTP request and its limits, against servers that misbehave."""

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


def lines(connection: socket.socket, tls: ssl.SSLContext | None) -> socket.socket:
    return connection if tls is None else tls.wrap_socket(connection, server_side=True)


@pytest.fixture
def serve():
    """A function that starts a server: it sends these pieces, and then closes the connection or keeps it open."""
    over = threading.Event()
    with contextlib.ExitStack() as stack:

        def start(*pieces: bytes, pause: float = 0, then_close: bool = False, tls: ssl.SSLContext | None = None) -> str:
            def talk(connection: socket.socket) -> None:
                # A client that hangs up or distrusts the certificate is expected here.
                with contextlib.suppress(OSError), lines(connection, tls) as line:
                    line.recv(65536)
                    for piece in pieces:
                        line.sendall(piece)
                        if over.wait(pause):
                            return
                    if not then_close:
                        over.wait(30)

            return f'{"https" if tls else "http"}://localhost:{stack.enter_context(serving(talk))}/'

        yield start
        over.set()


@pytest.fixture
def trusted(authority, monkeypatch, tmp_path) -> None:
    """The authority is trusted."""
    authority.cert_pem.write_to_path(str(tmp_path / 'authority.pem'))
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', str(tmp_path / 'authority.pem'))


def single_bytes(text: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in text]


# --- The response --- #


def test_a_response_is_returned_whatever_its_status(serve):
    pieces = single_bytes(b'HTTP/1.1 418 Teapot\r\nContent-Length: 8\r\n\r\n{"a": 1}')
    response = transport.send('GET', serve(*pieces, pause=0.001))
    assert (response.status_code, response.content, response.json()) == (418, b'{"a": 1}', {'a': 1})
    assert response.headers['content-length'] == '8'


@pytest.mark.parametrize('content', [b'', b'{', b'\xff\xfe\x00', b'[' * 200_000, b'1' * 5000])
def test_content_that_is_not_json_is_none(content):
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
        pytest.param(single_bytes(b'HTTP/1.1 200 OK\r\nX: ' + b'y' * 1000), 0.02, id='a header byte now and then'),
        pytest.param([HEAD, *single_bytes(b'x' * 1000)], 0.02, id='a body byte now and then'),
        pytest.param([b'HTTP/1.1 100 Continue\r\n\r\n'] * 1000, 0.02, id='100 Continue again and again'),
        pytest.param(
            [b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n', *[b'1\r\nx\r\n'] * 1000], 0.02, id='chunks'
        ),
    ],
)
def test_one_time_limit_holds_for_the_whole_exchange(serve, pieces, pause):
    before = time.monotonic()
    with pytest.raises(TimeoutError):
        transport.send('GET', serve(*pieces, pause=pause), timeout=0.15)
    assert time.monotonic() - before < 10  # the servers go on for 20 seconds and more


def test_the_time_limit_holds_over_tls(serve, tls, trusted):
    before = time.monotonic()
    with pytest.raises(TimeoutError):
        transport.send('GET', serve(HEAD, *single_bytes(b'x' * 1000), pause=0.02, tls=tls), timeout=0.3)
    assert time.monotonic() - before < 10


@pytest.mark.parametrize(('timeout', 'total'), [(None, 14), (3, 3)])
def test_a_request_has_its_time_limits(monkeypatch, timeout, total):
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


def test_each_read_has_the_time_that_is_left(monkeypatch):
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


@pytest.mark.skipif(sys.platform != 'linux', reason='a full queue of connections is another thing elsewhere')
def test_connecting_has_a_separate_limit(monkeypatch):
    monkeypatch.setattr(transport, 'CONNECT_TIMEOUT', 0.1)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(('127.0.0.1', 0), backlog=0))
        for _ in range(3):  # they fill the queue, and the next connections are not accepted
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        before = time.monotonic()
        with pytest.raises(TimeoutError):
            transport.send('GET', f'http://127.0.0.1:{listener.getsockname()[1]}/')
    assert time.monotonic() - before < 10


def test_a_response_of_the_largest_size_is_returned(serve):
    content = b'x' * transport.MAX_RESPONSE_SIZE
    response = transport.send('GET', serve(b'HTTP/1.1 200 OK\r\n\r\n' + content, then_close=True))
    assert response.content == content


def test_an_endless_response_is_not_read_to_its_end(serve):
    with pytest.raises(ConnectionError, match='larger than 1048576 bytes'):
        transport.send('GET', serve(b'HTTP/1.1 200 OK\r\n\r\n', *[b'x' * 65536] * 10_000, pause=0.001), timeout=5)


# --- What goes wrong --- #


@pytest.mark.parametrize(
    'pieces',
    [
        pytest.param([], id='nothing'),
        pytest.param([HEAD + b'{'], id='half a body'),
        pytest.param([b'SSH-2.0-OpenSSH_9.2\r\n'], id='no HTTP'),
        pytest.param([b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n'], id='no chunk'),
        pytest.param([b'HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nno gzip'], id='no gzip'),
        pytest.param([b'HTTP/1.1 200 OK\r\n' + b'X: y\r\n' * 1000 + b'\r\n'], id='a thousand headers'),
        pytest.param([b'HTTP/1.1 200 OK\r\n\r\n' + b'x' * (1024 * 1024 + 1)], id='more than 1 MiB'),
    ],
)
def test_a_malformed_response_is_a_connection_error(serve, pieces):
    with pytest.raises(ConnectionError):
        transport.send('GET', serve(*pieces, then_close=True))


def test_a_closed_port_is_a_connection_error():
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        with pytest.raises(ConnectionError, match='check the network'):
            transport.send('GET', f'http://127.0.0.1:{taken.getsockname()[1]}/')


def test_a_server_without_tls_is_an_error_of_the_certificate(serve):
    address = serve(b'HTTP/1.1 400 Bad Request\r\n\r\n', then_close=True).replace('http://', 'https://')
    with pytest.raises(ConnectionError, match='REQUESTS_CA_BUNDLE'):
        transport.send('GET', address)


def test_a_certificate_of_an_unknown_authority_is_not_trusted(serve, tls):
    with pytest.raises(ConnectionError, match='certificate is not trusted'):
        transport.send('GET', serve(NO_CONTENT, tls=tls))


def test_a_certificate_of_a_known_authority_is_trusted(serve, tls, trusted):
    assert transport.send('GET', serve(NO_CONTENT, tls=tls)).status_code == 204


def test_a_missing_ca_bundle_is_a_connection_error(monkeypatch):
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', '/no/such/file')
    with pytest.raises(ConnectionError):
        transport.send('GET', 'https://localhost:1/')


def test_mutilated_headers_are_not_logged(serve, capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        transport.send('GET', serve(b'HTTP/1.1 200 OK\r\nX: y\r\ncanary-token\r\n\r\n', then_close=True))
    assert 'canary' not in caplog.text + ''.join(capfd.readouterr())


# --- Kept connections --- #

OK = b'HTTP/1.1 200 OK\r\nSet-Cookie: canary=1; Path=/\r\nContent-Length: 2\r\n\r\n{}'


class Keeper:
    """A server that keeps its connections open, and the requests that it got over each."""

    address: str

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.connections: list[list[str]] = []
        self.closes_after = 1000  # responses on a connection
        self.hangs_up_on = lambda requests: False
        self.response = OK
        self.tls = tls

    def talk(self, connection: socket.socket) -> None:
        requests: list[str] = []
        self.connections.append(requests)
        with contextlib.suppress(OSError), lines(connection, self.tls) as line:
            for _ in range(self.closes_after):
                request = b''
                while not request.endswith(b'grant=x' if b'Content-Length' in request else b'\r\n\r\n'):
                    piece = line.recv(65536)
                    if not piece:
                        return
                    request += piece
                requests.append(request.decode())
                if self.hangs_up_on(requests):
                    return
                line.sendall(self.response)

    @property
    def got(self) -> list[int]:
        """How many requests it got over each connection."""
        return [len(requests) for requests in self.connections]


@contextlib.contextmanager
def keeping(tls: ssl.SSLContext | None = None) -> Iterator[Keeper]:
    keeper = Keeper(tls)
    with serving(keeper.talk) as port:
        keeper.address = f'{"https" if tls else "http"}://localhost:{port}/'
        yield keeper


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    with keeping() as keeper:
        yield keeper


@pytest.fixture
def tls_keeper(tls, trusted) -> Iterator[Keeper]:
    with keeping(tls) as keeper:
        yield keeper


@pytest.fixture(params=['keeper', 'tls_keeper'])
def either_keeper(request) -> Keeper:
    return request.getfixturevalue(request.param)


def test_gets_share_a_connection(either_keeper):
    for _ in range(5):
        assert transport.send('GET', either_keeper.address).content == b'{}'
    assert either_keeper.got == [5]


def test_threads_never_share_a_connection_at_the_same_time(keeper):
    transport.send('GET', keeper.address)
    with ThreadPoolExecutor(8) as pool:
        responses = pool.map(lambda _: transport.send('GET', keeper.address).content, range(200))
        assert list(responses) == [b'{}'] * 200
    assert len(keeper.got) <= 8
    assert sum(keeper.got) == 201


def test_no_header_or_cookie_reaches_the_next_request(keeper):
    transport.send('GET', keeper.address, headers={'Authorization': 'Bearer canary'})
    transport.send('GET', keeper.address)
    [[first, second]] = keeper.connections
    assert 'Authorization: Bearer canary\r\n' in first
    assert 'canary' not in second


def test_no_password_from_netrc_is_sent(keeper, monkeypatch, tmp_path):
    (tmp_path / 'netrc').write_text('machine localhost login canary-login password canary-password\n')
    monkeypatch.setenv('NETRC', str(tmp_path / 'netrc'))
    transport.send('GET', keeper.address)
    assert 'Authorization' not in keeper.connections[0][0]


def test_data_is_sent_as_a_form(keeper):
    transport.send('POST', keeper.address, data={'scope': 'a b', 'grant': 'x'})
    [[request]] = keeper.connections
    assert '\r\nContent-Type: application/x-www-form-urlencoded\r\n' in request
    assert request.endswith('\r\n\r\nscope=a+b&grant=x')


def test_a_kept_connection_closed_by_the_server_is_no_error(keeper):
    keeper.closes_after = 1
    for _ in range(3):
        assert transport.send('GET', keeper.address).status_code == 200
        time.sleep(0.02)
    assert keeper.got == [1, 1, 1]


def test_a_get_is_resent_once_if_a_kept_connection_breaks(keeper):
    transport.send('GET', keeper.address)
    keeper.hangs_up_on = lambda requests: len(requests) == 2
    assert transport.send('GET', keeper.address).status_code == 200
    assert keeper.got == [2, 1]
    keeper.hangs_up_on = lambda requests: True
    with pytest.raises(ConnectionError, match='connection failed'):
        transport.send('GET', keeper.address)
    assert sum(keeper.got) <= 5


def test_a_get_is_not_resent_if_a_new_connection_breaks(keeper):
    keeper.hangs_up_on = lambda requests: True
    with pytest.raises(ConnectionError, match='connection failed'):
        transport.send('GET', keeper.address)
    assert keeper.got == [1]


def test_a_post_uses_a_new_connection_and_is_never_resent(keeper):
    for method in ('GET', 'POST', 'DELETE'):
        transport.send(method, keeper.address, data={'grant': 'x'})
    assert keeper.got == [1, 1, 1]
    keeper.hangs_up_on = lambda requests: True
    with pytest.raises(ConnectionError, match='connection failed'):
        transport.send('POST', keeper.address, data={'grant': 'x'})
    assert keeper.got == [1, 1, 1, 1]


def test_a_late_response_is_not_taken_for_the_next_one(keeper):
    transport.send('GET', keeper.address)
    keeper.response = OK[:-1]
    with pytest.raises(TimeoutError):
        transport.send('GET', keeper.address, timeout=0.1)
    keeper.response = OK
    assert transport.send('GET', keeper.address).content == b'{}'
    assert keeper.got == [2, 1]


def test_a_connection_is_not_reused_after_an_unread_response(keeper):
    keeper.response = OK.replace(b': 2\r', b': 9999999\r') + b'x' * 2 * transport.MAX_RESPONSE_SIZE
    with pytest.raises(ConnectionError, match='larger than'):
        transport.send('GET', keeper.address)
    keeper.response = OK
    assert transport.send('GET', keeper.address).content == b'{}'
    assert keeper.got == [1, 1]


@pytest.mark.parametrize('interim', [b'100 Continue', b'102 Processing', b'103 Early Hints'])
def test_an_interim_response_is_skipped(either_keeper, interim):
    either_keeper.response = b'HTTP/1.1 ' + interim + b'\r\nLink: </x>\r\n\r\n' + OK.replace(b'{}', b'[]')
    assert transport.send('GET', either_keeper.address).content == b'[]'
    either_keeper.response = OK
    assert transport.send('GET', either_keeper.address).content == b'{}'


def test_bytes_behind_a_response_do_not_start_the_next_one(either_keeper):
    # As much as is read at a time; what is behind it stays where only the TLS connection knows of it.
    head = OK.replace(b'Content-Length: 2\r\n\r\n{}', b'Content-Length: 2\r\nX: ')
    filled = head + b'x' * (8192 - len(head) - 6) + b'\r\n\r\n{}'
    either_keeper.response = filled + OK.replace(b'{}', b'[]')
    assert transport.send('GET', either_keeper.address).content == b'{}'
    either_keeper.response = OK
    time.sleep(0.02)
    assert transport.send('GET', either_keeper.address).content == b'{}'
    assert either_keeper.got == [1, 1]


def test_a_connection_is_not_reused_after_30_idle_seconds(keeper, monkeypatch):
    began = now = time.monotonic()
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    for seconds, connections in ((0, 1), (29, 1), (58, 1), (88, 2)):
        now = began + seconds
        transport.send('GET', keeper.address)
        assert len(keeper.got) == connections


def test_the_time_limit_holds_for_both_attempts_of_a_get(keeper, monkeypatch):
    transport.send('GET', keeper.address)
    totals, real_send = [], requests.adapters.HTTPAdapter.send
    now = time.monotonic()

    def send(self, request, **kwargs):
        nonlocal now
        totals.append(kwargs['timeout'].total)
        now += 5
        return real_send(self, request, **kwargs)

    keeper.hangs_up_on = lambda requests: len(requests) == 2
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    monkeypatch.setattr(requests.adapters.HTTPAdapter, 'send', send)
    transport.send('GET', keeper.address)
    assert totals == pytest.approx([14, 9])


def test_each_process_has_its_own_connections(keeper, monkeypatch):
    parent, child = os.getpid(), os.getpid() + 1
    for process_id in (parent, child, parent, child):
        monkeypatch.setattr(os, 'getpid', lambda process_id=process_id: process_id)
        transport.send('GET', keeper.address)
    assert keeper.got == [2, 2]


def test_the_certificates_of_the_authorities_are_read_once(tls_keeper, tmp_path):
    transport.send('POST', tls_keeper.address, data={'grant': 'x'})
    (tmp_path / 'authority.pem').unlink()
    transport.send('POST', tls_keeper.address, data={'grant': 'x'})
    assert tls_keeper.got == [1, 1]


def test_the_authorities_can_be_a_folder(tls, authority, monkeypatch, tmp_path):
    from cryptography import x509  # trustme needs it

    # OpenSSL's name for the file: a hash of the subject in lower case, without the outer sequence.
    subject = x509.load_pem_x509_certificate(authority.cert_pem.bytes()).subject
    lower = x509.Name([x509.NameAttribute(part.oid, str(part.value).lower()) for part in subject]).public_bytes()
    name = int.from_bytes(hashlib.sha1(lower[2:], usedforsecurity=False).digest()[:4], 'little')
    authority.cert_pem.write_to_path(str(tmp_path / f'{name:08x}.0'))
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', str(tmp_path))
    with keeping(tls) as keeper:
        assert transport.send('GET', keeper.address).status_code == 200


# --- Proxies --- #


def test_no_proxy_is_used_on_this_machine(keeper, monkeypatch):
    monkeypatch.setenv('HTTP_PROXY', 'http://127.0.0.1:1')
    monkeypatch.setenv('NO_PROXY', '')
    assert transport.send('GET', keeper.address).status_code == 200


def test_a_request_does_not_change_the_environment(keeper, monkeypatch):
    """All threads share the environment."""

    def forbid(*args):
        raise AssertionError('the environment was changed')

    with monkeypatch.context() as patch:
        patch.setattr(type(os.environ), '__setitem__', forbid)
        assert transport.send('GET', keeper.address).status_code == 200


def test_the_proxy_of_the_environment_is_used_elsewhere(monkeypatch):
    monkeypatch.setenv('HTTPS_PROXY', 'http://127.0.0.1:1')
    monkeypatch.setenv('NO_PROXY', '')
    with pytest.raises(ConnectionError, match='HTTPS_PROXY'):
        transport.send('GET', 'https://zendesk.example/')


@pytest.fixture
def tunnel(tls, request, monkeypatch) -> Iterator[None]:
    """A proxy, with or without TLS, that connects to this machine whatever host is requested."""

    def pass_on(source, target) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)

    def talk(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), lines(connection, tls if request.param == 'https' else None) as client:
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
def test_the_same_certificates_are_required_through_a_proxy(tunnel, authority, trusted, name, valid):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    with keeping(context) as keeper:
        address = keeper.address.replace('localhost', 'zendesk.example')
        if valid:
            for _ in range(2):
                assert transport.send('GET', address).content == b'{}'
            assert keeper.got == [2]
        else:
            with pytest.raises(ConnectionError, match='certificate is not trusted'):
                transport.send('GET', address)
            assert keeper.got in ([], [0])
