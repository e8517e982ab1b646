"""kopf's part: watching. Handlers only wake keys.

There are no on.create, on.update or on.delete handlers, timers or daemons: the first three would make kopf copy
whole specs, private samples included, into an annotation, and the latter two would put finalizers on everything.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import kopf

from claas_crds import GROUP, VERSION
from claas_crds.v1alpha1 import distill_job, lora_adapter
from claas_kube.objects.meta import Manifest, ObjectMeta
from claas_kube.objects.workloads import BatchJob
from claas_operator.keys import Key, Kind
from claas_operator.loop.reconcile import Reconciler
from claas_operator.metrics.known_adapters import KnownAdapters
from claas_operator.plan import naming
from claas_operator.plan.serving_lease import lease_name


class Wakers:
    """The handlers of one operator, bound to its work queue and to the index they keep."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler
        self._queue = reconciler.queue
        self._deployment_of: dict[tuple[str, str], str] = {}
        """The Deployment that serves an adapter, by the adapter's namespace and name."""
        self.adapters = KnownAdapters()
        self._registry = kopf.OperatorRegistry()

    def registry(self) -> kopf.OperatorRegistry:
        """All handlers, for `kopf.operator(registry=...)`."""
        registry = self._registry
        kopf.on.startup(registry=registry)(_configure)
        kopf.on.login(registry=registry, errors=kopf.ErrorsMode.IGNORED)(_log_in)
        kopf.on.event(GROUP, VERSION, lora_adapter.PLURAL, registry=registry)(self.adapter_event)
        kopf.on.event(GROUP, VERSION, distill_job.PLURAL, registry=registry)(self.job_event)
        managed = {"app.kubernetes.io/managed-by": "claas-operator"}
        kopf.on.event("batch", "v1", "jobs", labels=managed, registry=registry)(self.trainer_event)
        kopf.on.event("apps", "v1", "deployments", registry=registry)(self.deployment_event)
        return registry

    async def adapter_event(self, body: kopf.Body, type: str | None, **_: Any) -> None:
        """A LoraAdapter changed: look at it, and remember which Deployment serves it."""
        metadata = _metadata(body)
        deployment = body.get("spec", {}).get("serving", {}).get("deploymentRef", {}).get("name", "")
        if type == "DELETED":
            self._deployment_of.pop((metadata.namespace, metadata.name), None)
            self.adapters.forget(metadata.namespace, metadata.name)
        else:
            self._deployment_of[metadata.namespace, metadata.name] = deployment
            status = dict(body.get("status") or {})
            self.adapters.take(metadata.namespace, metadata.name, deployment, status, datetime.now(UTC))
        self._queue.wake(Key(Kind.ADAPTER, metadata.namespace, metadata.name))

    async def job_event(self, body: kopf.Body, type: str | None, **_: Any) -> None:
        """A DistillJob changed: look at it, unless it is done."""
        self._reconciler.saw_job(dict(body), gone=type == "DELETED")

    async def trainer_event(self, body: kopf.Body, **_: Any) -> None:
        """A trainer's batch Job changed: look at the object it belongs to."""
        metadata = _metadata(body)
        kind = metadata.labels.get(naming.OWNER_KIND_LABEL)
        name = metadata.annotations.get(naming.OWNER_NAME_ANNOTATION)
        if kind == Kind.JOB and name and self._accounted_for(metadata.namespace, name, dict(body)):
            return
        if kind in set(Kind) and name:
            self._queue.wake(Key(Kind(kind), metadata.namespace, name))

    async def deployment_event(self, body: kopf.Body, **_: Any) -> None:
        """A Deployment changed, or the readiness of its pods: look at the adapters it serves."""
        metadata = _metadata(body)
        served = self.served_by(metadata.namespace, metadata.name)
        for adapter in served:
            self._queue.wake(Key(Kind.ADAPTER, metadata.namespace, adapter))
        if served:
            self._queue.wake(Key(Kind.LEASE, metadata.namespace, lease_name(metadata.name)))

    @property
    def remembered(self) -> int:
        """How many adapters are remembered."""
        return len(self._deployment_of)

    def served_by(self, namespace: str, deployment: str) -> list[str]:
        """The adapters that a Deployment serves."""
        return [name for (within, name), by in self._deployment_of.items() if (within, by) == (namespace, deployment)]

    def _accounted_for(self, namespace: str, job: str, batch_job: Manifest) -> bool:
        """Whether a trainer's batch Job has ended and is let go, and its DistillJob is done."""
        known = self._reconciler.jobs.get(namespace, job)
        if known is None or not known.finished:
            return False
        found = BatchJob.model_validate(batch_job)
        return bool(found.ended_because) and found.retired


def _metadata(body: kopf.Body) -> ObjectMeta:
    raw: Manifest = dict(body["metadata"])
    raw.pop("managedFields", None)
    return ObjectMeta.model_validate(raw)


def _log_in(**kwargs: Any) -> object:
    """The pod's service account by the API server's address, or else the current kube-context.

    kopf's own `login_with_service_account` needs the cluster's DNS; the client's way does not.
    """
    return kopf.login_via_client(**kwargs)


async def _configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    settings.posting.enabled = False
    # Kinds and namespaces are known from the start: following changes would need rights over the whole cluster.
    settings.scanning.disabled = True
    settings.networking.connect_timeout = 10
    settings.watching.server_timeout = 300
