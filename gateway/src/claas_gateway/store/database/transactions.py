"""Transactions: on SQLite one writer at a time, on PostgreSQL as many as the pool has connections.

The work of a transaction may run again: when the database says so (two transactions met), and when the connection was
lost, even while it was committing. So a work finds out by identifiers what is written already.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.sql.dml import Insert

from claas_gateway.errors import NotNow

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]

_ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 0.05
_RETRIED_STATES = ("08", "40001", "40P01", "53300", "57P")
"""SQLSTATE (or its class): connection lost, two transactions met, too many connections, server stops or starts."""

_log = logging.getLogger(__name__)


class Inserts(Protocol):
    """A quicker way to insert rows."""

    async def insert(self, statement: Insert, rows: Sequence[Mapping[str, object]]) -> None:
        """Insert rows in one transaction."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


class Database:
    """Runs transactions. `lasting` writes are on the disk when they return; the others survive the end of this
    process, but on SQLite not a loss of power."""

    def __init__(
        self,
        reader: AsyncEngine,
        writer: AsyncEngine,
        quick_writer: AsyncEngine,
        purge: Callable[[], None] | None = None,
        inserts: Inserts | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._quick_writer = quick_writer
        self._purge = purge
        self._inserts = inserts
        self.is_sqlite = writer.dialect.name == "sqlite"
        self._one_writer = asyncio.Lock()
        self._running: set[asyncio.Task[object]] = set()

    async def read(self, work: Work[T]) -> T:
        """Run a transaction that writes nothing."""
        return await self._repeating(self._reader, work)

    async def write(self, work: Work[T], *, lasting: bool = True) -> T:
        """Run a transaction that writes. It runs to its end even if the caller is cancelled."""
        engine = self._writer if lasting else self._quick_writer
        task = asyncio.create_task(self._write(engine, work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def insert(self, statement: Insert, rows: Sequence[Mapping[str, object]]) -> None:
        """Insert rows, not lasting, in the quickest way there is."""
        if self._inserts is not None:
            async with self._turn():
                await self._inserts.insert(statement, rows)
            return

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(statement, rows)

        await self.write(work, lasting=False)

    async def purge(self) -> None:
        """Let the files forget what was deleted, as far as the database does not do so in its own time."""
        if self._purge is not None:
            async with self._one_writer:
                await asyncio.to_thread(self._purge)

    async def close(self) -> None:
        """Wait for transactions that run, and close the connections."""
        while self._running:
            await asyncio.wait(set(self._running))
        if self._inserts is not None:
            await self._inserts.close()
        for engine in {self._reader, self._quick_writer, self._writer}:
            await engine.dispose()

    async def _write(self, engine: AsyncEngine, work: Work[T]) -> T:
        async with self._turn():
            return await self._repeating(engine, work)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if not self.is_sqlite:
            yield
            return
        async with self._one_writer:
            yield

    async def _repeating(self, engine: AsyncEngine, work: Work[T]) -> T:
        pause = _FIRST_PAUSE_SECONDS
        for left in reversed(range(_ATTEMPTS)):
            try:
                async with engine.begin() as connection:
                    return await work(connection)
            except Exception as error:
                if not _may_pass(error):
                    raise
                _log.warning("the database failed a transaction: %s", describe(error))
                if not left:
                    break
                await asyncio.sleep(pause)
                pause *= 2
        raise NotNow("the database can't be reached; try again", retry_after_seconds=5)


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
