"""Turns exceptions of transformers about a model folder into one error that names the folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from claas_trainer.sdpo.errors import SdpoError, WeightsError

_LENGTH = 400


@contextmanager
def model_errors(folder: Path, what: str) -> Iterator[None]:
    """Context manager around code in which transformers reads a model: for an unusable configuration it may raise any
    exception.

    Raises:
        WeightsError: `what` of the folder is unusable; the message says why.
    """
    try:
        yield
    except (SdpoError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:_LENGTH]
        raise WeightsError(f"{folder}: no usable {what} there: {type(error).__name__}: {why}") from error
