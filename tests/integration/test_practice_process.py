"""`python -m practice_zendesk` starts, stops, and reports errors without a traceback."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest
import requests
from servers import PROJECT, free_port, listening, wait_until

DOCUMENTATION = (PROJECT / 'docs' / 'practice-zendesk.md').read_text(encoding='utf-8')

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


@pytest.mark.parametrize('port', ['-1', '70000', 'x'])
def test_an_invalid_port_is_refused_without_a_traceback(processes, port):
    ended = processes.run('-m', 'practice_zendesk', '--port', port)
    assert ended.returncode == 2
    assert '--port: invalid port value' in ended.stderr
    assert 'Traceback' not in ended.stderr


def test_port_0_is_a_free_port(processes):
    with (processes.folder / 'output.txt').open('ab') as output:
        process = subprocess.Popen(
            [sys.executable, '-m', 'practice_zendesk', '--port', '0', '--database', 'other.db'],
            cwd=processes.folder,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: 'Serving' in processes.output)
        [url] = re.findall(r'http://localhost:\d+', processes.output)
        assert requests.get(f'{url}/practice', timeout=60).status_code == 200
        assert (processes.folder / 'other.db').exists()
    finally:
        process.kill()
        process.wait(30)


# --- The documentation --- #


def blocks(language: str) -> list[str]:
    return re.findall(f'```{language}\n(.*?)```', DOCUMENTATION, re.DOTALL)


def test_the_documentation_has_the_current_options(processes):
    ended = processes.run('-m', 'practice_zendesk', '--help', COLUMNS='80')
    assert ended.stdout in blocks('')


def test_the_example_file_and_test_work(processes):
    folder = processes.folder / 'product'
    folder.mkdir()
    [config] = blocks('toml')
    (folder / 'practice.toml').write_text(config)
    (folder / 'test_product.py').write_text('\n'.join(blocks('python')))
    ended = processes.run('-m', 'pytest', '-q', '-W', 'error', folder='product', PYTHONPATH=str(processes.folder))
    assert '1 passed' in ended.stdout, ended.stdout


def test_a_malformed_file_is_refused_without_a_traceback(processes):
    (processes.folder / 'practice.toml').write_text('[[clients]]')
    for path in ('practice.toml', 'missing.toml'):
        ended = processes.run('-m', 'practice_zendesk', '--config', path)
        assert ended.returncode == 2
        assert f'{path} cannot be used: ' in ended.stderr
        assert 'Traceback' not in ended.stderr


def test_an_old_python_is_refused_before_other_imports(processes):
    ended = processes.run('-c', OLD_PYTHON)
    assert ended.returncode == 1
    assert ended.stderr == 'Python 3.11 or newer is required. This is Python 3.10\n'
    assert ended.stdout == '[]\n'
