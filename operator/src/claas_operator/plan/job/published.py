"""A DistillJob whose version is published. The standing of the version ends the job, or else its deadline; the
adapter's reconcile loop loads the version.

| The version | The job |
|---|---|
| is not listed by the adapter yet | waits |
| should serve, or a descendant of it, and does not yet | waits; is Complete with `completeWhen: Published` |
| serves, or a descendant of it does | is Complete |
| was passed over: what should serve does not descend from it | is Complete; Served says why it is not so |
| was rejected, or descends from one that was | has Failed |
"""

from __future__ import annotations

from datetime import timedelta

from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.conditions import AdapterCondition, JobCondition, JobReason, condition_of, is_true
from claas_crds.v1alpha1.distill_job import CompletionPoint
from claas_crds.v1alpha1.step import JobPhase
from claas_operator.plan.job_draft import JobDraft, JobPlan
from claas_operator.plan.lineage.lineage import Standing
from claas_operator.plan.queueing import deadline_of
from claas_operator.plan.world import JobWorld

LOOK_SECONDS = 1.0
LEAST_SERVING_SECONDS = 60
"""Seconds that a version has to go into service, even if it was accounted for late."""


def put_into_service(draft: JobDraft) -> JobPlan:
    """Follow the version into service, and finish the job."""
    world = draft.world
    adapter = world.adapter
    name = world.job.spec.adapter_ref.name
    produced = world.job.status.produced_version
    assert produced is not None
    if adapter is None or adapter.metadata.deletion_timestamp is not None:
        gone = "was deleted" if adapter is None else "is being deleted"
        return _unserved(draft, JobReason.ADAPTER_DELETED, f"LoraAdapter {name} {gone}")
    standing = world.lineage.standing(produced, adapter.status.served_version)
    match standing:
        case Standing.REJECTED:
            why = "serving refused it, or a version that it descends from: it is never served or trained from"
            return _unserved(draft, FailureReason.VERSION_REJECTED, why)
        case Standing.PASSED_OVER:
            return _passed_over(draft, produced)
        case Standing.SERVED if adapter.outside_cluster or any(pod.ready for pod in world.pods):
            message = f"Version {produced} is in service"
            draft.conditions.set(JobCondition.SERVED, True, JobReason.IN_SERVICE, message, quiet=True)
            return _complete(draft, message)
        case Standing.UNDECIDED | Standing.AWAITED | Standing.SERVED:
            return _wait(draft, produced, listed=standing is not Standing.UNDECIDED)


def _wait(draft: JobDraft, produced: int, *, listed: bool) -> JobPlan:
    """The version should go into service, within the deadline."""
    world = draft.world
    why = _why_not(world, produced)
    if listed and world.job.spec.complete_when is CompletionPoint.PUBLISHED:
        draft.conditions.set(JobCondition.SERVED, False, JobReason.PUTTING_INTO_SERVICE, why, quiet=True)
        return _complete(draft, f"Version {produced} is published")
    if _time_is_over(world):
        seconds = world.job.spec.active_deadline_seconds
        return _unserved(draft, JobReason.DEADLINE_EXCEEDED, f"{why}, {seconds} s after the job was admitted")
    said = condition_of(draft.conditions.conditions, JobCondition.SERVED)
    if draft.told_just_now and said is not None and said.reason == JobReason.PUTTING_INTO_SERVICE:
        return draft.unchanged(LOOK_SECONDS)
    draft.conditions.set(JobCondition.SERVED, False, JobReason.PUTTING_INTO_SERVICE, why, quiet=True)
    return draft.plan(JobPhase.SWAPPING, LOOK_SECONDS)


def _passed_over(draft: JobDraft, produced: int) -> JobPlan:
    desired = draft.world.lineage.desired
    assert desired is not None
    message = (
        f"Version {produced} is published and stays; version {desired.number} should serve, which is not known to"
        " descend from it"
    )
    draft.conditions.set(JobCondition.SERVED, False, JobReason.PASSED_OVER, message, quiet=True)
    return _complete(draft, message)


def _why_not(world: JobWorld, produced: int) -> str:
    """Why the version is not in service yet."""
    assert world.adapter is not None
    if not world.pods and not world.adapter.outside_cluster:
        deployment = world.adapter.deployment_name
        return f"Version {produced} is published; Deployment {deployment} has no pod to serve it"
    ready = condition_of(world.adapter.status.conditions, AdapterCondition.READY)
    said = f": {ready.message}" if ready is not None and not is_true([ready], AdapterCondition.READY) else ""
    return f"Version {produced} is being loaded{said}"


def _time_is_over(world: JobWorld) -> bool:
    if world.now <= deadline_of(world.job):
        return False
    trained = condition_of(world.job.status.conditions, JobCondition.TRAINED)
    return trained is None or world.now - trained.last_transition_time > timedelta(seconds=LEAST_SERVING_SECONDS)


def _complete(draft: JobDraft, message: str) -> JobPlan:
    draft.conditions.set(JobCondition.COMPLETE, True, JobReason.COMPLETED, message)
    draft.changes["completion_time"] = draft.world.now
    return draft.plan(JobPhase.SUCCEEDED, 0.0)


def _unserved(draft: JobDraft, reason: JobReason | FailureReason, why: str) -> JobPlan:
    """End the job before its version was in service. The version stays, and Trained stays True."""
    produced = draft.world.job.status.produced_version
    draft.conditions.set(JobCondition.SERVED, False, reason, why, quiet=True)
    return draft.fail(reason, f"Version {produced} is published and stays; it was not seen in service: {why}")
