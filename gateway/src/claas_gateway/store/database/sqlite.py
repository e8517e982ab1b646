"""SQLite: one file, one process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

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
    )


def _purge(path: str) -> None:
    """Free pages leave the file, and the write-ahead log, which has the old pages, ends."""
    with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_MILLISECONDS / 1000, isolation_level=None)) as file:
        # Not by `execute`, which takes one step of it: one page.
        file.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")


def _engine(url: URL, connections: int, *, begin: str, settings: tuple[str, ...]) -> AsyncEngine:
    engine = create_async_engine(url, pool_size=connections, max_overflow=0, hide_parameters=True)

    @event.listens_for(engine.sync_engine, "connect")
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

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: object) -> None:
        connection.exec_driver_sql(begin)  # type: ignore[attr-defined]

    return engine
