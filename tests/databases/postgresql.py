"""A real PostgreSQL: Debian's, in a folder of its own, on the loopback address."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg

from tests.cluster.host.machine import Tool, ensure_tools

POSTGRESQL_TOOLS = (
    Tool("/usr/lib/postgresql/15/bin/initdb", "postgresql-15"),
    Tool("/usr/lib/postgresql/15/bin/postgres", "postgresql-15"),
)
_USER = "postgres"
"""PostgreSQL does not run as root; the package makes this account."""
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0


class PostgresqlServer:
    """A running server; databases are made in it by name. `crash` and `start`: connections end, it recovers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0

    def url(self, database: str) -> str:
        """URL of a database, for SQLAlchemy."""
        return f"postgresql+asyncpg://gateway@127.0.0.1:{self.port}/{database}"

    def create_database(self, like: str = "template1") -> str:
        """Make a database, as a copy of another one that nobody is connected to; answers its name."""
        self._made += 1
        name = f"gateway_{self._made}"

        async def make() -> None:
            connection = await asyncpg.connect(host="127.0.0.1", port=self.port, user="gateway", database="postgres")
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE {like}")
            await connection.close()

        asyncio.run(make())
        return name

    def create(self) -> None:
        """Make the files of the server."""
        initdb = [POSTGRESQL_TOOLS[0].path, "-D", str(self._data), "-U", "gateway", "--auth=trust", "--no-sync"]
        with self._log.open("ab") as log:
            subprocess.run(initdb, check=True, stdout=log, stderr=log, user=_account(), cwd=self._folder)

    def start(self) -> None:
        """Start the process and wait until it answers."""
        # The files live as long as the tests: no crash of the machine to be safe from.
        settings = ("fsync=off", "listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=60")
        command = [POSTGRESQL_TOOLS[1].path, "-D", str(self._data), "-p", str(self.port)]
        for setting in settings:
            command += ["-c", setting]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, user=_account(), cwd=self._folder
            )
        deadline = time.monotonic() + _START_SECONDS
        # The server writes its state into this file.
        while "ready" not in self._state():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def crash(self) -> None:
        """End it at once; the next start recovers."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGQUIT)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _state(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self._data / "postmaster.pid").read_text().rpartition("\n")[0].rpartition("\n")[2]
        return ""

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        return self._folder / "log"


@contextlib.contextmanager
def running_postgresql() -> Iterator[PostgresqlServer]:
    """Install the package if it is missing, and run a server. Raises PrerequisiteError."""
    ensure_tools(POSTGRESQL_TOOLS)
    folder = Path(tempfile.mkdtemp(prefix="claas-postgresql-"))
    try:
        if (account := _account()) is not None:
            shutil.chown(folder, account)
        server = PostgresqlServer(folder)
        server.create()
        try:
            server.start()
            yield server
        finally:
            server.crash()
    finally:
        shutil.rmtree(folder)


def _account() -> str | None:
    if os.geteuid() != 0:
        return None
    return pwd.getpwnam(_USER).pw_name
