"""Failures of the service as the trainer's errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from claas_contract.outcome import FailureReason
from claas_tinker_client.errors import ServiceFault, TinkerServiceError
from claas_trainer.errors import EngineError, TrainerError

REASONS: Mapping[ServiceFault, FailureReason] = {
    ServiceFault.CREDENTIALS_REFUSED: FailureReason.CREDENTIALS_REFUSED,
    ServiceFault.BILLING_REQUIRED: FailureReason.BILLING_REQUIRED,
    ServiceFault.RATE_LIMITED: FailureReason.RATE_LIMITED,
    ServiceFault.MODEL_RETIRED: FailureReason.MODEL_RETIRED,
    ServiceFault.CHECKPOINT_EXPIRED: FailureReason.CHECKPOINT_EXPIRED,
    # The next attempt takes the step again, from the parent.
    ServiceFault.SESSION_LOST: FailureReason.SERVICE_UNREACHABLE,
    ServiceFault.REQUEST_REFUSED: FailureReason.INVALID_INPUT,
    ServiceFault.REQUEST_FAILED: FailureReason.SERVICE_UNREACHABLE,
    ServiceFault.UNREACHABLE: FailureReason.SERVICE_UNREACHABLE,
}


def trainer_error(error: TinkerServiceError) -> TrainerError:
    """The trainer's error for a failure of the service."""
    return EngineError(REASONS[error.fault], f"engine tinker: {error.message}")


@contextmanager
def service_failures() -> Iterator[None]:
    """Context manager: turns failures of the service into the trainer's errors."""
    try:
        yield
    except TinkerServiceError as error:
        raise trainer_error(error) from None
