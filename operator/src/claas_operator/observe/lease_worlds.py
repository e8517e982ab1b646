"""Observes a serving Lease, and what depends on it, into one frozen value."""

from __future__ import annotations

from datetime import UTC, datetime

from claas_kube.objects.resources import MODAL_SUFFIX, AdapterObject, JobObject
from claas_operator.clients.job_view import JobView
from claas_operator.clients.modal.apps import ModalApps
from claas_operator.clients.reader import Reader
from claas_operator.observe.attempts import alive_trainers
from claas_operator.observe.holder import HolderState, holder_state
from claas_operator.observe.serving_pods import left_behind, orphans, recorded_pods
from claas_operator.plan.engine.leases import StepLeases
from claas_operator.plan.serving_lease import ServingLease
from claas_operator.plan.world import LeaseWorld, ObjectReference


class LeaseObserver:
    """Observes the worlds of serving Leases."""

    def __init__(self, read: Reader, jobs: JobView, leases: StepLeases, modal: ModalApps) -> None:
        self._read = read
        self._jobs = jobs
        self._leases = leases
        self._modal = modal

    async def lease_world(self, lease: ServingLease) -> LeaseWorld:
        """The world of a serving lease that is held."""
        grant = lease.grant
        named = grant.jobs if grant else []
        jobs = [await self._readable_job(lease.namespace, job.name) for job in named]
        adapter = await self._read.readable_adapter(lease.namespace, grant.adapter_name) if grant else None
        now = datetime.now(UTC)
        holder = holder_state(grant, jobs, adapter, now) if grant else HolderState(False)
        # The servers first: a trainer created later can't have put a server to sleep that sleeps now.
        recorded = await recorded_pods(self._read, lease)
        alive, attempts_open = (
            await self._trainers(
                lease.namespace,
                grant.first.uid,
                waking=any(pod.asleep for pod in recorded),
                releasing=not holder.needs_lease,
            )
            if grant
            else ((), False)
        )
        lost_names, more = (
            await orphans(self._read, lease, now, self._modal.removal) if grant is None else ((), False)
        )
        moved = await self._read.served_names(lease.namespace, lease.deployment) if lease.served else []
        return LeaseWorld(
            now=now,
            lease=lease,
            job_active=holder.needs_lease,
            unaccounted=holder.unaccounted,
            alive_pods=alive,
            attempts_open=attempts_open,
            pods=recorded,
            subject_found=await self._subject_found(lease),
            orphans=lost_names,
            more_orphans=more,
            moved=frozenset(served.served_name for served in moved),
            lost=await self._lost(lease) if grant is None else (),
        )

    async def work_while_free(self, lease: ServingLease) -> bool:
        """Whether there is something that a pass does only while no job holds the lease."""
        return bool(lease.served or await left_behind(self._read, lease) or await self._lost(lease))

    async def sharing(self, lease: ServingLease) -> list[AdapterObject]:
        """The adapters whose steps need the lease."""
        return [each for each in await self._adapters_of(lease) if self._leases.name(each) == lease.name]

    async def _subject_found(self, lease: ServingLease) -> bool:
        """Whether the Deployment exists, or the adapter needs the lease, as far as this release can read it."""
        if lease.adapter is None and lease.deployment.endswith(MODAL_SUFFIX):
            return bool(await self._adapters_of(lease))
        if lease.adapter is None:
            return await self._read.deployment(lease.namespace, lease.deployment) is not None
        unreadable = await self._read.unreadable_adapters(lease.namespace)
        return lease.adapter in unreadable or bool(await self.sharing(lease))

    async def _trainers(
        self, namespace: str, job_uid: str, *, waking: bool, releasing: bool
    ) -> tuple[tuple[ObjectReference, ...], bool]:
        """The pods whose trainer may run, and whether there may be more of them.

        Serving is woken, and the lease released, on the server's word alone: a watch may be behind.
        """
        alive = alive_trainers(await self._read.trainer_pods(namespace, job_uid))
        attempts_open = await self._read.attempts_open(namespace, job_uid)
        releasing = releasing and not attempts_open
        if not alive and (waking or releasing):
            alive = alive_trainers(await self._read.trainer_pods_now(namespace, job_uid))
        if not alive and releasing:
            attempts_open = await self._read.attempts_open_now(namespace, job_uid)
        return alive, attempts_open

    async def _readable_job(self, namespace: str, name: str) -> JobObject | None:
        """The DistillJob of that name, unless this release can't read it: then nothing is known to go on."""
        known = self._jobs.get(namespace, name)
        return known.whole() if known is not None else await self._read.readable_job(namespace, name)

    async def _lost(self, lease: ServingLease) -> tuple[str, ...]:
        """Unaccounted jobs whose adapter is gone or served by another Deployment, as far as this release can read."""
        if not lease.unaccounted:
            return ()
        here = {
            adapter.metadata.uid
            for adapter in await self._adapters_of(lease)
            if adapter.metadata.deletion_timestamp is None
        }
        unreadable = await self._read.unreadable_adapters(lease.namespace)
        return tuple(
            uid
            for uid, job in lease.unaccounted.items()
            if job.adapter_uid not in here and job.adapter_name not in unreadable
        )

    async def _adapters_of(self, lease: ServingLease) -> list[AdapterObject]:
        """The adapters of its Deployment, or the one that it is for."""
        if lease.adapter is None:
            return await self._read.adapters_of(lease.namespace, lease.deployment)
        found = await self._read.readable_adapter(lease.namespace, lease.adapter)
        return [] if found is None else [found]
