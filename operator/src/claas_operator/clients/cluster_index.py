"""The index of the cluster: the kinds that are watched, and their collections."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

from claas_kube.api import Api
from claas_kube.errors import ApiError
from claas_kube.index.collection import Collection
from claas_kube.index.served_deployment import ServedDeployment, decoded_pod
from claas_kube.index.watch import Watch
from claas_kube.listing import EVERYTHING, PAGE_OF_SMALL, Selection
from claas_kube.objects.meta import Manifest, ObjectMeta
from claas_kube.objects.pods import Pod
from claas_kube.objects.resources import AdapterObject
from claas_kube.objects.serving_lease import LEASE_LABEL, MANAGED_LABELS
from claas_kube.objects.workloads import BatchJob, Lease
from claas_kube.resources import ADAPTERS, BATCH_JOBS, DISTILL_JOBS, LEASES, PODS, Resource
from claas_operator.clients.job_view import JobView
from claas_operator.plan import naming
from claas_operator.plan.serving_lease import (
    SERVED_NAME_LABELS,
    ServedName,
    ServingLease,
    read_lease,
    read_served_name,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

COMPARE_SECONDS = 600.0
"""Approximate interval in seconds of comparing the index with lists of metadata, in case a watch has missed a
change."""


AnyLease: TypeAlias = ServingLease | ServedName


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


_TRAINERS = Selection(labels=_selector(naming.TRAINER_LABELS), page_size=PAGE_OF_SMALL)
_LEASES = Selection(labels=f"{_selector(MANAGED_LABELS)},{LEASE_LABEL}", page_size=PAGE_OF_SMALL)


async def _adapter(found: Manifest, before: AdapterObject | None) -> AdapterObject:
    return AdapterObject.model_validate(found)


async def _batch_job(found: Manifest, before: BatchJob | None) -> BatchJob:
    return BatchJob.model_validate(found)


async def _lease(found: Manifest, before: AnyLease | None) -> AnyLease:
    lease = Lease.model_validate(found)
    served = lease.metadata.labels.get(LEASE_LABEL) == SERVED_NAME_LABELS[LEASE_LABEL]
    return read_served_name(lease) if served else read_lease(lease)


def _owners_of(metadata: ObjectMeta) -> list[Hashable]:
    return [uid] if (uid := metadata.labels.get(naming.JOB_UID_LABEL)) else []


class _Watching(Protocol):
    """A watch of any kind of object."""

    async def ready(self) -> None: ...
    async def run(self) -> None: ...
    async def compare(self) -> None: ...
    async def read(self, namespace: str, name: str) -> None: ...


class ClusterIndex:
    """All watched objects. A value is None if the object does not exist, or this release can't read it."""

    def __init__(self, api: Api, jobs: JobView, namespaces: Sequence[str | None]) -> None:
        """`namespaces`: the namespaces to watch; None stands for all."""
        self._api = api
        self.jobs = jobs
        self.adapters: Collection[AdapterObject] = Collection(
            _adapter, lambda adapter: [adapter.deployment_name, served_as(adapter)]
        )
        self.batch_jobs: Collection[BatchJob] = Collection(_batch_job, lambda job: _owners_of(job.metadata))
        self.trainer_pods: Collection[Pod] = Collection(
            decoded_pod, lambda pod: [*_owners_of(pod.metadata), *_batch_job_of(pod)]
        )
        self.leases: Collection[AnyLease] = Collection(
            _lease, lambda lease: [lease.deployment] if isinstance(lease, ServedName) else []
        )
        self.deployment_changed: Callable[[str, str], None] = lambda namespace, name: None
        """Called with namespace and name when a serving Deployment or the readiness of its pods has changed."""
        self._watches: dict[tuple[Resource, str | None], _Watching] = {}
        for namespace in namespaces:
            self._watch(ADAPTERS, self.adapters, namespace)
            self._watch(DISTILL_JOBS, jobs.collection, namespace)
            self._watch(BATCH_JOBS, self.batch_jobs, namespace, _TRAINERS)
            self._watch(PODS, self.trainer_pods, namespace, _TRAINERS)
            self._watch(LEASES, self.leases, namespace, _LEASES)
        self._served: dict[tuple[str, str], ServedDeployment] = {}
        self._following: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self.complete = False
        """Whether everything has been listed once."""
        self.adapters.listen(self._adapter_changed)

    def served(self, namespace: str, deployment: str) -> ServedDeployment | None:
        """A Deployment that an adapter names, and its pods."""
        return self._served.get((namespace, deployment))

    def serving_lease(self, namespace: str, name: str) -> ServingLease | None:
        """The Lease of a Deployment."""
        lease = self.leases.get(namespace, name)
        return lease if isinstance(lease, ServingLease) else None

    def serving_leases(self, namespace: str | None) -> list[ServingLease]:
        """The Leases of Deployments in a namespace; None: all."""
        return [lease for lease in self.leases.within(namespace) if isinstance(lease, ServingLease)]

    def served_names(self, namespace: str, deployment: str) -> list[ServedName]:
        """What is written down of the names that a Deployment serves."""
        return [lease for lease in self.leases.grouped(namespace, deployment) if isinstance(lease, ServedName)]

    def pod(self, namespace: str, name: str) -> Pod | None:
        """The pod with that name, if it is a trainer's or a serving one."""
        found = [self.trainer_pods.get(namespace, name)]
        found += [served.pod(name) for (place, _), served in self._served.items() if place == namespace]
        return next((pod for pod in found if pod is not None), None)

    async def ready(self) -> None:
        """Wait until everything has been listed once; raises ApiError if that fails."""
        for watch in self._watches.values():
            await watch.ready()
        self.complete = True

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for (resource, namespace), watch in self._watches.items():
                tasks.create_task(watch.run(), name=f"watch {resource.plural} {namespace or ''}")
            for at in self._served:
                self._follow(at)
            tasks.create_task(self._compare(), name="compare the index")

    async def wrote(self, resource: Resource, found: Manifest) -> None:
        """Take the object in the answer to an own write."""
        labels = ObjectMeta.model_validate(found["metadata"]).labels
        if resource is ADAPTERS:
            await self.adapters.take(found, answer=True)
        elif resource is DISTILL_JOBS:
            await self.jobs.collection.take(found, answer=True)
        elif resource is BATCH_JOBS and naming.TRAINER_LABELS.items() <= labels.items():
            await self.batch_jobs.take(found, answer=True)
        elif resource is LEASES and MANAGED_LABELS.items() <= labels.items() and LEASE_LABEL in labels:
            await self.leases.take(found, answer=True)

    async def refused(self, resource: Resource, namespace: str, name: str) -> None:
        """An own write met a conflict, or an object that is gone, so the known state is too old: read it again."""
        watch = self._watches.get((resource, namespace)) or self._watches.get((resource, None))
        if watch is not None:
            try:
                await watch.read(namespace, name)
            except ApiError as error:
                log.info("%s %s/%s could not be read anew: %s", resource.plural, namespace, name, error)

    def _watch(
        self, resource: Resource, collection: Collection[T], namespace: str | None, selection: Selection = EVERYTHING
    ) -> None:
        self._watches[resource, namespace] = Watch(self._api, resource, collection, namespace, selection)

    def _adapter_changed(
        self, namespace: str, name: str, before: AdapterObject | None, after: AdapterObject | None
    ) -> None:
        """Follow the Deployments that adapters name, and no others."""
        for adapter in (before, after):
            if adapter is None:
                continue
            at = (namespace, adapter.deployment_name)
            if not self.adapters.grouped(*at):
                self._served.pop(at, None)
                if (following := self._following.pop(at, None)) is not None:
                    following.cancel()
            elif at not in self._served:
                self._served[at] = ServedDeployment(self._api, *at, partial(self._deployment_changed, *at))
                self._follow(at)

    def _deployment_changed(self, namespace: str, name: str) -> None:
        self.deployment_changed(namespace, name)

    def _follow(self, at: tuple[str, str]) -> None:
        if self._tasks is not None:
            self._following[at] = self._tasks.create_task(self._served[at].run(), name=f"follow {at[0]}/{at[1]}")

    async def compare(self) -> None:
        """Compare everything with the cluster once, by metadata."""
        watches: list[_Watching | ServedDeployment] = [*self._watches.values(), *self._served.values()]
        for watch in watches:
            try:
                await watch.compare()
            except ApiError as error:
                log.warning("the index could not be compared with the cluster: %s", error)

    async def _compare(self) -> None:
        while True:
            await asyncio.sleep(COMPARE_SECONDS * random.uniform(0.8, 1.2))
            await self.compare()


def _batch_job_of(pod: Pod) -> list[Hashable]:
    name = pod.metadata.labels.get("batch.kubernetes.io/job-name")
    return [batch_job_key(name)] if name else []


def batch_job_key(name: str) -> Hashable:
    """Key under which the pods of a batch Job are grouped."""
    return ("batch Job", name)


def served_as(adapter: AdapterObject) -> Hashable:
    """What adapters with the same Deployment and served name are grouped under."""
    return (adapter.deployment_name, adapter.served_name)
