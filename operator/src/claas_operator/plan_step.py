"""A DistillJob that holds its Deployment's lease: make, follow and account for its attempts, one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from claas_crds.conditions import JobCondition, JobReason, condition_of, is_true
from claas_crds.contract import PERMANENT_REASONS, FailureReason
from claas_crds.distill_job import JobPhase
from claas_crds.lora_adapter import HandoverKind
from claas_operator import naming
from claas_operator.actions import CreateAttempt, WriteLease
from claas_operator.grant import Grant, new_lease
from claas_operator.job_draft import JobDraft, JobPlan
from claas_operator.plan_attempt import Failure, failure_of, succeeded_status
from claas_operator.plan_unstarted import follow_unstarted, gave_way
from claas_operator.world import AttemptState, JobWorld

FIRST_RETRY_SECONDS = 5
LONGEST_RETRY_SECONDS = 300
FOLLOW_SECONDS = 1.0
WAIT_SECONDS = 5.0


@dataclass(frozen=True)
class Obstacle:
    """Why no step can be taken at the moment."""

    reason: JobReason
    message: str


def obstacle(world: JobWorld) -> Obstacle | None:
    """What a step would find nothing to serve its version by, or no room for itself; None when it can be taken."""
    adapter = world.adapter
    assert adapter is not None
    if adapter.status.latest_version is None:
        ready = condition_of(adapter.status.conditions, "Ready")
        said = ready.message if ready else "new"
        return _not_ready(f"LoraAdapter {adapter.metadata.name} has no version yet: {said}")
    stalled = condition_of(adapter.status.conditions, "Stalled")
    if stalled is not None and is_true([stalled], "Stalled"):
        return _not_ready(f"LoraAdapter {adapter.metadata.name} is stalled: {stalled.message}")
    if world.handover.kind is None:
        return Obstacle(JobReason.NO_HANDOVER, world.handover.message)
    sleeper = next((pod.name for pod in world.pods if pod.server is not None and pod.server.asleep), None)
    if sleeper is not None and world.handover.kind is HandoverKind.SLEEP:
        # A grant would name it, and the operator wakes what may have been paused: this sleep is somebody else's.
        return _not_ready(f"vLLM in pod {sleeper} is asleep or paused, and not by a DistillJob: wake it")
    refusing = next((pod for pod in world.pods if pod.server is not None and pod.server.refused), None)
    if refusing is not None and refusing.server is not None:
        return _not_ready(f"pod {refusing.name}: {refusing.server.error}")
    if world.pods and not any(pod.ready for pod in world.pods):
        return _not_ready(f"no pod of Deployment {adapter.spec.serving.deployment_ref.name} is ready")
    return None


def _not_ready(message: str) -> Obstacle:
    return Obstacle(JobReason.ADAPTER_NOT_READY, message)


def _next_attempt(world: JobWorld) -> int:
    return world.job.status.failed_attempts + 1


def grant_lease(world: JobWorld) -> WriteLease:
    """Give the lease to the job's next attempt, for the pods that are ready now. Only without an obstacle."""
    adapter = world.adapter
    assert adapter is not None
    assert world.handover.kind is not None
    serving = adapter.spec.serving
    grant = Grant(
        job_name=world.job.metadata.name,
        job_uid=world.job.metadata.uid,
        adapter_name=adapter.metadata.name,
        adapter_uid=adapter.metadata.uid,
        attempt=_next_attempt(world),
        pods=[pod.as_target() for pod in world.pods if pod.ready and pod.url],
        handover=world.handover.kind,
        control_token=serving.control_token_secret_ref,
        api_key=serving.api_key_secret_ref,
        tls=serving.tls,
        max_pause_seconds=serving.max_pause_seconds,
        granted_at=world.now,
    )
    lease = world.lease or new_lease(adapter.metadata.namespace, serving.deployment_ref.name)
    return WriteLease(lease.model_copy(update={"grant": grant}))


def take_step(draft: JobDraft) -> JobPlan:
    """The job holds the lease: make, follow or account for the attempt."""
    world = draft.world
    assert world.lease is not None
    assert world.lease.grant is not None
    status = world.job.status
    if gave_way(status):
        # It has the lease only until its pod is surely gone.
        return draft.plan(JobPhase.PENDING, FOLLOW_SECONDS)
    if status.start_time is None:
        draft.changes["start_time"] = world.now
        draft.changes["timings"] = status.timings.model_copy(update={"queued": round(world.age_seconds, 3)})
    draft.conditions.set(JobCondition.ADMITTED, True, JobReason.ADMITTED, "The step may be taken")
    match world.attempt.state:
        case AttemptState.RUNNING:
            return _follow(draft)
        case AttemptState.SUCCEEDED:
            return _account_success(draft)
        case AttemptState.FAILED | AttemptState.LOST:
            return _account_failure(draft, failure_of(world.attempt, world.lease.grant))
        case AttemptState.ABSENT:
            return _start(draft)


def _start(draft: JobDraft) -> JobPlan:
    world = draft.world
    assert world.lease is not None
    assert world.lease.grant is not None
    assert world.adapter is not None
    attempt = _next_attempt(world)
    status = world.job.status
    if world.attempts_alive:
        return draft.plan(status.phase or JobPhase.PREPARING, FOLLOW_SECONDS)
    if status.attempts >= attempt:
        return _account_failure(draft, failure_of(world.attempt, world.lease.grant))
    if world.lease.grant.attempt == attempt:
        parent = world.adapter.status.latest_version
        if parent is None:
            # The adapter was made anew since the lease was granted.
            return _wait(draft, _not_ready(f"LoraAdapter {world.adapter.metadata.name} has no version yet"))
        draft.actions.append(
            CreateAttempt(naming.attempt_name(world.job.metadata, attempt), attempt, world.lease.grant, parent)
        )
        draft.changes["parent_version"] = parent
        draft.changes["handover"] = world.lease.grant.handover
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
    draft.conditions.set(JobCondition.TRAINED, False, waits_for.reason, waits_for.message)
    return draft.plan(JobPhase.PENDING, WAIT_SECONDS)


def _follow(draft: JobDraft) -> JobPlan:
    world = draft.world
    if world.attempt.hindered:
        return follow_unstarted(draft)
    status = world.job.status
    draft.changes["attempts"] = _next_attempt(world)
    draft.changes["trainer_job"] = world.attempt.name
    progress = world.attempt.progress
    phase = progress.phase if progress else JobPhase.PREPARING
    if progress is None and status.phase not in (None, JobPhase.PENDING, JobPhase.QUEUED, JobPhase.SUSPENDED):
        phase = status.phase or phase
    detail = (progress.detail if progress else world.attempt.message) or f"{phase.value}"
    draft.conditions.set(JobCondition.TRAINED, False, JobReason.RUNNING, f"Attempt {_next_attempt(world)}: {detail}")
    return draft.plan(phase, FOLLOW_SECONDS)


def _account_success(draft: JobDraft) -> JobPlan:
    world = draft.world
    result = world.attempt.result
    if result is None or result.version is None:
        message = "the trainer ended with exit code 0 and no readable result"
        return _account_failure(draft, Failure(FailureReason.INTERNAL, message, permanent=False))
    version = result.version
    draft.changes.update(succeeded_status(world.job.status, result, version))
    draft.changes.update(attempts=_next_attempt(world), trainer_job=world.attempt.name)
    draft.retire_attempt()
    if result.already_published:
        draft.conditions.set(
            JobCondition.TRAINED,
            True,
            JobReason.ALREADY_PUBLISHED,
            f"Version {version.number} was published by an earlier attempt; no second step was taken",
        )
    else:
        made = result.samples.reconstructed
        said = (
            f"; {made} of {result.samples.total} samples without recorded tokens or log-probabilities" if made else ""
        )
        if rebuilt := result.samples.rebuilt_conversations:
            said += f"; in {rebuilt} recorded prompts user_prompt is not the last message: their teacher saw less"
        draft.conditions.set(
            JobCondition.TRAINED,
            True,
            JobReason.STEP_TAKEN,
            f"Published version {version.number} from version {version.parent}{said}",
        )
    return draft.plan(JobPhase.SWAPPING, 0.0)


def _account_failure(draft: JobDraft, failure: Failure) -> JobPlan:
    world = draft.world
    failed = world.job.status.failed_attempts + 1
    draft.changes.update(attempts=failed, failed_attempts=failed, trainer_job=world.attempt.name)
    draft.retire_attempt()
    if failure.permanent or failure.reason in PERMANENT_REASONS:
        return draft.fail(failure.reason, failure.message)
    limit = world.job.spec.backoff_limit
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
