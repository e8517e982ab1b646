"""The queue of a Deployment: adapters take turns (round robin by name), and the jobs of one adapter are served first
come, first served.

The serving Lease records who had the last turn, which determines the next. With n adapters that have jobs, each has a
turn within n turns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from claas_crds.v1alpha1.conditions import Condition, JobCondition, is_true
from claas_crds.v1alpha1.step import JobPhase
from claas_kube.objects.resources import JobObject


class WaitingJob(Protocol):
    """A job in the queue."""

    @property
    def adapter(self) -> str:
        """Name of its adapter."""

    @property
    def created(self) -> datetime | None:
        """When it was created."""

    @property
    def name(self) -> str:
        """Its own name."""


AnyWaiting = TypeVar("AnyWaiting", bound=WaitingJob)
EARLIEST = datetime.min.replace(tzinfo=UTC)


def finished(conditions: Iterable[Condition]) -> bool:
    """Whether a job with these conditions has completed or failed."""
    known = list(conditions)
    return is_true(known, JobCondition.COMPLETE) or is_true(known, JobCondition.FAILED)


def queue_key(created: datetime | None, name: str) -> tuple[float, str]:
    """Sort key of a job: creation time, then name."""
    return (created.timestamp() if created else 0.0, name)


def deadline_of(job: JobObject) -> datetime:
    """Deadline of an admitted job (`activeDeadlineSeconds`)."""
    status = job.status
    start = status.start_time or status.published_time or job.metadata.creation_timestamp or EARLIEST
    return start + timedelta(seconds=job.spec.active_deadline_seconds)


def in_queue(job: JobObject) -> bool:
    """Whether a job waits for a lease or needs the one that it holds. A job that waits for its adapter or has
    published does not."""
    if finished(job.status.conditions) or job.spec.suspend or job.metadata.deletion_timestamp is not None:
        return False
    return job.status.phase is not JobPhase.PENDING and job.status.produced_version is None


def in_turn(waiting: Iterable[AnyWaiting], last_turn: str | None) -> list[AnyWaiting]:
    """The jobs in the order of their turns, if no others arrive; without the lease holder. `last_turn` is the adapter
    that had the last turn.
    """
    rounds: Counter[str] = Counter()
    places = []
    for job in sorted(waiting, key=lambda job: queue_key(job.created, job.name)):
        places.append((rounds[job.adapter], _after(job.adapter, last_turn), job))
        rounds[job.adapter] += 1
    places.sort(key=lambda place: place[:2])
    return [job for *_, job in places]


def jobs_ahead(mine: WaitingJob, waiting: Sequence[WaitingJob], last_turn: str | None) -> int:
    """Number of waiting jobs whose turn comes before this one's, if no others arrive: its index in `in_turn`."""
    place = queue_key(mine.created, mine.name)
    earlier = sum(other.adapter == mine.adapter and queue_key(other.created, other.name) < place for other in waiting)
    others = Counter(other.adapter for other in waiting if other.adapter != mine.adapter)
    turn = _after(mine.adapter, last_turn)
    return earlier + sum(min(jobs, earlier + (_after(name, last_turn) < turn)) for name, jobs in others.items())


def _after(adapter: str, last_turn: str | None) -> tuple[bool, str]:
    """Sort key of an adapter in a round that starts after the adapter with the last turn."""
    return (last_turn is not None and adapter <= last_turn, adapter)
