"""A DistillJob that holds its Deployment's lease: create, follow and account for its attempts, one at a time."""

from __future__ import annotations

from datetime import timedelta

from claas_contract.outcome import FailureReason
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.conditions import JobCondition, JobReason, condition_of
from claas_crds.v1alpha1.step import MOST_INVALID_SAMPLES, JobPhase
from claas_crds.v1alpha1.version import VersionVerdict
from claas_operator.plan import naming
from claas_operator.plan.actions import CreateAttempt, Note
from claas_operator.plan.attempt_outcome import Failure, failure_of, succeeded_status
from claas_operator.plan.job.obstacles import Obstacle, grant_lease, not_ready, obstacle, unaccounted
from claas_operator.plan.job.recovery import FOLLOW_SECONDS, next_attempt, settle
from claas_operator.plan.job.unstarted import follow_unstarted, gave_way
from claas_operator.plan.job_draft import JobDraft, JobPlan, end
from claas_operator.plan.lineage.history import adapter_version
from claas_operator.plan.world import TrainerState

FIRST_RETRY_SECONDS = 5
LONGEST_RETRY_SECONDS = 300
WAIT_SECONDS = 5.0
OPTIMIZER_RESTORED = "optimizer_restored"
"""Metric: 1 when the parent's optimiser state came back, 0 when it did not."""


def take_step(draft: JobDraft) -> JobPlan:
    """The job holds the lease: create, follow or account for the attempt."""
    world = draft.world
    assert world.lease is not None
    assert world.lease.grant is not None
    status = world.job.status
    trainer_started = world.attempt.state is TrainerState.RUNNING and world.attempt.start is None
    if gave_way(status) and not trainer_started:
        # It keeps the lease only until its pod is certainly gone.
        if world.attempt.state is TrainerState.RUNNING:
            # Its withdrawal was written, but not carried out; or its creation was done, though no answer came.
            draft.stop_attempt("its pod can't start")
        return draft.plan(JobPhase.PENDING, FOLLOW_SECONDS)
    if status.start_time is None:
        draft.changes["start_time"] = world.now
        draft.changes["timings"] = status.timings.model_copy(update={"queued": round(world.age_seconds, 3)})
    draft.conditions.set(JobCondition.ADMITTED, True, JobReason.ADMITTED, "The step may be taken", quiet=True)
    match world.attempt.state:
        case TrainerState.RUNNING:
            return _follow(draft)
        case TrainerState.SUCCEEDED:
            message = "the trainer ended with exit code 0 and no readable result"
            return _account_failure(draft, Failure(FailureReason.INTERNAL, message, permanent=False))
        case TrainerState.FAILED | TrainerState.LOST:
            return _account_failure(draft, failure_of(world.attempt, world.lease.grant))
        case TrainerState.ABSENT:
            return _start(draft)


def _start(draft: JobDraft) -> JobPlan:
    world = draft.world
    assert world.lease is not None
    assert world.lease.grant is not None
    assert world.adapter is not None
    attempt = next_attempt(world)
    status = world.job.status
    if world.attempts_alive:
        return draft.plan(status.phase or JobPhase.PREPARING, FOLLOW_SECONDS)
    if status.attempts >= attempt:
        return _account_failure(draft, failure_of(world.attempt, world.lease.grant))
    # A job that waited may just be losing the lease; only a new grant makes certain that it holds it.
    waited = status.phase in (JobPhase.PENDING, JobPhase.SUSPENDED)
    if world.lease.grant.attempt_of(world.job.metadata.uid) == attempt and not waited:
        head = world.lineage.head
        if head is None:
            # The adapter was deleted and created again after the lease was granted.
            return _wait(draft, not_ready(f"LoraAdapter {world.adapter.metadata.name} has no version yet"))
        waits_for = unaccounted(world)
        if waits_for is not None:
            return _wait(draft, waits_for)
        name = naming.attempt_name(world.job.metadata, attempt)
        draft.actions.append(CreateAttempt(name, world.lease.grant, head.number))
        draft.changes.update(parent_version=head.number, handover=world.lease.grant.handover, recovery_time=None)
        draft.changes.update(attempts=attempt, trainer_job=name)
        _tell_running(draft, "The trainer's pod is being made")
        return draft.plan(JobPhase.PREPARING, FOLLOW_SECONDS)
    if status.retry_time is not None and world.now < status.retry_time:
        return draft.plan(JobPhase.QUEUED, max(0.2, (status.retry_time - world.now).total_seconds()))
    if not all(pod.settled for pod in world.recorded):
        return draft.plan(JobPhase.QUEUED, FOLLOW_SECONDS)
    waits_for = obstacle(world)
    if waits_for is not None:
        return _wait(draft, waits_for)
    draft.actions.append(grant_lease(world))
    return draft.plan(JobPhase.QUEUED, 0.0)


def _wait(draft: JobDraft, waits_for: Obstacle) -> JobPlan:
    """Wait without the lease: a Pending job loses it, so that other jobs can go on."""
    draft.conditions.set(JobCondition.TRAINED, False, waits_for.reason, waits_for.message)
    return draft.plan(JobPhase.PENDING, WAIT_SECONDS)


def _follow(draft: JobDraft) -> JobPlan:
    world = draft.world
    if world.attempt.hindered:
        return follow_unstarted(draft)
    status = world.job.status
    trained = condition_of(status.conditions, JobCondition.TRAINED)
    known = status.trainer_job == world.attempt.name and status.attempts == next_attempt(world)
    if known and draft.told_just_now and trained is not None and trained.reason == JobReason.RUNNING:
        return draft.unchanged(FOLLOW_SECONDS)
    draft.changes["attempts"] = next_attempt(world)
    draft.changes["trainer_job"] = world.attempt.name
    grant = world.lease.grant if world.lease is not None else None
    if not known and grant is not None:
        # The attempt was made, and the status that tells of it was not written.
        draft.changes.update(handover=grant.handover, recovery_time=None)
    progress = world.attempt.progress
    phase = progress.phase if progress else JobPhase.PREPARING
    if progress is None and status.phase not in (None, JobPhase.PENDING, JobPhase.QUEUED, JobPhase.SUSPENDED):
        phase = status.phase or phase
    _tell_running(draft, (progress.detail if progress else world.attempt.message) or phase.value)
    return draft.plan(phase, FOLLOW_SECONDS)


def _tell_running(draft: JobDraft, detail: str) -> None:
    message = f"Attempt {next_attempt(draft.world)}: {detail}"
    draft.conditions.set(JobCondition.TRAINED, False, JobReason.RUNNING, message, quiet=True)


def account_success(draft: JobDraft, result: TrainerResult) -> JobPlan:
    """The attempt published a version, by its report or by the search on the volume: write it to the status."""
    world = draft.world
    assert result.version is not None
    version = result.version
    draft.changes.update(succeeded_status(world.job.status, result, version))
    draft.changes.update(attempts=next_attempt(world), trainer_job=world.attempt.name, recovery_time=None)
    draft.retire_attempt()
    if world.recovery.state is not TrainerState.ABSENT:
        draft.actions.append(end(world.recovery, 1, "the version is found"))
    if result.already_published:
        draft.conditions.set(
            JobCondition.TRAINED,
            True,
            JobReason.ALREADY_PUBLISHED,
            f"Version {version.number} was published by an earlier attempt; no second step was taken",
            quiet=True,
        )
    else:
        made = result.samples.reconstructed
        said = (
            f"; {made} of {result.samples.total} samples without recorded tokens or log-probabilities" if made else ""
        )
        if lost := result.samples.lost_versions:
            said += f" ({lost} of them name a version that can't be used)"
        if rebuilt := result.samples.rebuilt_conversations:
            said += f"; in {rebuilt} recorded prompts user_prompt is not the last message: their teacher saw less"
        if version.metrics.get(OPTIMIZER_RESTORED) == 0:
            warning = (
                f"Version {version.number} was made without the momentum of earlier steps: the engine's service did"
                f" not bring back the optimiser's state of version {version.parent}"
            )
            said += f". {warning}"
            draft.conditions.notes.append(Note("OptimizerNotRestored", warning, warning=True))
        draft.conditions.set(
            JobCondition.TRAINED,
            True,
            JobReason.STEP_TAKEN,
            f"Published version {version.number} from version {version.parent}{said}",
            quiet=True,
        )
    message = f"Version {version.number} is being put into service"
    draft.conditions.set(JobCondition.SERVED, False, JobReason.PUTTING_INTO_SERVICE, message, quiet=True)
    return draft.plan(JobPhase.SWAPPING, 0.0)


def _account_failure(draft: JobDraft, failure: Failure) -> JobPlan:
    world = draft.world
    failed = world.job.status.failed_attempts + 1
    limit = world.job.spec.backoff_limit
    if failure.permanent or failed > limit:
        # No next attempt will look for the version.
        waits = settle(draft, "its attempts are used up")
        if waits is not None:
            return waits
    draft.changes.update(attempts=failed, failed_attempts=failed, trainer_job=world.attempt.name)
    result = world.attempt.result
    if result is not None and result.version is not None and result.version.verdict is VersionVerdict.REJECTED:
        draft.changes["rejected_version"] = adapter_version(result.version)
    if result is not None and failure.reason == FailureReason.INVALID_SAMPLE:
        draft.changes["invalid_samples"] = result.invalid_samples[:MOST_INVALID_SAMPLES]
    draft.retire_attempt()
    if failure.permanent:
        return draft.fail(failure.reason, failure.message)
    if failed > limit:
        tried = f"{failed} attempts failed (backoffLimit {limit}); the last: " if limit else ""
        return draft.fail(failure.reason, tried + failure.message)
    delay = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** (failed - 1))
    draft.changes["retry_time"] = world.now + timedelta(seconds=delay)
    draft.conditions.set(
        JobCondition.TRAINED,
        False,
        JobReason.RETRYING,
        f"Attempt {failed} failed, the next is made in {delay} s: {failure.reason}: {failure.message}",
        warning=True,
    )
    return draft.plan(JobPhase.QUEUED, FOLLOW_SECONDS)
