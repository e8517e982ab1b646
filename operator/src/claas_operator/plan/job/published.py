"""A DistillJob whose version is published: it is Complete when the version is in service, and waits for that no
longer than its deadline. The adapter's own reconcile loads the version."""

from __future__ import annotations

from datetime import timedelta

from claas_crds.v1alpha1.conditions import (
    AdapterCondition,
    JobCondition,
    JobReason,
    condition_of,
    is_true,
)
from claas_crds.v1alpha1.distill_job import CompletionPoint, JobPhase
from claas_operator.plan.job_draft import JobDraft, JobPlan
from claas_operator.plan.queueing import deadline_of
from claas_operator.plan.world import JobWorld

LOOK_SECONDS = 1.0
LEAST_SERVING_SECONDS = 60
"""How long a version has to come into service, however late it was accounted for."""


def put_into_service(draft: JobDraft) -> JobPlan:
    """See the version into service, and finish the job."""
    world = draft.world
    adapter = world.adapter
    name = world.job.spec.adapter_ref.name
    produced = world.job.status.produced_version
    assert produced is not None
    if adapter is None or adapter.metadata.deletion_timestamp is not None:
        gone = "was deleted" if adapter is None else "is being deleted"
        return _unserved(draft, JobReason.ADAPTER_DELETED, f"LoraAdapter {name} {gone}")
    served, latest = adapter.status.served_version, adapter.status.latest_version
    adopted = latest is not None and latest >= produced
    in_service = served is not None and served >= produced and any(pod.ready for pod in world.pods)
    if adopted and in_service:
        message = f"Version {produced} is in service"
        draft.conditions.set(JobCondition.SERVED, True, JobReason.IN_SERVICE, message, quiet=True)
        return _complete(draft, message)
    why = _why_not(world, produced)
    if adopted and world.job.spec.complete_when is CompletionPoint.PUBLISHED:
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


def _why_not(world: JobWorld, produced: int) -> str:
    """Why the version is not in service yet."""
    assert world.adapter is not None
    if not world.pods:
        deployment = world.adapter.spec.serving.deployment_ref.name
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


def _unserved(draft: JobDraft, reason: JobReason, why: str) -> JobPlan:
    """The job ends without having seen its version in service. The version stays, and Trained with it."""
    produced = draft.world.job.status.produced_version
    draft.conditions.set(JobCondition.SERVED, False, reason, why, quiet=True)
    return draft.fail(reason, f"Version {produced} is published and stays; it was not seen in service: {why}")
