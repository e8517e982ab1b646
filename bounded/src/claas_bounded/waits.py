"""Waits with an end.

SDKs retry some calls for minutes, some for ever, and block in their constructors. So every call is awaited until
a deadline at most, and what blocks runs in a thread that may outlive the call.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Deadline:
    """The end of a piece of work, whatever it is waiting for then."""

    at: float
    """In seconds of `clock`."""
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """That many seconds from now."""
        return cls(clock() + seconds, clock)

    def left(self) -> float:
        """Seconds left; 0 when it is over."""
        return max(0.0, self.at - self.clock())

    def within(self, seconds: float) -> Deadline:
        """This deadline, or one in that many seconds if that is sooner."""
        return Deadline(min(self.at, self.clock() + seconds), self.clock)


async def wait_until(deadline: Deadline, awaitable: Awaitable[T]) -> T:
    """The result, or TimeoutError at the deadline: what is awaited is cancelled then, or when the caller is, and not
    waited for."""
    task = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait({task}, timeout=deadline.left())
        if not done:
            raise TimeoutError
        return task.result()
    finally:
        task.cancel()


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """The result of blocking work. Its thread holds up neither the end of the event loop nor of the process, as one
    of the loop's own executor would."""
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="bounded-call", daemon=True).start()
    return asyncio.wrap_future(future)
