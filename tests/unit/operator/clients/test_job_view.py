"""Jobs that are done cost nothing but their place: not at a resync, not in the passes of others, nor in their own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from pydantic import JsonValue

from claas_contract.result import TrainerResult
from claas_crds import API_VERSION
from claas_crds.v1alpha1.distill_job import SamplesSource
from claas_crds.v1alpha1.training import DistillBatchItem
from claas_kube.listing import PAGE_SIZE
from claas_kube.objects.meta import Manifest
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_kube.resources import ADAPTERS, DEPLOYMENTS, DISTILL_JOBS
from claas_operator.clients import job_view
from claas_operator.clients.job_view import JobView, KnownJob
from claas_operator.keys import Key, Kind
from claas_operator.loop.reconcile import Reconciler
from claas_operator.plan.attempt_outcome import succeeded_status
from claas_operator.plan.samples import InlineSamples, check_inline
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.reconciler import watching
from tests.builders.world import NAMESPACE, NOW, adapter, job, published

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
    """A namespace with the adapter `tone` and jobs, and a reconciler whose index and queue run."""
    small = SmallApi()
    plain = adapter().model_dump(mode="json", by_alias=True, exclude_none=True)
    small.put(ADAPTERS, NAMESPACE, {"apiVersion": API_VERSION, "kind": "LoraAdapter", **plain})
    labels: Manifest = {"app": "vllm"}
    small.put(DEPLOYMENTS, NAMESPACE, {"metadata": {"name": "vllm"}, "spec": {"selector": {"matchLabels": labels}}})
    for found in jobs:
        small.put(DISTILL_JOBS, NAMESPACE, found)
    async with serving_api(small) as api, watching(api) as (reconciler, _):
        await quiet(small)
        yield small, reconciler


async def quiet(small: SmallApi) -> Counter[str]:
    """What is asked until nothing more comes for a moment."""
    seen = -1
    while seen != len(small.asked):
        seen = len(small.asked)
        await asyncio.sleep(0.15)
    return small.counted()


async def test_finished_jobs_are_listed_once_by_pages_and_cost_no_request() -> None:
    small = SmallApi()
    plain = adapter().model_dump(mode="json", by_alias=True, exclude_none=True)
    small.put(ADAPTERS, NAMESPACE, {"apiVersion": API_VERSION, "kind": "LoraAdapter", **plain})
    for number in range(1, MANY + 1):
        small.put(DISTILL_JOBS, NAMESPACE, done(f"job-{number:03d}", number))
    async with serving_api(small) as api, watching(api) as (reconciler, _):
        first = await quiet(small)
        assert first[f"GET {DISTILL_JOBS.path()}"] == MANY / PAGE_SIZE + 1, "pages, and a watch"
        assert not any(DISTILL_JOBS.path(NAMESPACE) in asked for asked in first)
        # Their versions are known to their adapter all the same.
        versions = small.found(ADAPTERS, NAMESPACE, "tone")["status"]
        assert isinstance(versions, dict)
        assert versions["latestVersion"] == MANY
        reconciler.resync()
        later = await quiet(small)
        assert not any("distilljobs" in asked or "leases" in asked for asked in later)


async def test_the_weights_that_a_service_keeps_come_from_a_trainer_s_report_to_job_and_adapter() -> None:
    made = published(1, parent=0).model_copy(update={"weights": "tinker://run:train:0/sampler_weights/step-v1"})
    status = succeeded_status(job("step").status, TrainerResult(succeeded=True), made)
    ended = JobObject.model_validate(done("step", 1)).status.model_copy(update=status)
    told = ended.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert told["producedWeights"] == made.weights
    async with cluster([{**done("step", 1), "status": told}]) as (small, _):
        await quiet(small)
        versions = AdapterObject.model_validate(small.found(ADAPTERS, NAMESPACE, "tone")).status.versions
        assert [version.weights for version in versions] == [None, made.weights]


async def test_a_waiting_job_is_looked_at_without_reading_any_job() -> None:
    jobs = [done(f"job-{number:03d}", number) for number in range(1, MANY + 1)]
    async with cluster([*jobs, manifest(job("waits"), observedGeneration=1, phase="Queued")]) as (small, reconciler):
        await reconciler.reconcile(Key(Kind.JOB, NAMESPACE, "waits"))
        asked = await quiet(small)
        assert not any("GET" in each and "distilljobs" in each for each in asked)


async def test_the_pass_of_a_finished_job_asks_for_nothing() -> None:
    async with cluster([done("job-1", 1)]) as (small, reconciler):
        assert await reconciler.reconcile(Key(Kind.JOB, NAMESPACE, "job-1")) is None
        assert small.asked == []


async def test_a_job_that_was_changed_or_deleted_is_known_so_at_once() -> None:
    async with cluster([done("gone", 1), done("changed", 2)]) as (small, reconciler):
        small.remove(DISTILL_JOBS, NAMESPACE, "gone")
        small.put(DISTILL_JOBS, NAMESPACE, done("changed", 2, ttl_seconds=0))
        await quiet(small)
        assert reconciler.jobs.get(NAMESPACE, "gone") is None
        assert DISTILL_JOBS.path(NAMESPACE, "changed") not in small.objects, "its time to live was over"


async def test_a_job_whose_spec_changed_after_its_end_is_looked_at() -> None:
    async with cluster([done("edited", 1, generation=0)]) as (small, _):
        status = small.found(DISTILL_JOBS, NAMESPACE, "edited")["status"]
        assert isinstance(status, dict)
        assert status["observedGeneration"] == 1


async def test_a_job_that_this_release_can_not_read_is_in_nobodys_way_and_told_so() -> None:
    strange = manifest(job("strange"))
    strange["spec"] = {**strange["spec"], "completeWhen": "Dreamt"}  # type: ignore[dict-item]
    async with cluster([strange, done("job-1", 1)]) as (small, reconciler):
        assert reconciler.jobs.get(NAMESPACE, "strange") is None
        assert reconciler.jobs.get(NAMESPACE, "job-1") is not None
        status = small.found(ADAPTERS, NAMESPACE, "tone")["status"]
        assert isinstance(status, dict)
        assert status["latestVersion"] == 1
        assert "ReconcileFailed" in str(small.found(DISTILL_JOBS, NAMESPACE, "strange")["status"])


async def taken(view: JobView, found: Manifest) -> KnownJob:
    metadata = found["metadata"]
    assert isinstance(metadata, dict)
    await view.take({**found, "metadata": {**metadata, "resourceVersion": "7"}})
    known = view.get(NAMESPACE, str(metadata["name"]))
    assert known is not None
    return known


async def test_a_finished_job_is_due_when_its_time_to_live_is_over() -> None:
    known = await taken(JobView(), done("job-1", 1, ttl_seconds=60))
    assert known.due_in(NOW + timedelta(seconds=20)) == 40.0
    assert known.due_in(NOW + timedelta(seconds=90)) == 0.0


@pytest.mark.parametrize(
    ("default", "own", "due"), [(None, None, None), (60, None, 60.0), (60, 5, 5.0), (60, 0, 0.0), (None, 5, 5.0)]
)
async def test_the_default_time_to_live_is_that_of_jobs_without_one(
    default: int | None, own: int | None, due: float | None
) -> None:
    known = await taken(JobView(default), done("job-1", 1, ttl_seconds=own))
    assert known.due_in(NOW) == due
    assert known.whole().spec.ttl_seconds_after_finished == (default if own is None else own)


async def test_a_finished_job_is_deleted_after_the_default_time_to_live() -> None:
    small = SmallApi()
    small.put(DISTILL_JOBS, NAMESPACE, done("job-1", 1))
    async with serving_api(small) as api, watching(api, default_ttl_seconds=0):
        await quiet(small)
        assert DISTILL_JOBS.path(NAMESPACE, "job-1") not in small.objects


async def test_no_sample_is_kept_neither_of_the_spec_nor_of_what_client_side_apply_leaves() -> None:
    view, found = JobView(), manifest(job("job-1"))
    metadata = found["metadata"]
    assert isinstance(metadata, dict)
    metadata["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "a feedback"}
    known = await taken(view, found)
    assert b"a feedback" not in known.text
    view.note(job("job-1"))
    assert b"a feedback" not in view.within(None)[0].text
    assert known.whole().spec.samples == SamplesSource()


async def test_inline_samples_are_checked_once_when_the_job_is_first_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []

    def counted(source: SamplesSource) -> InlineSamples:
        checked.append(1)
        return check_inline(source)

    monkeypatch.setattr(job_view, "check_inline", counted)
    view = JobView()
    wrong = SamplesSource(inline=[DistillBatchItem(user_prompt="a", response="b", feedback="\u200b")])
    found = manifest(job("job-1", samples=wrong))
    for version in ("5", "6", "7"):
        metadata = found["metadata"]
        assert isinstance(metadata, dict)
        await view.take({**found, "metadata": {**metadata, "resourceVersion": version}})
    view.note(job("job-1", samples=wrong))
    known = view.get(NAMESPACE, "job-1")
    assert known is not None
    assert known.inline is not None
    assert known.inline.invalid is not None
    assert known.inline.invalid.message.startswith("samples[0].feedback")
    assert checked == [1]
    # A finished job's samples are nobody's business any more.
    await view.take({**done("job-2", 1), "metadata": {**done("job-2", 1)["metadata"], "resourceVersion": "8"}})  # type: ignore[dict-item]
    assert checked == [1]
