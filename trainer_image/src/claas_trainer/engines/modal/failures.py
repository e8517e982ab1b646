"""Failures of the Modal platform as the trainer's errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from claas_contract.outcome import FailureReason
from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_trainer.errors import EngineError

REASONS: Mapping[ModalFault, FailureReason] = {
    ModalFault.CREDENTIALS_REFUSED: FailureReason.CREDENTIALS_REFUSED,
    ModalFault.BILLING_REQUIRED: FailureReason.BILLING_REQUIRED,
    ModalFault.RATE_LIMITED: FailureReason.RATE_LIMITED,
    ModalFault.NOT_DEPLOYED: FailureReason.APP_NOT_DEPLOYED,
    ModalFault.CALL_LOST: FailureReason.CALL_LOST,
    # Somebody else did it: the next attempt asks anew.
    ModalFault.CALL_CANCELLED: FailureReason.CALL_LOST,
    # Nothing is known of the cause: the app's log has the traceback.
    ModalFault.CALL_FAILED: FailureReason.INTERNAL,
    ModalFault.OUT_OF_MEMORY: FailureReason.OUT_OF_MEMORY,
    ModalFault.TIMED_OUT: FailureReason.STEP_TIMED_OUT,
    # Files of a parent are looked for before, so these are of the answer.
    ModalFault.FILE_MISSING: FailureReason.CALL_LOST,
    ModalFault.REQUEST_REFUSED: FailureReason.INVALID_INPUT,
    ModalFault.UNREACHABLE: FailureReason.SERVICE_UNREACHABLE,
}


def failed(reason: FailureReason, message: str) -> EngineError:
    """A failure of this engine."""
    return EngineError(reason, f"engine modal: {message}")


@contextmanager
def service_failures() -> Iterator[None]:
    """Context manager: turns failures of the platform into the trainer's errors."""
    try:
        yield
    except ModalServiceError as error:
        raise failed(REASONS[error.kind], error.message) from None
