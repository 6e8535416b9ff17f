"""A port that is taken is told in plain words."""

from __future__ import annotations

import contextlib
import socket

import pytest
from servers import free_port, listening, listens

from web import ports


def hosts_of_this_machine() -> list[str]:
    hosts = ['127.0.0.1']
    with contextlib.suppress(OSError), socket.create_server(('::1', 0), family=socket.AF_INET6):
        hosts.append('::1')
    return hosts


@pytest.mark.parametrize('host', hosts_of_this_machine())
def test_a_port_that_is_taken_ends_the_process_with_the_remedy(log, host):
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            ports.stop_if_taken(port, 'Buy another machine')
    assert ended.value.code == 1
    [line] = log
    assert f'Port {port} is taken' in line
    assert 'Buy another machine' in line


def test_a_free_port_is_fine_and_stays_free(log):
    port = free_port()
    ports.stop_if_taken(port, '')
    ports.stop_if_taken(port, '')
    assert log == []


def test_a_port_that_is_not_allowed_is_told_too(monkeypatch, log):
    def refuse(*args):
        raise PermissionError(13, 'Permission denied')

    port = free_port()
    monkeypatch.setattr(socket, 'create_server', refuse)
    with pytest.raises(SystemExit):
        ports.stop_if_taken(port, 'Take one above 1023')
    assert 'Permission denied' in log[0]
    assert 'Take one above 1023' in log[0]


def test_a_machine_without_ipv6_is_fine(monkeypatch):
    port, make_socket = free_port(), socket.socket

    def only_ipv4(family=socket.AF_INET, *args, **kwargs):
        if family == socket.AF_INET6:
            raise OSError(97, 'Address family not supported by protocol')
        return make_socket(family, *args, **kwargs)

    monkeypatch.setattr(ports.socket, 'socket', only_ipv4)
    assert not ports._answers(socket.AF_INET6, '::1', port)


@pytest.mark.parametrize('command', [('app.py',), ('practice_zendesk.server.py', '--port', '{port}')])
def test_both_programs_say_so_without_a_traceback(processes, command):
    with listening() as taken:
        port = taken.getsockname()[1]
        ended = processes.run(
            *(part.format(port=port) for part in command),
            ZENDESK_CLIENT_ID='some_client',
            ZENDESK_CLIENT_SECRET='canary-client-secret',
            ZENDESK_SUBDOMAIN='mondocam',
            REDIRECT_URI=f'http://localhost:{port}/zendesk/oauth/callback',
        )
    assert ended.returncode == 1
    assert f'Port {port} is taken by another program' in ended.stderr
    assert ('REDIRECT_URI' if command == ('app.py',) else '--port') in ended.stderr
    assert 'Traceback' not in ended.stderr


def test_practice_mode_says_which_port_it_lacks(processes):
    if any(listens(port) for port in (3000, 3001)):
        pytest.skip('port 3000 or 3001, which practice mode uses, is taken on this machine')
    with socket.create_server(('127.0.0.1', 3001)):
        ended = processes.run('app.py')
    assert ended.returncode == 1
    assert 'Port 3001 is taken by another program' in ended.stderr
    assert 'Traceback' not in ended.stderr


@pytest.mark.parametrize('port', ['0', '70000', 'x'])
def test_a_port_that_is_none_is_refused_without_a_traceback(processes, port):
    ended = processes.run('practice_zendesk.server.py', '--port', port)
    assert ended.returncode == 2
    assert '--port' in ended.stderr
    assert 'Traceback' not in ended.stderr
