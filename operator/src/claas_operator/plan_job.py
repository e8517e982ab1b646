"""What to do about a DistillJob: check it, queue it, take its step (`plan_step`), wait for its version, finish it."""

from __future__ import annotations

from datetime import timedelta

from claas_crds.conditions import JobCondition, JobReason, condition_of, is_true
from claas_crds.contract import FailureReason
from claas_crds.distill_job import JobPhase
from claas_operator.actions import DeleteJob
from claas_operator.conditions import ConditionDraft
from claas_operator.job_draft import JobDraft, JobPlan
from claas_operator.plan_missing import wait_for_missing
from claas_operator.plan_step import FOLLOW_SECONDS, WAIT_SECONDS, grant_lease, obstacle, take_step
from claas_operator.plan_unstarted import rest_left
from claas_operator.queueing import finished
from claas_operator.world import AttemptState, JobWorld

QUEUE_SECONDS = 15.0
"""How often a queued job is looked at; it is woken when its turn may have come."""


def plan_job(world: JobWorld) -> JobPlan:
    """The plan for one DistillJob."""
    job = world.job
    draft = JobDraft(world, ConditionDraft(world.now, job.metadata.generation, list(job.status.conditions)))
    draft.end_held_open()
    if finished(job.status.conditions):
        return _tidy(draft)
    if world.adapter is None:
        return _without_adapter(draft)
    if world.adapter.metadata.deletion_timestamp is not None:
        draft.stop_attempt("the adapter is being deleted")
        return draft.fail(JobReason.ADAPTER_DELETED, f"LoraAdapter {world.adapter.metadata.name} is being deleted")
    if job.status.produced_version is not None:
        return _put_into_service(draft)
    if job.spec.suspend:
        return _suspended(draft)
    if is_true(job.status.conditions, JobCondition.SUSPENDED):
        draft.conditions.set(JobCondition.SUSPENDED, False, JobReason.RESUMED, "The job was resumed")
    if world.input_error is not None and world.attempt.state is AttemptState.ABSENT:
        return draft.fail(FailureReason.INVALID_INPUT, world.input_error)
    if world.sample_fault is not None and world.attempt.state is AttemptState.ABSENT:
        return draft.fail(FailureReason.INVALID_SAMPLE, world.sample_fault)
    if world.samples_error is not None and world.attempt.state is AttemptState.ABSENT:
        return wait_for_missing(draft, JobReason.SAMPLES_NOT_FOUND, world.samples_error)
    if _deadline_over(world):
        draft.stop_attempt("activeDeadlineSeconds are over")
        seconds = job.spec.active_deadline_seconds
        return draft.fail(JobReason.DEADLINE_EXCEEDED, f"The job was not done {seconds} s after it was admitted")
    if world.lease is None or world.lease.holder != job.metadata.uid:
        return _queue(draft)
    return take_step(draft)


def _tidy(draft: JobDraft) -> JobPlan:
    """A finished job: end what may still run, and delete the job when its time to live is over."""
    world = draft.world
    status = world.job.status
    if world.attempt.state is AttemptState.RUNNING:
        draft.stop_attempt("the job has ended")
    elif world.attempt.state is not AttemptState.ABSENT and not world.attempt.retired:
        draft.retire_attempt()
    requeue = None
    ttl = world.job.spec.ttl_seconds_after_finished
    if ttl is not None and status.completion_time is not None:
        remaining = (status.completion_time + timedelta(seconds=ttl) - world.now).total_seconds()
        if remaining <= 0:
            draft.actions.append(DeleteJob())
        else:
            requeue = remaining
    return draft.plan(status.phase or JobPhase.FAILED, requeue)


def _without_adapter(draft: JobDraft) -> JobPlan:
    world = draft.world
    name = world.job.spec.adapter_ref.name
    if world.job.status.attempts:
        draft.stop_attempt("the adapter was deleted")
        return draft.fail(JobReason.ADAPTER_DELETED, f"LoraAdapter {name} was deleted")
    message = f"spec.adapterRef.name: there is no LoraAdapter {name} in namespace {world.job.metadata.namespace}"
    if world.job.spec.suspend:
        return _suspended(draft)
    return wait_for_missing(draft, JobReason.ADAPTER_NOT_FOUND, message)


def _suspended(draft: JobDraft) -> JobPlan:
    draft.stop_attempt("the job was suspended")
    draft.conditions.set(JobCondition.SUSPENDED, True, JobReason.SUSPENDED, "spec.suspend is true")
    draft.conditions.set(JobCondition.ADMITTED, False, JobReason.SUSPENDED, "spec.suspend is true")
    draft.changes["start_time"] = None
    draft.changes["attempts"] = draft.world.job.status.failed_attempts
    return draft.plan(JobPhase.SUSPENDED, FOLLOW_SECONDS if draft.world.attempts_alive else None)


def _deadline_over(world: JobWorld) -> bool:
    limit = world.job.spec.active_deadline_seconds
    start = world.job.status.start_time
    return start is not None and world.now - start > timedelta(seconds=limit)


def _queue(draft: JobDraft) -> JobPlan:
    world = draft.world
    rest = rest_left(world)
    if rest > 0:
        return draft.plan(JobPhase.PENDING, rest)
    waits_for = obstacle(world)
    if waits_for is not None:
        draft.conditions.set(JobCondition.ADMITTED, False, waits_for.reason, waits_for.message)
        return draft.plan(JobPhase.PENDING, WAIT_SECONDS)
    lease = world.lease
    holder = lease.grant.job_name if lease is not None and lease.grant is not None else None
    if holder is None and world.jobs_ahead == 0:
        draft.actions.append(grant_lease(world))
        message = "The step is next for its Deployment"
        requeue = 0.0
    else:
        running = f"; {holder} runs" if holder else ""
        message = f"{world.jobs_ahead} jobs for the same Deployment were created earlier{running}"
        requeue = QUEUE_SECONDS
    draft.conditions.set(JobCondition.ADMITTED, False, JobReason.QUEUED, message)
    return draft.plan(JobPhase.QUEUED, requeue)


def _put_into_service(draft: JobDraft) -> JobPlan:
    """The version is published; the adapter's own reconcile loads it. Complete when it is in service."""
    world = draft.world
    adapter = world.adapter
    produced = world.job.status.produced_version
    assert adapter is not None
    assert produced is not None
    served = adapter.status.served_version
    latest = adapter.status.latest_version
    if latest is not None and latest >= produced and (not world.pods or (served is not None and served >= produced)):
        if world.pods:
            message = f"Version {produced} is in service"
            draft.conditions.set(JobCondition.SERVED, True, JobReason.IN_SERVICE, message)
        else:
            message = f"Version {produced} was published; the Deployment has no pod to serve it"
            draft.conditions.set(JobCondition.SERVED, False, JobReason.PUTTING_INTO_SERVICE, message)
        draft.conditions.set(JobCondition.COMPLETE, True, JobReason.COMPLETED, message)
        draft.changes["completion_time"] = world.now
        return draft.plan(JobPhase.SUCCEEDED, 0.0)
    ready = condition_of(adapter.status.conditions, "Ready")
    said = f": {ready.message}" if ready is not None and not is_true([ready], "Ready") else ""
    draft.conditions.set(
        JobCondition.SERVED, False, JobReason.PUTTING_INTO_SERVICE, f"Version {produced} is being loaded{said}"
    )
    return draft.plan(JobPhase.SWAPPING, FOLLOW_SECONDS)
