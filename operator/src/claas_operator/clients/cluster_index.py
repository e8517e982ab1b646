"""What is watched of the cluster, and where each kind is kept."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

from claas_kube.api import ADAPTERS, BATCH_JOBS, DEPLOYMENTS, DISTILL_JOBS, LEASES, PODS, Api, Resource
from claas_kube.errors import ApiError
from claas_kube.index.collection import Collection
from claas_kube.index.watch import Watch
from claas_kube.listing import EVERYTHING, Selection
from claas_kube.objects.meta import Manifest, ObjectMeta
from claas_kube.objects.pods import Pod
from claas_kube.objects.resources import AdapterObject
from claas_kube.objects.workloads import BatchJob, Deployment, Lease
from claas_operator.clients.job_view import JobView
from claas_operator.plan import naming
from claas_operator.plan.serving_lease import (
    LEASE_LABEL,
    MANAGED_LABELS,
    SERVED_NAME_LABELS,
    ServedName,
    ServingLease,
    read_lease,
    read_served_name,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

COMPARE_SECONDS = 600.0
"""About how often what is watched is compared with lists of metadata, in case that a watch has missed something."""
_SMALL = 200
"""Objects to a page, of kinds that are small."""


AnyLease: TypeAlias = ServingLease | ServedName


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


_TRAINERS = Selection(labels=_selector(naming.TRAINER_LABELS), page_size=_SMALL)
_LEASES = Selection(labels=f"{_selector(MANAGED_LABELS)},{LEASE_LABEL}", page_size=_SMALL)


async def _adapter(found: Manifest, before: AdapterObject | None) -> AdapterObject:
    return AdapterObject.model_validate(found)


async def _batch_job(found: Manifest, before: BatchJob | None) -> BatchJob:
    return BatchJob.model_validate(found)


async def _pod(found: Manifest, before: Pod | None) -> Pod:
    return Pod.model_validate(found)


async def _deployment(found: Manifest, before: Deployment | None) -> Deployment:
    return Deployment.model_validate(found)


async def _lease(found: Manifest, before: AnyLease | None) -> AnyLease:
    lease = Lease.model_validate(found)
    served = lease.metadata.labels.get(LEASE_LABEL) == SERVED_NAME_LABELS[LEASE_LABEL]
    return read_served_name(lease) if served else read_lease(lease)


def _owners_of(metadata: ObjectMeta) -> list[Hashable]:
    return [uid] if (uid := metadata.labels.get(naming.JOB_UID_LABEL)) else []


class ServedDeployment:
    """A Deployment that serves adapters, and its pods."""

    def __init__(self, api: Api, namespace: str, name: str, changed: Callable[[], None]) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._changed = changed
        self._deployments: Collection[Deployment] = Collection(_deployment)
        selection = Selection(fields=f"metadata.name={name}")
        self._watch = Watch(api, DEPLOYMENTS, self._deployments, namespace, selection)
        self._selector = ""
        self._pods: Collection[Pod] = Collection(_pod)
        self._pod_watch: Watch[Pod] | None = None
        self._selected = asyncio.Event()
        self._deployments.listen(self._follow_selector)

    @property
    def listed(self) -> bool:
        """Whether it is known if there is such a Deployment."""
        return self._watch.listed

    @property
    def deployment(self) -> Deployment | None:
        """The Deployment, if there is one."""
        return self._deployments.get(self._namespace, self._name)

    def pods(self, selector: str) -> list[Pod] | None:
        """The pods of a selector; None where these are not known."""
        if self._pod_watch is None or not self._pod_watch.listed or selector != self._selector:
            return None
        return list(self._pods.within(self._namespace))

    def pod(self, name: str) -> Pod | None:
        """The pod of that name, where it is known."""
        return self._pods.get(self._namespace, name)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch.run(), name=f"watch Deployment {self._namespace}/{self._name}")
            following: asyncio.Task[None] | None = None
            while True:
                await self._selected.wait()
                self._selected.clear()
                if following is not None:
                    following.cancel()
                following = tasks.create_task(self._pod_watch.run()) if self._pod_watch is not None else None

    def _follow_selector(
        self, namespace: str, name: str, before: Deployment | None, after: Deployment | None
    ) -> None:
        selector = after.spec.selector.text if after is not None else ""
        if selector != self._selector:
            self._selector = selector
            self._pods = Collection(_pod)
            self._pods.listen(self._pod_changed)
            selection = Selection(labels=selector, page_size=_SMALL)
            self._pod_watch = Watch(self._api, PODS, self._pods, namespace, selection) if selector else None
            self._selected.set()
        self._changed()

    def _pod_changed(self, namespace: str, name: str, before: Pod | None, after: Pod | None) -> None:
        if before is None or after is None or _matters(before) != _matters(after):
            self._changed()


def _matters(pod: Pod) -> tuple[object, ...]:
    """What of a vLLM pod decides whether it can serve."""
    return pod.metadata.uid, pod.ready, pod.ended, pod.status.pod_ip, pod.metadata.deletion_timestamp is None


class _Watching(Protocol):
    """A watch of any kind of object."""

    async def ready(self) -> None: ...
    async def run(self) -> None: ...
    async def compare(self) -> None: ...
    async def read(self, namespace: str, name: str) -> None: ...


class ClusterIndex:
    """All that is watched. Values are None where there is no such object, or this release can't read it."""

    def __init__(self, api: Api, jobs: JobView, namespaces: Sequence[str | None]) -> None:
        """`namespaces`: those that are looked after; None stands for all."""
        self._api = api
        self.jobs = jobs
        self.adapters: Collection[AdapterObject] = Collection(
            _adapter, lambda adapter: [adapter.spec.serving.deployment_ref.name, served_as(adapter)]
        )
        self.batch_jobs: Collection[BatchJob] = Collection(_batch_job, lambda job: _owners_of(job.metadata))
        self.trainer_pods: Collection[Pod] = Collection(
            _pod, lambda pod: [*_owners_of(pod.metadata), *_batch_job_of(pod)]
        )
        self.leases: Collection[AnyLease] = Collection(
            _lease, lambda lease: [lease.deployment] if isinstance(lease, ServedName) else []
        )
        self.deployment_changed: Callable[[str, str], None] = lambda namespace, name: None
        """Told of namespace and name when a served Deployment or the readiness of its pods has changed."""
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
        """The pod of that name, where it is a trainer's or one that serves."""
        found = [self.trainer_pods.get(namespace, name)]
        found += [served.pod(name) for (place, _), served in self._served.items() if place == namespace]
        return next((pod for pod in found if pod is not None), None)

    async def ready(self) -> None:
        """Wait until everything has been listed once; raises ApiError when a try at that fails."""
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
        """A write of our own was answered with this object."""
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
        """A write of our own met an object that has changed: what is known of it is too old."""
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
            at = (namespace, adapter.spec.serving.deployment_ref.name)
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

    async def _compare(self) -> None:
        while True:
            await asyncio.sleep(COMPARE_SECONDS * random.uniform(0.8, 1.2))
            for watch in self._watches.values():
                try:
                    await watch.compare()
                except ApiError as error:
                    log.warning("the index could not be compared with the cluster: %s", error)


def _batch_job_of(pod: Pod) -> list[Hashable]:
    name = pod.metadata.labels.get("batch.kubernetes.io/job-name")
    return [batch_job_key(name)] if name else []


def batch_job_key(name: str) -> Hashable:
    """What the pods of a batch Job are grouped under."""
    return ("batch Job", name)


def served_as(adapter: AdapterObject) -> Hashable:
    """What adapters with the same Deployment and served name are grouped under."""
    return (adapter.spec.serving.deployment_ref.name, adapter.served_name)
