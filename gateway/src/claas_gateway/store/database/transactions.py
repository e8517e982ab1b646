"""Transactions: on SQLite one writer at a time, on PostgreSQL as many as the pool has connections.

The work of a transaction may run again: when the database says so (two transactions met), when the connection was
lost, even while it was committing, and on SQLite when another one that shared its commit failed. So a work finds out
by identifiers what is written already.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from sqlalchemy import Table
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from claas_gateway.errors import NotNow
from claas_gateway.store.database.group_commit import GroupCommit

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]
Values = Mapping[str, object]
_Job = Work[None]

_ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 0.05
_RETRIED_STATES = ("08", "40001", "40P01", "53300", "57P")
"""SQLSTATE (or its class): connection lost, two transactions met, too many connections, server stops or starts."""

_log = logging.getLogger(__name__)


class DirectFile(Protocol):
    """What is done with SQLite's file without SQLAlchemy's connections; one call at a time."""

    async def append(self, table: Table, rows: Sequence[Values]) -> None:
        """Commit rows whose keys are not there yet, without a sync."""
        ...

    async def purge(self) -> bool:
        """Let the files forget some of what was deleted; whether there is more."""
        ...

    async def close(self) -> None:
        """Close it."""
        ...


class Database:
    """Runs transactions. `file` is SQLite's; None: PostgreSQL."""

    def __init__(self, reader: AsyncEngine, writer: AsyncEngine, file: DirectFile | None = None) -> None:
        self._reader = reader
        self._writer = writer
        self._file = file
        self._one_writer = asyncio.Lock()
        self._group: GroupCommit[_Job] = GroupCommit(self._write_together)
        self._running: set[asyncio.Task[object]] = set()

    @property
    def is_sqlite(self) -> bool:
        """Whether it is SQLite, not PostgreSQL."""
        return self._file is not None

    async def read(self, work: Work[T]) -> T:
        """Run a transaction that writes nothing. Raises NotNow."""
        return await self._repeating(self._reader, work)

    async def write(self, work: Work[T]) -> T:
        """Run a transaction that writes. It runs to its end even if the caller is cancelled. Concurrent ones share a
        commit on SQLite, which syncs. Raises NotNow."""
        result: list[T] = []

        async def job(connection: AsyncConnection) -> None:
            result[:] = [await work(connection)]

        if self._file is not None:
            await self._group.add([job])
        else:
            task = asyncio.create_task(self._repeating(self._writer, job))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            await asyncio.shield(task)
        return result[0]

    async def append(self, table: Table, rows: Sequence[Values], otherwise: Work[None]) -> None:
        """Commit new rows as quickly as can be: on SQLite they survive the end of this process, but the last ones not
        a loss of power. `otherwise` does the same on PostgreSQL. Raises NotNow."""
        if self._file is None:
            await self.write(otherwise)
            return
        async with self._one_writer:
            await self._file.append(table, rows)

    async def purge(self) -> None:
        """Let the files forget what was deleted, as far as the database does not do so in its own time."""
        more = self._file is not None
        while more and self._file is not None:
            # Writers that wait get their turn in between.
            async with self._one_writer:
                more = await self._file.purge()

    async def close(self) -> None:
        """Wait for transactions that run, and close the connections."""
        await self._group.close()
        while self._running:
            await asyncio.wait(set(self._running))
        for engine in {self._reader, self._writer}:
            await engine.dispose()
        if self._file is not None:
            await self._file.close()

    async def _write_together(self, jobs: Sequence[_Job]) -> None:
        async def work(connection: AsyncConnection) -> None:
            for job in jobs:
                await job(connection)

        async with self._one_writer:
            await self._repeating(self._writer, work)

    async def _repeating(self, engine: AsyncEngine, work: Work[T]) -> T:
        pause = _FIRST_PAUSE_SECONDS
        for left in reversed(range(_ATTEMPTS)):
            try:
                async with engine.begin() as connection:
                    return await work(connection)
            except Exception as error:
                may_pass = _may_pass(error)
                if not may_pass and not isinstance(error, (OperationalError, NoConnectionFree)):
                    raise
                _log.warning("the database failed a transaction: %s", describe(error))
                if not may_pass or not left:
                    break
                await asyncio.sleep(pause)
                pause *= 2
        raise not_now()


def not_now() -> NotNow:
    """What clients are told when the database fails: the log says how."""
    return NotNow("the database fails; try again", retry_after_seconds=5)


def describe(error: BaseException) -> str:
    """The kind of an error, without its message, which may quote what was to be stored."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
    return f"{type(cause).__name__} ({code})" if code else type(cause).__name__


def _may_pass(error: Exception) -> bool:
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return True
        cause: BaseException = error.orig or error
    else:
        cause = error
    state = getattr(cause, "sqlstate", None)
    if isinstance(state, str):
        return state.startswith(_RETRIED_STATES)
    return isinstance(cause, OSError)
