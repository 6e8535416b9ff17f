"""A PostgreSQL server of the tests' own, on a free port and in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from servers import free_port, listens, wait_until

PASSWORD = 'canary-database-password'


def programs() -> Path | None:
    """Return the folder with the server's programs; Debian does not have them in the PATH."""
    in_path = shutil.which('initdb')
    folders = [Path(in_path).resolve().parent] if in_path else sorted(Path('/usr/lib/postgresql').glob('*/bin'))
    return folders[-1] if folders else None


class Postgresql:
    """
    The server. `options` are settings of PostgreSQL, such as fsync='off'.

    It does not run as root, so where the tests do, it runs as the user that Debian has made for it.
    """

    def __init__(self, **options: str) -> None:
        self.user = {'user': 'postgres'} if hasattr(os, 'geteuid') and os.geteuid() == 0 else {}
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix='postgresql-'))
        self.output = self.folder / 'output.txt'
        password = self.folder / 'password'
        password.write_text(PASSWORD)
        if self.user:
            shutil.chown(self.folder, 'postgres')
            shutil.chown(password, 'postgres')
        self.options = [
            '-D', str(self.folder / 'data'), '-p', str(self.port), '-c', 'listen_addresses=127.0.0.1',
            '-c', 'unix_socket_directories=', *(word for name, value in options.items() for word in ('-c', f'{name}={value}')),
        ]  # fmt: skip
        self.run('initdb', '-D', str(self.folder / 'data'), '-U', 'app', '-A', 'scram-sha-256', f'--pwfile={password}',
                 '-E', 'UTF8', '--no-locale', '--no-sync')  # fmt: skip
        self.start()

    @property
    def url(self) -> str:
        return f'postgresql://app:{PASSWORD}@127.0.0.1:{self.port}/postgres'

    def run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [programs() / program, *arguments], cwd=self.folder, check=True, stdout=subprocess.DEVNULL, **self.user
        )

    def start(self) -> None:
        with self.output.open('ab') as output:
            self.process = subprocess.Popen(
                [programs() / 'postgres', *self.options],
                cwd=self.folder,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **self.user,
            )
        wait_until(lambda: listens(self.port) and b'ready to accept' in self.output.read_bytes())

    def stop(self) -> None:
        """End it at once, as on a machine that fails, but for what it has in shared memory."""
        self.run('pg_ctl', '-D', str(self.folder / 'data'), '-m', 'immediate', '-w', 'stop')
        self.process.wait(60)

    def remove(self) -> None:
        if self.process.poll() is None:
            self.stop()
        shutil.rmtree(self.folder)
