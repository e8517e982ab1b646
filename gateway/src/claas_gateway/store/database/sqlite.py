"""SQLite: one file, one process."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.dml import Insert

from claas_gateway.errors import SettingsError
from claas_gateway.store.database.transactions import Database

_READERS = 4
_BUSY_MILLISECONDS = 10_000
"""How long a write waits for a tool outside the gateway, such as one that makes a backup."""


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


def open_database(url: URL) -> Database:
    """The connections: those that read, one whose commits are synced, and one whose are not."""
    return Database(
        _engine(url, _READERS, begin="BEGIN", settings=("PRAGMA query_only=ON",)),
        _engine(url, 1, begin="BEGIN IMMEDIATE", settings=("PRAGMA synchronous=FULL",)),
        _engine(url, 1, begin="BEGIN IMMEDIATE", settings=("PRAGMA synchronous=NORMAL",)),
        purge=lambda: _purge(str(url.database)),
        inserts=_ThreadInserts(url),
    )


class _ThreadInserts:
    """Inserts rows in a thread of its own, a transaction at a time. The event loop hands over once for each, where
    aiosqlite hands over for each step of a transaction, which would double what the gateway adds to an answer."""

    def __init__(self, url: URL) -> None:
        self._engine = create_engine(url.set(drivername="sqlite"), pool_size=1, max_overflow=0, hide_parameters=True)
        _prepare(self._engine, "BEGIN IMMEDIATE", ("PRAGMA synchronous=NORMAL",))
        self._thread = ThreadPoolExecutor(1, "inserts")

    async def insert(self, statement: Insert, rows: Sequence[Mapping[str, object]]) -> None:
        """Insert rows in one transaction, whose end survives that of this process."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._insert, statement, rows)

    async def close(self) -> None:
        """Close the connection."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown()

    def _insert(self, statement: Insert, rows: Sequence[Mapping[str, object]]) -> None:
        with self._engine.begin() as connection:
            connection.execute(statement, rows)


def _purge(path: str) -> None:
    """Free pages leave the file, and the write-ahead log, which has the old pages, ends."""
    with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_MILLISECONDS / 1000, isolation_level=None)) as file:
        # Not by `execute`, which takes one step of it: one page.
        file.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")


def _engine(url: URL, connections: int, *, begin: str, settings: tuple[str, ...]) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=connections, max_overflow=0, hide_parameters=True)
    _prepare(engine.sync_engine, begin, settings)
    return engine


def _prepare(engine: Engine, begin: str, settings: tuple[str, ...]) -> None:
    """Settings of each connection, and how a transaction begins."""

    @event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
        # sqlite3 would begin transactions by itself, and not all of them.
        connection.isolation_level = None
        cursor = connection.cursor()
        for setting in (
            f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}",
            # Before the first table: what is deleted leaves the file, too.
            "PRAGMA auto_vacuum=INCREMENTAL",
            "PRAGMA journal_mode=WAL",
            "PRAGMA foreign_keys=ON",
            "PRAGMA secure_delete=ON",
            *settings,
        ):
            cursor.execute(setting)
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: object) -> None:
        connection.exec_driver_sql(begin)  # type: ignore[attr-defined]
