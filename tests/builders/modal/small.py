"""Modal in memory, as the operator asks it: pointers, and containers that follow them when they are asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from claas_operator.clients.modal.service import (
    ConfirmResult,
    LookResult,
    ModalError,
    ModalService,
    PointerMovedError,
    RefusedVersionError,
    ServiceSource,
)
from claas_operator.plan.modal.pointer import ModalPlace, ModalServer, ServedPointer
from claas_operator.plan.modal.state import ModalTrouble
from tests.builders.modal.world import URL


@dataclass
class SmallModal:
    """Keeps pointers by app and served name, and counts what is asked."""

    pointers: dict[tuple[str, str], ServedPointer] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    """Weights that no container takes."""
    starting: int = 0
    """So many requests come before a container has started."""
    trouble: ModalTrouble | None = None
    """What comes of each call of the API."""
    held: asyncio.Event | None = None
    """Requests to the server wait for it."""
    removing: asyncio.Event | None = None
    """Removals wait for it, after they have looked whose the pointer is."""
    calls: Counter[str] = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0
    loaded: int = 0
    containers: int = 1

    def source(self) -> ServiceSource:
        """For an operator."""

        async def load() -> ModalService:
            self.loaded += 1
            return self

        return load

    def counted(self) -> dict[str, int]:
        """What was asked since this was last called."""
        counts = dict(self.calls)
        self.calls.clear()
        return counts

    async def look(self, namespace: str, server: ModalServer, served_name: str) -> LookResult:
        await self._api("look")
        return LookResult(self.pointers.get((server.place.app, served_name)), URL)

    async def point(self, namespace: str, place: ModalPlace, pointer: ServedPointer) -> None:
        await self._api("point")
        self.pointers[place.app, pointer.served_name] = pointer

    async def confirm(
        self, namespace: str, server: ModalServer, pointer: ServedPointer, url: str | None
    ) -> ConfirmResult:
        self.calls["confirm"] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.held is not None:
                await self.held.wait()
            await asyncio.sleep(0)
        finally:
            self.at_once -= 1
        found = self.pointers.get((server.place.app, pointer.served_name))
        if found != pointer:
            raise PointerMovedError(found)
        if pointer.weights in self.refused:
            raise RefusedVersionError("a container refuses it: rank 64")
        if self.starting:
            self.starting -= 1
            raise ModalError(ModalTrouble.NOT_YET, "a container starts (HTTP 503)")
        return ConfirmResult(URL, self.containers)

    async def remove(self, namespace: str, place: ModalPlace, served_name: str, adapter_uid: str) -> None:
        await self._api("remove")
        found = self.pointers.get((place.app, served_name))
        if self.removing is not None:
            await self.removing.wait()
        if found is not None and found.adapter_uid == adapter_uid:
            del self.pointers[place.app, served_name]

    async def close(self) -> None:
        self.calls["close"] += 1

    async def _api(self, name: str) -> None:
        self.calls[name] += 1
        await asyncio.sleep(0)
        if self.trouble is not None:
            raise ModalError(self.trouble, "what to do")
