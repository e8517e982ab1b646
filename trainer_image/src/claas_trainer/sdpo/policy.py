"""The interface between the step and the two forwards, the trainer's own and PEFT's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum

import torch
from torch import Tensor

from claas_trainer.sdpo.batch import TokenBatch
from claas_trainer.sdpo.parameters import AdapterParameters, Layout


class Network(StrEnum):
    """The weights that a forward pass uses."""

    BASE = "base"
    """The base model without adapter."""
    STUDENT = "student"
    """The base model with the adapter that is being trained."""
    AVERAGE = "average"
    """The base model with the adapter's moving average."""


class StudentPass(ABC):
    """A forward pass of the student, for one backward pass. `features`: [N, F] at the response positions, detached
    from any graph.
    """

    features: Tensor

    @abstractmethod
    def backward(self, gradient: Tensor) -> None:
        """Add the adapter's gradient to the parameters' `grad`; `gradient` is that of the features, [N, F]. Frees all
        that the forward pass had saved."""


class PolicyModel(ABC):
    """A causal language model with an adapter.

    Features are the head's input if the head can be applied separately, which keeps them small. `place` comes first;
    after every change of the parameters `refresh` must precede the next forward pass.
    """

    layout: Layout
    device: torch.device
    vocabulary_size: int

    @abstractmethod
    def place(self, masters: Tensor) -> AdapterParameters:
        """Copy the adapter's parameters, a flat vector on the CPU, to the device."""

    @abstractmethod
    def clear(self) -> None:
        """Free what `place` and `refresh` allocated."""

    @abstractmethod
    def refresh(self, average: Tensor | None = None) -> None:
        """Use the current parameters, and the moving average (a flat vector too) if there is one, in later forward
        passes. May be done lazily."""

    @abstractmethod
    def features(self, batch: TokenBatch, network: Network) -> Tensor:
        """Features at the response positions, [N, F], without gradient."""

    @abstractmethod
    def student(self, batch: TokenBatch) -> StudentPass:
        """A forward pass of the student that a backward pass will follow."""

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """[n, F] -> [n, V] in float32 or wider, without gradient. The caller may overwrite the result."""

    @abstractmethod
    def features_gradient(self, gradient: Tensor) -> Tensor:
        """Gradient of the features, [n, F], from that of the logits, [n, V]."""
