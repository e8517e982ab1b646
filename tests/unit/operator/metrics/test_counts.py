"""What is counted, and how often."""

from __future__ import annotations

import pytest

from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.serving import HandoverKind
from claas_crds.v1alpha1.step import JobPhase, Timings
from claas_kube.errors import Conflict
from claas_kube.resources import DISTILL_JOBS
from claas_operator.act.status_writer import StatusWriter
from claas_operator.keys import Key, Kind
from claas_operator.metrics.counts import Metrics
from claas_operator.metrics.definitions import PassResult
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.reconciler import reconciler_of
from tests.builders.world import NAMESPACE, NOW, condition, job

TRAINED = DistillJobStatus(phase=JobPhase.SWAPPING, produced_version=3)
COMPLETE = DistillJobStatus(
    phase=JobPhase.SUCCEEDED,
    conditions=[condition("Complete", True, "Completed")],
    produced_version=3,
    completion_time=NOW,
    handover=HandoverKind.SLEEP,
    timings=Timings(queued=2.0, step=0.3, serving_gap=1.5),
)
FAILED = DistillJobStatus(
    phase=JobPhase.FAILED, conditions=[condition("Failed", True, "OutOfMemory")], completion_time=NOW
)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


ENDS = [(TRAINED, COMPLETE, "complete", "Completed"), (DistillJobStatus(), FAILED, "failed", "OutOfMemory")]


@pytest.mark.parametrize(("before", "after", "result", "reason"), ENDS, ids=["complete", "failed"])
async def test_a_jobs_end_is_counted_once_when_its_status_is_written(
    before: DistillJobStatus, after: DistillJobStatus, result: str, reason: str
) -> None:
    small, metrics = SmallApi(), Metrics()
    found = job(status=before)
    stale = found.metadata.model_copy(update={"resource_version": "0"})
    put = small.put(DISTILL_JOBS, NAMESPACE, found.model_dump(mode="json", by_alias=True, exclude_none=True))
    metadata = found.metadata.model_copy(update={"resource_version": put["metadata"]["resourceVersion"]})  # type: ignore[index,call-overload]
    counted = {"namespace": NAMESPACE, "result": result, "reason": reason}
    async with serving_api(small) as api:
        writer = StatusWriter(api, metrics)
        with pytest.raises(Conflict):
            await writer.write(DISTILL_JOBS, stale, before, after)
        assert value(metrics, "claas_jobs_finished_total", **counted) is None
        metadata = await writer.write(DISTILL_JOBS, metadata, before, after)
        await writer.write(DISTILL_JOBS, metadata, after, after)
        again = after.model_copy(update={"message": "said otherwise"})
        await writer.write(DISTILL_JOBS, metadata, after, again)
    assert value(metrics, "claas_jobs_finished_total", **counted) == 1
    assert value(metrics, "claas_job_duration_seconds_count", result=result) == 1
    assert value(metrics, "claas_job_duration_seconds_sum", result=result) == 60


def test_a_finished_jobs_timings_go_to_their_phases_and_its_gap_to_its_hand_over() -> None:
    metrics = Metrics()
    metrics.job_written(NAMESPACE, NOW, TRAINED, COMPLETE)
    took = {
        phase: value(metrics, "claas_job_phase_duration_seconds_sum", phase=phase)
        for phase in ("queued", "step", "wake", "serving_gap")
    }
    assert took == {"queued": 2.0, "step": 0.3, "wake": None, "serving_gap": None}
    assert value(metrics, "claas_serving_gap_seconds_sum", handover="Sleep") == 1.5


def test_a_version_is_counted_when_its_job_first_reports_it() -> None:
    metrics = Metrics()
    metrics.job_written(NAMESPACE, NOW, DistillJobStatus(), TRAINED)
    metrics.job_written(NAMESPACE, NOW, TRAINED, COMPLETE)
    assert value(metrics, "claas_versions_published_total", namespace=NAMESPACE) == 1


async def test_passes_are_timed_by_kind_and_result() -> None:
    small = SmallApi()
    refused = job().model_dump(mode="json", by_alias=True, exclude_none=True)
    small.put(DISTILL_JOBS, NAMESPACE, {**refused, "spec": {"adapterRef": 5}})
    async with serving_api(small) as api:
        reconciler = reconciler_of(api)
        with pytest.raises(ValueError):
            await reconciler.reconcile(Key(Kind.JOB, NAMESPACE, "step"))
        await reconciler.reconcile(Key(Kind.LEASE, NAMESPACE, "gone"))
        registry = reconciler.metrics.registry
    name = "claas_pass_duration_seconds_count"
    assert registry.get_sample_value(name, {"kind": "DistillJob", "result": "failed"}) == 1
    assert registry.get_sample_value(name, {"kind": "Lease", "result": "done"}) == 1
    assert registry.get_sample_value(name, {"kind": "DistillJob", "result": "done"}) is None


def test_a_pass_is_done_unless_it_says_or_raises_otherwise() -> None:
    metrics = Metrics()
    with metrics.one_pass("Lease") as ending:
        ending.result = PassResult.CONFLICT
    with pytest.raises(RuntimeError), metrics.one_pass("Lease"):
        raise RuntimeError
    with metrics.one_pass("Lease"):
        pass
    counted = {
        result.value: value(metrics, "claas_pass_duration_seconds_count", kind="Lease", result=result.value)
        for result in PassResult
    }
    assert counted == {"done": 1, "conflict": 1, "failed": 1}


def test_no_creation_times_are_told() -> None:
    metrics = Metrics()
    metrics.api_called("get", "pods", 200, 0.1)
    metrics.api_called("get", "pods", None, 0.1)
    samples = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    assert not [name for name in samples if name.endswith("_created")]
    assert value(metrics, "claas_api_requests_total", verb="get", resource="pods", code="none") == 1
