"""Live updates: who hears of what, and what it costs the store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from claas_gateway.access.callers import EVERYTHING, Caller
from claas_gateway.dashboard.live import LiveUpdates
from claas_gateway.dashboard.overview import AdapterKey, Overview, overview
from claas_gateway.dashboard.shared_answers import SharedAnswers
from claas_gateway.records import ItemState
from tests.builders.gateway import FixedDirectory

LOOK_SECONDS = 0.02


class Watched:
    """An overview that the test changes."""

    def __init__(self, look_seconds: float = LOOK_SECONDS) -> None:
        self.counts: dict[AdapterKey, dict[ItemState, int]] = {("a", "coder"): {}, ("b", "tone"): {}}
        self.looks = self.forgotten = 0
        self.broken = False
        self.directory = FixedDirectory()
        self.live = LiveUpdates(self.look, self.forget, self.directory, look_seconds)

    async def look(self) -> Overview:
        self.looks += 1
        if self.broken:
            raise OSError
        return overview([], [], {key: dict(counts) for key, counts in self.counts.items()}, [], listed=True)

    def forget(self) -> None:
        self.forgotten += 1

    def change(self, *key: str) -> None:
        namespace, adapter = key
        counts = self.counts[namespace, adapter]
        counts[ItemState.STORED] = counts.get(ItemState.STORED, 0) + 1


async def first_change(events: AsyncGenerator[bytes]) -> bytes:
    async with asyncio.timeout(5):
        async for event in events:
            if b"event: changed" in event:
                return event
    raise AssertionError


async def opened(events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    assert b"event: ready" in await anext(events)
    return events


async def test_one_look_serves_all_who_listen() -> None:
    watched = Watched()
    listeners = [await opened(watched.live.events(EVERYTHING, None)) for _ in range(100)]
    await asyncio.sleep(10 * LOOK_SECONDS)
    assert 1 <= watched.looks <= 11
    watched.change("a", "coder")
    assert len(await asyncio.gather(*(first_change(each) for each in listeners))) == 100
    assert watched.forgotten == 1


async def test_nobody_looks_when_nobody_listens() -> None:
    watched = Watched()
    events = await opened(watched.live.events(EVERYTHING, None))
    await asyncio.sleep(3 * LOOK_SECONDS)
    await events.aclose()
    await asyncio.sleep(3 * LOOK_SECONDS)
    looks = watched.looks
    await asyncio.sleep(5 * LOOK_SECONDS)
    assert watched.looks == looks


@pytest.mark.parametrize(
    ("caller", "only"), [(Caller("k", "a"), None), (Caller("k", "a", "coder"), None), (EVERYTHING, ("a", "coder"))]
)
async def test_a_listener_hears_only_of_what_it_sees_and_asked_for(caller: Caller, only: AdapterKey | None) -> None:
    watched = Watched()
    events = await opened(watched.live.events(caller, only))
    await asyncio.sleep(2 * LOOK_SECONDS)
    watched.change("b", "tone")
    await asyncio.sleep(4 * LOOK_SECONDS)
    watched.change("a", "coder")
    event = await first_change(events)
    assert event == b'event: changed\ndata: {"namespace":"a","adapter":"coder"}\n\n'


async def test_a_change_in_the_cluster_is_looked_for_sooner() -> None:
    watched = Watched(look_seconds=2.0)
    events = await opened(watched.live.events(EVERYTHING, None))
    await asyncio.sleep(0.12)
    watched.change("a", "coder")
    watched.directory.tell("a", "coder")
    async with asyncio.timeout(1.5):
        assert b"coder" in await first_change(events)


async def test_streams_end_when_the_gateway_stops() -> None:
    watched = Watched()
    events = await opened(watched.live.events(EVERYTHING, None))
    ending = asyncio.create_task(anext(events, None))
    await asyncio.sleep(0)
    watched.live.stop()
    async with asyncio.timeout(1):
        assert await ending is None


async def test_a_database_that_was_away_is_looked_at_again() -> None:
    watched = Watched()
    events = await opened(watched.live.events(EVERYTHING, None))
    await asyncio.sleep(2 * LOOK_SECONDS)
    watched.broken = True
    watched.change("a", "coder")
    await asyncio.sleep(3 * LOOK_SECONDS)
    watched.broken = False
    assert b"coder" in await first_change(events)


async def test_an_answer_is_shared_while_it_is_made_and_for_a_moment_after() -> None:
    now, made = 0.0, 0

    async def make() -> int:
        nonlocal made
        made += 1
        await asyncio.sleep(0)
        return made

    shared = SharedAnswers(1.0, lambda: now)
    assert await asyncio.gather(*(shared.get("key", make) for _ in range(5))) == [1] * 5
    assert await shared.get("other", make) == 2
    now = 0.9
    assert await shared.get("key", make) == 1
    now = 1.1
    assert await shared.get("key", make) == 3
    shared.forget()
    assert await shared.get("key", make) == 4


async def test_a_failure_is_told_to_all_who_wait_and_not_kept() -> None:
    shared = SharedAnswers(1.0, lambda: 0.0)
    broken = True

    async def make() -> str:
        await asyncio.sleep(0)
        if broken:
            raise OSError
        return "well"

    failed = await asyncio.gather(*(shared.get("key", make) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in failed] == [OSError] * 3
    broken = False
    assert await shared.get("key", make) == "well"


async def test_a_reader_that_goes_away_does_not_take_the_answer_from_the_others() -> None:
    shared = SharedAnswers(1.0, lambda: 0.0)
    ready = asyncio.Event()

    async def make() -> str:
        await ready.wait()
        return "well"

    first, second = (asyncio.create_task(shared.get("key", make)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    ready.set()
    assert await second == "well"
