"""Jobs that are done cost nothing: not at the operator's start, not at a resync, not in the passes of others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta

import kopf
import pytest
from pydantic import JsonValue

from claas_crds import API_VERSION
from claas_kube.api import (
    ADAPTERS,
    DEPLOYMENTS,
    DISTILL_JOBS,
)
from claas_kube.listing import PAGE_SIZE
from claas_kube.objects.meta import Manifest
from claas_kube.objects.resources import JobObject
from claas_operator.keys import Key, Kind
from claas_operator.loop.handlers import Wakers
from claas_operator.loop.reconcile import Reconciler
from claas_operator.observe.job_view import JobView
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.reconciler import reconciler_of
from tests.builders.world import (
    NAMESPACE,
    NOW,
    adapter,
    job,
)

MANY = 250


def manifest(of: JobObject, **status: JsonValue) -> Manifest:
    plain = of.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"apiVersion": API_VERSION, "kind": "DistillJob", **plain, "status": {**plain["status"], **status}}


def done(name: str, number: int, *, ttl_seconds: int | None = None, generation: int = 1) -> Manifest:
    """A job that is Complete and has published a version."""
    ended = NOW.isoformat()
    said: Manifest = {"type": "Complete", "status": "True", "reason": "Completed", "message": "done"}
    return manifest(
        job(name, ttl_seconds=ttl_seconds),
        observedGeneration=generation,
        phase="Succeeded",
        reason="Completed",
        message="done",
        conditions=[{**said, "lastTransitionTime": ended}],
        completionTime=ended,
        publishedTime=ended,
        producedVersion=number,
        producedDigest="sha256:0",
        trainerJob=f"{name}-1",
    )


@asynccontextmanager
async def cluster(jobs: Iterable[Manifest]) -> AsyncIterator[tuple[SmallApi, Reconciler]]:
    """A namespace with the adapter `tone` and jobs, and a reconciler whose queue runs."""
    small = SmallApi()
    plain = adapter().model_dump(mode="json", by_alias=True, exclude_none=True)
    small.put(ADAPTERS, NAMESPACE, {"apiVersion": API_VERSION, "kind": "LoraAdapter", **plain})
    labels: Manifest = {"app": "vllm"}
    small.put(DEPLOYMENTS, NAMESPACE, {"metadata": {"name": "vllm"}, "spec": {"selector": {"matchLabels": labels}}})
    for found in jobs:
        small.put(DISTILL_JOBS, NAMESPACE, found)
    async with serving_api(small) as api:
        reconciler = reconciler_of(api)
        running = asyncio.create_task(reconciler.queue.run())
        try:
            yield small, reconciler
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def requests_of(small: SmallApi, reconciler: Reconciler) -> Counter[str]:
    """What a resync and the passes that it wakes ask for, until nothing more comes for a moment."""
    small.counted()
    await reconciler.resync((None,))
    seen = -1
    while seen != len(small.asked):
        seen = len(small.asked)
        await asyncio.sleep(0.15)
    return small.counted()


async def test_finished_jobs_are_read_once_at_the_start_and_never_again() -> None:
    async with cluster(done(f"job-{number:03d}", number) for number in range(1, MANY + 1)) as (small, reconciler):
        first = await requests_of(small, reconciler)
        lists = f"GET {DISTILL_JOBS.path()}"
        assert first[lists] == MANY / PAGE_SIZE
        assert sum(first.values()) < 40
        assert not any(DISTILL_JOBS.path(NAMESPACE) in asked for asked in first)
        # Their versions are known to their adapter all the same.
        versions = small.found(ADAPTERS, NAMESPACE, "tone")["status"]
        assert isinstance(versions, dict)
        assert versions["latestVersion"] == MANY
        later = await requests_of(small, reconciler)
        assert later[lists] == 1
        assert sum(later.values()) < 20


async def test_a_waiting_job_does_not_read_the_finished_ones() -> None:
    jobs = [done(f"job-{number:03d}", number) for number in range(1, MANY + 1)]
    async with cluster([*jobs, manifest(job("waits"), observedGeneration=1, phase="Queued")]) as (small, reconciler):
        await requests_of(small, reconciler)
        small.counted()
        await reconciler.reconcile(Key(Kind.JOB, NAMESPACE, "waits"))
        asked = small.counted()
        assert not any("distilljobs" in each and "waits" not in each for each in asked)


async def test_the_pass_of_a_finished_job_asks_for_its_trainers_alone() -> None:
    async with cluster([done("job-1", 1)]) as (small, reconciler):
        small.counted()
        assert await reconciler.reconcile(Key(Kind.JOB, NAMESPACE, "job-1")) is None
        assert sum(small.counted().values()) <= 4


async def test_a_job_that_was_deleted_or_changed_unseen_is_found_by_the_next_resync() -> None:
    async with cluster([done("gone", 1), done("changed", 2)]) as (small, reconciler):
        await requests_of(small, reconciler)
        del small.objects[DISTILL_JOBS.path(NAMESPACE, "gone")]
        small.put(DISTILL_JOBS, NAMESPACE, done("changed", 2, ttl_seconds=0))
        await requests_of(small, reconciler)
        assert reconciler.jobs.get(NAMESPACE, "gone") is None
        assert DISTILL_JOBS.path(NAMESPACE, "changed") not in small.objects, "its time to live was over"


async def test_a_job_whose_spec_changed_after_its_end_is_looked_at() -> None:
    async with cluster([done("edited", 1, generation=0)]) as (small, reconciler):
        await requests_of(small, reconciler)
        status = small.found(DISTILL_JOBS, NAMESPACE, "edited")["status"]
        assert isinstance(status, dict)
        assert status["observedGeneration"] == 1


async def test_a_job_that_this_release_can_not_read_is_in_nobodys_way() -> None:
    strange = manifest(job("strange"))
    strange["status"] = {"phase": "Dreaming", "conditions": "none"}
    async with cluster([strange, done("job-1", 1)]) as (small, reconciler):
        await requests_of(small, reconciler)
        assert reconciler.jobs.get(NAMESPACE, "strange") is None
        assert reconciler.jobs.get(NAMESPACE, "job-1") is not None
        status = small.found(ADAPTERS, NAMESPACE, "tone")["status"]
        assert isinstance(status, dict)
        assert status["latestVersion"] == 1


def test_a_finished_job_is_due_when_its_time_to_live_is_over() -> None:
    view = JobView()
    known = view.take(done("job-1", 1, ttl_seconds=60))
    assert known is not None
    assert known.due_in(NOW + timedelta(seconds=20)) == 40.0
    assert known.due_in(NOW + timedelta(seconds=90)) == 0.0


def test_no_sample_is_kept() -> None:
    view = JobView()
    view.take(manifest(job("job-1")))
    assert "a feedback" not in repr(view.within(None))


def body(found: Manifest) -> kopf.Body:
    return kopf.Body(found)  # type: ignore[arg-type]


async def test_handlers_forget_adapters_and_jobs_that_are_gone() -> None:
    async with serving_api(SmallApi()) as api:
        reconciler = reconciler_of(api)
        wakers = Wakers(reconciler)
        for number in range(3):
            metadata: Manifest = {"name": f"tone-{number}", "namespace": NAMESPACE}
            spec: Manifest = {"serving": {"deploymentRef": {"name": f"vllm-{number}"}}}
            event = body({"metadata": metadata, "spec": spec})
            await wakers.adapter_event(body=event, type="ADDED")
            await wakers.adapter_event(body=event, type="DELETED")
            finished = done(f"job-{number}", number)
            finished["metadata"] = {"name": f"job-{number}", "namespace": NAMESPACE}
            await wakers.job_event(body=body(finished), type="ADDED")
            await wakers.job_event(body=body(finished), type="DELETED")
        assert wakers.remembered == 0
        assert reconciler.jobs.within(None) == []


async def test_an_adapter_that_moves_to_another_deployment_is_no_longer_woken_by_the_old_one() -> None:
    async with serving_api(SmallApi()) as api:
        wakers = Wakers(reconciler_of(api))
        metadata: Manifest = {"name": "tone", "namespace": NAMESPACE}
        for deployment in ("old", "new"):
            spec: Manifest = {"serving": {"deploymentRef": {"name": deployment}}}
            await wakers.adapter_event(body=body({"metadata": metadata, "spec": spec}), type="MODIFIED")
        assert wakers.served_by(NAMESPACE, "old") == []
        assert wakers.served_by(NAMESPACE, "new") == ["tone"]
        assert wakers.remembered == 1


@pytest.mark.parametrize(("ended", "woken"), [(True, False), (False, True)])
async def test_a_finished_jobs_trainer_is_looked_at_only_while_it_may_run(ended: bool, woken: bool) -> None:
    async with serving_api(SmallApi()) as api:
        reconciler = reconciler_of(api)
        asked: list[Key] = []
        reconciler.queue.wake = lambda key, after_seconds=0.0: asked.append(key)  # type: ignore[method-assign]
        known = done("job-1", 1)
        known["metadata"] = {"name": "job-1", "namespace": NAMESPACE, "generation": 1}
        reconciler.jobs.take(known)
        conditions: list[JsonValue] = [{"type": "Complete", "status": "True"}] if ended else []
        labels: Manifest = {"claas.dev/owner-kind": "DistillJob"}
        annotations: Manifest = {"claas.dev/owner-name": "job-1"}
        metadata: Manifest = {
            "name": "job-1-1",
            "namespace": NAMESPACE,
            "labels": labels,
            "annotations": annotations,
        }
        spec: Manifest = {"ttlSecondsAfterFinished": 3600} if ended else {}
        batch_job = body({"metadata": metadata, "spec": spec, "status": {"conditions": conditions}})
        await Wakers(reconciler).trainer_event(body=batch_job)
        assert bool(asked) is woken
