"""Which adapter's pass runs when."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from claas_gateway.feedback.queue import PassQueue


@asynccontextmanager
async def running(run_pass: Callable[[str, str], Awaitable[float | None]]) -> AsyncIterator[PassQueue]:
    """A queue that works."""
    queue = PassQueue(run_pass)
    work = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        work.cancel()
        await asyncio.wait((work,))


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  (what is waited for is no event)
            await asyncio.sleep(0.002)


async def test_adapters_that_fail_or_hang_hold_up_no_others_and_are_tried_again() -> None:
    passes: Counter[str] = Counter()

    async def run_pass(namespace: str, adapter: str) -> float | None:
        passes[adapter] += 1
        if adapter == "hangs":
            await asyncio.Event().wait()
        if adapter == "fails" and passes[adapter] < 3:
            raise OSError("private words")
        return None

    async with running(run_pass) as queue:
        for name in ("hangs", "fails", "works"):
            queue.wake("team", name)
        await _until(lambda: passes["works"] == 1)
        # Nothing that changes meanwhile shortens the pause after a failure.
        for _ in range(20):
            queue.wake("team", "fails")
            await asyncio.sleep(0)
        assert passes["fails"] == 1
        assert queue.failing == 1
        await _until(lambda: passes["fails"] == 3)
        await _until(lambda: queue.failing == 0)


async def test_an_adapter_has_one_pass_at_a_time_and_another_after_it_when_woken_meanwhile() -> None:
    together, most, passes = 0, 0, 0
    go_on = asyncio.Event()

    async def run_pass(namespace: str, adapter: str) -> float | None:
        nonlocal together, most, passes
        together, passes = together + 1, passes + 1
        most = max(most, together)
        await go_on.wait()
        together -= 1
        return None

    async with running(run_pass) as queue:
        queue.wake("team", "tone")
        await _until(lambda: passes == 1)
        for _ in range(3):
            queue.wake("team", "tone")
        await asyncio.sleep(0.01)
        assert passes == 1
        go_on.set()
        await _until(lambda: passes == 2)
        await asyncio.sleep(0.01)
        assert (passes, most) == (2, 1)


async def test_a_pass_comes_when_the_last_one_asked_for_it() -> None:
    passes = 0

    async def run_pass(namespace: str, adapter: str) -> float | None:
        nonlocal passes
        passes += 1
        return 0.01 if passes < 4 else None

    async with running(run_pass) as queue:
        queue.wake("team", "tone")
        await _until(lambda: passes == 4)
        await asyncio.sleep(0.03)
        assert passes == 4
