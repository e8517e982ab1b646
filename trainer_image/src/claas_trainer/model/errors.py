"""What transformers raises about a model's folder, as one error with the folder's name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from claas_trainer.sdpo.errors import StepError, WeightsError

_LENGTH = 400


@contextmanager
def model_errors(folder: Path, what: str) -> Iterator[None]:
    """Around whatever transformers reads of a model: a configuration that it can't use raises any exception there is.

    Raises:
        WeightsError: `what` of the folder is unusable, and why.
    """
    try:
        yield
    except (StepError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:_LENGTH]
        raise WeightsError(f"{folder}: no usable {what} there: {type(error).__name__}: {why}") from error
