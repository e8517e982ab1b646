"""A model that passes everything on to another and can be watched, or made to fail, on the way."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from claas_trainer.sdpo.batch import TokenBatch
from claas_trainer.sdpo.parameters import AdapterParameters
from claas_trainer.sdpo.policy import Network, PolicyModel, StudentPass


class Watched(PolicyModel):
    """Notes each forward in `forwards`: those without a graph by their network, the others as `train`.

    `most_passes`: how many of the latter were alive at once. `before_student` is called with the batch of each, and
    `gradients` with the gradient of its features.
    """

    def __init__(
        self,
        model: PolicyModel,
        before_student: Callable[[TokenBatch], None] = lambda batch: None,
        gradients: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    ) -> None:
        self._model = model
        self._before_student = before_student
        self._gradients = gradients
        self._passes: list[weakref.ref[StudentPass]] = []
        self.layout = model.layout
        self.device = model.device
        self.vocabulary_size = model.vocabulary_size
        self.forwards: list[str] = []
        self.most_passes = 0
        self.cleared = False

    def place(self, masters: Tensor) -> AdapterParameters:
        return self._model.place(masters)

    def clear(self) -> None:
        self.cleared = True
        self._model.clear()

    def refresh(self, average: Tensor | None = None) -> None:
        self._model.refresh(average)

    def features(self, batch: TokenBatch, network: Network) -> Tensor:
        self.forwards.append(network.value)
        return self._model.features(batch, network)

    def student(self, batch: TokenBatch) -> StudentPass:
        self._before_student(batch)
        self.forwards.append("train")
        made = self._model.student(batch)
        self._passes = [ref for ref in self._passes if ref() is not None]
        self._passes.append(weakref.ref(made))
        self.most_passes = max(self.most_passes, len(self._passes))
        return _WatchedPass(made, self._gradients)

    def logits(self, features: Tensor) -> Tensor:
        return self._model.logits(features)

    def features_gradient(self, gradient: Tensor) -> Tensor:
        return self._model.features_gradient(gradient)


class _WatchedPass(StudentPass):
    def __init__(self, made: StudentPass, gradients: Callable[[Tensor], Tensor]) -> None:
        self._made = made
        self._gradients = gradients
        self.features = made.features

    def backward(self, gradient: Tensor) -> None:
        self._made.backward(self._gradients(gradient))


class Scarce:
    """Memory that runs out the first `times` times that a micro-batch comes with number `at` (from 0)."""

    def __init__(self, times: int, at: int = 0) -> None:
        self._left = times
        self._at = at
        self._since = 0

    def __call__(self, batch: TokenBatch) -> None:
        if self._left and self._since == self._at:
            self._left -= 1
            self._since = 0
            raise torch.OutOfMemoryError
        self._since += 1
