"""Whose turn is next for a lease, and the lease from hand to hand."""

from __future__ import annotations

import logging

from claas_operator.clients.cluster_index import ClusterIndex
from claas_operator.clients.job_view import KnownJob
from claas_operator.observe.worlds import Observer
from claas_operator.plan.actions import WriteLease
from claas_operator.plan.job.job import plan_job
from claas_operator.plan.queueing import in_turn
from claas_operator.plan.serving_lease import ServingLease

log = logging.getLogger(__name__)


class Turns:
    """The queues of all leases, as the index has them."""

    def __init__(self, index: ClusterIndex, observer: Observer) -> None:
        self._index = index
        self._observer = observer

    async def next(self, lease: ServingLease, count: int) -> list[KnownJob]:
        """The first jobs that wait for a lease, in the order of their turns."""
        sharing = [adapter.metadata.name for adapter in await self._observer.leases.sharing(lease)]
        waiting = self._index.jobs.of_adapters(lease.namespace, sharing)
        return in_turn((job for job in waiting if job.queued and not lease.held_by(job.uid)), lease.last_turn)[:count]

    async def next_elsewhere(self) -> list[KnownJob]:
        """The jobs whose turn is next at the places for steps that are computed elsewhere, once all are known."""
        return await self._observer.places.next_jobs() if self._index.complete else []

    async def handed_on(self, released: ServingLease) -> ServingLease | None:
        """The lease with a grant for the job whose turn is next: one write instead of a release and a grant.

        None where that job would do anything else than take the lease; its own pass tells what. None too where
        something waits for a free lease: while jobs come without end there would be none.
        """
        if not self._index.complete or await self._observer.leases.work_while_free(released):
            return None
        first = await self.next(released, 1)
        if not first:
            return None
        (known,) = first
        try:
            job = known.whole()
            plan = plan_job(await self._observer.job_world(job, released))
        except Exception as error:  # noqa: BLE001  (whatever it is, the lease is released)
            log.debug("%s/%s is not given the lease at once: %r", known.namespace, known.name, error)
            return None
        match plan.actions:
            case (WriteLease(granted),) if plan.status == job.status and granted.holder == known.uid:
                return granted
        return None
