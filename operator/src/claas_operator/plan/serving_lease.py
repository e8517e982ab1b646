"""The serving Lease: one step at a time per vLLM Deployment, or per adapter where steps need nothing of serving.

A Lease names the DistillJob (by UID) that may take a step, and keeps in annotations all that is needed to wake the
pods which that step may pause, even if job, adapter and operator have gone meanwhile. What takes an adapter out of
service lies in a Lease for each served name: annotations end at 256 KiB, near 900 adapters.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime

from pydantic import Field, JsonValue, TypeAdapter

from claas_contract.input import VllmPod
from claas_contract.jobs import JobIdentity, names_any
from claas_crds import GROUP
from claas_crds.v1alpha1.tls import Scheme, ServingTls
from claas_crds.v1alpha1.trainer_pod import SecretKeyRef
from claas_kube.objects.meta import Manifest
from claas_kube.objects.serving_lease import (
    DEPLOYMENT_ANNOTATION,
    GRANT_ANNOTATION,
    LEASE_LABEL,
    MANAGED_LABELS,
    SERVING_LEASE_LABELS,
    GrantModel,
    PauseGrant,
    grant_text,
)
from claas_kube.objects.workloads import Lease
from claas_operator.plan.modal.pointer import ModalPlace

ADAPTER_ANNOTATION = f"{GROUP}/adapter"
"""Name of the adapter whose steps have a Lease of their own."""
LAST_GRANTED_ANNOTATION = f"{GROUP}/last-granted"
ADAPTER_LEASE_LABELS = {LEASE_LABEL: "adapter", **MANAGED_LABELS}
SERVED_ANNOTATION = f"{GROUP}/served"
LAST_TURN_ANNOTATION = f"{GROUP}/last-turn"
UNACCOUNTED_ANNOTATION = f"{GROUP}/unaccounted"
SERVED_NAME_ANNOTATION = f"{GROUP}/served-name"
SERVED_NAME_LABELS = {LEASE_LABEL: "served-name", **MANAGED_LABELS}
DEPLOYMENT_LABEL = f"{GROUP}/deployment-hash"
"""On the Lease of a served name: a label's value is too short for a Deployment's name."""
MOST_UNACCOUNTED = 300
"""How many jobs a Lease can have unaccounted for, so that they fit into an annotation. Each adapter has one at most;
beyond that the Lease waits for its adapters to look."""


class Grant(PauseGrant[VllmPod]):
    """What the jobs of a step were granted."""

    jobs: list[JobIdentity] = Field(min_length=1)
    """The jobs that the step is taken for, each with the attempt that the grant is for: another attempt needs another
    grant. The attempt's objects are called by the first."""
    adapter_name: str
    adapter_uid: str
    control_token: SecretKeyRef | None = None
    api_key: SecretKeyRef | None = None
    tls: ServingTls | None = None
    max_pause_seconds: int
    granted_at: datetime
    stopped_because: str | None = None
    """Why the operator ended the attempt (a reason), if it did."""

    @property
    def first(self) -> JobIdentity:
        """The job by which the attempt's batch Job, input and pod are called."""
        return self.jobs[0]

    @property
    def names(self) -> str:
        """The jobs' names, for people."""
        return ", ".join(job.name for job in self.jobs)

    def attempt_of(self, uid: str) -> int | None:
        """The attempt that it allows the job of this UID; None where it was not given to that job."""
        return next((job.attempt for job in self.jobs if job.uid == uid), None)


class ServedRecord(GrantModel):
    """An adapter that the operator has put into service in the Deployment's pods, and all that is needed to take it
    out again."""

    adapter_name: str
    adapter_uid: str
    port: int
    scheme: Scheme = Scheme.HTTP
    control_token: SecretKeyRef | None = None
    api_key: SecretKeyRef | None = None
    tls: ServingTls | None = None
    modal: ModalPlace | None = None
    """Where its pointer is, if a vLLM on Modal serves it."""


class ServedName(GrantModel):
    """A name that the Deployment's pods serve for us, as it lies in the cluster. It is written before the pods are
    told and outlives the adapter, so that no finalizer is needed."""

    namespace: str
    deployment: str
    served_name: str
    record: ServedRecord
    resource_version: str | None = None
    """None: it does not exist yet."""
    uid: str = ""
    """Empty while it does not exist."""

    @property
    def name(self) -> str:
        """Of its Lease."""
        return served_lease_name(self.deployment, self.served_name)


class Unaccounted(GrantModel):
    """A job that held the lease and was deleted before it was known whether it had published."""

    job_name: str
    attempt: int
    adapter_name: str
    adapter_uid: str


class ServingLease(GrantModel):
    """A Lease in the cluster; `grant` is None while no job holds it."""

    name: str
    namespace: str
    resource_version: str | None
    """None: it does not exist yet."""
    uid: str = ""
    """Empty while it does not exist."""
    deployment: str
    """Empty for the Lease of one adapter's steps."""
    adapter: str | None = None
    """Name of the adapter whose steps alone it is for; None: all adapters of the Deployment whose steps need it."""
    grant: Grant | None = None
    last_turn: str | None = None
    """Name of the adapter of the last grant; if other adapters wait, the next turn is another's."""
    last_granted: datetime | None = None
    """When the last step of its adapter was begun, which determines the adapter's next turn among others."""
    served: dict[str, ServedRecord] = {}
    """Records of served names that release 0.1 wrote here; they are moved into Leases of their own."""
    unaccounted: dict[str, Unaccounted] = {}
    """Deleted jobs whose version, if any, the adapter has not adopted yet; by their UID."""

    @property
    def holder(self) -> str | None:
        """UID of the DistillJob that holds it; of the first one where a step carries several."""
        return self.grant.first.uid if self.grant else None

    def held_by(self, uid: str) -> bool:
        """Whether the job of this UID may take its step."""
        return self.grant is not None and names_any(self.grant.jobs, {uid})

    def unaccounted_of(self, adapter_uid: str) -> tuple[str, Unaccounted] | None:
        """The first such job of an adapter, with its UID."""
        return next((each for each in self.unaccounted.items() if each[1].adapter_uid == adapter_uid), None)


_SERVED = TypeAdapter(dict[str, ServedRecord])
_UNACCOUNTED = TypeAdapter(dict[str, Unaccounted])


def lease_name(deployment: str) -> str:
    """Name of the Lease of a Deployment; long names are shortened by a hash."""
    # Never equal to the name of the leader's Lease.
    name = f"claas-serving-{deployment}"
    if len(name) <= 253:
        return name
    return f"{name[:240].rstrip('-.')}-{_digest(deployment)[:12]}"


def adapter_lease_name(adapter: str) -> str:
    """Name of the Lease of one adapter's steps; long names are shortened by a hash."""
    name = f"claas-steps-{adapter}"
    if len(name) <= 253:
        return name
    return f"{name[:240].rstrip('-.')}-{_digest(adapter)[:12]}"


def served_lease_name(deployment: str, served_name: str) -> str:
    """Name of the Lease of a served name."""
    return f"claas-served-{_digest(f'{deployment}/{served_name}')}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_lease(lease: Lease) -> ServingLease:
    """The serving lease in a Lease object."""
    text = grant_text(lease)
    grant = None if text is None else _read_grant(text, lease.metadata.namespace)
    return ServingLease(
        name=lease.metadata.name,
        namespace=lease.metadata.namespace,
        resource_version=lease.metadata.resource_version,
        uid=lease.metadata.uid,
        deployment=lease.metadata.annotations.get(DEPLOYMENT_ANNOTATION, ""),
        adapter=lease.metadata.annotations.get(ADAPTER_ANNOTATION),
        grant=grant,
        # Earlier releases, with a first-come queue, did not record it.
        last_turn=lease.metadata.annotations.get(LAST_TURN_ANNOTATION, grant.adapter_name if grant else None),
        last_granted=_time(lease.metadata.annotations.get(LAST_GRANTED_ANNOTATION)),
        served=_SERVED.validate_json(lease.metadata.annotations.get(SERVED_ANNOTATION, "{}")),
        unaccounted=_UNACCOUNTED.validate_json(lease.metadata.annotations.get(UNACCOUNTED_ANNOTATION, "{}")),
    )


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _read_grant(text: str, namespace: str) -> Grant:
    """A grant as it is written now, or as release 0.1.0 wrote it, to one job."""
    data = json.loads(text)
    if isinstance(data, dict) and "job_uid" in data:
        job = {"name": data.get("job_name"), "uid": data["job_uid"], "attempt": data.get("attempt")}
        data = {**data, "jobs": [{**job, "namespace": namespace}]}
    return Grant.model_validate(data)


def new_lease(namespace: str, deployment: str) -> ServingLease:
    """A lease that does not exist yet."""
    return ServingLease(
        name=lease_name(deployment), namespace=namespace, resource_version=None, deployment=deployment
    )


def new_adapter_lease(namespace: str, adapter: str) -> ServingLease:
    """The lease of one adapter's steps, which does not exist yet."""
    name = adapter_lease_name(adapter)
    return ServingLease(name=name, namespace=namespace, resource_version=None, deployment="", adapter=adapter)


def lease_manifest(lease: ServingLease) -> Manifest:
    """The Lease object, under the resourceVersion it was read at."""
    annotations: dict[str, JsonValue] = (
        {DEPLOYMENT_ANNOTATION: lease.deployment} if lease.adapter is None else {ADAPTER_ANNOTATION: lease.adapter}
    )
    if lease.last_granted is not None:
        annotations[LAST_GRANTED_ANNOTATION] = lease.last_granted.isoformat()
    if lease.grant is not None:
        annotations[GRANT_ANNOTATION] = lease.grant.model_dump_json(exclude_none=True)
    if lease.last_turn is not None:
        annotations[LAST_TURN_ANNOTATION] = lease.last_turn
    if lease.served:
        annotations[SERVED_ANNOTATION] = _SERVED.dump_json(lease.served, exclude_none=True).decode()
    if lease.unaccounted:
        annotations[UNACCOUNTED_ANNOTATION] = _UNACCOUNTED.dump_json(lease.unaccounted).decode()
    metadata: Manifest = {
        "name": lease.name,
        "namespace": lease.namespace,
        "labels": dict(SERVING_LEASE_LABELS if lease.adapter is None else ADAPTER_LEASE_LABELS),
        "annotations": annotations,
    }
    if lease.resource_version is not None:
        metadata["resourceVersion"] = lease.resource_version
    return _manifest(metadata, lease.holder or "")


def served_names_of(deployment: str) -> dict[str, str]:
    """The labels by which the served names of a Deployment are found."""
    return {**SERVED_NAME_LABELS, DEPLOYMENT_LABEL: _digest(deployment)}


def read_served_name(lease: Lease) -> ServedName:
    """The served name in a Lease object."""
    annotations = lease.metadata.annotations
    return ServedName(
        namespace=lease.metadata.namespace,
        deployment=annotations.get(DEPLOYMENT_ANNOTATION, ""),
        served_name=annotations.get(SERVED_NAME_ANNOTATION, ""),
        record=ServedRecord.model_validate_json(annotations.get(SERVED_ANNOTATION, "")),
        resource_version=lease.metadata.resource_version,
        uid=lease.metadata.uid,
    )


def served_name_manifest(served: ServedName) -> Manifest:
    """The Lease object, under the resourceVersion it was read at."""
    metadata: Manifest = {
        "name": served.name,
        "namespace": served.namespace,
        "labels": dict(served_names_of(served.deployment)),
        "annotations": {
            DEPLOYMENT_ANNOTATION: served.deployment,
            SERVED_NAME_ANNOTATION: served.served_name,
            SERVED_ANNOTATION: served.record.model_dump_json(exclude_none=True),
        },
    }
    if served.resource_version is not None:
        metadata["resourceVersion"] = served.resource_version
    return _manifest(metadata, served.record.adapter_name)


def _manifest(metadata: Manifest, holder: str) -> Manifest:
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": {"holderIdentity": holder, "renewTime": now},
    }
