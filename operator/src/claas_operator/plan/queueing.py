"""Which jobs wait for a Deployment, and in which order: first come, first served."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from claas_crds.v1alpha1.conditions import Condition, JobCondition, is_true
from claas_crds.v1alpha1.distill_job import JobPhase
from claas_kube.objects.resources import JobObject

EARLIEST = datetime.min.replace(tzinfo=UTC)


def finished(conditions: Iterable[Condition]) -> bool:
    """Whether a job with these conditions has ended, either way."""
    known = list(conditions)
    return is_true(known, JobCondition.COMPLETE) or is_true(known, JobCondition.FAILED)


def queue_key(created: datetime | None, name: str) -> tuple[float, str]:
    """A job's place: by creation, names break ties."""
    return (created.timestamp() if created else 0.0, name)


def deadline_of(job: JobObject) -> datetime:
    """When the `activeDeadlineSeconds` of a job are over that was admitted."""
    status = job.status
    start = status.start_time or status.published_time or job.metadata.creation_timestamp or EARLIEST
    return start + timedelta(seconds=job.spec.active_deadline_seconds)


def in_queue(job: JobObject) -> bool:
    """Whether a job waits for a lease, or needs the one that it holds; one that waits for its adapter, or has
    published, does not."""
    if finished(job.status.conditions) or job.spec.suspend or job.metadata.deletion_timestamp is not None:
        return False
    return job.status.phase is not JobPhase.PENDING and job.status.produced_version is None
