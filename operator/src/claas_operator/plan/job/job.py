"""Plan for a DistillJob: check it, queue it (`turn`), take its step (`step`), follow its version into service
(`published`), and end it, but not before the volume was searched for a version of its last attempt (`recovery`)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.conditions import JobCondition, JobReason, is_true
from claas_crds.v1alpha1.step import JobPhase
from claas_operator.plan.actions import DeleteJob
from claas_operator.plan.checks import first_answer
from claas_operator.plan.conditions import ConditionDraft
from claas_operator.plan.job.missing import wait_for_missing
from claas_operator.plan.job.published import put_into_service
from claas_operator.plan.job.recovery import FOLLOW_SECONDS, begun, found_published, settle
from claas_operator.plan.job.step import account_success, take_step
from claas_operator.plan.job.turn import wait_for_turn
from claas_operator.plan.job.unstarted import last_words
from claas_operator.plan.job_draft import JobDraft, JobPlan, end
from claas_operator.plan.queueing import deadline_of, finished
from claas_operator.plan.world import JobWorld, TrainerState


def plan_job(world: JobWorld) -> JobPlan:
    """The plan for one DistillJob, made by the first check in `JOB_CHECKS` that applies."""
    job = world.job
    draft = JobDraft(world, ConditionDraft(world.now, job.metadata.generation, list(job.status.conditions)))
    draft.end_held_open()
    plan = first_answer(JOB_CHECKS, draft)
    assert plan is not None
    return plan


def already_finished(draft: JobDraft) -> JobPlan | None:
    """First, because the end of a job is final. Ends trainers that may still run, and deletes the job after its time
    to live."""
    if not finished(draft.world.job.status.conditions):
        return None
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


def version_published(draft: JobDraft) -> JobPlan | None:
    """Before suspension and deadline: a published version can't be withdrawn, so its job continues to its end."""
    return None if draft.world.job.status.produced_version is None else put_into_service(draft)


def version_found(draft: JobDraft) -> JobPlan | None:
    """Before all later checks, because a published version must never be lost."""
    published = found_published(draft.world)
    return None if published is None else account_success(draft, published)


def adapter_missing(draft: JobDraft) -> JobPlan | None:
    """Before all checks that need the adapter. It may still be applied, unless there were attempts: then it was
    deleted."""
    world = draft.world
    if world.adapter is not None:
        return None
    name = world.job.spec.adapter_ref.name
    if world.job.status.attempts:
        draft.stop_attempt("the adapter was deleted")
        return draft.fail(JobReason.ADAPTER_DELETED, f"LoraAdapter {name} was deleted")
    message = f"spec.adapterRef.name: there is no LoraAdapter {name} in namespace {world.job.metadata.namespace}"
    return suspended(draft) or wait_for_missing(draft, JobReason.ADAPTER_NOT_FOUND, message)


def adapter_being_deleted(draft: JobDraft) -> JobPlan | None:
    """Before suspension, because there is nothing to resume for."""
    adapter = draft.world.adapter
    if adapter is None or adapter.metadata.deletion_timestamp is None:
        return None
    draft.stop_attempt("the adapter is being deleted")
    return draft.fail(JobReason.ADAPTER_DELETED, f"LoraAdapter {adapter.metadata.name} is being deleted")


def suspended(draft: JobDraft) -> JobPlan | None:
    """Before the deadline, which does not run while a job is suspended. Waits until its last attempt is accounted
    for."""
    world = draft.world
    if not world.job.spec.suspend:
        return None
    draft.conditions.set(JobCondition.SUSPENDED, True, JobReason.SUSPENDED, "spec.suspend is true")
    draft.conditions.set(JobCondition.ADMITTED, False, JobReason.SUSPENDED, "spec.suspend is true", quiet=True)
    waits = settle(draft, "the job was suspended")
    if waits is not None:
        return waits
    draft.changes.update(start_time=None, attempts=world.job.status.failed_attempts)
    return draft.plan(JobPhase.SUSPENDED, FOLLOW_SECONDS if world.attempts_alive else None)


def resumed(draft: JobDraft) -> JobPlan | None:
    """Before the deadline, which starts again. If its last attempt is not accounted for, the next attempt finds a
    published version by itself."""
    world = draft.world
    if not is_true(world.job.status.conditions, JobCondition.SUSPENDED):
        return None
    draft.conditions.set(JobCondition.SUSPENDED, False, JobReason.RESUMED, "The job was resumed")
    if not begun(world):
        return None
    if world.attempt.state is TrainerState.ABSENT:
        draft.changes.update(attempts=world.job.status.failed_attempts, recovery_time=None)
    if world.recovery.state is not TrainerState.ABSENT:
        draft.actions.append(end(world.recovery, 1, "the job was resumed"))
    return draft.plan(JobPhase.SUSPENDED, 0.0)


def deadline_over(draft: JobDraft) -> JobPlan | None:
    """Before all other work and waiting. The job fails once it is certain that its last attempt published nothing."""
    job = draft.world.job
    if job.status.start_time is None or draft.world.now <= deadline_of(job):
        return None
    words = last_words(job.status)
    message = f"The job was not done {job.spec.active_deadline_seconds} s after it was admitted{words}"
    waits = settle(draft, f"activeDeadlineSeconds are over{words}")
    return waits or draft.fail(JobReason.DEADLINE_EXCEEDED, message)


def input_invalid(draft: JobDraft) -> JobPlan | None:
    """Before the queue, so that no turn is spent on a step that can't be taken. A started attempt has its input
    already."""
    error = draft.world.input_error
    return None if error is None or begun(draft.world) else draft.fail(FailureReason.INVALID_INPUT, error)


def sample_invalid(draft: JobDraft) -> JobPlan | None:
    """Beside the input, for the same reason."""
    fault = draft.world.sample_fault
    if fault is None or begun(draft.world):
        return None
    draft.changes["invalid_samples"] = list(fault.samples)
    return draft.fail(FailureReason.INVALID_SAMPLE, fault.message)


def samples_missing(draft: JobDraft) -> JobPlan | None:
    """After faults of existing samples, which waiting does not cure."""
    error = draft.world.samples_error
    return (
        None if error is None or begun(draft.world) else wait_for_missing(draft, JobReason.SAMPLES_NOT_FOUND, error)
    )


def lease_not_held(draft: JobDraft) -> JobPlan | None:
    """All checks have passed: the job waits for its turn."""
    world = draft.world
    mine = world.lease is not None and world.lease.held_by(world.job.metadata.uid)
    return None if mine else wait_for_turn(draft)


JOB_CHECKS: tuple[Callable[[JobDraft], JobPlan | None], ...] = (
    already_finished,
    version_published,
    version_found,
    adapter_missing,
    adapter_being_deleted,
    suspended,
    resumed,
    deadline_over,
    input_invalid,
    sample_invalid,
    samples_missing,
    lease_not_held,
    take_step,
)
"""In this order; the last one always makes a plan."""
