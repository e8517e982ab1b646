"""Places for steps that are computed elsewhere, and the adapters that wait for one."""

from __future__ import annotations

from datetime import datetime

from claas_kube.objects.resources import AdapterObject
from claas_operator.clients.job_view import JobView, KnownJob
from claas_operator.clients.reader import Reader
from claas_operator.clients.steps_elsewhere import StepsElsewhere
from claas_operator.plan.engine.leases import StepLeases
from claas_operator.plan.engine.places import Places, WaitingAdapter, places_for
from claas_operator.plan.queueing import queue_key
from claas_operator.plan.serving_lease import ServingLease


class PlacesObserver:
    """Looks at them."""

    def __init__(self, read: Reader, jobs: JobView, leases: StepLeases, steps: StepsElsewhere) -> None:
        self._read = read
        self._jobs = jobs
        self._leases = leases
        self._steps = steps

    async def of(self, adapter: AdapterObject, created: datetime | None, lease: ServingLease | None) -> Places | None:
        """The places as they are for a job of this adapter; None if its steps need its Deployment.

        `created`: when the job was; `lease`: the adapter's, as it is or as it will be.
        """
        if not self._leases.own(adapter):
            return None
        namespace, name = adapter.metadata.namespace, adapter.metadata.name
        taken = await self._steps.under_way() - {(namespace, self._leases.name(adapter))}
        holds = lease is not None and lease.grant is not None
        if holds or len(taken) >= self._steps.most:
            # Nobody else's turn matters: with a thousand adapters, looking at them takes 15 ms.
            return Places(self._steps.most, len(taken), 0)
        mine = WaitingAdapter(namespace, name, lease.last_granted if lease is not None else None, created)
        others = [each for each, _ in await self._waiting(taken) if (each.namespace, each.name) != (namespace, name)]
        return places_for(mine, others, len(taken), self._steps.most)

    async def next_jobs(self) -> list[KnownJob]:
        """The first jobs of the adapters whose turn is next: as many as there are places, and one more."""
        taken = await self._steps.under_way()
        free = max(0, self._steps.most - len(taken))
        waiting = sorted(await self._waiting(taken), key=lambda each: each[0].order)
        return [job for _, job in waiting[: free + 1]]

    async def _waiting(self, held: frozenset[tuple[str, str]]) -> list[tuple[WaitingAdapter, KnownJob]]:
        """The adapters with a job that waits for their own lease, which is free, and that job."""
        found = []
        for adapter in await self._read.adapters_everywhere():
            namespace, name = adapter.metadata.namespace, adapter.metadata.name
            if not self._leases.own(adapter) or (namespace, self._leases.name(adapter)) in held:
                continue
            queued = [job for job in self._jobs.of_adapters(namespace, [name]) if job.queued]
            if queued:
                first = min(queued, key=lambda job: queue_key(job.created, job.name))
                lease = await self._read.lease_named(namespace, self._leases.name(adapter))
                last = lease.last_granted if lease is not None else None
                found.append((WaitingAdapter(namespace, name, last, first.created), first))
        return found
