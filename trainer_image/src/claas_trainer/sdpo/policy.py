"""What a step needs of a model: the interface between the step and the two forwards, ours and PEFT's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum

import torch
from torch import Tensor

from claas_trainer.sdpo.batch import TokenBatch
from claas_trainer.sdpo.parameters import AdapterParameters, Layout


class Network(StrEnum):
    """Which weights a forward is made with."""

    BASE = "base"
    """The base model alone."""
    STUDENT = "student"
    """With the adapter that is being trained."""
    AVERAGE = "average"
    """With the moving average of the adapter."""


class StudentPass(ABC):
    """A forward of the student that can be gone back through, once.

    `features`: [N, F] at the response positions, without a graph of its own.
    """

    features: Tensor

    @abstractmethod
    def backward(self, gradient: Tensor) -> None:
        """Add the adapter's gradient to the parameters' `grad`; `gradient` is that of the features, [N, F]. What the
        forward kept is let go of."""


class PolicyModel(ABC):
    """A causal language model with an adapter.

    Features are what the head makes logits of; they are small where the model's head can be applied apart from it.
    `place` comes first; `refresh` must follow every change of the parameters before the next forward.
    """

    layout: Layout
    device: torch.device
    vocabulary_size: int

    @abstractmethod
    def place(self, masters: Tensor) -> AdapterParameters:
        """Have the adapter's parameters, a flat vector on the CPU, on the device."""

    @abstractmethod
    def clear(self) -> None:
        """Let go of what `place` and `refresh` made."""

    @abstractmethod
    def refresh(self, average: Tensor | None = None) -> None:
        """Take up the parameters as they are now, and the moving average (flat, as the parameters are) where there
        is one; at once, or when they are needed."""

    @abstractmethod
    def features(self, batch: TokenBatch, network: Network) -> Tensor:
        """Features at the response positions, [N, F], without a graph."""

    @abstractmethod
    def student(self, batch: TokenBatch) -> StudentPass:
        """A forward of the student whose gradient will be asked for."""

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """[n, F] -> [n, V] in float32 at least, without a graph. The caller may overwrite the result."""

    @abstractmethod
    def features_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient of the features, [n, F], from that of the logits, [n, V]."""
