"""SQLite: one file, one process.

Most goes through SQLAlchemy's connections, whose commits are synced to the disk. Rollouts don't: there are as many of
them as answers, and a commit by SQLAlchemy and aiosqlite takes seven times the CPU of one by sqlite3 itself. They are
not synced, but the next synced commit syncs them with it: feedback never lies there without its rollout.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import URL, Connection, Table, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from claas_gateway.errors import SettingsError
from claas_gateway.store.database.transactions import Database, Values, describe, not_now

_READERS = 4
_BUSY_MILLISECONDS = 10_000
"""How long a write waits for a tool outside the gateway, such as one that makes a backup."""
PURGED_PAGES = 2_000
"""Pages that leave the file at a time, which takes about a tenth of a second: answers wait for it."""
_EACH = ("PRAGMA foreign_keys=ON", "PRAGMA secure_delete=ON")
"""Settings of each connection."""
_READING = ("PRAGMA query_only=ON",)
_APPENDING = ("PRAGMA synchronous=NORMAL",)
_WRITING = (
    # The first two are the file's own. They come before the first table, and take the writer's lock each time.
    "PRAGMA auto_vacuum=INCREMENTAL",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
)

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def claimed_file(url: URL) -> Iterator[Path]:
    """Claim the database file for this process; the claim ends with the process. Raises SettingsError."""
    if not url.database or url.database == ":memory:":
        raise SettingsError("CLAAS_GATEWAY_DATABASE_URL names no file: sqlite+aiosqlite:////folder/file.db does")
    path = Path(url.database)
    try:
        # SQLite gives its other files the permissions of this one.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SettingsError(f"the database file {path} can't be opened: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(
                f"another process uses the database file {path}: with SQLite there is one replica, and it stops "
                "before the next starts; use PostgreSQL for more"
            ) from None
        yield path
    finally:
        os.close(lock)


def open_database(url: URL, path: Path) -> Database:
    """Connections that read, one that writes, and the file itself."""
    return Database(
        _engine(url, _READERS, begin="BEGIN", settings=_READING),
        _engine(url, 1, begin="BEGIN IMMEDIATE", settings=_WRITING),
        SqliteFile(path),
    )


class SqliteFile:
    """The file, in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._connection: sqlite3.Connection | None = None
        self._inserts: dict[str, _Insert] = {}

    async def append(self, table: Table, rows: Sequence[Values]) -> None:
        """Commit rows whose keys are not there yet, without a sync. Raises NotNow."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._append, table, rows)

    async def purge(self) -> bool:
        """Some free pages leave the file; whether there are more. After the last ones the write-ahead log, which has
        the old pages, ends."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._purge)

    async def close(self) -> None:
        """Close the connection and end the thread."""
        if self._connection is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown()

    def _purge(self) -> bool:
        connection = self._opened()
        before = _free_pages(connection)
        # Not by `execute`, which takes one step of a vacuum: one page.
        connection.executescript(f"PRAGMA incremental_vacuum({PURGED_PAGES})")
        if 0 < _free_pages(connection) < before:
            return True
        connection.executescript("PRAGMA wal_checkpoint(TRUNCATE)")
        return False

    def _append(self, table: Table, rows: Sequence[Values]) -> None:
        if table.name not in self._inserts:
            self._inserts[table.name] = _Insert(table)
        insert = self._inserts[table.name]
        bound = [insert.bound(row) for row in rows]
        connection = self._opened()
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(insert.statement, bound)
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):
                _log.warning("the database failed a transaction: %s", describe(error))
                raise not_now() from None
            raise

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sqlite3.connect(self._path, isolation_level=None)
            _prepare(self._connection, _APPENDING)
        return self._connection


class _Insert:
    """An insertion as SQLAlchemy compiles it, with what its column types make of values."""

    def __init__(self, table: Table) -> None:
        dialect = sqlite.dialect(paramstyle="qmark")
        self.statement = str(sqlite.insert(table).on_conflict_do_nothing().compile(dialect=dialect))
        self._columns: list[tuple[str, Callable[[object], object] | None]] = [
            (column.name, column.type.dialect_impl(dialect).bind_processor(dialect)) for column in table.columns
        ]

    def bound(self, row: Values) -> list[object]:
        """The values of a row, as the driver takes them."""
        return [row[name] if convert is None else convert(row[name]) for name, convert in self._columns]


def _free_pages(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA freelist_count").fetchone()[0])


def _engine(url: URL, connections: int, *, begin: str, settings: Sequence[str]) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=connections, max_overflow=0, hide_parameters=True)

    @event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        # sqlite3 would begin transactions by itself, and not all of them.
        connection.isolation_level = None
        _prepare(connection, settings)

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _prepare(connection: sqlite3.Connection, settings: Sequence[str]) -> None:
    cursor = connection.cursor()
    for each in (f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}", *_EACH, *settings):
        cursor.execute(each)
    cursor.close()
