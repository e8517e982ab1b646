"""Two replicas over one store, each killed now and then: every item comes to one end, in one job."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from claas_gateway.feedback.act.submission import Submission
from claas_gateway.feedback.act.volumes import SampleVolumes
from claas_gateway.feedback.passes import Passes
from claas_gateway.feedback.waiters import Waiters
from claas_gateway.records import ItemState
from claas_gateway.services import Services
from claas_kube.objects.meta import Manifest
from tests.builders.front import NAMESPACE
from tests.builders.gateway_records import build_rollout
from tests.builders.whole_gateway import WholeGateway, fails, succeeds, whole_gateway
from tests.unit.gateway.feedback.mortal import KilledError, Life

ADAPTER = "coder"
INVALID = fails("InvalidSample", "1 is wrong", invalidSamples=[{"index": 0, "message": "no"}])
ENDINGS = {"version": succeeds(4), "failure": fails(), "invalid": INVALID}

lives = st.integers(0, 40)
"""Calls after which a replica is killed."""


@settings(max_examples=6, deadline=None)
@given(
    kills=st.lists(st.tuples(lives, lives), min_size=1, max_size=4),
    ends=st.lists(st.sampled_from(sorted(ENDINGS)), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
)
def test_each_item_comes_to_one_end_whichever_replica_does_what(
    kills: Sequence[tuple[int, int]], ends: Sequence[str], sizes: Sequence[int]
) -> None:
    asyncio.run(_check(kills, ends, sizes))


async def _check(kills: Sequence[tuple[int, int]], ends: Sequence[str], sizes: Sequence[int]) -> None:
    names: dict[str, dict[str, JsonValue]] = {ADAPTER: {"feedback": {"windowSeconds": 0, "maxItems": 2}}}
    with tempfile.TemporaryDirectory() as folder:
        async with whole_gateway(Path(folder), names=names, works=False) as whole:
            ended: dict[str, str] = {}

            def ending(job: Manifest) -> Manifest:
                name = str(cast("dict[str, JsonValue]", job["metadata"])["name"])
                ended[name] = ends[len(ended) % len(ends)]
                return ENDINGS[ended[name]](job)

            whole.ending = ending
            await whole.store.rollouts.add([build_rollout("ro-1", namespace=NAMESPACE, adapter=ADAPTER)])
            ids = [name for size in sizes for name in await _send(whole, size)]
            for first, second in kills:
                await asyncio.gather(_live(whole, first), _live(whole, second))
            async with asyncio.timeout(20):
                await _run(whole.services, whole)
            items = [await whole.store.feedback.item(name) for name in ids]
            states = {item.id: item.state for item in items if item is not None}
            assert set(states) == set(ids)
            learned = Counter(
                cast(str, sample["id"])
                for job, samples in whole.samples.items()
                if ended[job] == "version"
                for sample in samples
            )
            assert set(learned.values()) <= {1}
            assert set(learned) == {name for name, state in states.items() if state is ItemState.IN_VERSION}
            assert {states[name] for name in set(ids) - set(learned)} <= {ItemState.REFUSED}


async def _send(whole: WholeGateway, size: int) -> list[str]:
    said: JsonValue = {"lora_id": ADAPTER, "rollout_id": "ro-1", "feedback": "Shorter."}
    body: JsonValue = {"requests": [said] * size}
    status, answer, _ = await whole.send("POST", "/v1/feedback", body, Prefer="respond-async")
    assert status == 202
    return [item["id"] for item in cast("list[dict[str, str]]", answer["items"])]


async def _live(whole: WholeGateway, calls: int) -> None:
    with contextlib.suppress(KilledError):
        await _run(Life(calls).of(whole.services), whole)


async def _run(services: Services, whole: WholeGateway) -> None:
    """Be a replica until everything is accounted for."""
    submission = Submission(services.api, SampleVolumes(None, ""))
    passes = Passes(services, submission, Waiters(), lambda *_: None)
    while await whole.store.feedback.waiting_adapters() or await whole.store.batches.unaccounted():
        await passes.run(NAMESPACE, ADAPTER)
        await asyncio.sleep(0.002)
