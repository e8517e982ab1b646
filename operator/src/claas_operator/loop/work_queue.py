"""The work queue: runs passes over keys, at most one per key at a time, with a lane for each kind."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from claas_operator.keys import Key, Kind
from claas_operator.loop.schedule import KeySchedule

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
LONGEST_LEASE_RETRY_SECONDS = 5.0
"""For passes over Leases, which wake serving."""


Reconcile = Callable[[Key], Awaitable[float | None]]
"""One pass over a key; returns the seconds until the next one, None for not before an event."""
OnStart = Callable[[Kind, float], None]
"""Called for each pass that starts, with its key and its delay in seconds."""


def _ignore(kind: Kind, seconds: float) -> None:
    """Nobody counts."""


class WorkQueue:
    """Runs the passes of woken keys, a few of each kind at a time.

    A key woken during its pass runs again afterwards. A pass that raises is retried with back-off, and no event
    shortens that. Nothing is persistent: a restart begins with a full resync. `clock` counts seconds.
    """

    def __init__(
        self,
        reconcile: Reconcile,
        describe: Callable[[Exception], str] = repr,
        schedule: KeySchedule | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_start: OnStart = _ignore,
    ) -> None:
        self._reconcile = reconcile
        self._describe = describe
        self._schedule = schedule or KeySchedule()
        self._clock = clock
        self._on_start = on_start
        self._failures: dict[Key, int] = {}
        self._not_before: dict[Key, float] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self, key: Key, after_seconds: float = 0.0) -> None:
        """Run a pass over the key within this many seconds."""
        due = max(self._clock() + after_seconds, self._not_before.get(key, 0.0))
        if self._schedule.wake(key, due):
            self._changed.set()

    def hold(self, *kinds: Kind) -> None:
        """Begin no pass over keys of these kinds for now, and over all others."""
        self._schedule.hold(*kinds)
        self._changed.set()

    def failures(self, key: Key) -> int:
        """Number of failed passes over the key since the last successful one."""
        return self._failures.get(key, 0)

    def waiting(self, kind: Kind) -> int:
        """How many keys of a kind are due and wait for their pass."""
        return self._schedule.waiting(kind, self._clock())

    async def run(self) -> None:
        """Run passes until cancelled."""
        try:
            while True:
                self._changed.clear()
                self._start_due()
                await self._sleep()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start_due(self) -> None:
        now = self._clock()
        for key, due in self._schedule.start(now):
            self._on_start(key.kind, now - due)
            task = asyncio.create_task(self._pass(key), name=f"reconcile {key.kind} {key.namespace}/{key.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _sleep(self) -> None:
        due = self._schedule.next_start()
        timeout = None if due is None else max(0.0, due - self._clock())
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
            self._not_before[key] = self._clock() + again
            # A key that was woken meanwhile waits as well.
            self._schedule.put_off(key, self._not_before[key])
            said = self._describe(error)
            log.warning("%s %s/%s: %s; again in %.1f s", key.kind, key.namespace, key.name, said, again)
            again = None
        finally:
            self._schedule.finish(key)
            self._changed.set()
        if again is not None:
            self.wake(key, again)
