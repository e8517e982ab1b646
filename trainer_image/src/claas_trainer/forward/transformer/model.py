"""The trainer's own model: layers and head, over any source of base weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from claas_trainer.forward.transformer.adapters import AdapterMap
from claas_trainer.forward.transformer.attention import Packing
from claas_trainer.forward.transformer.layer import Layer, LayerBackward, LayerLoras, Sequences
from claas_trainer.forward.transformer.rope import cosines_and_sines
from claas_trainer.forward.weights.source import WeightSource
from claas_trainer.kernels import elementwise
from claas_trainer.sdpo.batch import TokenBatch
from claas_trainer.sdpo.parameters import AdapterParameters
from claas_trainer.sdpo.policy import Network, PolicyModel, StudentPass


def go_on() -> None:
    """Does not wait."""


class DecoderModel(PolicyModel):
    """A `PolicyModel` over a `WeightSource`; `tensors` are the adapter's, by published name.

    `checkpointed_layers`: this many of the first layers save their input only. The first ones, because the backward
    pass reaches them when the memory of the others is free again. `before_layer` is called by the computing thread
    before each layer, forward and backward; it may wait.

    Raises:
        AdapterError, UnsupportedModelError: the adapter does not fit.
    """

    def __init__(
        self,
        source: WeightSource,
        tensors: Mapping[str, torch.Size],
        rank: int,
        alpha: float,
        before_layer: Callable[[], None] = go_on,
    ) -> None:
        self._source = source
        self._map = AdapterMap(source.shape, tensors, rank, alpha)
        self._parameters: AdapterParameters | None = None
        self._average: Tensor | None = None
        self._loras: dict[Network, list[LayerLoras]] = {}
        self.layout = self._map.layout
        self.device = source.device
        self.vocabulary_size = source.shape.vocabulary
        self.checkpointed_layers = 0
        self.before_layer = before_layer

    def place(self, masters: Tensor) -> AdapterParameters:
        self._parameters = AdapterParameters(self.layout, masters, self.device)
        return self._parameters

    def clear(self) -> None:
        self._loras = {}
        self._average = self._parameters = None

    def refresh(self, average: Tensor | None = None) -> None:
        self._loras = {}
        self._average = average

    def features(self, batch: TokenBatch, network: Network) -> Tensor:
        with torch.no_grad():
            x = self._source.embed(batch.ids)
            sequences = self._sequences(batch)
            for index in range(self._source.shape.layers):
                x = self._layer(index, network, sequences, batch).forward(x)
            return self._normed(x)

    def student(self, batch: TokenBatch) -> StudentPass:
        with torch.no_grad():
            return _DecoderPass(self, batch)

    def logits(self, features: Tensor) -> Tensor:
        head = self._source.head
        if features.dtype in (torch.float32, torch.float64):
            return features @ head.t()
        if features.is_cuda:
            return torch.mm(features, head.t(), out_dtype=torch.float32)
        return features.float() @ head.t().float()

    def features_gradient(self, gradient: Tensor) -> Tensor:
        head = self._source.head
        return gradient.to(head.dtype) @ head

    def forward_keeping(self, batch: TokenBatch) -> tuple[Tensor, list[LayerBackward]]:
        """The student's last hidden states before the final norm, [N, hidden], and the backward pass of every
        layer."""
        x = self._source.embed(batch.ids)
        sequences = self._sequences(batch)
        backwards = []
        for index in range(self._source.shape.layers):
            layer = self._layer(index, Network.STUDENT, sequences, batch)
            x, back = layer.checkpoint(x) if index < self.checkpointed_layers else layer.forward_keeping(x)
            backwards.append(back)
        return x, backwards

    def _layer(self, index: int, network: Network, sequences: Sequences, batch: TokenBatch) -> Layer:
        self.before_layer()
        loras = LayerLoras() if network is Network.BASE else self._adapters(network)[index]
        rows = batch.rows if index == self._source.shape.layers - 1 else None
        return Layer(self._source.shape, self._source.layer(index), loras, sequences, rows)

    def _adapters(self, network: Network) -> list[LayerLoras]:
        """The adapters, made on first use, so that the base model's forward pass does not wait for them."""
        if network not in self._loras:
            parameters, dtype = self._parameters, self._source.dtype
            assert parameters is not None, "place() comes first"
            if network is Network.STUDENT:
                self._loras[network] = self._map.loras(parameters.flat, dtype, parameters.grad)
            else:
                assert self._average is not None, "refresh() was given no average"
                self._loras[network] = self._map.loras(self._average, dtype)
        return self._loras[network]

    def _sequences(self, batch: TokenBatch) -> Sequences:
        shape = self._source.shape
        angles = cosines_and_sines(shape.rope, batch.positions())
        return Sequences(Packing(batch.lengths, self.device), *angles)

    def _normed(self, x: Tensor) -> Tensor:
        return elementwise.rms_norm(x, self._source.final_norm, self._source.shape.norm_epsilon)

    def before_norm(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Gradient of the hidden states before the final norm."""
        norm, epsilon = self._source.final_norm, self._source.shape.norm_epsilon
        return elementwise.rms_norm_backward(x, norm, epsilon, gradient, torch.zeros_like(gradient))[0]


class _DecoderPass(StudentPass):
    def __init__(self, model: DecoderModel, batch: TokenBatch) -> None:
        self._model = model
        self._last, self._backwards = model.forward_keeping(batch)
        self.features = model._normed(self._last)

    def backward(self, gradient: Tensor) -> None:
        with torch.no_grad():
            gradient = self._model.before_norm(self._last, gradient)
            del self._last
            while self._backwards:
                self._model.before_layer()
                gradient = self._backwards.pop()(gradient)
