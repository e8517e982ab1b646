"""The adapter's parameters as one flat float32 vector, so that copying, clipping and AdamW are one operation each."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


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
        return {name: flat.narrow(0, self.starts[name], shape.numel()).view(shape) for name, shape in self.shapes.items()}

    def gather(self, tensors: Mapping[str, Tensor], *, pin: bool = False) -> Tensor:
        """Tensors by name as one float32 vector on the CPU."""
        flat = torch.empty(self.elements, dtype=torch.float32, pin_memory=pin)
        for name, view in self.views(flat).items():
            view.copy_(tensors[name])
        return flat


class AdapterParameters:
    """Float32 masters and their gradient, zeros at first, on the step's device: `flat` and `grad`, [P] each."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        self.flat = torch.zeros(layout.elements, dtype=torch.float32, device=device)
        self.grad = torch.zeros_like(self.flat)

    @property
    def named(self) -> dict[str, Tensor]:
        """The masters by name."""
        return self.layout.views(self.flat)

    @property
    def gradients(self) -> dict[str, Tensor]:
        """The gradient by name."""
        return self.layout.views(self.grad)
