"""Which jobs wait for a Deployment, and in which order: first come, first served."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from claas_crds.conditions import Condition, JobCondition, is_true
from claas_crds.distill_job import JobPhase
from claas_operator.core import JobObject


def finished(conditions: Iterable[Condition]) -> bool:
    """Whether a job with these conditions has ended, either way."""
    known = list(conditions)
    return is_true(known, JobCondition.COMPLETE) or is_true(known, JobCondition.FAILED)


def queue_key(created: datetime | None, name: str) -> tuple[float, str]:
    """A job's place: by creation, names break ties."""
    return (created.timestamp() if created else 0.0, name)


def in_queue(job: JobObject) -> bool:
    """Whether a job waits for a lease, holds one, or is about to; one that waits for its adapter does not."""
    if finished(job.status.conditions) or job.spec.suspend or job.metadata.deletion_timestamp is not None:
        return False
    return job.status.phase is not JobPhase.PENDING
