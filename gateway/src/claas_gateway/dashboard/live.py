"""Tells open pages what has changed. One look at the store serves them all, and nobody looks while none is open."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

import msgspec

from claas_gateway.access.callers import Caller
from claas_gateway.dashboard.overview import AdapterKey, Overview
from claas_gateway.directory.interface import Directory

LOOK_SECONDS = 2.0
"""How often the store is looked at while pages are open."""
_LOAD_SHARE = 20
"""A look that takes long is followed by a rest of so many times its duration."""
KEEP_ALIVE_SECONDS = 15.0
STREAM_SECONDS = 600.0
"""A stream ends after that, and the browser opens another one: so a key that was taken back is noticed."""
_RETRY_MILLISECONDS = 3_000

_log = logging.getLogger(__name__)


class _Listener:
    def __init__(self, caller: Caller, only: AdapterKey | None) -> None:
        self._caller = caller
        self._only = only
        self.changed: set[AdapterKey] = set()
        self.wake = asyncio.Event()

    def tell(self, keys: set[AdapterKey]) -> None:
        seen = {key for key in keys if self._caller.sees(*key) and self._only in (None, key)}
        if seen:
            self.changed |= seen
            self.wake.set()

    def take(self) -> list[AdapterKey]:
        taken = sorted(self.changed)
        self.changed = set()
        self.wake.clear()
        return taken


class LiveUpdates:
    """Watches the overview for those who listen."""

    def __init__(
        self,
        look: Callable[[], Awaitable[Overview]],
        forget: Callable[[], None],
        directory: Directory,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._look = look
        self._forget = forget
        self._look_seconds = look_seconds
        self._listeners: set[_Listener] = set()
        self._hint = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._stopping = False
        directory.listen(self._hinted)

    async def events(self, caller: Caller, only: AdapterKey | None) -> AsyncGenerator[bytes]:
        """An event stream: `changed` with namespace and adapter, for all that the caller sees or for `only` one."""
        listener = _Listener(caller, only)
        self._listeners.add(listener)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        loop = asyncio.get_running_loop()
        ends = loop.time() + STREAM_SECONDS
        try:
            yield f"retry: {_RETRY_MILLISECONDS}\nevent: ready\ndata: {{}}\n\n".encode()
            while (left := ends - loop.time()) > 0 and not self._stopping:
                try:
                    await asyncio.wait_for(listener.wake.wait(), min(KEEP_ALIVE_SECONDS, left))
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                for namespace, adapter in listener.take():
                    data = msgspec.json.encode({"namespace": namespace, "adapter": adapter})
                    yield b"event: changed\ndata: " + data + b"\n\n"
        finally:
            self._listeners.discard(listener)

    def stop(self) -> None:
        """End all streams: the gateway is about to stop."""
        self._stopping = True
        for listener in self._listeners:
            listener.wake.set()

    def _hinted(self, namespace: str, adapter: str) -> None:
        if self._listeners:
            self._hint.set()

    async def _watch(self) -> None:
        """Look until nobody listens."""
        loop = asyncio.get_running_loop()
        before: Overview | None = None
        while self._listeners:
            begun = loop.time()
            try:
                now = await self._look()
            except Exception as error:  # noqa: BLE001  (the database may be away for a while; pages wait for it)
                _log.warning("the dashboard could not look at the store: %s", type(error).__name__)
            else:
                if before is not None:
                    changed = now.changed_since(before)
                    if changed:
                        # Who hears of it reads at once, and must not be shown what was read before.
                        self._forget()
                    for listener in list(self._listeners):
                        listener.tell(changed)
                before = now
            await self._rest(max(self._look_seconds, _LOAD_SHARE * (loop.time() - begun)))

    async def _rest(self, seconds: float) -> None:
        """Wait; a hint from the directory shortens it, but never below a quarter."""
        await asyncio.sleep(seconds / 4)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hint.wait(), 3 * seconds / 4)
        self._hint.clear()
