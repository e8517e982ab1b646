"""Turns exceptions of the step and its libraries into errors with a failure reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import clear_frames

import torch

from claas_contract.outcome import FailureReason
from claas_trainer.errors import EngineError, InputError, TrainerError
from claas_trainer.sdpo.errors import (
    AdapterError,
    InvalidBatchError,
    InvalidConfigError,
    MappingError,
    NonFiniteError,
    PolicyMovedError,
    SdpoError,
    WeightsError,
)


@contextmanager
def engine_errors() -> Iterator[None]:
    """Context manager: turns exceptions of the step and its libraries into errors with a failure reason."""
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        # The traceback's frames would keep the failed step's memory on the device, and vLLM could not wake.
        clear_frames(error.__traceback__)
        known = _known(error)
        if known is None:
            raise
        raise known from error


def _known(error: Exception) -> TrainerError | None:
    match error:
        case torch.OutOfMemoryError() | MemoryError():
            return EngineError(
                FailureReason.OUT_OF_MEMORY,
                "the step does not fit into memory; give shorter samples, or more memory",
            )
        case InvalidBatchError():
            return EngineError(FailureReason.INVALID_SAMPLE, str(error))
        case InvalidConfigError():
            return InputError(f"training: {error}")
        case NonFiniteError():
            return EngineError(FailureReason.NOT_FINITE, str(error))
        case PolicyMovedError():
            return EngineError(FailureReason.POLICY_MOVED, str(error))
        case MappingError():
            return EngineError(FailureReason.SERVING_LOST, str(error))
        case WeightsError():
            return InputError(f"model: {error}", FailureReason.MODEL_NOT_FOUND)
        case AdapterError():
            return InputError(f"lora: {error}")
        case SdpoError():
            return EngineError(FailureReason.INTERNAL, str(error))
    return None
