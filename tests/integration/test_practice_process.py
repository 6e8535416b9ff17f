"""`python -m practice_zendesk` starts, stops, and reports errors without a traceback."""

from __future__ import annotations

import re
import signal

import pytest
import requests
from servers import free_port, listening

OLD_PYTHON = """
import runpy, sys
sys.version_info = (3, 10, 13, 'final', 0)
try:
    runpy.run_module('practice_zendesk', run_name='__main__')
finally:
    print([name for name in sys.modules if name.startswith('practice_zendesk.')])
"""


def test_ctrl_c_ends_the_process_without_output(processes):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores SIGINT, and so do its children
    port = free_port()
    processes.start('-m', 'practice_zendesk', '--port', str(port), port=port)
    requests.get(f'http://localhost:{port}/practice/request_log', timeout=60)  # wait until it serves
    process = processes.running.pop(port)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    [line] = processes.output.splitlines()
    assert re.match(r'\d\d:\d\d:\d\d Serving', line)
    assert f'Serving the practice Zendesk at http://localhost:{port} for the OAuth client practice_client' in line


def test_a_port_in_use_is_reported_without_a_traceback(processes):
    with listening() as taken:
        port = taken.getsockname()[1]
        ended = processes.run('-m', 'practice_zendesk', '--port', str(port))
    assert ended.returncode == 1
    assert f'Port {port} is in use by another program' in ended.stderr
    assert 'Traceback' not in ended.stderr
    assert 'Serving' not in ended.stderr


@pytest.mark.parametrize('port', ['0', '70000', 'x'])
def test_an_invalid_port_is_refused_without_a_traceback(processes, port):
    ended = processes.run('-m', 'practice_zendesk', '--port', port)
    assert ended.returncode == 2
    assert '--port' in ended.stderr
    assert 'Traceback' not in ended.stderr


def test_an_old_python_is_refused_before_other_imports(processes):
    ended = processes.run('-c', OLD_PYTHON)
    assert ended.returncode == 1
    assert ended.stderr == 'Python 3.11 or newer is required. This is Python 3.10\n'
    assert ended.stdout == '[]\n'
