"""Missing references: Git tools apply objects in any order, so a DistillJob waits for the objects that it names."""

from __future__ import annotations

from datetime import datetime, timedelta

from claas_crds.v1alpha1.conditions import JobCondition, JobReason, condition_of, is_true
from claas_crds.v1alpha1.step import JobPhase
from claas_operator.plan.job_draft import JobDraft, JobPlan

HELD_SECONDS = 30
"""Longest wait in seconds of a job that holds its Deployment's Lease, because other jobs wait for it."""
LOOK_SECONDS = 5.0


def wait_for_missing(draft: JobDraft, reason: JobReason, message: str) -> JobPlan:
    """Wait outside the queue for the missing object; fail after `activeDeadlineSeconds`."""
    world = draft.world
    until = _waits_until(draft)
    if world.now < until:
        said = f"{message}; the job waits for it until {until:%Y-%m-%d %H:%M:%S} UTC"
        draft.conditions.set(JobCondition.ADMITTED, False, reason, said)
        return draft.plan(JobPhase.PENDING, LOOK_SECONDS)
    draft.stop_attempt(message)
    return draft.fail(reason, f"{message}; the job waited for it until {until:%Y-%m-%d %H:%M:%S} UTC")


def _waits_until(draft: JobDraft) -> datetime:
    """`activeDeadlineSeconds` after the job was created, or resumed; not much longer than its turn lasts."""
    world = draft.world
    grant = world.lease.grant if world.lease is not None else None
    if grant is not None and grant.attempt_of(world.job.metadata.uid) is not None:
        return grant.granted_at + timedelta(seconds=HELD_SECONDS)
    since = world.job.metadata.creation_timestamp or world.now
    suspended = condition_of(draft.conditions.conditions, JobCondition.SUSPENDED)
    if suspended is not None and not is_true([suspended], JobCondition.SUSPENDED):
        since = max(since, suspended.last_transition_time)
    return since + timedelta(seconds=world.job.spec.active_deadline_seconds)
