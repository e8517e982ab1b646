"""The index of DistillJobs, without their samples; of inline samples the result of their check is kept. One list
rebuilds all of it when the operator starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import cast

from claas_contract.jobs import JobReference
from claas_contract.result import PublishedVersion
from claas_crds.v1alpha1.distill_job import DistillJobStatus, SamplesSource
from claas_crds.v1alpha1.step import JobPhase
from claas_crds.v1alpha1.version import AdapterVersion
from claas_kube.index.collection import Collection, Entry
from claas_kube.objects.meta import Manifest, ObjectMeta
from claas_kube.objects.resources import JobObject
from claas_operator.plan.queueing import finished, in_queue
from claas_operator.plan.samples import InlineSamples, check_inline


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
    """Whether it waits for a lease, holds one, or is about to get one."""
    finished: bool
    told: bool
    """Whether its status refers to its current spec."""
    deleted_from: datetime | None
    """When its time to live is over, for a finished job that has one."""
    published: PublishedVersion | None
    """The version that it published."""
    rejected: AdapterVersion | None
    """A version that serving rejected, by its report."""
    inline: InlineSamples | None
    """Result of checking its inline samples; None: unknown, or there are none."""
    text: bytes = field(repr=False)
    """The job as JSON, which takes an eighth of the memory of the decoded object."""

    def whole(self) -> JobObject:
        """The job without its inline samples."""
        return JobObject.model_validate_json(self.text)

    def due_in(self, now: datetime) -> float | None:
        """In how many seconds a pass over it has something to do; None: not before an event, or its turn."""
        if self.told and self.phase is JobPhase.QUEUED:
            return None
        if not self.finished or not self.told:
            return 0.0
        return None if self.deleted_from is None else max(0.0, (self.deleted_from - now).total_seconds())


def known_job(job: JobObject, inline: InlineSamples | None = None) -> KnownJob:
    """The index entry of a job."""
    metadata, status, ttl = job.metadata, job.status, job.spec.ttl_seconds_after_finished
    ended = finished(status.conditions)
    # Client-side apply copies the whole job, with samples, into an annotation.
    small = job.model_copy(
        update={
            "metadata": metadata.model_copy(update={"annotations": {}}),
            "spec": job.spec.model_copy(update={"samples": job.spec.samples.model_copy(update={"inline": None})}),
        }
    )
    return KnownJob(
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid,
        resource_version=metadata.resource_version,
        created=metadata.creation_timestamp,
        adapter=job.spec.adapter_ref.name,
        phase=status.phase,
        queued=in_queue(job),
        finished=ended,
        told=status.observed_generation == metadata.generation,
        deleted_from=(
            status.completion_time + timedelta(seconds=ttl)
            if ended and ttl is not None and status.completion_time is not None
            else None
        ),
        published=_published(metadata, status),
        rejected=status.rejected_version,
        inline=inline,
        text=small.model_dump_json(by_alias=True, exclude_defaults=True).encode(),
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
        jobs=[JobReference(name=metadata.name, uid=metadata.uid)],
        metrics=status.metrics,
        weights=status.produced_weights,
    )


class JobView:
    """All DistillJobs that the operator knows of."""

    def __init__(self, default_ttl_seconds: int | None = None) -> None:
        """`default_ttl_seconds`: the `ttlSecondsAfterFinished` of jobs that set none."""
        self._default_ttl_seconds = default_ttl_seconds
        self.collection: Collection[KnownJob] = Collection(self._decoded, lambda job: [job.adapter])

    async def take(self, found: Manifest) -> None:
        """Store a job from the API server. A job that this release can't read holds up no other."""
        await self.collection.take(found)

    def note(self, job: JobObject) -> KnownJob:
        """Store a job from the answer to an own write, which may be late."""
        before = self.get(job.metadata.namespace, job.metadata.name)
        known = known_job(job, before.inline if before is not None and before.uid == job.metadata.uid else None)
        at = (known.namespace, known.name)
        self.collection.note(at, Entry(known.uid, known.resource_version, known), answer=True)
        return known

    def get(self, namespace: str, name: str) -> KnownJob | None:
        """The job of that name."""
        return self.collection.get(namespace, name)

    def within(self, namespace: str | None) -> list[KnownJob]:
        """The jobs of a namespace; None: all."""
        return list(self.collection.within(namespace))

    def of_adapters(self, namespace: str, adapters: Iterable[str]) -> list[KnownJob]:
        """The jobs of some adapters in a namespace."""
        return [job for name in set(adapters) for job in self.collection.grouped(namespace, name)]

    async def _decoded(self, found: Manifest, before: KnownJob | None) -> KnownJob:
        metadata, spec = cast(Manifest, found["metadata"]), cast(Manifest, found.get("spec") or {})
        samples = spec.get("samples")
        references = dict(samples) if isinstance(samples, dict) else {}
        stands_here = references.pop("inline", None) is not None
        ttl: Manifest = {"ttlSecondsAfterFinished": self._default_ttl_seconds}
        job = JobObject.model_validate(
            {
                "metadata": {key: value for key, value in metadata.items() if key != "managedFields"},
                "spec": {**ttl, **spec, "samples": references},
                "status": found.get("status") or {},
            }
        )
        inline = before.inline if before is not None else None
        if stands_here and inline is None and job.status.start_time is None and not finished(job.status.conditions):
            # In a thread, because a megabyte takes tens of milliseconds.
            inline = await asyncio.to_thread(check_inline, SamplesSource.model_validate(samples))
        return known_job(job, inline)
