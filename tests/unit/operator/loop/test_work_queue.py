"""The work queue: each key once at a time, again when it was woken meanwhile, later when it failed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from claas_operator.keys import Key, Kind
from claas_operator.loop import work_queue as work
from claas_operator.loop.schedule import KeySchedule
from claas_operator.loop.work_queue import Reconcile, WorkQueue

A = Key(Kind.JOB, "team", "a")
B = Key(Kind.ADAPTER, "team", "b")


@asynccontextmanager
async def running(reconcile: Reconcile, workers: int = 8) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(reconcile, schedule=KeySchedule(dict.fromkeys(Kind, workers)))
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(check: Callable[[], bool]) -> None:
    for _ in range(200):
        if check():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("not within 2 s")


async def test_a_key_woken_many_times_before_its_pass_is_run_once() -> None:
    passes: Counter[Key] = Counter()

    async def reconcile(key: Key) -> None:
        passes[key] += 1

    async with running(reconcile) as queue:
        for _ in range(5):
            queue.wake(A)
        queue.wake(B)
        await until(lambda: len(passes) == 2)
        await asyncio.sleep(0.05)
    assert passes == {A: 1, B: 1}


async def test_a_key_woken_during_its_pass_is_run_once_more_and_never_twice_at_a_time() -> None:
    at_work, most, passes = 0, 0, 0
    gate = asyncio.Event()

    async def reconcile(key: Key) -> None:
        nonlocal at_work, most, passes
        at_work += 1
        most = max(most, at_work)
        passes += 1
        await gate.wait()
        at_work -= 1

    async with running(reconcile) as queue:
        queue.wake(A)
        await until(lambda: passes == 1)
        for _ in range(3):
            queue.wake(A)
        await asyncio.sleep(0.05)
        assert passes == 1
        gate.set()
        await until(lambda: passes == 2)
        await asyncio.sleep(0.05)
    assert (most, passes) == (1, 2)


async def test_a_pass_that_asks_for_it_is_run_again_and_an_event_brings_it_forward() -> None:
    times: list[float] = []

    async def reconcile(key: Key) -> float | None:
        times.append(asyncio.get_running_loop().time())
        return {1: 0.05, 2: 60.0}.get(len(times))

    async with running(reconcile) as queue:
        queue.wake(A)
        await until(lambda: len(times) == 2)
        assert times[1] - times[0] >= 0.04
        queue.wake(A)
        await until(lambda: len(times) == 3)


async def test_a_later_wish_does_not_put_off_an_earlier_one() -> None:
    passes = 0

    async def reconcile(key: Key) -> None:
        nonlocal passes
        passes += 1

    async with running(reconcile) as queue:
        queue.wake(A, after_seconds=0.05)
        queue.wake(A, after_seconds=60)
        await until(lambda: passes == 1)


async def test_a_pass_that_fails_is_run_again_with_growing_delay_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(work, "FIRST_RETRY_SECONDS", 0.02)
    times: list[float] = []
    others = 0

    async def reconcile(key: Key) -> None:
        nonlocal others
        if key == B:
            others += 1
            return
        times.append(asyncio.get_running_loop().time())
        if len(times) < 4:
            raise ValueError("this one fails")

    async with running(reconcile) as queue:
        queue.wake(A)
        queue.wake(B)
        await until(lambda: len(times) == 4 and others == 1)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[0] >= 0.02
    assert gaps[1] >= 0.04
    assert gaps[2] >= 0.08
    assert "DistillJob team/a: ValueError('this one fails'); again in" in caplog.text


async def test_an_event_does_not_run_a_key_that_failed_before_its_delay_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(work, "FIRST_RETRY_SECONDS", 0.2)
    times: list[float] = []

    async def reconcile(key: Key) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            queue.wake(A)
            raise ValueError("this one fails")

    async with running(reconcile) as queue:
        queue.wake(A)
        await until(lambda: len(times) == 1)
        for _ in range(5):
            queue.wake(A)
            await asyncio.sleep(0.01)
        await until(lambda: len(times) == 2)
        assert times[1] - times[0] >= 0.2
        assert queue.failures(A) == 0
        queue.wake(A)
        await until(lambda: len(times) == 3)


async def test_no_more_passes_run_at_once_than_there_are_workers() -> None:
    at_work, most, passes = 0, 0, 0

    async def reconcile(key: Key) -> None:
        nonlocal at_work, most, passes
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0.01)
        at_work -= 1
        passes += 1

    async with running(reconcile, workers=2) as queue:
        for number in range(6):
            queue.wake(Key(Kind.JOB, "team", str(number)))
        await until(lambda: passes == 6)
    assert most == 2


@pytest.mark.parametrize("others", ["hang", "fail"])
async def test_a_lease_pass_begins_at_once_whatever_becomes_of_other_passes(others: str) -> None:
    woken = asyncio.Event()

    async def reconcile(key: Key) -> None:
        if key.kind is Kind.LEASE:
            woken.set()
        elif others == "fail":
            raise ValueError("no answer")
        else:
            await asyncio.Event().wait()

    async with running(reconcile, workers=2) as queue:
        for number in range(200):
            queue.wake(Key(Kind.JOB, "team", str(number)))
            queue.wake(Key(Kind.ADAPTER, "team", str(number)))
        await asyncio.sleep(0.02)
        queue.wake(Key(Kind.LEASE, "team", "claas-serving-vllm"))
        await asyncio.wait_for(woken.wait(), 1)


async def test_passes_end_with_the_queue() -> None:
    cancelled = False

    async def reconcile(key: Key) -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    async with running(reconcile) as queue:
        queue.wake(A)
        await asyncio.sleep(0.05)
    assert cancelled


async def test_the_queue_tells_how_long_a_key_waited_for_its_pass_and_how_many_wait() -> None:
    gate, now = asyncio.Event(), 100.0
    waited: list[tuple[Kind, float]] = []

    async def reconcile(key: Key) -> None:
        await gate.wait()

    def note(kind: Kind, seconds: float) -> None:
        waited.append((kind, seconds))

    schedule = KeySchedule(dict.fromkeys(Kind, 1))
    queue = WorkQueue(reconcile, schedule=schedule, clock=lambda: now, on_start=note)
    task = asyncio.create_task(queue.run())
    queue.wake(A)
    await until(lambda: len(waited) == 1)
    queue.wake(Key(Kind.JOB, "team", "next"))
    queue.wake(Key(Kind.JOB, "team", "later"), 60)
    now = 107.0
    assert (queue.waiting(Kind.JOB), queue.waiting(Kind.LEASE)) == (1, 0)
    gate.set()
    await until(lambda: len(waited) == 2)
    assert waited == [(Kind.JOB, 0.0), (Kind.JOB, 7.0)]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
