"""A DistillJob that waits for the lease of its adapter's steps."""

from __future__ import annotations

from claas_crds.v1alpha1.conditions import JobCondition, JobReason, condition_of
from claas_crds.v1alpha1.step import JobPhase
from claas_operator.plan.job.obstacles import grant_lease, obstacle
from claas_operator.plan.job.step import WAIT_SECONDS
from claas_operator.plan.job.unstarted import rest_left
from claas_operator.plan.job_draft import JobDraft, JobPlan

QUEUE_SECONDS = 300.0
"""How often a queued job is looked at; passes over its Deployment's Lease wake it when its turn has come."""


def wait_for_turn(draft: JobDraft) -> JobPlan:
    """Queue for the lease, and take it when the job's turn has come and its step has no obstacle."""
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
    places = world.places
    if jobs == 0 and (places is None or places.free):
        return _grant(draft)
    admitted = condition_of(draft.conditions.conditions, JobCondition.ADMITTED)
    if admitted is None or admitted.reason != JobReason.QUEUED:
        _tell_turn(draft, jobs)
    return draft.plan(JobPhase.QUEUED, QUEUE_SECONDS)


def _tell_turn(draft: JobDraft, jobs: int) -> None:
    """Written once, because keeping the number up to date would take a write for every waiting job at each turn."""
    others = {0: "no other job", 1: "1 other job"}.get(jobs, f"{jobs} other jobs")
    now = f"{draft.world.now:%H:%M:%S} UTC"
    places = draft.world.places
    same = "Deployment" if places is None else "adapter"
    message = f"Waits for its turn; {others} for the same {same} came first when it queued at {now}"
    if places is not None and not places.free:
        before = f" and {places.ahead} adapters came first" if places.ahead else ""
        message += (
            f"; {places.taken} steps of other adapters ran{before}, and the operator takes {places.most} such steps"
            " at once (CLAAS_MAX_CONCURRENT_STEPS)"
        )
    draft.conditions.set(JobCondition.ADMITTED, False, JobReason.QUEUED, message, quiet=True)


def _grant(draft: JobDraft) -> JobPlan:
    """The job's turn has come. A job that waited for something else first records that it needs the lease; otherwise
    the next pass updates the status."""
    world = draft.world
    draft.actions.append(grant_lease(world))
    if world.job.status.phase in (None, JobPhase.QUEUED):
        return draft.unchanged(0.0)
    _tell_turn(draft, 0)
    return draft.plan(JobPhase.QUEUED, 0.0)
