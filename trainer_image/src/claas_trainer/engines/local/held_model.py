"""A base model that a process holds across steps, so that a step reads no weights."""

from __future__ import annotations

from pathlib import Path

import torch

from claas_trainer.forward.weights.host import HostMemory, HostWeights
from claas_trainer.forward.weights.source import WeightSource
from claas_trainer.model.config_shape import read_shape
from claas_trainer.model.shape import ModelShape


class HeldModel:
    """The weights of a model that the trainer's own forward can compute, in host memory.

    No device knows of them before the first step, so that a snapshot of the process can be taken until then. One step
    at a time uses them.
    """

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._weights: HostWeights | None = None

    @classmethod
    def read(cls, folder: Path, *, cuda: bool) -> HeldModel:
        """Read a model folder; `cuda`: for steps on a GPU, which need not be there yet.

        Raises:
            UnsupportedModelError: only the generic forward can compute it.
            InputError, WeightsError: the folder has no usable model.
        """
        return cls(HostMemory.read(folder, read_shape(folder), cuda=cuda))

    @property
    def shape(self) -> ModelShape:
        return self._memory.shape

    @property
    def fingerprint(self) -> str:
        """That of the folder at the time, as `base_model.base_fingerprint` computes it."""
        return f"tensors:{self._memory.digest}"

    def weights(self, device: torch.device) -> WeightSource:
        """The weights for a step on this device, the same in each step: release them after it, but never close
        them."""
        if self._weights is None:
            self._weights = HostWeights.over(self._memory, device)
        return self._weights
