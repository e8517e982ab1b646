"""The trainer's exception tree.

Each error carries the failure reason for the operator. Messages say what was wrong, where, and what to do. They reach
logs, status and Events, so none may quote a sample.
"""

from __future__ import annotations

from claas_contract.outcome import FailureReason
from claas_contract.result import PublishedVersion
from claas_crds.samples.checks import InvalidSamplesError


class TrainerError(Exception):
    """An attempt failed. `reason` decides whether it is retried, `message` is for people."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(f"{reason.value}: {message}")
        self.reason = reason
        self.message = message


class InputError(TrainerError):
    """The input document, or a file that it names, is not usable."""

    def __init__(self, message: str, reason: FailureReason = FailureReason.INVALID_INPUT) -> None:
        super().__init__(reason, message)


class InvalidSampleError(TrainerError):
    """Samples are wrong; `invalid` says which."""

    def __init__(self, invalid: InvalidSamplesError) -> None:
        super().__init__(FailureReason.INVALID_SAMPLE, str(invalid))
        self.invalid = invalid


class StoreError(TrainerError):
    """The volume, or a version on it, can't be read or written."""


class ServingError(TrainerError):
    """A vLLM pod can't be used, paused or woken."""


class EngineError(TrainerError):
    """The engine can't take the step."""


class VersionRejectedError(TrainerError):
    """vLLM refused to load a published version, or it failed its probe, in this attempt or an earlier one."""

    def __init__(
        self,
        version: PublishedVersion,
        message: str,
        reason: FailureReason = FailureReason.VERSION_REJECTED,
    ) -> None:
        super().__init__(reason, message)
        self.version = version


def not_found(message: str) -> InputError:
    """A part of the model is missing or not usable."""
    return InputError(message, FailureReason.MODEL_NOT_FOUND)
