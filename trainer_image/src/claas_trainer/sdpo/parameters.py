"""The adapter's parameters as one flat float32 vector: copying, clipping and AdamW are one operation each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from claas_trainer.sdpo.transfers import ToDevice


class Layout:
    """Places of the tensors in a flat vector. The order of the names is the model's and is never stored."""

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        self.starts: dict[str, int] = {}
        self.elements = 0
        for name, shape in self.shapes.items():
            self.starts[name] = self.elements
            self.elements += math.prod(shape)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a vector by name."""
        return {
            name: flat.narrow(0, self.starts[name], shape.numel()).view(shape) for name, shape in self.shapes.items()
        }

    def gather(self, tensors: Mapping[str, Tensor], *, pin: bool = False) -> Tensor:
        """Concatenates tensors by name to one float32 vector on the CPU."""
        flat = torch.empty(self.elements, dtype=torch.float32, pin_memory=pin)
        for name, view in self.views(flat).items():
            view.copy_(tensors[name])
        return flat


class AdapterParameters:
    """Float32 master weights `flat` and their gradient `grad`, [P] each, on the step's device. `flat` starts as the
    given vector, which may still be on its way to the device, `grad` as zeros."""

    def __init__(self, layout: Layout, masters: Tensor, device: torch.device) -> None:
        self.layout = layout
        self.grad = torch.zeros(layout.elements, dtype=torch.float32, device=device)
        self._arriving = ToDevice({"masters": masters}, device)

    @cached_property
    def flat(self) -> Tensor:
        """The master weights; later work on the current stream waits until they have arrived."""
        return self._arriving.ready()["masters"]

    @property
    def gradients(self) -> dict[str, Tensor]:
        """The gradient by name."""
        return self.layout.views(self.grad)
