"""Base weights that are NaN or infinite, found by tensor and file: every loss would be NaN with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from claas_trainer.forward.weights.files import Checkpoint, StoredTensor, read_into
from claas_trainer.sdpo.errors import NonFiniteError, WeightsError

ADVICE = (
    "every answer of such a model is NaN: download or copy it again; if it is so at its source, use another"
    " checkpoint, or convert the original once more, to bfloat16"
)


def is_finite(tensor: Tensor) -> bool:
    """Whether all of a tensor's values are numbers; at the speed of memory."""
    if not tensor.is_floating_point() or tensor.dtype.itemsize < 2 or tensor.numel() == 0:
        return True  # Formats of one byte are a quantised model's, and have scales beside them.
    return all(bound.isfinite().item() for bound in torch.aminmax(tensor))


def refuse_non_finite(stored: StoredTensor, values: Tensor) -> None:
    """That a tensor which was read is finite. Raises WeightsError."""
    if not is_finite(values):
        count = int((~values.isfinite()).sum())
        raise WeightsError(
            f"{stored.file}: tensor {stored.name} has {count} values that are NaN or infinite; {ADVICE}"
        )


def read_finite_into(stored: StoredTensor, destination: Tensor) -> None:
    """As `files.read_into`, and raises WeightsError where the values are not finite."""
    read_into(stored, destination)
    refuse_non_finite(stored, destination)


def search(folder: Path) -> None:
    """Look through all weights of a model folder, a tensor at a time. Raises WeightsError at the first that is not
    finite, or can't be read."""
    for stored in Checkpoint(folder).readable():
        read_finite_into(stored, torch.empty(stored.shape, dtype=stored.torch_dtype))


@contextmanager
def weights_blamed(folder: Path | None) -> Iterator[None]:
    """Where a step is not finite, look for the reason in base weights that nobody has looked through yet, those in
    `folder`. Raises WeightsError."""
    try:
        yield
    except NonFiniteError:
        if folder is not None:
            search(folder)
        raise
