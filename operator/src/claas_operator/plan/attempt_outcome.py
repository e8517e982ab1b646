"""The outcome of a trainer pod: status fields from its result, or a failure that says whether to retry."""

from __future__ import annotations

from dataclasses import dataclass

from claas_contract.outcome import PERMANENT_REASONS, ExitCode, FailureReason
from claas_contract.result import PublishedVersion, TrainerResult
from claas_crds.v1alpha1.conditions import JobReason
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_operator.plan.serving_lease import Grant
from claas_operator.plan.timing import timings_of
from claas_operator.plan.world import TrainerJob

KILLED_EXIT_CODE = 137
"""128 + SIGKILL: the container was killed from outside, or ran out of memory."""
OUT_OF_MEMORY_REASON = "OOMKilled"
"""The kubelet's reason for a container that the kernel killed for lack of memory."""


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed, and whether a retry would fail in the same way."""

    reason: str
    message: str
    permanent: bool


def failure_of(attempt: TrainerJob, grant: Grant | None) -> Failure:
    """The failure of an attempt, from its report, or else from Kubernetes."""
    if grant is not None and grant.stopped_because == JobReason.MAX_PAUSE_EXCEEDED:
        # The supervisor would have ended a step that is too long, so the whole pod hung, which a retry may cure.
        message = f"The trainer held serving paused for more than {grant.max_pause_seconds} s and was ended"
        return Failure(JobReason.MAX_PAUSE_EXCEEDED, message, permanent=False)
    reason = attempt.result.reason if attempt.result is not None else None
    # A supervisor that can't read the kernel's count only knows that its worker was killed; Kubernetes knows why.
    if reason in (None, FailureReason.INTERNAL) and attempt.message.startswith(OUT_OF_MEMORY_REASON):
        return Failure(
            FailureReason.OUT_OF_MEMORY,
            "The kernel killed the trainer because its memory ran out (OOMKilled): raise the memory limit in"
            " spec.trainer.resources.limits, or give shorter samples",
            permanent=True,
        )
    if attempt.result is not None and reason is not None:
        permanent = attempt.exit_code == ExitCode.PERMANENT or reason in PERMANENT_REASONS
        return Failure(reason, attempt.result.message, permanent)
    if attempt.exit_code is None:
        said = f" ({attempt.message})" if attempt.message else ""
        return Failure(JobReason.TRAINER_LOST, f"The trainer's pod is gone without a result{said}", permanent=False)
    if attempt.exit_code == KILLED_EXIT_CODE:
        return Failure(JobReason.TRAINER_LOST, "The trainer was killed", permanent=False)
    return Failure(
        FailureReason.INTERNAL,
        f"The trainer ended with exit code {attempt.exit_code} and no result; look at the log of its pod",
        permanent=attempt.exit_code == ExitCode.PERMANENT,
    )


def succeeded_status(status: DistillJobStatus, result: TrainerResult, version: PublishedVersion) -> dict[str, object]:
    """The fields of a job's status that a successful attempt sets."""
    gap = result.timings.serving_gap
    loss = version.metrics.get("loss")
    return {
        "produced_version": version.number,
        "produced_path": version.path,
        "produced_digest": version.digest,
        "produced_weights": version.weights,
        "published_time": version.created,
        "parent_version": version.parent,
        "metrics": version.metrics,
        "loss": None if loss is None else f"{loss:.4g}",
        "samples": result.samples,
        "timings": timings_of(status, result),
        "serving_gap": None if gap is None else f"{gap:.2f}s",
    }
