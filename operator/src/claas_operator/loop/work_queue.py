"""The work queue: keys to reconcile, each at most once at a time, now or later."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from claas_operator.keys import Key, Kind

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
LONGEST_LEASE_RETRY_SECONDS = 5.0
"""For passes over Leases, which wake serving."""


Reconcile = Callable[[Key], Awaitable[float | None]]
"""One pass over a key; answers in how many seconds to look again, or None for not before an event."""


class WorkQueue:
    """Wakes keys and runs their passes, a few at a time.

    A key that is woken while its pass runs is run once more afterwards. A pass that raises is run again with a
    growing delay, and no event runs it before that. Everything in here can be lost: a restart begins with a full
    resync.
    """

    def __init__(self, reconcile: Reconcile, workers: int = 32, describe: Callable[[Exception], str] = repr) -> None:
        self._reconcile = reconcile
        self._describe = describe
        self._slots = asyncio.Semaphore(workers)
        self._due: dict[Key, float] = {}
        self._running: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._not_before: dict[Key, float] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self, key: Key, after_seconds: float = 0.0) -> None:
        """Have the key looked at, no later than in that many seconds."""
        due = max(time.monotonic() + after_seconds, self._not_before.get(key, 0.0))
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            self._changed.set()

    def failures(self, key: Key) -> int:
        """How many passes over the key have failed since the last good one."""
        return self._failures.get(key, 0)

    async def run(self) -> None:
        """Run passes until cancelled."""
        try:
            while True:
                await self._start_due()
                await self._sleep()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start_due(self) -> None:
        now = time.monotonic()
        ready = sorted((due, key) for key, due in self._due.items() if due <= now and key not in self._running)
        for _, key in ready:
            await self._slots.acquire()
            self._due.pop(key, None)
            self._running.add(key)
            task = asyncio.create_task(self._pass(key), name=f"reconcile {key.kind} {key.namespace}/{key.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _sleep(self) -> None:
        self._changed.clear()
        waiting = [due for key, due in self._due.items() if key not in self._running]
        timeout = max(0.0, min(waiting) - time.monotonic()) if waiting else None
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _pass(self, key: Key) -> None:
        try:
            again = await self._reconcile(key)
            self._failures.pop(key, None)
            self._not_before.pop(key, None)
        except Exception as error:  # noqa: BLE001  (the edge of a pass: whatever it was, the key is tried again)
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            longest = LONGEST_LEASE_RETRY_SECONDS if key.kind is Kind.LEASE else LONGEST_RETRY_SECONDS
            again = min(longest, FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 16))
            self._not_before[key] = time.monotonic() + again
            # A key that was woken meanwhile waits as well.
            self._due.pop(key, None)
            said = self._describe(error)
            log.warning("%s %s/%s: %s; again in %.1f s", key.kind, key.namespace, key.name, said, again)
        finally:
            self._running.discard(key)
            self._slots.release()
            self._changed.set()
        if again is not None:
            self.wake(key, again)
