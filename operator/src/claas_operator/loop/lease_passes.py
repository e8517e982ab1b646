"""Passes over Leases: they wake serving, and the lease goes from job to job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from claas_operator.act.apply import Applier
from claas_operator.clients.job_view import JobView
from claas_operator.clients.reader import Reader
from claas_operator.keys import Key, Kind
from claas_operator.loop.transitions import lease_transitions, log_transitions
from claas_operator.loop.turns import Turns
from claas_operator.metrics.state import Sleepers
from claas_operator.observe.worlds import Observer
from claas_operator.plan import actions
from claas_operator.plan.lease import WATCH_SECONDS, LeasePlan, plan_lease
from claas_operator.plan.serving_lease import ServingLease

NEXT_IN_LINE = 2
"""How many waiting jobs are woken when a lease is free."""


class LeasePasses:
    """Runs them."""

    def __init__(
        self,
        read: Reader,
        jobs: JobView,
        observer: Observer,
        applier: Applier,
        turns: Turns,
        wake: Callable[[Key], None],
    ) -> None:
        self._read = read
        self._jobs = jobs
        self._observer = observer
        self._applier = applier
        self._turns = turns
        self._wake = wake
        self.sleepers = Sleepers()
        self.making: set[str] = set()
        """UIDs of jobs whose attempt is being made at this moment; no list shows it yet."""
        self._asleep: dict[Key, datetime] = {}
        """Since when pods of a Lease were seen asleep, until it is written down."""

    async def run(self, key: Key) -> float | None:
        """One pass; answers in how many seconds to look again."""
        lease = await self._read.lease_named(key.namespace, key.name)
        if lease is None:
            self.sleepers.forget(key)
            self._asleep.pop(key, None)
            await self.wake_elsewhere()
            return None
        world = await self._observer.leases.lease_world(lease)
        if world.asleep:
            world = replace(world, asleep_since=self._asleep.setdefault(key, world.now))
        else:
            self._asleep.pop(key, None)
        self.sleepers.note(key, lease.deployment, world.asleep_without_step, world.now)
        plan = plan_lease(world)
        released = _released(lease, plan)
        if released is not None and lease.holder in self.making:
            return WATCH_SECONDS
        granted = await self._turns.handed_on(released) if released is not None else None
        if granted is not None:
            plan = LeasePlan((actions.WriteLease(granted),), WATCH_SECONDS)
        await self._applier.for_lease(key.namespace, plan.actions)
        log_transitions(key, *lease_transitions(lease, plan.actions))
        await self._wake_others(lease, released, granted)
        return plan.requeue_seconds

    async def wake_next(self, lease: ServingLease) -> None:
        """Wake the jobs that are next in turn for a lease."""
        for job in await self._turns.next(lease, NEXT_IN_LINE):
            self._wake(Key(Kind.JOB, job.namespace, job.name))
        if lease.adapter is not None:
            await self.wake_elsewhere()

    async def wake_elsewhere(self) -> None:
        """Wake the jobs that are next in turn for a place where steps are computed elsewhere."""
        for job in await self._turns.next_elsewhere():
            self._wake(Key(Kind.JOB, job.namespace, job.name))

    async def _wake_others(
        self, before: ServingLease, released: ServingLease | None, granted: ServingLease | None
    ) -> None:
        grant = before.grant
        self._wake_jobs(before)
        if grant is not None and released is not None:
            holders = [(named, self._jobs.get(before.namespace, named.name)) for named in grant.jobs]
            if any(job is None or job.uid != named.uid or job.published is None for named, job in holders):
                # Of one that published, its adapter knows.
                self._wake(Key(Kind.ADAPTER, before.namespace, grant.adapter_name))
        if granted is not None and granted.grant is not None:
            self._wake_jobs(granted)
        elif grant is None or released is not None:
            await self.wake_next(released or before)

    def _wake_jobs(self, lease: ServingLease) -> None:
        for job in lease.grant.jobs if lease.grant is not None else ():
            self._wake(Key(Kind.JOB, lease.namespace, job.name))


def _released(before: ServingLease, plan: LeasePlan) -> ServingLease | None:
    """The lease as the plan releases it, if it does."""
    written = (action.lease for action in plan.actions if isinstance(action, actions.WriteLease))
    return next((after for after in written if after.grant is None and before.grant is not None), None)
