"""Wakes keys when the index changes."""

from __future__ import annotations

from datetime import UTC, datetime

from claas_crds.v1alpha1.lora_adapter import LoraAdapterStatus
from claas_kube.objects.meta import ObjectMeta
from claas_kube.objects.pods import Pod
from claas_kube.objects.resources import AdapterObject
from claas_kube.objects.workloads import BatchJob
from claas_operator.clients.cluster_index import AnyLease, ClusterIndex
from claas_operator.clients.job_view import KnownJob
from claas_operator.keys import Key, Kind
from claas_operator.loop.reconcile import Reconciler
from claas_operator.metrics.known_adapters import KnownAdapters
from claas_operator.plan import naming
from claas_operator.plan.serving_lease import ServingLease, lease_name


class Wakers:
    """Wakes the keys that a change of the index concerns."""

    def __init__(self, reconciler: Reconciler, index: ClusterIndex) -> None:
        self._reconciler = reconciler
        self._queue = reconciler.queue
        self._index = index
        self.adapters = KnownAdapters()
        index.adapters.listen(self._adapter_changed)
        index.jobs.collection.listen(self._job_changed)
        index.batch_jobs.listen(self._batch_job_changed)
        index.trainer_pods.listen(self._trainer_pod_changed)
        index.leases.listen(self._lease_changed)
        index.deployment_changed = self._deployment_changed

    def _adapter_changed(
        self, namespace: str, name: str, before: AdapterObject | None, after: AdapterObject | None
    ) -> None:
        known = after or before
        if self._index.adapters.entry(namespace, name) is None:
            self.adapters.forget(namespace, name)
        elif known is not None:
            # An adapter that this release can't read counts as not ready.
            status = after.status if after is not None else LoraAdapterStatus()
            deployment = known.deployment_name
            self.adapters.take(namespace, name, deployment, status, datetime.now(UTC))
        # Its status is our own: what a pass wrote there is no news to the next one.
        if before is None or after is None or _wanted(before.metadata) != _wanted(after.metadata):
            self._queue.wake(Key(Kind.ADAPTER, namespace, name))

    def _lease_changed(self, namespace: str, name: str, before: AnyLease | None, after: AnyLease | None) -> None:
        """Look at a Lease of steps as soon as it is known: it may name a pod that sleeps."""
        if before is None and isinstance(after, ServingLease):
            self._queue.wake(Key(Kind.LEASE, namespace, name))

    def _job_changed(self, namespace: str, name: str, before: KnownJob | None, after: KnownJob | None) -> None:
        self._reconciler.wake_job(namespace, name)
        if before is not None and before.queued and (after is None or _gave_up_its_place(before, after)):
            # Others wait behind it, or for the lease that it holds.
            adapter = self._index.adapters.get(namespace, before.adapter)
            if adapter is not None:
                self._queue.wake(Key(Kind.LEASE, namespace, self._reconciler.step_leases.name(adapter)))

    def _batch_job_changed(self, namespace: str, name: str, before: BatchJob | None, after: BatchJob | None) -> None:
        found = after or before
        if found is not None and not (after is not None and self._accounted_for(after)):
            self._wake_owner(found.metadata)

    def _trainer_pod_changed(self, namespace: str, name: str, before: Pod | None, after: Pod | None) -> None:
        found = after or before
        if found is None:
            return
        owner = next((each.name for each in found.metadata.owner_references if each.kind == "Job"), "")
        batch_job = self._index.batch_jobs.get(namespace, owner)
        if not (found.ended and batch_job is not None and self._accounted_for(batch_job)):
            self._wake_owner(found.metadata)

    def _deployment_changed(self, namespace: str, name: str) -> None:
        """A Deployment or its pods changed: wake the adapters that it serves."""
        served = self._index.adapters.grouped(namespace, name)
        for adapter in served:
            self._queue.wake(Key(Kind.ADAPTER, namespace, adapter.metadata.name))
        if served:
            self._queue.wake(Key(Kind.LEASE, namespace, lease_name(name)))

    def _wake_owner(self, metadata: ObjectMeta) -> None:
        """Wake the owner of a trainer."""
        kind = metadata.labels.get(naming.OWNER_KIND_LABEL)
        name = metadata.annotations.get(naming.OWNER_NAME_ANNOTATION)
        if kind in set(Kind) and name:
            self._queue.wake(Key(Kind(kind), metadata.namespace, name))

    def _accounted_for(self, batch_job: BatchJob) -> bool:
        """Whether a trainer's batch Job has ended and is accounted for, and its DistillJob is finished."""
        metadata = batch_job.metadata
        owner = metadata.annotations.get(naming.OWNER_NAME_ANNOTATION, "")
        known = self._index.jobs.get(metadata.namespace, owner)
        return known is not None and known.finished and bool(batch_job.ended_because) and batch_job.retired


def _gave_up_its_place(before: KnownJob, after: KnownJob) -> bool:
    """Whether a queued job left the queue without a version, by whoever's write, or another one has its name."""
    return before.uid != after.uid or (not after.queued and after.published is None)


def _wanted(metadata: ObjectMeta) -> tuple[object, ...]:
    """What of an object is not ours to write. Whoever wants it looked at now may annotate it."""
    deleted = metadata.deletion_timestamp is not None
    return metadata.uid, metadata.generation, deleted, metadata.annotations, metadata.labels
