"""Group commit: what is to be stored while a commit runs shares the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Row = TypeVar("Row")

_LARGEST_GROUP = 256
"""Calls that share a commit at most: the first of them waits for all."""


class GroupCommit(Generic[Row]):
    """Stores the rows of concurrent calls together. If that fails, each call's rows are stored by themselves, so that
    a row that can't be stored fails its own call alone."""

    def __init__(self, store: Callable[[Sequence[Row]], Awaitable[None]]) -> None:
        self._store = store
        self._waiting: list[tuple[Sequence[Row], asyncio.Future[None]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def add(self, rows: Sequence[Row]) -> None:
        """Store rows; returns when they are committed. They are stored even if the caller is cancelled."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, stored))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        await stored

    async def close(self) -> None:
        """Wait until all is stored."""
        if self._worker is not None:
            await asyncio.wait([self._worker])

    async def _work(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:_LARGEST_GROUP], self._waiting[_LARGEST_GROUP:]
                await self._store_group(group)
        finally:
            self._worker = None

    async def _store_group(self, group: Sequence[tuple[Sequence[Row], asyncio.Future[None]]]) -> None:
        try:
            await self._store([row for rows, _ in group for row in rows])
        except Exception as error:  # noqa: BLE001  (it is the callers' error)
            if len(group) == 1:
                _, stored = group[0]
                if not stored.done():
                    stored.set_exception(error)
                return
            for each in group:
                await self._store_group([each])
        else:
            for _, stored in group:
                if not stored.done():
                    stored.set_result(None)
