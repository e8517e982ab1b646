"""What to do about a DistillJob: queue it, grant it the lease, start and follow its attempts, finish it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from claas_crds.conditions import JobCondition, JobReason, condition_of, is_true
from claas_crds.contract import PERMANENT_REASONS, FailureReason
from claas_crds.distill_job import DistillJobStatus, JobPhase
from claas_operator import naming
from claas_operator.actions import (
    Action,
    CreateAttempt,
    DeleteAttempt,
    DeleteInput,
    DeleteJob,
    Note,
    WriteLease,
)
from claas_operator.conditions import ConditionDraft
from claas_operator.grant import Grant, new_lease
from claas_operator.plan_attempt import Failure, failure_of, succeeded_status
from claas_operator.queueing import finished
from claas_operator.world import AttemptState, JobWorld

MISSING_GRACE_SECONDS = 10
"""How long a job waits for an adapter or samples that are applied together with it."""
STOP_GRACE_SECONDS = 20
"""How long a trainer that is told to end has for waking serving by itself."""
FIRST_RETRY_SECONDS = 5
LONGEST_RETRY_SECONDS = 300
FOLLOW_SECONDS = 1.0
WAIT_SECONDS = 5.0
QUEUE_SECONDS = 15.0
"""How often a queued job is looked at; it is woken when its turn may have come."""


@dataclass(frozen=True)
class JobPlan:
    """Actions, the status to be, Events, and when to look again (None: on an event)."""

    actions: tuple[Action, ...]
    status: DistillJobStatus
    notes: tuple[Note, ...]
    requeue_seconds: float | None


@dataclass
class _Draft:
    world: JobWorld
    conditions: ConditionDraft
    changes: dict[str, object] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)

    def plan(self, phase: JobPhase, requeue_seconds: float | None) -> JobPlan:
        status = self.world.job.status.model_copy(
            update={
                **self.changes,
                "phase": phase,
                "conditions": self.conditions.conditions,
                "observed_generation": self.world.job.metadata.generation,
            }
        )
        return JobPlan(tuple(self.actions), status, tuple(self.conditions.notes), requeue_seconds)

    def fail(self, reason: str, message: str) -> JobPlan:
        """The job has failed for good."""
        if not is_true(self.conditions.conditions, JobCondition.TRAINED):
            self.conditions.set(JobCondition.TRAINED, False, reason, message, quiet=True)
        self.conditions.set(JobCondition.FAILED, True, reason, message, warning=True)
        self.changes["completion_time"] = self.world.now
        return self.plan(JobPhase.FAILED, 0.0)

    def stop_attempt(self, why: str) -> None:
        """End the running attempt, if there is one."""
        attempt = self.world.attempt
        if attempt.state is not AttemptState.ABSENT or self.world.attempts_alive:
            self.actions.append(DeleteAttempt(attempt.name, attempt.pod, STOP_GRACE_SECONDS, why))


def plan_job(world: JobWorld) -> JobPlan:
    """The plan for one DistillJob."""
    job = world.job
    draft = _Draft(world, ConditionDraft(world.now, job.metadata.generation, list(job.status.conditions)))
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
    if world.samples_error is not None and world.attempt.state is AttemptState.ABSENT:
        return _without_samples(draft, world.samples_error)
    if _deadline_over(world):
        draft.stop_attempt("activeDeadlineSeconds are over")
        seconds = job.spec.active_deadline_seconds
        return draft.fail(JobReason.DEADLINE_EXCEEDED, f"The job was not done {seconds} s after it was admitted")
    if world.lease is None or world.lease.holder != job.metadata.uid:
        return _queue(draft)
    return _run(draft)


def _tidy(draft: _Draft) -> JobPlan:
    """A finished job: end what may still run, and delete the job when its time to live is over."""
    world = draft.world
    status = world.job.status
    if world.attempt.state is AttemptState.RUNNING:
        draft.stop_attempt("the job has ended")
    requeue = None
    ttl = world.job.spec.ttl_seconds_after_finished
    if ttl is not None and status.completion_time is not None:
        remaining = (status.completion_time + timedelta(seconds=ttl) - world.now).total_seconds()
        if remaining <= 0:
            draft.actions.append(DeleteJob())
        else:
            requeue = remaining
    return draft.plan(status.phase or JobPhase.FAILED, requeue)


def _age_seconds(world: JobWorld) -> float:
    created = world.job.metadata.creation_timestamp or world.now
    return (world.now - created).total_seconds()


def _without_adapter(draft: _Draft) -> JobPlan:
    world = draft.world
    name = world.job.spec.adapter_ref.name
    if world.job.status.attempts:
        draft.stop_attempt("the adapter was deleted")
        return draft.fail(JobReason.ADAPTER_DELETED, f"LoraAdapter {name} was deleted")
    message = f"spec.adapterRef.name: there is no LoraAdapter {name} in namespace {world.job.metadata.namespace}"
    if _age_seconds(world) < MISSING_GRACE_SECONDS:
        draft.conditions.set(JobCondition.ADMITTED, False, JobReason.ADAPTER_NOT_FOUND, message)
        return draft.plan(JobPhase.PENDING, 1.0)
    return draft.fail(JobReason.ADAPTER_NOT_FOUND, message)


def _without_samples(draft: _Draft, error: str) -> JobPlan:
    if _age_seconds(draft.world) < MISSING_GRACE_SECONDS:
        draft.conditions.set(JobCondition.ADMITTED, False, JobReason.SAMPLES_NOT_FOUND, error)
        return draft.plan(JobPhase.PENDING, 1.0)
    draft.stop_attempt("the samples are gone")
    return draft.fail(JobReason.SAMPLES_NOT_FOUND, error)


def _suspended(draft: _Draft) -> JobPlan:
    draft.stop_attempt("the job was suspended")
    draft.conditions.set(JobCondition.SUSPENDED, True, JobReason.SUSPENDED, "spec.suspend is true")
    draft.conditions.set(JobCondition.ADMITTED, False, JobReason.SUSPENDED, "spec.suspend is true")
    draft.changes["start_time"] = None
    draft.changes["attempts"] = draft.world.job.status.failed_attempts
    return draft.plan(JobPhase.SUSPENDED, FOLLOW_SECONDS if draft.world.attempts_alive else None)


def _deadline_over(world: JobWorld) -> bool:
    limit = world.job.spec.active_deadline_seconds
    start = world.job.status.start_time
    return limit is not None and start is not None and world.now - start > timedelta(seconds=limit)


def _serving_error(world: JobWorld) -> str | None:
    """Why a step would find nothing to serve its version; None when serving is there, or wanted by nobody."""
    adapter = world.adapter
    assert adapter is not None
    if adapter.status.latest_version is None:
        ready = condition_of(adapter.status.conditions, "Ready")
        return f"LoraAdapter {adapter.metadata.name} has no version yet: {ready.message if ready else 'new'}"
    stalled = condition_of(adapter.status.conditions, "Stalled")
    if stalled is not None and is_true([stalled], "Stalled"):
        return f"LoraAdapter {adapter.metadata.name} is stalled: {stalled.message}"
    sleeper = next((pod.name for pod in world.pods if pod.server is not None and pod.server.asleep), None)
    if sleeper is not None:
        # A grant would name it, and the operator wakes what a grant names: this sleep is somebody else's.
        return f"vLLM in pod {sleeper} is asleep or paused, and not by a DistillJob: wake it"
    if world.pods and not any(pod.ready for pod in world.pods):
        return f"no pod of Deployment {adapter.spec.serving.deployment_ref.name} is ready"
    return None


def _queue(draft: _Draft) -> JobPlan:
    world = draft.world
    waiting_for = _serving_error(world)
    if waiting_for is not None:
        draft.conditions.set(JobCondition.ADMITTED, False, JobReason.ADAPTER_NOT_READY, waiting_for)
        return draft.plan(JobPhase.PENDING, WAIT_SECONDS)
    lease = world.lease
    holder = lease.grant.job_name if lease is not None and lease.grant is not None else None
    if holder is None and world.jobs_ahead == 0:
        draft.actions.append(_grant(world))
        message = "The step is next for its Deployment"
        requeue = 0.0
    else:
        running = f"; {holder} runs" if holder else ""
        message = f"{world.jobs_ahead} jobs for the same Deployment were created earlier{running}"
        requeue = QUEUE_SECONDS
    draft.conditions.set(JobCondition.ADMITTED, False, JobReason.QUEUED, message)
    return draft.plan(JobPhase.QUEUED, requeue)


def _next_attempt(world: JobWorld) -> int:
    return world.job.status.failed_attempts + 1


def _grant(world: JobWorld) -> WriteLease:
    adapter = world.adapter
    assert adapter is not None
    serving = adapter.spec.serving
    grant = Grant(
        job_name=world.job.metadata.name,
        job_uid=world.job.metadata.uid,
        adapter_name=adapter.metadata.name,
        adapter_uid=adapter.metadata.uid,
        attempt=_next_attempt(world),
        pods=[pod.as_target() for pod in world.pods if pod.ready and pod.url],
        control_token=serving.control_token_secret_ref,
        api_key=serving.api_key_secret_ref,
        max_pause_seconds=serving.max_pause_seconds,
        granted_at=world.now,
    )
    lease = world.lease or new_lease(adapter.metadata.namespace, serving.deployment_ref.name)
    return WriteLease(lease.model_copy(update={"grant": grant}))


def _run(draft: _Draft) -> JobPlan:
    """The job holds the lease: make, follow or account for the attempt."""
    world = draft.world
    assert world.lease is not None
    assert world.lease.grant is not None
    status = world.job.status
    if status.start_time is None:
        draft.changes["start_time"] = world.now
        draft.changes["timings"] = status.timings.model_copy(update={"queued": round(_age_seconds(world), 3)})
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


def _start(draft: _Draft) -> JobPlan:
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
        assert parent is not None
        draft.actions.append(
            CreateAttempt(naming.attempt_name(world.job.metadata, attempt), attempt, world.lease.grant, parent)
        )
        draft.changes["parent_version"] = parent
        return draft.plan(JobPhase.PREPARING, FOLLOW_SECONDS)
    if status.retry_time is not None and world.now < status.retry_time:
        return draft.plan(JobPhase.QUEUED, max(0.2, (status.retry_time - world.now).total_seconds()))
    if not all(pod.settled for pod in world.recorded):
        return draft.plan(JobPhase.QUEUED, FOLLOW_SECONDS)
    waiting_for = _serving_error(world)
    if waiting_for is not None:
        draft.conditions.set(JobCondition.TRAINED, False, JobReason.ADAPTER_NOT_READY, waiting_for)
        return draft.plan(JobPhase.PENDING, WAIT_SECONDS)
    draft.actions.append(_grant(world))
    return draft.plan(JobPhase.QUEUED, 0.0)


def _follow(draft: _Draft) -> JobPlan:
    world = draft.world
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


def _account_success(draft: _Draft) -> JobPlan:
    world = draft.world
    result = world.attempt.result
    if result is None or result.version is None:
        message = "the trainer ended with exit code 0 and no readable result"
        return _account_failure(draft, Failure(FailureReason.INTERNAL, message, permanent=False))
    version = result.version
    draft.changes.update(succeeded_status(world.job.status, result, version))
    draft.changes.update(attempts=_next_attempt(world), trainer_job=world.attempt.name)
    draft.actions.append(DeleteInput(world.attempt.name))
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
        draft.conditions.set(
            JobCondition.TRAINED,
            True,
            JobReason.STEP_TAKEN,
            f"Published version {version.number} from version {version.parent}{said}",
        )
    return draft.plan(JobPhase.SWAPPING, 0.0)


def _account_failure(draft: _Draft, failure: Failure) -> JobPlan:
    world = draft.world
    failed = world.job.status.failed_attempts + 1
    draft.changes.update(attempts=failed, failed_attempts=failed, trainer_job=world.attempt.name)
    draft.actions.append(DeleteInput(world.attempt.name))
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


def _put_into_service(draft: _Draft) -> JobPlan:
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
