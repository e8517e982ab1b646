"""Random weights, created on the device: for measurements and tests of the forward."""

from __future__ import annotations

import torch
from torch import Tensor

from claas_trainer.forward.weights.layout import layer_shapes
from claas_trainer.forward.weights.source import LayerWeights, WeightSource
from claas_trainer.model.shape import ModelShape

_DEVIATION = 0.02


class RandomWeights(WeightSource):
    """An untrained model: matrices and biases are normal around 0 with a standard deviation of 0.02, norms around 1.
    Always on the device; the same seed, device and dtype give the same weights."""

    def __init__(
        self,
        shape: ModelShape,
        device: torch.device,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        *,
        alike: bool = False,
    ) -> None:
        """`dtype`: default bfloat16 on CUDA, float32 on the CPU. `alike`: all layers share the same weights and so
        the memory of one layer. Raises torch.OutOfMemoryError."""
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
        # Drawn in place in the final dtype, without a float32 copy.
        empty = torch.empty(shape, dtype=self.dtype, device=self.device)
        return empty.normal_(1.0 if norm else 0.0, _DEVIATION, generator=self._generator)

    @property
    def resident_bytes(self) -> int:
        """0: `acquire` takes no further memory."""
        return 0

    def acquire(self) -> None:
        """Nothing to do."""

    def release(self) -> None:
        """Nothing to do: the weights stay."""

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
