"""A writer to be killed: stores rollouts and feedback, forms and ends batches, and says what was acknowledged.

    python -m tests.databases.feedback_writer URL NAME

Each line on stdout is a promise: `rollout ID`, `item ID`, `batch ID ITEM...` or `ended ID VERSION ITEM...`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count

from claas_gateway.errors import NotNow
from claas_gateway.records import BatchState, ItemOutcome, ItemState
from claas_gateway.store.interface import Store
from claas_gateway.store.sql_store import open_store
from tests.builders.gateway_records import after, build_batch, build_item, build_request, build_rollout


def promise(*words: object) -> None:
    """Say what was acknowledged, at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def serve(store: Store, writer: str, number: int) -> None:
    """A rollout."""
    name = f"{writer}-{number}"
    await store.rollouts.add([build_rollout(name, answer=name * 50)])
    promise("rollout", name)


async def bring(store: Store, writer: str, number: int) -> None:
    """Feedback."""
    request, item = f"{writer}-r{number}", f"{writer}-i{number}"
    await store.feedback.accept(build_request(request), [build_item(item, request=request)])
    promise("item", item)


async def gather(store: Store, writer: str, number: int) -> None:
    """A batch of whatever waits, as each replica forms it; its job ends at once."""
    waiting = [item.id for item in await store.feedback.waiting("team", "coder")][:5]
    batch = build_batch(f"{writer}-b{number}")
    if not waiting or not await store.batches.form(batch, waiting):
        await asyncio.sleep(0.001)
        return
    promise("batch", batch.id, *waiting)
    await store.batches.submitted(batch.id, "uid", after(1))
    ended = replace(batch, state=BatchState.ACCOUNTED, accounted=after(number), version=number)
    outcomes = [ItemOutcome(name, ItemState.IN_VERSION, version=number) for name in waiting]
    if await store.batches.account(ended, outcomes):
        promise("ended", batch.id, number, *waiting)


async def without_end(work: Callable[[Store, str, int], Awaitable[None]], store: Store, writer: str) -> None:
    """Do it again and again; where the database is away for long, go on with the next, as clients do."""
    for number in count(1):
        with suppress(NotNow):
            await work(store, writer, number)


async def main(url: str, writer: str) -> None:
    """All of it at once."""
    async with open_store(url) as store, asyncio.TaskGroup() as tasks:
        for times, work in ((3, serve), (3, bring), (2, gather)):
            for number in range(times):
                tasks.create_task(without_end(work, store, f"{writer}-{number}"))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
