"""The adapter's parameters as one flat float32 vector, so that copying, clipping and AdamW are one operation each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from claas_trainer.sdpo.transfers import ToDevice


class Layout:
    """Which tensor stands where in a flat vector. The order of the names is the model's and is never stored."""

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        self.starts: dict[str, int] = {}
        self.elements = 0
        for name, shape in self.shapes.items():
            self.starts[name] = self.elements
            self.elements += math.prod(shape)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """A vector, seen by name."""
        return {
            name: flat.narrow(0, self.starts[name], shape.numel()).view(shape) for name, shape in self.shapes.items()
        }

    def gather(self, tensors: Mapping[str, Tensor], *, pin: bool = False) -> Tensor:
        """Tensors by name as one float32 vector on the CPU."""
        flat = torch.empty(self.elements, dtype=torch.float32, pin_memory=pin)
        for name, view in self.views(flat).items():
            view.copy_(tensors[name])
        return flat


class AdapterParameters:
    """Float32 masters and their gradient, [P] each, on the step's device: `flat` begins as the given vector, which
    may still be on its way there, and `grad` as zeros."""

    def __init__(self, layout: Layout, masters: Tensor, device: torch.device) -> None:
        self.layout = layout
        self.grad = torch.zeros(layout.elements, dtype=torch.float32, device=device)
        self._arriving = ToDevice({"masters": masters}, device)

    @cached_property
    def flat(self) -> Tensor:
        """The masters; the current stream's work waits for them from here on."""
        return self._arriving.ready()["masters"]

    @property
    def gradients(self) -> dict[str, Tensor]:
        """The gradient by name."""
        return self.layout.views(self.grad)
