"""Timings of a job: those that its trainer measured, and the times before and after."""

from __future__ import annotations

from datetime import datetime

from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.step import Timings


def timings_of(status: DistillJobStatus, result: TrainerResult) -> Timings:
    """The timings up to the trainer's end, of a job whose last attempt succeeded."""
    measured = result.timings.model_dump(exclude_none=True, exclude={"queued"})
    timings = status.timings.model_copy(update=measured)
    admitted = status.start_time
    if admitted is None:
        return timings
    turn = max(admitted, status.retry_time or admitted)
    retried = _between(admitted, turn)
    if result.already_published:
        # An earlier attempt took the step, and its timings are known.
        retried = max(0.0, retried - measured_seconds(result))
    return timings.model_copy(
        update={
            "retried": round(retried, 3) if status.failed_attempts else None,
            "start": None if result.began is None else round(_between(turn, result.began), 3),
        }
    )


def measured_seconds(result: TrainerResult) -> float:
    """The timings of an earlier attempt that took the step."""
    return result.timings.model_copy(update={"swap": None}).seconds


def settled(status: DistillJobStatus) -> Timings:
    """The timings with the remaining time until the job was done."""
    admitted, done = status.start_time, status.completion_time
    if admitted is None or done is None or status.produced_version is None:
        return status.timings
    left = _between(admitted, done) - status.timings.seconds
    return status.timings.model_copy(update={"settle": round(max(0.0, left), 3)})


def _between(earlier: datetime, later: datetime) -> float:
    """Seconds between two times, at least 0, because clocks of two nodes may differ."""
    return max(0.0, (later - earlier).total_seconds())
