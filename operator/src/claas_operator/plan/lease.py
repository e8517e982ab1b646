"""Plan for a lease of steps: wake pods that a dead step left asleep, end a pause that is too long, release the
lease, and take deleted adapters out of service.

This is the operator's part of "serving comes back whatever dies". It needs only the Lease, so it works after job and
adapter are deleted, and neither needs a finalizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from claas_crds.v1alpha1.conditions import JobReason
from claas_operator.plan.actions import (
    Action,
    DeleteLease,
    ForgetServedName,
    KillTrainer,
    RemovePointer,
    TakeOutOfService,
    WakePods,
    WriteLease,
    WriteServedName,
)
from claas_operator.plan.modal.state import Removal
from claas_operator.plan.serving_lease import MOST_UNACCOUNTED, Grant, ServedName, Unaccounted
from claas_operator.plan.world import LeaseWorld

MAX_PAUSE_MARGIN_SECONDS = 5
"""Seconds beyond maxPauseSeconds that the supervisor has before the operator acts."""
NOTED_PAUSE_SECONDS = 10
"""From when on it is written down since when the pods sleep. An operator that starts anew before that counts from its
own start."""
WATCH_SECONDS = 2.0
HEAL_SECONDS = 1.0
ORPHAN_SECONDS = 15.0
MOVED_AT_ONCE = 50


@dataclass(frozen=True)
class LeasePlan:
    """Actions, and the seconds until the next pass (None: on an event)."""

    actions: tuple[Action, ...]
    requeue_seconds: float | None


def plan_lease(world: LeaseWorld) -> LeasePlan:
    """The plan for one serving lease."""
    if world.lease.grant is None:
        return _clean_up(world)
    if world.alive_pods:
        return _watch(world)
    asleep = tuple(pod.target for pod in world.pods if pod.asleep)
    if asleep:
        return LeasePlan((WakePods(world.lease, asleep),), HEAL_SECONDS)
    if not all(pod.settled for pod in world.pods):
        return LeasePlan((), HEAL_SECONDS)
    full = world.unaccounted and len(world.lease.unaccounted) >= MOST_UNACCOUNTED
    if world.job_active or world.attempts_open or full:
        return LeasePlan((), WATCH_SECONDS)
    return _release(world)


def _release(world: LeaseWorld) -> LeasePlan:
    """Release the lease, and record in the same write a job whose version the adapter may not know of."""
    grant = world.lease.grant
    assert grant is not None
    unaccounted = dict(world.lease.unaccounted)
    for job in world.unaccounted:
        unaccounted[job.uid] = Unaccounted(
            job_name=job.name,
            attempt=job.attempt,
            adapter_name=grant.adapter_name,
            adapter_uid=grant.adapter_uid,
        )
    free = world.lease.model_copy(update={"grant": None, "unaccounted": unaccounted})
    return LeasePlan((WriteLease(free),), 0.0)


def _watch(world: LeaseWorld) -> LeasePlan:
    """A trainer is alive: record since when the pods sleep, and end a pause that is too long."""
    grant = world.lease.grant
    assert grant is not None
    asleep = any(pod.asleep for pod in world.pods)
    if grant.stopped_because is not None:
        return LeasePlan(tuple(KillTrainer(pod) for pod in world.alive_pods), HEAL_SECONDS)
    if not asleep:
        if grant.asleep_since is None or not all(pod.settled for pod in world.pods):
            return LeasePlan((), WATCH_SECONDS)
        return _rewrite(world, grant.model_copy(update={"asleep_since": None}))
    since = grant.asleep_since or world.asleep_since or world.now
    longest = timedelta(seconds=grant.max_pause_seconds + MAX_PAUSE_MARGIN_SECONDS)
    if world.now - since > longest:
        stopped = {"asleep_since": since, "stopped_because": JobReason.MAX_PAUSE_EXCEEDED.value}
        return _rewrite(world, grant.model_copy(update=stopped))
    if grant.asleep_since is None and world.now - since >= timedelta(seconds=NOTED_PAUSE_SECONDS):
        return _rewrite(world, grant.model_copy(update={"asleep_since": since}))
    return LeasePlan((), WATCH_SECONDS)


def _rewrite(world: LeaseWorld, grant: Grant) -> LeasePlan:
    return LeasePlan((WriteLease(world.lease.model_copy(update={"grant": grant})),), HEAL_SECONDS)


def _clean_up(world: LeaseWorld) -> LeasePlan:
    """No step is under way: take names without an adapter out of service."""
    if world.lease.served:
        return _move_records(world)
    unaccounted = {uid: each for uid, each in world.lease.unaccounted.items() if uid not in world.lost}
    actions: list[Action] = []
    left = len(world.orphans)
    for orphan in world.orphans:
        if orphan.removal is not None:
            actions.extend(_removal_actions(orphan.served, orphan.removal, world))
            left -= orphan.removal.done
            continue
        serving = [
            pod
            for pod in orphan.pods
            if pod.server is not None and (pod.server.loaded_version is not None or pod.server.remnants)
        ]
        for pod in serving:
            actions.append(TakeOutOfService(pod.url or "", orphan.served.served_name, orphan.served.record))
        # An unreachable pod may come back with the name, from its alias folder.
        asked = all(pod.server is not None and pod.server.reachable and not pod.server.refused for pod in orphan.pods)
        if not world.subject_found or (asked and not serving):
            actions.append(ForgetServedName(orphan.served))
            left -= 1
    if not world.subject_found and not unaccounted and not left and not world.more_orphans:
        return LeasePlan((*actions, DeleteLease(world.lease)), None)
    if world.lost:
        actions.append(WriteLease(world.lease.model_copy(update={"unaccounted": unaccounted})))
    if not left and not world.more_orphans:
        return LeasePlan(tuple(actions), None)
    return LeasePlan(tuple(actions), HEAL_SECONDS if actions else ORPHAN_SECONDS)


def _removal_actions(served: ServedName, removal: Removal, world: LeaseWorld) -> list[Action]:
    """The record of a served name on Modal stays until the pointer is gone, which nobody else would ever remove."""
    if removal.done:
        return [ForgetServedName(served)]
    rests = removal.setback is not None and world.now < removal.setback.retry_at
    return [] if removal.calling or rests else [RemovePointer(served)]


def _move_records(world: LeaseWorld) -> LeasePlan:
    """Move records of served names, as release 0.1 kept them, into Leases of their own; some in each pass."""
    lease = world.lease
    now = dict(list(lease.served.items())[:MOVED_AT_ONCE])
    writes = tuple(
        WriteServedName(
            ServedName(namespace=lease.namespace, deployment=lease.deployment, served_name=name, record=record)
        )
        for name, record in now.items()
        if name not in world.moved
    )
    left = {name: record for name, record in lease.served.items() if name not in now}
    return LeasePlan((*writes, WriteLease(lease.model_copy(update={"served": left}))), 0.0)
