"""The end of an attempt: its result and exit code."""

from __future__ import annotations

from claas_contract.outcome import PERMANENT_REASONS, ExitCode, FailureReason, exit_code_for
from claas_contract.result import PublishedVersion, TrainerResult
from claas_crds.v1alpha1.version import VersionVerdict
from claas_trainer.errors import InvalidSampleError, TrainerError, VersionRejectedError
from claas_trainer.store.errors import errno_name, passing_fault


def failure(error: TrainerError) -> TrainerResult:
    """The result of an attempt that failed with this error.

    A passing fault of a volume may surface as another error, such as a model that can't be read. The reason is the
    volume's then, so that the attempt is retried.
    """
    fault = passing_fault(error)
    if fault is not None and error.reason in PERMANENT_REASONS:
        message = f"{error.message} (the volume does not answer: {errno_name(fault)})"
        return TrainerResult(succeeded=False, reason=FailureReason.STORAGE_FAILED, message=message)
    version = error.version if isinstance(error, VersionRejectedError) else None
    invalid = error.invalid.named if isinstance(error, InvalidSampleError) else []
    return TrainerResult(
        succeeded=False, reason=error.reason, message=error.message, version=version, invalid_samples=invalid
    )


def internal_failure(error: BaseException) -> TrainerResult:
    """The result of an attempt with an unexpected error. The error's message is omitted, because it may quote
    values."""
    message = f"{type(error).__name__} in the trainer; its log says where"
    return TrainerResult(succeeded=False, reason=FailureReason.INTERNAL, message=message)


def published_without_swap(version: PublishedVersion, message: str) -> TrainerResult:
    """The result of an attempt that ended between publishing and the swap. The operator loads the version unless
    serving has rejected it."""
    if version.verdict is VersionVerdict.REJECTED:
        refused = f"version {version.number} was refused by serving; the worker's log says why"
        return TrainerResult(succeeded=False, reason=FailureReason.VERSION_REJECTED, message=refused, version=version)
    return TrainerResult(succeeded=True, message=message, version=version)


def exit_code(result: TrainerResult) -> ExitCode:
    """Exit code for a result."""
    if result.succeeded:
        return ExitCode.SUCCEEDED
    return exit_code_for(result.reason or FailureReason.INTERNAL)
