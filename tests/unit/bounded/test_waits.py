"""Waits that end at their deadline, whatever becomes of what they wait for."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from claas_bounded.waits import Deadline, in_thread, wait_until


async def test_what_is_awaited_is_cancelled_at_the_deadline_and_not_waited_for() -> None:
    cancelled = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.sleep(0.2)
            raise

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await wait_until(Deadline.after(0.05), stubborn())
    assert time.monotonic() - began < 0.2
    await asyncio.wait_for(cancelled.wait(), 1)


async def test_what_is_awaited_is_cancelled_with_its_caller() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    caller = asyncio.create_task(wait_until(Deadline.after(60), work()))
    await started.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.wait_for(cancelled.wait(), 1)


async def test_a_result_and_an_error_come_through() -> None:
    async def fail() -> None:
        raise LookupError("said")

    assert await wait_until(Deadline.after(5), asyncio.sleep(0, 7)) == 7
    with pytest.raises(LookupError, match="said"):
        await wait_until(Deadline.after(5), fail())


async def test_blocking_work_runs_in_a_thread_that_holds_nothing_up() -> None:
    ending = threading.Event()
    with pytest.raises(TimeoutError):
        await wait_until(Deadline.after(0.05), in_thread(lambda: ending.wait(60)))
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "bounded-call")
    ending.set()
    assert await in_thread(threading.get_ident) != threading.get_ident()


def test_a_deadline_is_the_sooner_of_two() -> None:
    now = [100.0]
    deadline = Deadline.after(10, lambda: now[0])
    assert deadline.within(3).at == 103
    assert deadline.within(30).at == 110
    now[0] = 120.0
    assert deadline.left() == 0
