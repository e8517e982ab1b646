"""What to do about a DistillJob: check it, queue it, take its step (`plan_step`), see its version into service
(`plan_published`), and end it, but never before it is known what its last attempt left (`plan_recovery`)."""

from __future__ import annotations

from datetime import timedelta

from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.conditions import JobCondition, JobReason, condition_of, is_true
from claas_crds.v1alpha1.distill_job import JobPhase
from claas_operator.plan.actions import DeleteJob
from claas_operator.plan.conditions import ConditionDraft
from claas_operator.plan.job.missing import wait_for_missing
from claas_operator.plan.job.obstacles import grant_lease, obstacle
from claas_operator.plan.job.published import put_into_service
from claas_operator.plan.job.recovery import (
    FOLLOW_SECONDS,
    begun,
    found_published,
    settle,
)
from claas_operator.plan.job.step import WAIT_SECONDS, account_success, take_step
from claas_operator.plan.job.unstarted import last_words, rest_left
from claas_operator.plan.job_draft import JobDraft, JobPlan, end
from claas_operator.plan.queueing import deadline_of, finished
from claas_operator.plan.world import JobWorld, TrainerState

QUEUE_SECONDS = 15.0
"""How often a queued job is looked at; it is woken when its turn may have come."""


def plan_job(world: JobWorld) -> JobPlan:
    """The plan for one DistillJob."""
    job = world.job
    draft = JobDraft(world, ConditionDraft(world.now, job.metadata.generation, list(job.status.conditions)))
    draft.end_held_open()
    if finished(job.status.conditions):
        return _tidy(draft)
    if job.status.produced_version is not None:
        return put_into_service(draft)
    # Before anything else is judged: a version that was published is never thrown away.
    published = found_published(world)
    if published is not None:
        return account_success(draft, published)
    if world.adapter is None:
        return _without_adapter(draft)
    if world.adapter.metadata.deletion_timestamp is not None:
        draft.stop_attempt("the adapter is being deleted")
        return draft.fail(JobReason.ADAPTER_DELETED, f"LoraAdapter {world.adapter.metadata.name} is being deleted")
    if job.spec.suspend:
        return _suspended(draft)
    if is_true(job.status.conditions, JobCondition.SUSPENDED):
        draft.conditions.set(JobCondition.SUSPENDED, False, JobReason.RESUMED, "The job was resumed")
        if begun(world):
            return _resumed(draft)
    if job.status.start_time is not None and world.now > deadline_of(job):
        seconds = job.spec.active_deadline_seconds
        words = last_words(job.status)
        message = f"The job was not done {seconds} s after it was admitted{words}"
        return _end(draft, JobReason.DEADLINE_EXCEEDED, message, f"activeDeadlineSeconds are over{words}")
    if world.input_error is not None and not begun(world):
        return draft.fail(FailureReason.INVALID_INPUT, world.input_error)
    if world.sample_fault is not None and not begun(world):
        return draft.fail(FailureReason.INVALID_SAMPLE, world.sample_fault)
    if world.samples_error is not None and not begun(world):
        return wait_for_missing(draft, JobReason.SAMPLES_NOT_FOUND, world.samples_error)
    if world.lease is None or world.lease.holder != job.metadata.uid:
        return _queue(draft)
    return take_step(draft)


def _tidy(draft: JobDraft) -> JobPlan:
    """A finished job: end what may still run, and delete the job when its time to live is over."""
    world = draft.world
    status = world.job.status
    if world.attempt.state is TrainerState.RUNNING:
        draft.stop_attempt("the job has ended")
    elif world.attempt.state is not TrainerState.ABSENT and not world.attempt.retired:
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


def _end(draft: JobDraft, reason: JobReason, message: str, why: str) -> JobPlan:
    """The job fails, once it is known that its last attempt published nothing."""
    return settle(draft, why) or draft.fail(reason, message)


def _suspended(draft: JobDraft) -> JobPlan:
    draft.conditions.set(JobCondition.SUSPENDED, True, JobReason.SUSPENDED, "spec.suspend is true")
    draft.conditions.set(JobCondition.ADMITTED, False, JobReason.SUSPENDED, "spec.suspend is true", quiet=True)
    waits = settle(draft, "the job was suspended")
    if waits is not None:
        return waits
    draft.changes.update(start_time=None, attempts=draft.world.job.status.failed_attempts)
    return draft.plan(JobPhase.SUSPENDED, FOLLOW_SECONDS if draft.world.attempts_alive else None)


def _resumed(draft: JobDraft) -> JobPlan:
    """It goes on before its attempt was accounted for: what that one left, the next one finds by itself."""
    world = draft.world
    if world.attempt.state is TrainerState.ABSENT:
        draft.changes.update(attempts=world.job.status.failed_attempts, recovery_time=None)
    if world.recovery.state is not TrainerState.ABSENT:
        draft.actions.append(end(world.recovery, 1, "the job was resumed"))
    return draft.plan(JobPhase.SUSPENDED, 0.0)


def _queue(draft: JobDraft) -> JobPlan:
    world = draft.world
    rest = rest_left(world)
    if rest > 0:
        return draft.plan(JobPhase.PENDING, rest)
    waits_for = obstacle(world)
    if waits_for is not None:
        draft.conditions.set(JobCondition.ADMITTED, False, waits_for.reason, waits_for.message)
        return draft.plan(JobPhase.PENDING, WAIT_SECONDS)
    lease, jobs = world.lease, world.jobs_ahead
    if lease is not None and lease.grant is not None:
        jobs += 1
    if jobs == 0:
        return _grant(draft)
    admitted = condition_of(draft.conditions.conditions, JobCondition.ADMITTED)
    if admitted is None or admitted.reason != JobReason.QUEUED:
        _tell_turn(draft, jobs)
    return draft.plan(JobPhase.QUEUED, QUEUE_SECONDS)


def _tell_turn(draft: JobDraft, jobs: int) -> None:
    """Told once: a number that is kept up to date is a write for each job that waits, whenever one moves on."""
    others = {0: "no other job", 1: "1 other job"}.get(jobs, f"{jobs} other jobs")
    now = f"{draft.world.now:%H:%M:%S} UTC"
    message = f"Waits for its turn; {others} for the same Deployment came first when it queued at {now}"
    draft.conditions.set(JobCondition.ADMITTED, False, JobReason.QUEUED, message, quiet=True)


def _grant(draft: JobDraft) -> JobPlan:
    """The job's turn has come. One that waited for something else says first that it needs the lease; of any other,
    the next pass tells."""
    world = draft.world
    draft.actions.append(grant_lease(world))
    if world.job.status.phase in (None, JobPhase.QUEUED):
        return draft.unchanged(0.0)
    _tell_turn(draft, 0)
    return draft.plan(JobPhase.QUEUED, 0.0)
