"""Waits until an adapter serves, or can be seen not to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from claas_crds.v1alpha1.conditions import AdapterCondition, AdapterReason, condition_of, is_true
from claas_gateway.directory.interface import Directory
from claas_gateway.directory.models import Adapter

_LOOK_SECONDS = 1.0
"""Longest time between two looks, should a change not be told."""
_LOAD_SECONDS = 15.0
"""How long vLLM may refuse to load it before that counts as final: a rank beyond `--max-lora-rank` never passes."""


class ServingWait:
    """Waits for adapters, woken by the directory. One for all requests."""

    def __init__(self, directory: Directory, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._changed: dict[tuple[str, str], asyncio.Event] = {}
        self._waiting: dict[tuple[str, str], int] = {}
        directory.listen(self._wake)

    async def until_served(
        self,
        namespace: str,
        name: str,
        uid: str,
        seconds: float,
        look: Callable[[Adapter], str | None] = lambda adapter: None,
    ) -> str | None:
        """None once the adapter with that UID serves; else why it does not, or will not, after `seconds` at most.
        `look` is asked at each look whether something else is in the way."""
        key, ends = (namespace, name), self._clock() + seconds
        self._waiting[key] = self._waiting.get(key, 0) + 1
        changed = self._changed.setdefault(key, asyncio.Event())
        seen, said = False, "it was not seen yet"
        refused_since: float | None = None
        try:
            while True:
                changed.clear()
                adapter = self._directory.adapter(namespace, name)
                if adapter is not None and adapter.uid == uid:
                    seen = True
                    obstacle = look(adapter)
                    if obstacle is not None:
                        return obstacle
                    if is_true(adapter.found.status.conditions, AdapterCondition.SERVED):
                        return None
                    ready = condition_of(adapter.found.status.conditions, AdapterCondition.READY)
                    refused = ready is not None and ready.reason == AdapterReason.LOAD_FAILED
                    refused_since = (refused_since or self._clock()) if refused else None
                    said = f"{ready.reason}: {ready.message}" if ready is not None else said
                    if is_true(adapter.found.status.conditions, AdapterCondition.STALLED):
                        return said
                    if refused_since is not None and self._clock() - refused_since >= _LOAD_SECONDS:
                        return said
                elif seen:
                    return "it was deleted meanwhile"
                left = ends - self._clock()
                if left <= 0:
                    return f"it does not serve after {seconds:.0f} s: {said}"
                try:
                    async with asyncio.timeout(min(left, _LOOK_SECONDS)):
                        await changed.wait()
                except TimeoutError:
                    continue
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key], self._changed[key]

    def _wake(self, namespace: str, name: str) -> None:
        changed = self._changed.get((namespace, name))
        if changed is not None:
            changed.set()
