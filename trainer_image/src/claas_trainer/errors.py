"""The exception tree of the trainer around the step. Each error carries the reason that the operator is told.

Messages say what was wrong, where, and what to do. They reach logs, status and events, so none may hold a
sample's text.
"""

from __future__ import annotations

from claas_contract.outcome import FailureReason
from claas_contract.result import PublishedVersion


class TrainerError(Exception):
    """An attempt failed. `reason` decides whether another one is made, `message` is for people."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(f"{reason.value}: {message}")
        self.reason = reason
        self.message = message


class InputError(TrainerError):
    """The input document, or a file it names, can't be used."""

    def __init__(self, message: str, reason: FailureReason = FailureReason.INVALID_INPUT) -> None:
        super().__init__(reason, message)


class SampleError(TrainerError):
    """A sample is wrong. `field` is its place, such as `samples[3].response_logprobs`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(FailureReason.INVALID_SAMPLE, f"{field}: {message}")
        self.field = field


class StoreError(TrainerError):
    """The volume, or a version on it, can't be read or written."""


class ServingError(TrainerError):
    """A vLLM pod can't be used, paused or woken."""


class EngineError(TrainerError):
    """The engine can't take the step."""


class VersionRejectedError(TrainerError):
    """vLLM refused a published version, or it failed its probe: now, or when it was tried before."""

    def __init__(
        self,
        version: PublishedVersion,
        message: str,
        reason: FailureReason = FailureReason.VERSION_REJECTED,
    ) -> None:
        super().__init__(reason, message)
        self.version = version


def not_found(message: str) -> InputError:
    """Something of the model is missing, or can't be used."""
    return InputError(message, FailureReason.MODEL_NOT_FOUND)
