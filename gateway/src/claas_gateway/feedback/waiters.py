"""Requests that wait for their step, each until it is told to look again."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)
class _Waiter:
    request_id: str
    namespace: str
    adapter: str
    event: asyncio.Event = field(default_factory=asyncio.Event)


class Waiters:
    """Who waits for which request."""

    def __init__(self) -> None:
        self._waiting: set[_Waiter] = set()
        self.ending = False
        """Whether the gateway ends: nobody should wait any longer."""

    @contextmanager
    def on(self, request_id: str, namespace: str, adapter: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the request is worth a look."""
        waiter = _Waiter(request_id, namespace, adapter)
        self._waiting.add(waiter)
        try:
            yield waiter.event
        finally:
            self._waiting.discard(waiter)

    def tell(self, request_ids: Container[str]) -> None:
        """Have those who wait for these requests look again."""
        for waiter in self._waiting:
            if waiter.request_id in request_ids:
                waiter.event.set()

    def tell_place(self, namespace: str, adapter: str) -> None:
        """Have those who wait for an adapter look again."""
        for waiter in self._waiting:
            if (waiter.namespace, waiter.adapter) == (namespace, adapter):
                waiter.event.set()

    def tell_all(self) -> None:
        """Have everybody look again."""
        for waiter in self._waiting:
            waiter.event.set()

    def end(self) -> None:
        """Have nobody wait any longer."""
        self.ending = True
        self.tell_all()
