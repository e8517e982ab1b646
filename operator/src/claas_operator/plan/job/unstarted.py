"""A trainer whose pod can't start: status, longest wait, and back-off.

While it waits, it holds its Deployment's lease, and all other jobs wait. After some time the attempt is therefore
withdrawn without being counted, the lease is released, and the job joins the queue again.
"""

from __future__ import annotations

from datetime import timedelta

from claas_crds.v1alpha1.conditions import JobCondition, JobReason, condition_of
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.step import JobPhase
from claas_operator.plan.job_draft import JobDraft, JobPlan
from claas_operator.plan.world import JobWorld

PODLESS_PATIENCE_SECONDS = 30
"""For a batch Job without a pod; withdrawing it loses nothing."""
PENDING_PATIENCE_SECONDS = 60
"""For an existing pod, which may wait for a new node, or for a volume from another node."""
LONGEST_PATIENCE_SECONDS = 180
SHORTEST_REST_SECONDS = 30
LONGEST_REST_SECONDS = 300
LOOK_SECONDS = 2.0
_LAST_WORDS = "; its trainer could not be started: "


def follow_unstarted(draft: JobDraft) -> JobPlan:
    """The attempt's trainer can't start: report why, and let other jobs go first if that lasts."""
    world = draft.world
    status = world.job.status
    attempt = status.failed_attempts + 1
    words = world.attempt.message
    if not _out_of_patience(world):
        draft.changes.update(attempts=attempt, trainer_job=world.attempt.name)
        message = f"Attempt {attempt} waits to be started: {words}"
        draft.conditions.set(JobCondition.TRAINED, False, JobReason.TRAINER_NOT_STARTED, message, warning=True)
        return draft.plan(JobPhase.PREPARING, LOOK_SECONDS)
    rest = _rest_seconds(world)
    message = f"The trainer could not be started and is tried again in {rest} s, other jobs first: {words}"
    draft.stop_attempt("its pod can't start")
    draft.changes.update(attempts=status.failed_attempts, retry_time=world.now + timedelta(seconds=rest))
    draft.conditions.set(JobCondition.ADMITTED, False, JobReason.TRAINER_NOT_STARTED, message, warning=True)
    draft.conditions.set(JobCondition.TRAINED, False, JobReason.TRAINER_NOT_STARTED, message, quiet=True)
    return draft.plan(JobPhase.PENDING, LOOK_SECONDS)


def gave_way(status: DistillJobStatus) -> bool:
    """Whether the job's trainer was refused, or withdrawn because it could not start, and the job has not joined the
    queue again."""
    admitted = condition_of(status.conditions, JobCondition.ADMITTED)
    return admitted is not None and admitted.reason in (JobReason.TRAINER_NOT_STARTED, JobReason.REQUEST_REFUSED)


def rest_left(world: JobWorld) -> float:
    """Seconds until the job may queue again."""
    status = world.job.status
    if status.retry_time is None or not gave_way(status):
        return 0.0
    return (status.retry_time - world.now).total_seconds()


def last_words(status: DistillJobStatus) -> str:
    """What kept the job's trainer from starting, for the message at the job's end; empty if nothing did."""
    admitted = condition_of(status.conditions, JobCondition.ADMITTED)
    if admitted is not None and admitted.reason == JobReason.REQUEST_REFUSED:
        return _LAST_WORDS + admitted.message
    trained = condition_of(status.conditions, JobCondition.TRAINED)
    if trained is None:
        return ""
    if trained.reason == JobReason.TRAINER_NOT_STARTED:
        return _LAST_WORDS + trained.message.partition(": ")[2]
    # Reported before, when the trainer was asked to end.
    _, said, words = trained.message.partition(_LAST_WORDS)
    return said + words


def _out_of_patience(world: JobWorld) -> bool:
    start = world.attempt.start
    if start is None:
        return False
    patience = PODLESS_PATIENCE_SECONDS if world.attempt.pod is None else PENDING_PATIENCE_SECONDS
    # Longer with each turn, so that causes that take minutes, such as a new node, can pass.
    before = int((start.since - (world.job.status.start_time or start.since)).total_seconds())
    patience = max(patience, min(LONGEST_PATIENCE_SECONDS, before))
    return world.now - start.since > timedelta(seconds=patience)


def _rest_seconds(world: JobWorld) -> int:
    """About as long as the job has tried so far."""
    tried = int((world.now - (world.job.status.start_time or world.now)).total_seconds())
    return min(LONGEST_REST_SECONDS, max(SHORTEST_REST_SECONDS, tried))
