"""What a batch's job, or its absence, means for the batch and its items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from claas_crds.v1alpha1.conditions import JobCondition, condition_of, is_true
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.step import JobPhase
from claas_gateway.records import BatchState, FeedbackBatch, FeedbackItem, ItemOutcome, ItemState
from claas_kube.objects.resources import JobObject

DELETION_SECONDS = 60.0
"""How long the version of a job that somebody deleted is waited for: its trainer may have published just before."""


class Refusal(StrEnum):
    """Why the gateway refuses items; a failed job's reasons are the other source."""

    JOB_DELETED = "JobDeleted"
    """Somebody deleted the DistillJob before it had made a version."""
    JOB_REFUSED = "JobRefused"
    """The API server refused the DistillJob or its samples."""
    ADAPTER_NOT_FOUND = "AdapterNotFound"
    """The adapter was deleted before the job was made."""
    ROLLOUT_DELETED = "RolloutDeleted"
    """The answer was deleted before it was trained on."""
    NO_LOGPROBS = "NoLogprobs"
    """The answer's tokens are not known."""
    EARLIER_ADAPTER = "EarlierAdapter"
    """An adapter of the same name gave the answer that was deleted since, and with it the version to compare with."""
    NO_ROLLOUT = "NoRollout"
    """No such answer is recorded."""
    INVALID_SAMPLE = "InvalidSample"
    """The item can't be trained on."""
    TOO_LARGE = "TooLarge"
    """The item is larger than a batch may be."""
    NO_VERSION = "NoVersion"
    """The job ended without a version, and without a reason."""
    VERSION_REJECTED = "VersionRejected"
    """The version that learned from it failed its probe, and is never used."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Make the job."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again after some seconds, or when something changes."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Follow:
    """The job exists and goes on."""

    job_uid: str
    phase: str


@dataclass(frozen=True, slots=True)
class End:
    """The batch has come to its end: with a version, or with a reason."""

    version: int | None = None
    reason: str | None = None
    message: str | None = None
    bad: Mapping[int, str] = field(default_factory=dict)
    """If set, these members alone are refused, by their places, each with its message; the others train again."""
    job_uid: str | None = None
    phase: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    handover: str | None = None
    weights: str | None = None
    served: bool | None = None

    def outcomes(self, members: Sequence[FeedbackItem]) -> tuple[ItemOutcome, ...]:
        """What becomes of the members. Those without an outcome form a new batch."""
        if self.version is not None:
            return tuple(ItemOutcome(item.id, ItemState.IN_VERSION, version=self.version) for item in members)
        # Places beyond the batch would name nobody, and the same items would train again and again.
        named = {place: message for place, message in self.bad.items() if place < len(members)}
        return tuple(
            ItemOutcome(item.id, ItemState.REFUSED, reason=self.reason, message=named.get(place) or self.message)
            for place, item in enumerate(members)
            if not named or place in named
        )


Decision = Submit | Wait | Follow | End


@dataclass(frozen=True, slots=True)
class Made:
    """A version that names a batch's job, as status or history show it."""

    number: int
    rejected: bool


def decide(
    batch: FeedbackBatch, job: JobObject | None, made: Made | None, gone_since: datetime | None, now: datetime
) -> Decision:
    """What to do about a batch that is not accounted for.

    `job`: its DistillJob, as the API server has it; `made`: the version that names it; `gone_since`: since when the
    job of a submitted batch is known to be missing.
    """
    if job is not None:
        return _by_job(job)
    if made is not None:
        rejected = End(reason=Refusal.VERSION_REJECTED, message="Serving rejected the version that learned from it")
        return rejected if made.rejected else End(version=made.number)
    if batch.state is BatchState.FORMED:
        return Submit()
    missing = (now - (gone_since or now)).total_seconds()
    if missing < DELETION_SECONDS:
        return Wait(DELETION_SECONDS - missing)
    return End(reason=Refusal.JOB_DELETED, message="The DistillJob was deleted before it had made a version")


def _by_job(job: JobObject) -> Follow | End:
    status, phase = job.status, job.status.phase or JobPhase.PENDING
    if not any(is_true(status.conditions, kind) for kind in (JobCondition.COMPLETE, JobCondition.FAILED)):
        return Follow(job.metadata.uid, phase.value)
    timings: dict[str, float] = status.timings.model_dump(exclude_none=True)
    return replace(
        _end(status),
        job_uid=job.metadata.uid,
        phase=phase.value,
        metrics=dict(status.metrics),
        timings=timings,
        handover=status.handover.value if status.handover else None,
        weights=status.produced_weights,
        served=is_true(status.conditions, JobCondition.SERVED),
    )


def _end(status: DistillJobStatus) -> End:
    produced, rejected = status.produced_version, status.rejected_version
    if produced is not None and (rejected is None or rejected.number != produced):
        return End(version=produced)
    failed = condition_of(status.conditions, JobCondition.FAILED)
    if failed is not None and status.invalid_samples:
        bad = {sample.index: sample.message for sample in status.invalid_samples}
        return End(reason=failed.reason, message=failed.message, bad=bad)
    if failed is None:
        return End(reason=Refusal.NO_VERSION, message="The DistillJob is complete and names no version")
    return End(reason=failed.reason, message=failed.message)
