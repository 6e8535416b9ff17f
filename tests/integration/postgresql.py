"""A PostgreSQL server and a PgBouncer for the tests, on free ports and in temporary folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from servers import free_port, listens, wait_until

PASSWORD = 'canary-database-password'


def programs() -> Path | None:
    """Return the folder of the PostgreSQL programs. On Debian it is not in the PATH."""
    in_path = shutil.which('initdb')
    folders = [Path(in_path).resolve().parent] if in_path else sorted(Path('/usr/lib/postgresql').glob('*/bin'))
    return folders[-1] if folders else None


class Postgresql:
    """
    A PostgreSQL server. `options` are PostgreSQL settings, such as fsync='off'.

    PostgreSQL refuses to run as root. If the tests run as root, the server runs as Debian's user `postgres`.
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
        data = ('-D', str(self.folder / 'data'))
        options = {'listen_addresses': '127.0.0.1', 'unix_socket_directories': '', **options}
        self.arguments = [*data, '-p', str(self.port), *(f'--{name}={value}' for name, value in options.items())]
        login = ('-U', 'app', '-A', 'scram-sha-256', f'--pwfile={password}')
        self.run('initdb', *data, *login, '-E', 'UTF8', '--no-locale', '--no-sync')
        self.start()

    @property
    def url(self) -> str:
        return f'postgresql://app:{PASSWORD}@127.0.0.1:{self.port}/postgres'

    def sql(self, *statements: str) -> list:
        """Run the statements over a separate connection, and return the rows of the last one."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                result = connection.execute(statement)
            return result.fetchall() if result.description else []

    def set(self, **options: str) -> None:
        """Change settings of the running server."""
        for name, value in options.items():
            self.sql(f"ALTER SYSTEM SET {name} = '{value}'", 'SELECT pg_reload_conf()')
            wait_until(lambda name=name, value=value: self.sql(f'SHOW {name}') == [(value,)])

    def run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [programs() / program, *arguments], cwd=self.folder, check=True, stdout=subprocess.DEVNULL, **self.user
        )

    def start(self) -> None:
        with self.output.open('ab') as output:
            self.process = subprocess.Popen(
                [programs() / 'postgres', *self.arguments],
                cwd=self.folder,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **self.user,
            )
        wait_until(self.is_ready)

    def is_ready(self) -> bool:
        import psycopg

        try:
            return bool(self.sql('SELECT 1'))
        except psycopg.OperationalError:
            return False

    def stop(self) -> None:
        """Stop the server immediately, without a checkpoint, as in a crash."""
        self.run('pg_ctl', '-D', str(self.folder / 'data'), '-m', 'immediate', '-w', 'stop')
        self.process.wait(60)

    def remove(self) -> None:
        if self.process.poll() is None:
            self.stop()
        shutil.rmtree(self.folder)


class PgBouncer:
    """A connection pooler in transaction mode. Each transaction uses the next of its connections to PostgreSQL."""

    def __init__(self, postgresql: Postgresql) -> None:
        self.port = free_port()
        self.url = postgresql.url.replace(f':{postgresql.port}/', f':{self.port}/')
        self.folder = Path(tempfile.mkdtemp(prefix='pgbouncer-'))
        (self.folder / 'users.txt').write_text(f'"app" "{PASSWORD}"')
        (self.folder / 'pgbouncer.ini').write_text(
            '[databases]\n'
            f'* = host=127.0.0.1 port={postgresql.port}\n'
            '[pgbouncer]\n'
            'pool_mode = transaction\n'
            'server_round_robin = 1\n'
            'listen_addr = 127.0.0.1\n'
            f'listen_port = {self.port}\n'
            'unix_socket_dir =\n'
            'auth_type = scram-sha-256\n'
            f'auth_file = {self.folder}/users.txt\n'
            'admin_users = app\n'
        )
        if postgresql.user:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, 'postgres')
        with (self.folder / 'output.txt').open('wb') as output:
            self.process = subprocess.Popen(
                [shutil.which('pgbouncer') or '/usr/sbin/pgbouncer', self.folder / 'pgbouncer.ini'],
                stdout=output,
                stderr=output,
                start_new_session=True,
                **postgresql.user,
            )
        wait_until(lambda: listens(self.port) or self.process.poll() is not None)
        assert self.process.poll() is None, (self.folder / 'output.txt').read_text()

    def remove(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        shutil.rmtree(self.folder)
