"""How an attempt ends: a result, the termination message, an exit code."""

from __future__ import annotations

from pathlib import Path

from claas_contract.outcome import (
    PERMANENT_REASONS,
    ExitCode,
    FailureReason,
    exit_code_for,
)
from claas_contract.result import PublishedVersion, TrainerResult
from claas_crds.v1alpha1.lora_adapter import VersionVerdict
from claas_trainer.errors import TrainerError, VersionRejectedError
from claas_trainer.store.errors import errno_name, passing_fault


def failure(error: TrainerError) -> TrainerResult:
    """The result of an attempt that ended with this error.

    Whoever meets a volume that fails for a moment tells it in words of its own, such as a model that can't be read:
    what is wrong is the volume, and another attempt may find it well.
    """
    fault = passing_fault(error)
    if fault is not None and error.reason in PERMANENT_REASONS:
        message = f"{error.message} (the volume does not answer: {errno_name(fault)})"
        return TrainerResult(succeeded=False, reason=FailureReason.STORAGE_FAILED, message=message)
    version = error.version if isinstance(error, VersionRejectedError) else None
    return TrainerResult(succeeded=False, reason=error.reason, message=error.message, version=version)


def internal_failure(error: BaseException) -> TrainerResult:
    """The result of an attempt that met an error nobody expected; its message may quote a value and is left out."""
    message = f"{type(error).__name__} in the trainer; its log says where"
    return TrainerResult(succeeded=False, reason=FailureReason.INTERNAL, message=message)


def published_without_swap(version: PublishedVersion, message: str) -> TrainerResult:
    """The result of an attempt whose version is on the volume and that could not go on: the operator loads it,
    unless serving has refused it."""
    if version.verdict is VersionVerdict.REJECTED:
        refused = f"version {version.number} was refused by serving; the worker's log says why"
        return TrainerResult(succeeded=False, reason=FailureReason.VERSION_REJECTED, message=refused, version=version)
    return TrainerResult(succeeded=True, message=message, version=version)


def exit_code(result: TrainerResult) -> ExitCode:
    """The exit code that goes with a result."""
    if result.succeeded:
        return ExitCode.SUCCEEDED
    return exit_code_for(result.reason or FailureReason.INTERNAL)


def write_termination_message(path: Path, result: TrainerResult) -> None:
    """Write the result where the kubelet looks for it. Raises OSError."""
    path.write_text(result.to_termination_message(), encoding="utf-8")
