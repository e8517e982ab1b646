"""Random weights, made where they are used: for measurements and tests of the forward."""

from __future__ import annotations

import torch
from torch import Tensor

from claas_trainer.forward.weights.layout import layer_shapes
from claas_trainer.forward.weights.source import LayerWeights, WeightSource
from claas_trainer.model.shape import ModelShape

_DEVIATION = 0.02


class RandomWeights(WeightSource):
    """A model that was never trained: matrices and biases are normal with a standard deviation of 0.02 around 0,
    norms around 1. It is on the device from its making on, and the same for the same seed, device and dtype."""

    def __init__(
        self,
        shape: ModelShape,
        device: torch.device,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        *,
        alike: bool = False,
    ) -> None:
        """`dtype`: by default bfloat16 on CUDA, float32 on the CPU. `alike`: all layers are one and the same, which
        takes the memory of one. Raises torch.OutOfMemoryError."""
        self.shape, self.device = shape, device
        self.dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        self._generator = torch.Generator(device).manual_seed(seed)
        shapes = layer_shapes(shape)
        layers = [
            LayerWeights(**{name: self._tensor(width, norm="norm" in name) for name, width in shapes.items()})
            for _ in range(1 if alike else shape.layers)
        ]
        self._layers = layers * shape.layers if alike else layers
        self._final_norm = self._tensor((shape.hidden,), norm=True)
        self._head = self._tensor((shape.vocabulary, shape.hidden))
        self._embedding = self._head if shape.tied else self._tensor((shape.vocabulary, shape.hidden))

    def _tensor(self, shape: tuple[int, ...], *, norm: bool = False) -> Tensor:
        # Drawn in place, in the dtype itself: no float32 copy.
        empty = torch.empty(shape, dtype=self.dtype, device=self.device)
        return empty.normal_(1.0 if norm else 0.0, _DEVIATION, generator=self._generator)

    @property
    def resident_bytes(self) -> int:
        """None beyond what is there already."""
        return 0

    def acquire(self) -> None:
        """Nothing to do."""

    def release(self) -> None:
        """Nothing: the weights stay."""

    def layer(self, index: int) -> LayerWeights:
        return self._layers[index]

    def embed(self, ids: Tensor) -> Tensor:
        return self._embedding.index_select(0, ids)

    @property
    def final_norm(self) -> Tensor:
        return self._final_norm

    @property
    def head(self) -> Tensor:
        return self._head
