"""One HTTP call and its limits, against servers that misbehave."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from servers import environment, listening, serving

from zendesk_oauth import transport as http_client

HEAD = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n'


@pytest.fixture
def serve():
    """Return a function that starts a server; it sends each caller the given pieces, and then keeps the line open."""
    over = threading.Event()
    threads = []

    def start(*pieces: bytes, pause: float = 0, then_close: bool = False, tls: ssl.SSLContext | None = None) -> str:
        listener = listening()
        listener.settimeout(30)

        def answer():
            connection, _ = listener.accept()
            # A caller who leaves, or distrusts the certificate, is no concern of the server's.
            with (
                listener,
                contextlib.suppress(OSError),
                connection if tls is None else tls.wrap_socket(connection, server_side=True) as line,
            ):
                line.recv(65536)
                for piece in pieces:
                    line.sendall(piece)
                    if over.wait(pause):
                        return
                if not then_close:
                    over.wait(30)

        threads.append(threading.Thread(target=answer))
        threads[-1].start()
        return f'{"https" if tls else "http"}://localhost:{listener.getsockname()[1]}/'

    yield start
    over.set()
    for thread in threads:
        thread.join(30)


def single_bytes(text: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in text]


@pytest.mark.parametrize(
    ('pieces', 'pause'),
    [
        pytest.param([], 0, id='never answers'),
        pytest.param([HEAD[:20]], 0, id='stops in the headers'),
        pytest.param([HEAD + b'{'], 0, id='stops in the body'),
        pytest.param(single_bytes(b'HTTP/1.1 200 OK\r\nX: ' + b'y' * 1000), 0.02, id='a header byte now and then'),
        pytest.param([HEAD, *single_bytes(b'x' * 1000)], 0.02, id='a body byte now and then'),
        pytest.param([b'HTTP/1.1 100 Continue\r\n\r\n'] * 1000, 0.02, id='on and on with 100 Continue'),
        pytest.param(
            [b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n', *[b'1\r\nx\r\n'] * 1000], 0.02, id='chunks'
        ),
    ],
)
def test_the_time_limit_is_one_for_the_whole_call(serve, monkeypatch, pieces, pause):
    monkeypatch.setattr(http_client, 'CALL_TIMEOUT', 0.3)
    before = time.monotonic()
    with pytest.raises(TimeoutError):
        http_client.send('GET', serve(*pieces, pause=pause))
    assert time.monotonic() - before < 10  # the servers above go on for 20 seconds and more


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
def test_an_answer_that_is_none_is_a_connection_error(serve, pieces):
    with pytest.raises(ConnectionError):
        http_client.send('GET', serve(*pieces, then_close=True))


def test_each_read_has_the_time_that_is_left(monkeypatch):
    class Socket:
        timeouts: list[float] = []  # noqa: RUF012

        def settimeout(self, seconds):
            self.timeouts.append(seconds)

    now = [100.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    http_client._call.set(http_client._Call(114.0))
    stream = http_client._TimedStream(Socket(), io.BytesIO(b'abcdef'))
    for now[0] in (100.0, 103.0, 113.5):
        assert stream.readinto(bytearray(1)) == 1
    now[0] = 114.0
    with pytest.raises(TimeoutError):
        stream.readinto(bytearray(1))
    assert Socket.timeouts == [14.0, 11.0, 0.5]


def test_an_endless_answer_is_not_read_to_its_end(serve, monkeypatch):
    monkeypatch.setattr(http_client, 'CALL_TIMEOUT', 2)
    with pytest.raises(ConnectionError, match='more than'):
        http_client.send('GET', serve(b'HTTP/1.1 200 OK\r\n\r\n', *[b'x' * 65536] * 10_000, pause=0.001))


def test_a_slow_answer_within_the_limit_is_taken(serve):
    pieces = single_bytes(b'HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}')
    answer = http_client.send('GET', serve(*pieces, pause=0.002))
    assert (answer.status, answer.body, answer.headers['content-length']) == (201, b'{}', '2')


@pytest.mark.skipif(sys.platform != 'linux', reason='a full queue of connections is another thing elsewhere')
def test_connecting_has_a_limit_of_its_own(monkeypatch):
    monkeypatch.setattr(http_client, 'CONNECT_TIMEOUT', 0.2)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(('127.0.0.1', 0), backlog=0))
        for _ in range(3):  # nobody takes these, and the next ones get no answer
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        before = time.monotonic()
        with pytest.raises(TimeoutError):
            http_client.send('GET', f'http://127.0.0.1:{listener.getsockname()[1]}/')
    assert time.monotonic() - before < 10


def test_an_answer_of_just_the_allowed_size_is_taken(serve):
    body = b'x' * http_client.MAX_ANSWER
    assert http_client.send('GET', serve(b'HTTP/1.1 200 OK\r\n\r\n' + body, then_close=True)).body == body


def test_nobody_listening_is_a_connection_error():
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        with pytest.raises(ConnectionError, match='check the network'):
            http_client.send('GET', f'http://127.0.0.1:{taken.getsockname()[1]}/')


def test_no_tls_where_it_should_be_is_told_as_a_matter_of_the_certificate(serve):
    address = serve(b'HTTP/1.1 400 Bad Request\r\n\r\n', then_close=True).replace('http://', 'https://')
    with pytest.raises(ConnectionError, match='REQUESTS_CA_BUNDLE'):
        http_client.send('GET', address)


def test_a_certificate_of_an_unknown_authority_is_not_trusted(serve, tls):
    with pytest.raises(ConnectionError, match='not one to be trusted'):
        http_client.send('GET', serve(b'HTTP/1.1 204 No Content\r\n\r\n', tls=tls))


def test_over_tls_the_time_limit_is_one_for_the_whole_call_too(serve, tls, authority, monkeypatch, tmp_path):
    authority.cert_pem.write_to_path(str(tmp_path / 'authority.pem'))
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', str(tmp_path / 'authority.pem'))
    assert http_client.send('GET', serve(b'HTTP/1.1 204 No Content\r\n\r\n', tls=tls)).status == 204
    monkeypatch.setattr(http_client, 'CALL_TIMEOUT', 0.5)
    before = time.monotonic()
    with pytest.raises(TimeoutError):
        http_client.send('GET', serve(HEAD, *single_bytes(b'x' * 1000), pause=0.02, tls=tls))
    assert time.monotonic() - before < 10


def test_a_missing_ca_bundle_is_a_connection_error(monkeypatch):
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', '/no/such/file')
    with pytest.raises(ConnectionError):
        http_client.send('GET', 'https://localhost:1/')


def test_mutilated_headers_are_not_quoted_in_the_log(serve, capfd, caplog):
    mutilated = b'HTTP/1.1 200 OK\r\nX: y\r\ncanary-token\r\n\r\n'
    with caplog.at_level(logging.DEBUG):
        http_client.send('GET', serve(mutilated, then_close=True))
    assert 'canary' not in caplog.text + ''.join(capfd.readouterr())


def test_a_proxy_has_no_part_in_talk_on_this_machine(serve, monkeypatch):
    monkeypatch.setenv('HTTP_PROXY', 'http://127.0.0.1:1')
    monkeypatch.setenv('NO_PROXY', '')
    assert http_client.send('GET', serve(b'HTTP/1.1 204 No Content\r\n\r\n', then_close=True)).status == 204


def test_a_call_leaves_the_environment_alone(serve, monkeypatch):
    """The environment is all threads' own: what one changes there for a moment, another trips over."""
    address = serve(b'HTTP/1.1 204 No Content\r\n\r\n', then_close=True)

    def forbid(*args):
        raise AssertionError('the environment was changed')

    with monkeypatch.context() as patch:
        patch.setattr(type(os.environ), '__setitem__', forbid)
        assert http_client.send('GET', address).status == 204


def test_elsewhere_the_proxy_of_the_environment_is_asked(monkeypatch):
    monkeypatch.setenv('HTTPS_PROXY', 'http://127.0.0.1:1')
    monkeypatch.setenv('NO_PROXY', '')
    with pytest.raises(ConnectionError, match='HTTPS_PROXY'):
        http_client.send('GET', 'https://zendesk.example/')


# --- Kept connections --- #

OK = b'HTTP/1.1 200 OK\r\nSet-Cookie: canary=1; Path=/\r\nContent-Length: 2\r\n\r\n{}'


class Keeper:
    """A server that keeps its connections open. For each it notes what it gets over it."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.connections: list[list[str]] = []
        self.closes_after = 1000  # answers on a connection
        self.hangs_up_on = lambda head: False
        self.answer = OK
        self.tls = tls

    def talk(self, connection: socket.socket) -> None:
        heads: list[str] = []
        self.connections.append(heads)
        with (
            contextlib.suppress(OSError),
            connection if self.tls is None else self.tls.wrap_socket(connection, server_side=True) as line,
        ):
            for _ in range(self.closes_after):
                head = b''
                while not head.endswith(b'grant=x' if b'Content-Length' in head else b'\r\n\r\n'):
                    piece = line.recv(65536)
                    if not piece:
                        return
                    head += piece
                heads.append(head.decode())
                if self.hangs_up_on(heads):
                    return
                line.sendall(self.answer)

    @property
    def got(self) -> list[int]:
        """How many requests it got over each connection."""
        return [len(heads) for heads in self.connections]


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
def tls_keeper(tls, authority, monkeypatch, tmp_path) -> Iterator[Keeper]:
    authority.cert_pem.write_to_path(str(tmp_path / 'authority.pem'))
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', str(tmp_path / 'authority.pem'))
    with keeping(tls) as keeper:
        yield keeper


@pytest.mark.parametrize('server', ['keeper', 'tls_keeper'])
def test_a_get_goes_over_the_connection_of_the_one_before(server, request):
    keeper = request.getfixturevalue(server)
    for _ in range(5):
        assert http_client.send('GET', keeper.address).body == b'{}'
    assert keeper.got == [5]


def test_threads_share_connections_and_never_one_at_a_time(keeper):
    http_client.send('GET', keeper.address)
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: http_client.send('GET', keeper.address).body, range(400))
        assert list(answers) == [b'{}'] * 400
    assert len(keeper.got) <= 8
    assert sum(keeper.got) == 401


def test_nothing_of_one_user_goes_along_with_another_ones_call(keeper):
    http_client.send('GET', keeper.address, headers={'Authorization': 'Bearer canary'})
    http_client.send('GET', keeper.address)
    [[first, second]] = keeper.connections
    assert 'canary' in first
    assert 'canary' not in second


def test_a_kept_connection_that_was_closed_meanwhile_is_no_error(keeper):
    keeper.closes_after = 1
    for _ in range(3):
        assert http_client.send('GET', keeper.address).status == 200
        time.sleep(0.05)
    assert keeper.got == [1, 1, 1]


def test_a_get_over_a_kept_connection_that_breaks_off_is_sent_again_over_a_new_one(keeper):
    http_client.send('GET', keeper.address)
    keeper.hangs_up_on = lambda heads: len(heads) == 2
    assert http_client.send('GET', keeper.address).status == 200
    assert keeper.got == [2, 1]


def test_a_get_is_sent_again_once(keeper):
    http_client.send('GET', keeper.address)
    keeper.hangs_up_on = lambda heads: True
    with pytest.raises(ConnectionError, match='broke off'):
        http_client.send('GET', keeper.address)
    assert keeper.got == [2, 1]


def test_a_get_over_a_new_connection_that_breaks_off_is_an_error(keeper):
    keeper.hangs_up_on = lambda heads: True
    with pytest.raises(ConnectionError, match='broke off'):
        http_client.send('GET', keeper.address)
    assert keeper.got == [1]


def test_a_post_goes_over_a_new_connection_and_is_never_sent_again(keeper):
    for method in ('GET', 'POST', 'DELETE'):
        http_client.send(method, keeper.address, data={'grant': 'x'})
    assert keeper.got == [1, 1, 1]
    keeper.hangs_up_on = lambda heads: True
    with pytest.raises(ConnectionError, match='broke off'):
        http_client.send('POST', keeper.address, data={'grant': 'x'})
    assert keeper.got == [1, 1, 1, 1]


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_ones(keeper, monkeypatch):
    http_client.send('GET', keeper.address)
    keeper.answer = OK[:-1]
    with monkeypatch.context() as patch, pytest.raises(TimeoutError):
        patch.setattr(http_client, 'CALL_TIMEOUT', 0.2)
        http_client.send('GET', keeper.address)
    keeper.answer = OK
    assert http_client.send('GET', keeper.address).body == b'{}'
    assert keeper.got == [2, 1]


def test_a_connection_with_an_answer_not_read_to_its_end_is_not_used_again(keeper):
    keeper.answer = OK.replace(b': 2\r', b': 9999999\r') + b'x' * 2 * http_client.MAX_ANSWER
    with pytest.raises(ConnectionError, match='more than'):
        http_client.send('GET', keeper.address)
    keeper.answer = OK
    assert http_client.send('GET', keeper.address).body == b'{}'
    assert keeper.got == [1, 1]


@pytest.mark.parametrize('server', ['keeper', 'tls_keeper'])
@pytest.mark.parametrize('interim', [b'100 Continue', b'102 Processing', b'103 Early Hints'])
def test_an_interim_answer_is_none_and_the_answer_after_it_is_not_the_next_ones(server, interim, request):
    keeper = request.getfixturevalue(server)
    keeper.answer = b'HTTP/1.1 ' + interim + b'\r\nLink: </x>\r\n\r\n' + OK.replace(b'{}', b'[]')
    assert http_client.send('GET', keeper.address).body == b'[]'
    keeper.answer = OK
    assert http_client.send('GET', keeper.address).body == b'{}'


@pytest.mark.parametrize('server', ['keeper', 'tls_keeper'])
def test_what_comes_behind_an_answer_is_not_taken_for_the_next_one(server, request):
    keeper = request.getfixturevalue(server)
    # As much as is read at a time; what is behind it stays where only the TLS connection knows of it.
    head = OK.replace(b'Content-Length: 2\r\n\r\n{}', b'Content-Length: 2\r\nX: ')
    keeper.answer = head + b'x' * (8192 - len(head) - 6) + b'\r\n\r\n{}' + OK.replace(b'{}', b'[]')
    assert http_client.send('GET', keeper.address).body == b'{}'
    keeper.answer = OK
    time.sleep(0.05)
    assert http_client.send('GET', keeper.address).body == b'{}'
    assert keeper.got == [1, 1]


def test_a_connection_that_was_idle_for_long_is_not_used_again(keeper, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    for now, over_how_many in ((now, 1), (now + http_client.MAX_IDLE - 1, 1), (now + 2 * http_client.MAX_IDLE, 2)):  # noqa: B007, B020
        http_client.send('GET', keeper.address)
        assert len(keeper.got) == over_how_many


def test_the_time_limit_counts_for_both_times_a_get_is_sent(keeper, monkeypatch):
    http_client.send('GET', keeper.address)
    calls = []
    real_send = requests.adapters.HTTPAdapter.send

    def send(self, request, **kwargs):
        calls.append(kwargs['timeout'].total)
        monkeypatch.setattr(time, 'monotonic', lambda: now + 5)
        return real_send(self, request, **kwargs)

    keeper.hangs_up_on = lambda heads: len(heads) == 2
    now = time.monotonic()
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    monkeypatch.setattr(requests.adapters.HTTPAdapter, 'send', send)
    http_client.send('GET', keeper.address)
    assert calls == [14, 9]


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')
def test_after_a_fork_each_process_has_connections_of_its_own(keeper):
    program = """if True:
        import os, sys, http_client
        def get():
            return http_client.send('GET', sys.argv[1]).status
        get()
        child = os.fork()
        statuses = [get() for _ in range(5)]
        if child:
            raise SystemExit(statuses != [200] * 5 or os.waitpid(child, 0)[1])
        os._exit(statuses != [200] * 5)
    """
    subprocess.run([sys.executable, '-c', program, keeper.address], env=environment(), check=True, timeout=60)
    assert sorted(keeper.got) == [5, 6]


def test_the_certificates_of_the_authorities_are_read_once(tls_keeper, tmp_path):
    http_client.send('POST', tls_keeper.address, data={'grant': 'x'})
    (tmp_path / 'authority.pem').unlink()
    http_client.send('POST', tls_keeper.address, data={'grant': 'x'})
    assert tls_keeper.got == [1, 1]


def test_the_folder_of_authorities_can_be_named_too(tls, authority, monkeypatch, tmp_path):
    authority.cert_pem.write_to_path(str(tmp_path / 'authority.pem'))
    digest = subprocess.run(
        ['openssl', 'x509', '-subject_hash', '-noout', '-in', tmp_path / 'authority.pem'],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (tmp_path / 'authority.pem').rename(tmp_path / f'{digest}.0')
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', str(tmp_path))
    with keeping(tls) as keeper:
        assert http_client.send('GET', keeper.address).status == 200


# --- Through a proxy --- #


@pytest.fixture
def tunnel(tls, request) -> Iterator[str]:
    """The address of a proxy that lets anybody talk to a port of this machine, whatever host they ask for."""

    def pass_on(source, target) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)

    def talk(connection: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            tls.wrap_socket(connection, server_side=True) if request.param == 'https' else connection as caller,
        ):
            port = int(re.search(rb'^CONNECT zendesk.example:(\d+) ', caller.recv(65536))[1])
            with socket.create_connection(('127.0.0.1', port)) as origin:
                caller.sendall(b'HTTP/1.1 200 OK\r\n\r\n')
                threading.Thread(target=pass_on, args=(origin, caller), daemon=True).start()
                pass_on(caller, origin)

    with serving(talk) as port:
        yield f'{request.param}://localhost:{port}'


@pytest.mark.parametrize('tunnel', ['http', 'https'], indirect=True)
@pytest.mark.parametrize('named', ['zendesk.example', 'another.example'])
def test_through_a_proxy_the_same_authorities_are_trusted_and_the_same_name_demanded(
    tunnel, authority, monkeypatch, tmp_path, named
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(named).configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / 'authority.pem'))
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', str(tmp_path / 'authority.pem'))
    monkeypatch.setenv('HTTPS_PROXY', tunnel)
    monkeypatch.setenv('NO_PROXY', '')
    with keeping(context) as keeper:
        address = keeper.address.replace('localhost', 'zendesk.example')
        if named == 'zendesk.example':
            for _ in range(2):
                assert http_client.send('GET', address).body == b'{}'
            assert keeper.got == [2]
        else:
            with pytest.raises(ConnectionError, match='not one to be trusted'):
                http_client.send('GET', address)
            assert keeper.got in ([], [0])
