"""Reads Kubernetes objects as typed values."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import cast

from pydantic import ValidationError

from claas_kube.api import Api
from claas_kube.objects.meta import Manifest, ObjectMeta
from claas_kube.objects.pods import Pod
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_kube.objects.serving_lease import SERVING_LEASE_LABELS
from claas_kube.objects.workloads import BatchJob, Claim, Deployment, Event, Lease
from claas_kube.resources import (
    ADAPTERS,
    BATCH_JOBS,
    CLAIMS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISTILL_JOBS,
    EVENTS,
    LEASES,
    PODS,
    SECRETS,
    SERVICES,
    Resource,
)
from claas_operator.clients.cluster_index import ClusterIndex, batch_job_key, served_as
from claas_operator.clients.credentials import CredentialReader
from claas_operator.clients.recent import RECENT_SECONDS, Recent
from claas_operator.plan import naming
from claas_operator.plan.serving_lease import (
    ADAPTER_LEASE_LABELS,
    ServedName,
    ServingLease,
    lease_name,
    read_lease,
    read_served_name,
    served_lease_name,
    served_names_of,
)


@dataclass(frozen=True)
class Document:
    """One key of a ConfigMap or Secret."""

    uid: str
    version: str
    data: bytes | None = field(repr=False)
    """None: the object has no such key."""


class Reader:
    """Reads single objects and lists; a missing object is None.

    What is watched is read from the index, and asked of the server only where the index does not know it.
    """

    def __init__(self, api: Api, index: ClusterIndex | None = None) -> None:
        """Without an index everything is asked of the server."""
        self._api = api
        self._all = index
        self.credentials = CredentialReader(api)
        self._claims: Recent[bool] = Recent(RECENT_SECONDS)

    @property
    def _index(self) -> ClusterIndex | None:
        """The index, once everything has been listed."""
        return self._all if self._all is not None and self._all.complete else None

    async def adapter_object(self, namespace: str, name: str) -> AdapterObject | None:
        """The LoraAdapter of that name."""
        if self._index is not None:
            known = self._index.adapters.entry(namespace, name)
            if known is None or known.value is not None:
                return known.value if known is not None else None
        found = await self._api.get(ADAPTERS, namespace, name)
        return AdapterObject.model_validate(found) if found else None

    async def job_object(self, namespace: str, name: str) -> JobObject | None:
        """The DistillJob of that name."""
        found = await self._api.get(DISTILL_JOBS, namespace, name)
        return JobObject.model_validate(found) if found else None

    async def known_job(self, namespace: str, name: str) -> JobObject | None:
        """The DistillJob of that name without its inline samples; raises ValidationError where it can't be read."""
        if self._index is not None:
            known = self._index.jobs.collection.entry(namespace, name)
            if known is None or known.value is not None:
                return known.value.whole() if known is not None and known.value is not None else None
        found = await self._api.get(DISTILL_JOBS, namespace, name)
        if found is None:
            return None
        if self._all is not None:
            await self._all.jobs.take(found)
            taken = self._all.jobs.get(namespace, name)
            if taken is not None:
                return taken.whole()
        return JobObject.model_validate(found)

    async def readable_job(self, namespace: str, name: str) -> JobObject | None:
        """The DistillJob with that name; None if this release can't read it."""
        try:
            return await self.job_object(namespace, name)
        except ValidationError:
            return None

    async def readable_adapter(self, namespace: str, name: str) -> AdapterObject | None:
        """The LoraAdapter of that name, unless this release can't read it."""
        if self._index is not None:
            return self._index.adapters.get(namespace, name)
        found = await self._api.get(ADAPTERS, namespace, name)
        return _readable_adapter(found) if found else None

    async def adapters_of(self, namespace: str, deployment: str) -> list[AdapterObject]:
        """The LoraAdapters of a Deployment that this release can read: another one is in nobody else's way."""
        if self._index is not None:
            return self._index.adapters.grouped(namespace, deployment)
        found = [_readable_adapter(each) for each in await self._api.list(ADAPTERS, namespace)]
        return [each for each in found if each is not None and each.deployment_name == deployment]

    async def adapters_everywhere(self) -> list[AdapterObject]:
        """The LoraAdapters of all namespaces that this release can read."""
        if self._index is not None:
            return list(self._index.adapters.within(None))
        found = [_readable_adapter(each) for each in await self._api.list(ADAPTERS, None)]
        return [each for each in found if each is not None]

    async def unreadable_adapters(self, namespace: str) -> frozenset[str]:
        """Names of the LoraAdapters of a namespace that this release can't read."""
        if self._index is not None:
            entries = self._index.adapters.entries(namespace)
            return frozenset(name for (_, name), entry in entries.items() if entry.value is None)
        found = await self._api.list(ADAPTERS, namespace)
        return frozenset(
            ObjectMeta.model_validate(each["metadata"]).name for each in found if _readable_adapter(each) is None
        )

    async def namesakes(self, adapter: AdapterObject) -> list[AdapterObject]:
        """The LoraAdapters with the Deployment and the served name of this one, itself too."""
        namespace, deployment = adapter.metadata.namespace, adapter.deployment_name
        if self._index is not None:
            return self._index.adapters.grouped(namespace, served_as(adapter))
        others = await self.adapters_of(namespace, deployment)
        return [other for other in others if other.served_name == adapter.served_name]

    async def lease(self, namespace: str, deployment: str) -> ServingLease | None:
        """The serving lease of a Deployment."""
        return await self.lease_named(namespace, lease_name(deployment))

    async def lease_named(self, namespace: str, name: str) -> ServingLease | None:
        """The serving lease by its own name."""
        if self._index is not None:
            known = self._index.leases.entry(namespace, name)
            if known is None:
                return None
            if isinstance(known.value, ServingLease):
                return known.value
        found = await self._api.get(LEASES, namespace, name)
        return read_lease(Lease.model_validate(found)) if found else None

    async def leases(self, namespace: str | None) -> list[ServingLease]:
        """All leases of Deployments and of adapters' steps."""
        if self._index is not None:
            return self._index.serving_leases(namespace)
        found = [
            lease
            for labels in (SERVING_LEASE_LABELS, ADAPTER_LEASE_LABELS)
            for lease in await self._api.list(LEASES, namespace, labels)
        ]
        return [read_lease(Lease.model_validate(lease)) for lease in found]

    async def served_name(self, namespace: str, deployment: str, served_name: str) -> ServedName | None:
        """What is written down of a name that a Deployment serves."""
        if self._index is not None:
            known = self._index.leases.entry(namespace, served_lease_name(deployment, served_name))
            if known is None:
                return None
            if isinstance(known.value, ServedName):
                return known.value
        found = await self._api.get(LEASES, namespace, served_lease_name(deployment, served_name))
        return read_served_name(Lease.model_validate(found)) if found else None

    async def served_names(self, namespace: str, deployment: str) -> list[ServedName]:
        """All names that a Deployment serves for us."""
        if self._index is not None:
            return self._index.served_names(namespace, deployment)
        found = await self._api.list(LEASES, namespace, served_names_of(deployment))
        return [read_served_name(Lease.model_validate(lease)) for lease in found]

    async def claim_found(self, namespace: str, name: str) -> bool:
        """Whether there is a PersistentVolumeClaim of that name."""

        async def ask() -> bool:
            return await self._api.get(CLAIMS, namespace, name) is not None

        return await self._claims.get((namespace, name), ask, keep=bool)

    async def claim_on_many_nodes(self, namespace: str, name: str) -> bool:
        """Whether pods on several nodes may mount the PersistentVolumeClaim at once."""
        found = await self._api.get(CLAIMS, namespace, name)
        modes = Claim.model_validate(found).spec.access_modes if found else []
        return bool({"ReadWriteMany", "ReadOnlyMany"} & set(modes))

    async def service(self, namespace: str, name: str) -> ObjectMeta | None:
        """Metadata of the Service of that name."""
        found = await self._api.get(SERVICES, namespace, name)
        return ObjectMeta.model_validate(found["metadata"]) if found else None

    async def secret(self, namespace: str, name: str) -> ObjectMeta | None:
        """Metadata of the Secret of that name."""
        found = await self._api.get(SECRETS, namespace, name)
        return ObjectMeta.model_validate(found["metadata"]) if found else None

    async def config_map(self, namespace: str, name: str) -> Manifest | None:
        """A ConfigMap as it is."""
        return await self._api.get(CONFIG_MAPS, namespace, name)

    async def document(self, resource: Resource, namespace: str, name: str, key: str) -> Document | None:
        """One key of a ConfigMap or Secret; None when there is no such object."""
        found = await self._api.get(resource, namespace, name)
        if found is None:
            return None
        metadata = ObjectMeta.model_validate(found["metadata"])
        texts = cast(dict[str, str], found.get("data") or {})
        binary = cast(dict[str, str], found.get("binaryData") or {})
        data = None
        if key in texts:
            text = texts[key]
            data = base64.b64decode(text) if resource is SECRETS else text.encode("utf-8", "surrogatepass")
        elif key in binary:
            data = base64.b64decode(binary[key])
        return Document(metadata.uid, metadata.resource_version, data)

    async def deployment(self, namespace: str, name: str) -> Deployment | None:
        """The Deployment of that name."""
        served = self._index.served(namespace, name) if self._index is not None else None
        if served is not None and served.listed:
            return served.deployment
        found = await self._api.get(DEPLOYMENTS, namespace, name)
        return Deployment.model_validate(found) if found else None

    async def deployment_of(self, adapter: AdapterObject) -> Deployment | None:
        """The Deployment whose pods serve the adapter; None, without a request, for servers outside the cluster."""
        if adapter.outside_cluster:
            return None
        return await self.deployment(adapter.metadata.namespace, adapter.deployment_name)

    async def deployment_pods(self, namespace: str, deployment: Deployment | None) -> list[Pod]:
        """The Deployment's pods that are not terminating."""
        found = await self.pods_of(namespace, deployment)
        alive = [pod for pod in found if not pod.ended and pod.metadata.deletion_timestamp is None]
        return sorted(alive, key=lambda pod: pod.metadata.name)

    async def pods_of(self, namespace: str, deployment: Deployment | None) -> list[Pod]:
        """All pods that the Deployment's selector matches."""
        if deployment is None:
            return []
        served = self._index.served(namespace, deployment.metadata.name) if self._index is not None else None
        pods = served.pods(deployment.spec.selector.text) if served is not None else None
        if pods is not None:
            return pods
        found = await self._api.list(PODS, namespace, deployment.spec.selector.text)
        return [Pod.model_validate(pod) for pod in found]

    async def pod(self, namespace: str, name: str) -> Pod | None:
        """The pod of that name."""
        if self._index is not None:
            known = self._index.pod(namespace, name)
            if known is not None:
                return known
        found = await self._api.get(PODS, namespace, name)
        return Pod.model_validate(found) if found else None

    async def batch_job(self, namespace: str, name: str) -> BatchJob | None:
        """The batch Job of that name."""
        if self._index is not None:
            return self._index.batch_jobs.get(namespace, name)
        found = await self._api.get(BATCH_JOBS, namespace, name)
        return BatchJob.model_validate(found) if found else None

    async def batch_job_pods(self, namespace: str, name: str) -> list[Pod]:
        """The pods of a batch Job."""
        if self._index is not None:
            return self._index.trainer_pods.grouped(namespace, batch_job_key(name))
        labels = {"batch.kubernetes.io/job-name": name}
        return [Pod.model_validate(pod) for pod in await self._api.list(PODS, namespace, labels)]

    async def events(self, namespace: str, uid: str) -> list[Event]:
        """The Events about the object of that UID."""
        found = await self._api.list(EVENTS, namespace, fields=f"involvedObject.uid={uid}")
        return [Event.model_validate(event) for event in found]

    async def trainer_pods(self, namespace: str, job_uid: str) -> list[Pod]:
        """The trainer pods of a DistillJob, of all its attempts."""
        if self._index is not None:
            return self._index.trainer_pods.grouped(namespace, job_uid)
        return await self.trainer_pods_now(namespace, job_uid)

    async def trainer_pods_now(self, namespace: str, job_uid: str) -> list[Pod]:
        """The same by the server's word."""
        found = await self._api.list(PODS, namespace, {naming.JOB_UID_LABEL: job_uid})
        return [Pod.model_validate(pod) for pod in found]

    async def input_uid(self, namespace: str, name: str) -> str | None:
        """UID of the Secret with an attempt's input; None if the operator has made no such Secret."""
        metadata = await self.secret(namespace, name)
        if metadata is None or not naming.TRAINER_LABELS.items() <= metadata.labels.items():
            return None
        return metadata.uid

    async def attempts_open(self, namespace: str, job_uid: str) -> bool:
        """Whether a batch Job of a DistillJob has not ended, so that Kubernetes may still create a pod for it."""
        if self._index is not None:
            return any(not job.ended_because for job in self._index.batch_jobs.grouped(namespace, job_uid))
        return await self.attempts_open_now(namespace, job_uid)

    async def attempts_open_now(self, namespace: str, job_uid: str) -> bool:
        """The same by the server's word."""
        found = await self._api.list(BATCH_JOBS, namespace, {naming.JOB_UID_LABEL: job_uid})
        return any(not BatchJob.model_validate(job).ended_because for job in found)


def _readable_adapter(found: Manifest) -> AdapterObject | None:
    try:
        return AdapterObject.model_validate(found)
    except ValidationError:
        return None
