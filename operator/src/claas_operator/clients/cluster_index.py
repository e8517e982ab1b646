"""The index of the cluster: the kinds that are watched, and their collections."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeAlias

from claas_kube.api import Api
from claas_kube.index.collection import Collection
from claas_kube.index.served_deployment import ServedDeployment, decoded_pod
from claas_kube.index.watches import Watches, decoded_adapter
from claas_kube.listing import PAGE_OF_SMALL, Selection
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

AnyLease: TypeAlias = ServingLease | ServedName


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


_TRAINERS = Selection(labels=_selector(naming.TRAINER_LABELS), page_size=PAGE_OF_SMALL)
_LEASES = Selection(labels=f"{_selector(MANAGED_LABELS)},{LEASE_LABEL}", page_size=PAGE_OF_SMALL)


async def _batch_job(found: Manifest, before: BatchJob | None) -> BatchJob:
    return BatchJob.model_validate(found)


async def _lease(found: Manifest, before: AnyLease | None) -> AnyLease:
    lease = Lease.model_validate(found)
    served = lease.metadata.labels.get(LEASE_LABEL) == SERVED_NAME_LABELS[LEASE_LABEL]
    return read_served_name(lease) if served else read_lease(lease)


def _owners_of(metadata: ObjectMeta) -> list[Hashable]:
    return [uid] if (uid := metadata.labels.get(naming.JOB_UID_LABEL)) else []


class ClusterIndex:
    """All watched objects. A value is None if the object does not exist, or this release can't read it."""

    def __init__(self, api: Api, jobs: JobView, namespaces: Sequence[str | None]) -> None:
        """`namespaces`: the namespaces to watch; None stands for all."""
        self.jobs = jobs
        self.adapters: Collection[AdapterObject] = Collection(
            decoded_adapter, lambda adapter: [adapter.deployment_name, served_as(adapter)]
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
        self._watches = Watches(api, self.adapters, lambda namespace, name: self.deployment_changed(namespace, name))
        for namespace in namespaces:
            self._watches.add(ADAPTERS, self.adapters, namespace)
            self._watches.add(DISTILL_JOBS, jobs.collection, namespace)
            self._watches.add(BATCH_JOBS, self.batch_jobs, namespace, _TRAINERS)
            self._watches.add(PODS, self.trainer_pods, namespace, _TRAINERS)
            self._watches.add(LEASES, self.leases, namespace, _LEASES)
        self.complete = False
        """Whether everything has been listed once."""

    def served(self, namespace: str, deployment: str) -> ServedDeployment | None:
        """A Deployment that an adapter names, and its pods."""
        return self._watches.served(namespace, deployment)

    def serving_lease(self, namespace: str, name: str) -> ServingLease | None:
        """The Lease of a Deployment, or of an adapter's steps."""
        lease = self.leases.get(namespace, name)
        return lease if isinstance(lease, ServingLease) else None

    def serving_leases(self, namespace: str | None) -> list[ServingLease]:
        """The Leases of Deployments and of adapters' steps in a namespace; None: all."""
        return [lease for lease in self.leases.within(namespace) if isinstance(lease, ServingLease)]

    def served_names(self, namespace: str, deployment: str) -> list[ServedName]:
        """What is written down of the names that a Deployment serves."""
        return [lease for lease in self.leases.grouped(namespace, deployment) if isinstance(lease, ServedName)]

    def pod(self, namespace: str, name: str) -> Pod | None:
        """The pod with that name, if it is a trainer's or a serving one."""
        found = [self.trainer_pods.get(namespace, name)]
        found += [served.pod(name) for served in self._watches.served_within(namespace)]
        return next((pod for pod in found if pod is not None), None)

    async def ready(self) -> None:
        """Wait until everything has been listed once; raises ApiError if that fails."""
        await self._watches.ready()
        self.complete = True

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._watches.run()

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
        await self._watches.refused(resource, namespace, name)

    async def compare(self) -> None:
        """Compare everything with the cluster once, by metadata."""
        await self._watches.compare()


def _batch_job_of(pod: Pod) -> list[Hashable]:
    name = pod.metadata.labels.get("batch.kubernetes.io/job-name")
    return [batch_job_key(name)] if name else []


def batch_job_key(name: str) -> Hashable:
    """Key under which the pods of a batch Job are grouped."""
    return ("batch Job", name)


def served_as(adapter: AdapterObject) -> Hashable:
    """What adapters with the same Deployment and served name are grouped under."""
    return (adapter.deployment_name, adapter.served_name)
