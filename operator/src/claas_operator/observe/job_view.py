"""What passes over other objects need to know of DistillJobs, kept from what was read and what watches bring.

A job's samples are never in here. All of it can be made again by one list, which is how the operator starts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from claas_contract.result import PublishedVersion
from claas_crds.v1alpha1.distill_job import DistillJobStatus, JobPhase
from claas_crds.v1alpha1.lora_adapter import AdapterVersion
from claas_kube.objects.meta import Manifest, ObjectMeta
from claas_kube.objects.resources import JobObject
from claas_operator.plan.queueing import finished, in_queue


@dataclass(frozen=True, slots=True)
class KnownJob:
    """One DistillJob, without its samples."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    created: datetime | None
    adapter: str
    phase: JobPhase | None
    queued: bool
    """Whether it waits for a lease, holds one, or is about to."""
    finished: bool
    told: bool
    """Whether its status is about its spec as it is now."""
    deleted_from: datetime | None
    """When its time to live is over, for a finished job that has one."""
    published: PublishedVersion | None
    """The version that it reports."""
    rejected: AdapterVersion | None
    """A version of which it reports that serving refused it."""

    def due_in(self, now: datetime) -> float | None:
        """In how many seconds a pass over it has something to do; None: not before an event."""
        if not self.finished or not self.told:
            return 0.0
        return None if self.deleted_from is None else max(0.0, (self.deleted_from - now).total_seconds())


def known_job(job: JobObject) -> KnownJob:
    """What is kept of a job."""
    status, ttl = job.status, job.spec.ttl_seconds_after_finished
    ended = finished(status.conditions)
    return KnownJob(
        namespace=job.metadata.namespace,
        name=job.metadata.name,
        uid=job.metadata.uid,
        resource_version=job.metadata.resource_version,
        created=job.metadata.creation_timestamp,
        adapter=job.spec.adapter_ref.name,
        phase=status.phase,
        queued=in_queue(job),
        finished=ended,
        told=status.observed_generation == job.metadata.generation,
        deleted_from=(
            status.completion_time + timedelta(seconds=ttl)
            if ended and ttl is not None and status.completion_time is not None
            else None
        ),
        published=_published(job.metadata, status),
        rejected=status.rejected_version,
    )


def _published(metadata: ObjectMeta, status: DistillJobStatus) -> PublishedVersion | None:
    created = status.published_time or status.completion_time or metadata.creation_timestamp
    if status.produced_version is None or created is None:
        return None
    return PublishedVersion(
        number=status.produced_version,
        path=status.produced_path or "",
        digest=status.produced_digest or "",
        created=created,
        parent=status.parent_version,
        job_name=metadata.name,
        job_uid=metadata.uid,
        metrics=status.metrics,
    )


class JobView:
    """All DistillJobs that the operator knows of."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[str, str], KnownJob] = {}

    def take(self, found: Manifest) -> KnownJob | None:
        """Remember a job as the API server tells of it. One that this release can't read is in nobody's way: None."""
        spec = found.get("spec")
        metadata = found["metadata"]
        assert isinstance(metadata, dict)
        plain: Manifest = {
            "metadata": {key: value for key, value in metadata.items() if key != "managedFields"},
            "spec": {**(spec if isinstance(spec, dict) else {}), "samples": {}},
            "status": found.get("status") or {},
        }
        try:
            return self.note(JobObject.model_validate(plain))
        except ValidationError:
            self.forget(str(metadata.get("namespace", "")), str(metadata["name"]))
            return None

    def note(self, job: JobObject) -> KnownJob:
        """Remember a job as it was read or written."""
        known = known_job(job)
        self._jobs[known.namespace, known.name] = known
        return known

    def forget(self, namespace: str, name: str) -> None:
        """A job is gone."""
        self._jobs.pop((namespace, name), None)

    def get(self, namespace: str, name: str) -> KnownJob | None:
        """The job of that name."""
        return self._jobs.get((namespace, name))

    def within(self, namespace: str | None) -> list[KnownJob]:
        """The jobs of a namespace; None: all."""
        return [job for job in self._jobs.values() if namespace is None or job.namespace == namespace]

    def of_adapters(self, namespace: str, adapters: Iterable[str]) -> list[KnownJob]:
        """The jobs of some adapters in a namespace."""
        names = frozenset(adapters)
        return [job for job in self._jobs.values() if job.namespace == namespace and job.adapter in names]
