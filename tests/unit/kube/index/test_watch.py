"""A watch keeps a collection as the server has it, whatever becomes of connections and of the server's memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from claas_kube.api import Api
from claas_kube.errors import Forbidden
from claas_kube.index.collection import Collection
from claas_kube.index.watch import Watch
from claas_kube.listing import Selection
from claas_kube.objects.meta import Manifest
from claas_kube.resources import DISTILL_JOBS
from tests.builders.api_server import SmallApi, refusal, serving_api

NAMESPACE = "team"
BY_TWO = Selection(page_size=2)


async def spec_of(found: Manifest, before: str | None) -> str:
    return str(found["spec"])


@dataclass
class Kept:
    """A server, and what a watch keeps of it."""

    server: SmallApi
    api: Api
    collection: Collection[str]
    watch: Watch[str]
    slept: list[float] = field(default_factory=list)

    @property
    def values(self) -> dict[str, str]:
        return {name: str(entry.value) for (_, name), entry in self.collection.entries(None).items()}

    async def until(self, holds: Callable[[], bool]) -> None:
        await self.server.until(holds)

    async def follows(self) -> None:
        """Wait until a watch is open."""
        await self.until(lambda: bool(self.server.watchers))


@asynccontextmanager
async def kept(
    server: SmallApi, namespace: str | None = NAMESPACE, selection: Selection = BY_TWO
) -> AsyncIterator[Kept]:
    async with serving_api(server) as api:
        collection = Collection(spec_of)
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            await asyncio.sleep(0)

        watch = Watch(api, DISTILL_JOBS, collection, namespace, selection, sleep)
        running = asyncio.create_task(watch.run())
        try:
            yield Kept(server, api, collection, watch, slept)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def put(server: SmallApi, name: str, spec: str, labels: dict[str, str] | None = None) -> None:
    server.put(DISTILL_JOBS, NAMESPACE, {"metadata": {"name": name, "labels": {**(labels or {})}}, "spec": spec})


def lists(server: SmallApi) -> int:
    return sum(1 for method, path in server.asked if path == DISTILL_JOBS.path(NAMESPACE))


async def test_all_is_listed_by_pages_and_then_followed() -> None:
    server = SmallApi()
    for number in range(5):
        put(server, f"job-{number}", "listed")
    async with kept(server) as index:
        await index.watch.ready()
        assert len(index.values) == 5
        assert lists(server) == 3
        put(server, "job-0", "changed")
        put(server, "job-9", "new")
        server.remove(DISTILL_JOBS, NAMESPACE, "job-1")
        await index.until(lambda: "job-9" in index.values and "job-1" not in index.values)
        assert index.values == {
            "job-0": "changed",
            "job-2": "listed",
            "job-3": "listed",
            "job-4": "listed",
            "job-9": "new",
        }


async def test_a_connection_that_ends_is_made_again_and_nothing_is_missed_or_listed_anew() -> None:
    server = SmallApi()
    async with kept(server) as index:
        await index.follows()
        for number in range(3):
            server.hang_up()
            put(server, f"job-{number}", "written in between")
            await index.until(lambda number=number: f"job-{number}" in index.values)  # type: ignore[misc]
        assert sum(1 for event in server.asked if event[0] == "GET") <= 1 + 4, (
            "one list, and a watch for each connection"
        )


async def test_when_the_server_has_forgotten_all_is_listed_anew() -> None:
    server = SmallApi()
    put(server, "stays", "old")
    put(server, "goes", "old")
    async with kept(server) as index:
        await index.follows()
        # What happens while nobody watches, and is told to nobody.
        server.hang_up()
        put(server, "stays", "new")
        server.remove(DISTILL_JOBS, NAMESPACE, "goes")
        server.events.clear()
        server.forgotten = server.version
        server.hang_up()
        await index.until(lambda: index.values == {"stays": "new"})


@pytest.mark.parametrize("status", [403, 429, 503])
async def test_refusals_and_outages_are_waited_for_longer_each_time(status: int) -> None:
    refused = [True]
    server = SmallApi(refuse=lambda method, path: refusal(status, "not now") if refused[0] else None)
    put(server, "job", "there")
    async with kept(server) as index:
        await index.until(lambda: len(index.slept) >= 6)
        assert index.slept[5] > index.slept[0]
        assert max(index.slept) <= 15.0
        refused[0] = False
        await index.until(lambda: index.values == {"job": "there"})


async def test_during_an_outage_the_last_that_was_known_stays_known() -> None:
    refused = [False]
    server = SmallApi(refuse=lambda method, path: web.Response(status=503) if refused[0] else None)
    put(server, "job", "there")
    async with kept(server) as index:
        await index.follows()
        refused[0] = True
        server.hang_up()
        await index.until(lambda: len(index.slept) >= 3)
        assert index.values == {"job": "there"}
        put(server, "job", "changed")
        refused[0] = False
        await index.until(lambda: index.values == {"job": "changed"})


async def test_the_first_list_tells_why_it_fails() -> None:
    server = SmallApi(refuse=lambda method, path: refusal(403, "no", "Forbidden"))
    async with kept(server) as index:
        with pytest.raises(Forbidden):
            await index.watch.ready()
        server.refuse = lambda method, path: None
        async with asyncio.timeout(5):
            while not index.watch.listed:
                try:
                    await index.watch.ready()
                except Forbidden:
                    continue


class WithoutWatch(SmallApi):
    """A server that lets nobody watch, as Roles of an earlier release do."""

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        return refusal(403, "watch is forbidden", "Forbidden")


async def test_where_watching_is_not_allowed_lists_take_its_place() -> None:
    server = WithoutWatch()
    async with kept(server) as index:
        await index.watch.ready()
        put(server, "job", "new")
        await index.until(lambda: index.values == {"job": "new"})
        server.remove(DISTILL_JOBS, NAMESPACE, "job")
        await index.until(lambda: index.values == {})


async def test_only_what_is_selected_is_kept() -> None:
    server = SmallApi()
    put(server, "ours", "a", {"owner": "us"})
    put(server, "theirs", "b", {"owner": "them"})
    async with kept(server, selection=Selection(labels="owner=us")) as index:
        await index.watch.ready()
        put(server, "theirs-too", "c", {"owner": "them"})
        put(server, "ours-too", "d", {"owner": "us"})
        await index.until(lambda: "ours-too" in index.values)
        assert set(index.values) == {"ours", "ours-too"}


async def test_what_was_missed_is_found_by_comparing_metadata() -> None:
    server = SmallApi()
    for name in ("same", "changed", "gone"):
        put(server, name, "old")
    async with kept(server) as index:
        await index.follows()
        for name in ("changed", "new"):
            put(server, name, "unseen")
        server.remove(DISTILL_JOBS, NAMESPACE, "gone")
        server.events.clear()
        assert index.values == {"same": "old", "changed": "old", "gone": "old"}
        server.asked.clear()
        await index.watch.compare()
        assert index.values == {"same": "old", "changed": "unseen", "new": "unseen"}
        read = [path.rsplit("/", 1)[1] for _, path in server.asked if path != DISTILL_JOBS.path(NAMESPACE)]
        assert sorted(read) == ["changed", "gone", "new"]


async def test_the_rights_of_a_namespace_may_go_and_come_again() -> None:
    server = SmallApi()
    put(server, "job", "there")
    async with kept(server) as index:
        await index.follows()
        server.refuse = lambda method, path: refusal(403, "the namespace is gone", "Forbidden")
        server.remove(DISTILL_JOBS, NAMESPACE, "job")
        server.hang_up()
        await index.until(lambda: len(index.slept) >= 3)
        server.refuse = lambda method, path: None
        put(server, "job-2", "there")
        await index.until(lambda: index.values == {"job-2": "there"})
