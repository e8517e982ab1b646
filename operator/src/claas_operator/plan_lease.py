"""What to do about a Deployment's lease: wake what a dead step left asleep, end a pause that is too long, release.

This is the operator's part of "serving comes back whatever dies". It needs nothing but the Lease, so it works when
job and adapter are gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from claas_crds.conditions import JobReason
from claas_operator.actions import Action, GrantLease, KillTrainer, ReleaseLease, WakePods
from claas_operator.world import LeaseWorld

MAX_PAUSE_MARGIN_SECONDS = 5
"""How much longer than maxPauseSeconds the trainer's own watchdog is given before the operator acts."""
WATCH_SECONDS = 2.0
HEAL_SECONDS = 1.0


@dataclass(frozen=True)
class LeasePlan:
    """Actions, and when to look again (None: on an event)."""

    actions: tuple[Action, ...]
    requeue_seconds: float | None


def plan_lease(world: LeaseWorld) -> LeasePlan:
    """The plan for one serving lease."""
    if world.lease.grant is None:
        return LeasePlan((), None)
    if world.alive_pods:
        return _watch(world)
    asleep = tuple(pod.target for pod in world.pods if pod.asleep)
    if asleep:
        return LeasePlan((WakePods(world.lease, asleep),), HEAL_SECONDS)
    if not all(pod.settled for pod in world.pods):
        return LeasePlan((), HEAL_SECONDS)
    if world.job_active:
        return LeasePlan((), WATCH_SECONDS)
    return LeasePlan((ReleaseLease(world.lease),), None)


def _watch(world: LeaseWorld) -> LeasePlan:
    grant = world.lease.grant
    assert grant is not None
    asleep = any(pod.asleep for pod in world.pods)
    if grant.stopped_because is not None:
        return LeasePlan(tuple(KillTrainer(pod) for pod in world.alive_pods), HEAL_SECONDS)
    if not asleep:
        if grant.asleep_since is None or not all(pod.settled for pod in world.pods):
            return LeasePlan((), WATCH_SECONDS)
        return _rewrite(world, asleep_since=None)
    if grant.asleep_since is None:
        return _rewrite(world, asleep_since=world.now)
    longest = timedelta(seconds=grant.max_pause_seconds + MAX_PAUSE_MARGIN_SECONDS)
    if world.now - grant.asleep_since > longest:
        return _rewrite(world, stopped_because=JobReason.MAX_PAUSE_EXCEEDED.value)
    return LeasePlan((), WATCH_SECONDS)


def _rewrite(world: LeaseWorld, **changes: object) -> LeasePlan:
    assert world.lease.grant is not None
    grant = world.lease.grant.model_copy(update=changes)
    return LeasePlan((GrantLease(world.lease, world.lease.deployment, grant),), HEAL_SECONDS)
