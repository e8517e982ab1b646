"""Which adapter's pass runs when: one at a time for each adapter, several adapters at a time."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

Place = tuple[str, str]
"""Namespace and name of an adapter."""
Pass = Callable[[str, str], Awaitable[float | None]]
"""A pass over an adapter; the seconds until the next one, None: not before it is woken."""
_AT_A_TIME = 16
_FIRST_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 30.0


class PassQueue:
    """Runs passes of woken adapters. One that raises is tried again with back-off, and others do not wait for it."""

    def __init__(self, run_pass: Pass, clock: Callable[[], float] = time.monotonic) -> None:
        self._run_pass = run_pass
        self._clock = clock
        self._due: dict[Place, float] = {}
        self._running: dict[Place, asyncio.Task[None]] = {}
        self._failures: dict[Place, int] = {}
        self._changed = asyncio.Event()

    def wake(self, namespace: str, adapter: str, after_seconds: float = 0.0) -> None:
        """Run a pass within so many seconds, or when the back-off after a failure is over."""
        place, due = (namespace, adapter), self._clock() + after_seconds
        if place in self._failures and place in self._due:
            return
        self._due[place] = min(due, self._due.get(place, due))
        self._changed.set()

    @property
    def failing(self) -> int:
        """How many adapters' passes fail."""
        return len(self._failures)

    async def run(self) -> None:
        """Run passes until cancelled."""
        try:
            while True:
                self._changed.clear()
                self._start_due()
                await self._sleep()
        finally:
            tasks = list(self._running.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start_due(self) -> None:
        now = self._clock()
        ready = sorted((due, place) for place, due in self._due.items() if due <= now and place not in self._running)
        for _, place in ready[: max(0, _AT_A_TIME - len(self._running))]:
            del self._due[place]
            self._running[place] = asyncio.create_task(self._pass(place), name=f"feedback of {place[0]}/{place[1]}")

    async def _sleep(self) -> None:
        waiting = [due for place, due in self._due.items() if place not in self._running]
        full = len(self._running) >= _AT_A_TIME
        timeout = None if full or not waiting else max(0.0, min(waiting) - self._clock())
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _pass(self, place: Place) -> None:
        try:
            again = await self._run_pass(*place)
            self._failures.pop(place, None)
        except Exception as error:  # noqa: BLE001  (the edge of a pass: whatever it was, it is tried again)
            failures = self._failures[place] = self._failures.get(place, 0) + 1
            again = min(_LONGEST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 16))
            self._due[place] = self._clock() + again
            log.warning("feedback of %s/%s: %s; again in %.1f s", *place, told(error), again)
        else:
            if again is not None:
                self.wake(*place, again)
        finally:
            self._running.pop(place, None)
            self._changed.set()


def told(error: BaseException) -> str:
    """Type and place of an exception; its message may quote what was stored."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
