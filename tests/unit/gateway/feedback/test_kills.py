"""A gateway that is killed between any two of its calls: the next one makes each batch's job once all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest
from pydantic import JsonValue

from claas_gateway.feedback.act.submission import Submission
from claas_gateway.feedback.act.volumes import SampleVolumes
from claas_gateway.feedback.passes import Passes
from claas_gateway.feedback.waiters import Waiters
from claas_gateway.services import Services
from claas_kube.objects.meta import Manifest
from tests.builders.front import NAMESPACE
from tests.builders.gateway_records import build_rollout
from tests.builders.whole_gateway import Ending, WholeGateway, fails, succeeds, whole_gateway
from tests.unit.gateway.feedback.mortal import KilledError, Life

ADAPTER = "coder"
MOST_CALLS = 60


def _passes(services: Services) -> Passes:
    return Passes(services, Submission(services.api, SampleVolumes(None, "")), Waiters(), lambda *_: None)


async def _run(passes: Passes, whole: WholeGateway) -> None:
    """Passes until everything is accounted for."""
    async with asyncio.timeout(10):
        while await whole.store.feedback.waiting_adapters() or await whole.store.batches.unaccounted():
            await passes.run(NAMESPACE, ADAPTER)
            await asyncio.sleep(0.002)


async def _send(whole: WholeGateway, number: int) -> list[str]:
    rollout = build_rollout(f"ro-{number}", namespace=NAMESPACE, adapter=ADAPTER)
    await whole.store.rollouts.add([rollout])
    said: JsonValue = {"lora_id": ADAPTER, "rollout_id": rollout.id, "feedback": "Shorter."}
    status, answer, _ = await whole.send(
        "POST", "/v1/feedback", {"requests": [said, said, said]}, Prefer="respond-async"
    )
    assert status == 202
    return [item["id"] for item in cast("list[dict[str, str]]", answer["items"])]


def _invalid_once() -> Ending:
    """The first job of each batch finds its second sample invalid; that of the rest makes a version."""
    seen: list[Manifest] = []
    wrong = fails("InvalidSample", "1 of 3", invalidSamples=[{"index": 1, "message": "feedback: no"}])

    def ended(job: Manifest) -> Manifest:
        seen.append(job)
        return wrong(job) if len(seen) % 2 else succeeds(4)(job)

    return ended


ENDINGS: dict[str, tuple[Ending, list[str], int]] = {
    "a version": (succeeds(4), ["in-version"] * 3, 1),
    "an invalid sample": (_invalid_once(), ["in-version", "refused", "in-version"], 2),
}


@pytest.mark.parametrize(("ending", "states", "jobs"), ENDINGS.values(), ids=ENDINGS.keys())
async def test_a_gateway_killed_before_any_of_its_calls_makes_each_job_once_and_loses_nothing(
    tmp_path: Path, ending: Ending, states: list[str], jobs: int
) -> None:
    async with whole_gateway(tmp_path, names={ADAPTER: {"feedback": {"windowSeconds": 0}}}, works=False) as whole:
        whole.ending = ending
        for number in range(MOST_CALLS):
            before = set(whole.jobs())
            ids = await _send(whole, number)
            survived = True
            try:
                await _run(_passes(Life(number).of(whole.services)), whole)
            except KilledError:
                survived = False
            await _run(_passes(whole.services), whole)
            items = [await whole.store.feedback.item(item_id) for item_id in ids]
            assert [item.state.value for item in items if item is not None] == states
            made = set(whole.jobs()) - before
            assert len(made) == jobs
            assert {sample["id"] for job in made for sample in whole.samples[job]} == set(ids)
            if survived:
                break
        else:
            raise AssertionError(f"a batch takes more than {MOST_CALLS} calls")
        await whole.application.worker.sweep()
        assert whole.secrets() == []
