"""Recovery: before a job ends, its trainer is ended and the volume is searched for its version.

A trainer can die between the rename that publishes its version and its report, so the volume decides.
"""

from __future__ import annotations

from datetime import timedelta

from claas_contract.jobs import JobIdentity
from claas_contract.outcome import FailureReason
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.conditions import JobCondition, JobReason
from claas_crds.v1alpha1.step import JobPhase
from claas_operator.plan import naming
from claas_operator.plan.actions import CreateRecovery
from claas_operator.plan.job_draft import JobDraft, JobPlan, end
from claas_operator.plan.world import JobWorld, TrainerJob, TrainerState

FOLLOW_SECONDS = 1.0
LOOK_AGAIN_SECONDS = 10
"""Seconds until a recovery pod that failed is retried."""
LONGEST_RECOVERY_SECONDS = 300
"""Longest time in seconds that a job waits for the end of its trainer and for the search. The adapter continues the
search."""
TELLS_NOTHING = frozenset(
    {
        FailureReason.INTERRUPTED,
        FailureReason.INTERNAL,
        FailureReason.OUT_OF_MEMORY,
        FailureReason.STORAGE_FULL,
        FailureReason.STORAGE_READ_ONLY,
        FailureReason.STORAGE_FAILED,
    }
)
"""Failures that can also happen after the version was published."""


def next_attempt(world: JobWorld) -> int:
    """The number of the current attempt, or of the one to be made."""
    return world.job.status.failed_attempts + 1


def begun(world: JobWorld) -> bool:
    """Whether the current attempt was created and is not accounted for."""
    status = world.job.status
    return world.attempt.state is not TrainerState.ABSENT or status.attempts > status.failed_attempts


def found_published(world: JobWorld) -> TrainerResult | None:
    """The version that the attempt reports, or that was found on the volume."""
    for ended in (world.attempt, world.recovery):
        result = ended.result
        if ended.state is TrainerState.SUCCEEDED and result is not None and result.succeeded and result.version:
            return result
    return None


def settle(draft: JobDraft, why: str) -> JobPlan | None:
    """Before the job ends: end its attempt, and find out whether it published. None if that is known. After
    LONGEST_RECOVERY_SECONDS the job ends anyway.
    """
    world = draft.world
    if not begun(world) and not world.attempts_alive:
        draft.changes["recovery_time"] = None
        return None
    if _given_up(world):
        draft.caveat = "; what it left on the volume could not be looked at so far"
        if world.attempt.state is TrainerState.RUNNING:
            draft.stop_attempt(why)
        if world.recovery.state is not TrainerState.ABSENT:
            draft.actions.append(end(world.recovery, 1, "it takes too long"))
        return None
    if world.attempt.state is TrainerState.RUNNING or world.attempts_alive:
        draft.stop_attempt(why)
        # A trainer that never ran has published nothing.
        ran = world.attempt.start is None
        attempts = next_attempt(world) if ran and begun(world) else world.job.status.failed_attempts
        draft.changes.update(attempts=attempts, trainer_job=world.attempt.name)
        return _wait(draft, f"The trainer is being ended: {why}")
    return None if _tells(world.attempt) else _look(draft)


def _tells(attempt: TrainerJob) -> bool:
    """Whether the attempt's report rules out that it published."""
    return attempt.result is not None and attempt.result.reason not in (None, *TELLS_NOTHING)


def _look(draft: JobDraft) -> JobPlan | None:
    world = draft.world
    recovery = world.recovery
    since = world.job.status.recovery_time
    said = "The last attempt ended without telling what came of it: looking for its version on the volume"
    match recovery.state:
        case TrainerState.SUCCEEDED if recovery.result is not None and recovery.result.succeeded:
            draft.actions.append(end(recovery, 1, "it has looked"))
            draft.caveat = f"; {recovery.result.message}" if recovery.result.message else ""
            draft.changes["recovery_time"] = None
            return None
        case TrainerState.ABSENT:
            if not recovery.alive:
                job = world.job.metadata
                attempt = next_attempt(world)
                identity = JobIdentity(namespace=job.namespace, name=job.name, uid=job.uid, attempt=attempt)
                name = naming.recovery_name(job, attempt, since or world.now)
                draft.actions.append(CreateRecovery(name, identity))
        case TrainerState.RUNNING:
            said += f": {recovery.message}" if recovery.message else ""
        case TrainerState.FAILED | TrainerState.LOST | TrainerState.SUCCEEDED:
            ended = recovery.finished_at
            if ended is None or world.now - ended > timedelta(seconds=LOOK_AGAIN_SECONDS):
                draft.actions.append(end(recovery, 1, "the volume is looked at again"))
    return _wait(draft, said)


def _given_up(world: JobWorld) -> bool:
    since = world.job.status.recovery_time
    return since is not None and world.now - since > timedelta(seconds=LONGEST_RECOVERY_SECONDS)


def _wait(draft: JobDraft, message: str) -> JobPlan:
    status = draft.world.job.status
    draft.changes["recovery_time"] = status.recovery_time or draft.world.now
    draft.conditions.set(JobCondition.TRAINED, False, JobReason.RECOVERING, message)
    return draft.plan(status.phase or JobPhase.PREPARING, FOLLOW_SECONDS)
