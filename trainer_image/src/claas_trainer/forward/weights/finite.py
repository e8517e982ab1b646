"""Finds NaN and infinite values in base weights, by tensor and file; with them every loss would be NaN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from claas_trainer.forward.weights.files import Checkpoint, StoredTensor, read_into
from claas_trainer.sdpo.errors import NonFiniteError, WeightsError

ADVICE = (
    "every answer of such a model is NaN: download or copy it again; if the source has them too, use another"
    " checkpoint, or convert the original again, to bfloat16"
)


def is_finite(tensor: Tensor) -> bool:
    """Whether all values of a tensor are finite; as fast as memory allows."""
    if not tensor.is_floating_point() or tensor.dtype.itemsize < 2 or tensor.numel() == 0:
        return True  # One-byte formats belong to quantised models and have scales beside them.
    return all(bound.isfinite().item() for bound in torch.aminmax(tensor))


def refuse_non_finite(stored: StoredTensor, values: Tensor) -> None:
    """Checks that a tensor is finite. Raises WeightsError."""
    if not is_finite(values):
        count = int((~values.isfinite()).sum())
        raise WeightsError(
            f"{stored.file}: tensor {stored.name} has {count} values that are NaN or infinite; {ADVICE}"
        )


def read_finite_into(stored: StoredTensor, destination: Tensor) -> None:
    """Like `files.read_into`; also raises WeightsError if a value is not finite."""
    read_into(stored, destination)
    refuse_non_finite(stored, destination)


def search(folder: Path) -> None:
    """Checks all weights of a model folder, one tensor at a time. Raises WeightsError for the first one that is not
    finite or not readable."""
    for stored in Checkpoint(folder).readable():
        read_finite_into(stored, torch.empty(stored.shape, dtype=stored.torch_dtype))


@contextmanager
def weights_blamed(folder: Path | None) -> Iterator[None]:
    """Context manager: if a step is not finite, checks the base weights in `folder`, unless they were checked
    already. Raises WeightsError if they are the cause."""
    try:
        yield
    except NonFiniteError:
        if folder is not None:
            search(folder)
        raise
