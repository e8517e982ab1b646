"""AdamW over the adapter's float32 master weights, with a state that is published with each version.

The state of a version is all that the next step starts from: master weights, moments, and the teacher's moving
average if it has one. Each is one flat vector, for AdamW, clipping and copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from claas_trainer.sdpo.errors import OptimizerStateError
from claas_trainer.sdpo.parameters import AdapterParameters, Layout

STEP_KEY = "step"


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW's settings; weight decay is decoupled (Loshchilov and Hutter, arXiv 1711.05101)."""

    learning_rate: float
    weight_decay: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


class Part(StrEnum):
    """The vectors of a state; their values are part of the names of stored tensors."""

    MASTER = "master"
    EXP_AVG = "exp_avg"
    EXP_AVG_SQ = "exp_avg_sq"
    AVERAGE = "average"
    """The moving average of the master weights; only with the teacher `ema`."""


_NEEDED = (Part.MASTER, Part.EXP_AVG, Part.EXP_AVG_SQ)


@dataclass(frozen=True)
class OptimizerState:
    """All that the next step starts from: float32 vectors on the CPU in one layout, and the number of updates so
    far."""

    layout: Layout
    vectors: Mapping[Part, Tensor]
    step: int

    @classmethod
    def fresh(
        cls, masters: Mapping[str, Tensor], layout: Layout | None = None, *, pin: bool = False
    ) -> OptimizerState:
        """The state before the first step on these weights, with zero moments."""
        layout = layout or _layout_of(masters)
        vectors = {Part.MASTER: layout.gather(masters, pin=pin)}
        for part in (Part.EXP_AVG, Part.EXP_AVG_SQ):
            vectors[part] = torch.zeros(layout.elements, pin_memory=pin)
        return cls(layout, vectors, 0)

    def named(self, part: Part) -> dict[str, Tensor]:
        """One vector as tensors, by their published names."""
        return self.layout.views(self.vectors[part])

    @property
    def masters(self) -> dict[str, Tensor]:
        """The adapter's weights by name."""
        return self.named(Part.MASTER)

    def to_tensors(self) -> dict[str, Tensor]:
        """A flat mapping for safetensors: `master/NAME`, `exp_avg/NAME`, ..., `step`."""
        stored = {STEP_KEY: torch.tensor(self.step, dtype=torch.int64)}
        for part in self.vectors:
            stored.update({f"{part.value}/{name}": tensor for name, tensor in self.named(part).items()})
        return stored

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], layout: Layout | None = None, *, pin: bool = False
    ) -> OptimizerState:
        """The inverse of `to_tensors`, in the given layout.

        Raises:
            OptimizerStateError: a tensor is missing or unknown, or has the wrong shape or dtype.
        """
        groups: dict[Part, dict[str, Tensor]] = {part: {} for part in _NEEDED}
        for key, tensor in tensors.items():
            if key == STEP_KEY:
                continue
            group, _, name = key.partition("/")
            if group not in list(Part) or not name:
                raise OptimizerStateError(f"optimiser state: {key!r} is no part of an AdamW state")
            groups.setdefault(Part(group), {})[name] = tensor
        if STEP_KEY not in tensors:
            raise OptimizerStateError(f"optimiser state: {STEP_KEY!r} is missing; the file is not one of ours")
        layout = layout or _layout_of(groups[Part.MASTER])
        for part, found in groups.items():
            _check(part, found, layout)
        vectors = {part: layout.gather(found, pin=pin) for part, found in groups.items()}
        return cls(layout, vectors, int(tensors[STEP_KEY].item()))

    def arranged(self, layout: Layout) -> OptimizerState:
        """The same state in this layout.

        Raises:
            OptimizerStateError: the state belongs to another adapter; the message names the first tensor that
            differs.
        """
        if list(self.layout.shapes.items()) == list(layout.shapes.items()):
            return self
        for part in self.vectors:
            _check(part, self.named(part), layout)
        return OptimizerState(layout, {part: layout.gather(self.named(part)) for part in self.vectors}, self.step)


def _layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    return Layout({name: tensors[name].shape for name in sorted(tensors)})


def _check(part: Part, tensors: Mapping[str, Tensor], layout: Layout) -> None:
    differing = sorted(layout.shapes.keys() ^ tensors.keys())
    if differing:
        side = "has no" if differing[0] in layout.shapes else "has an unknown"
        raise OptimizerStateError(
            f"optimiser state: {part.value} {side} {differing[0]!r}: it belongs to another adapter "
            "(other target modules or another base model)"
        )
    for name, tensor in tensors.items():
        if tensor.shape != layout.shapes[name] or tensor.dtype != torch.float32:
            raise OptimizerStateError(
                f"optimiser state: {part.value}/{name} is {tuple(tensor.shape)} {tensor.dtype}, "
                f"expected {tuple(layout.shapes[name])} torch.float32: it belongs to another adapter"
            )


def clip_gradient(parameters: AdapterParameters, max_norm: float) -> Tensor:
    """Scales the gradient down to the global norm `max_norm`, unless it is 0. Returns the norm before, on the
    device."""
    norm: Tensor = torch.linalg.vector_norm(parameters.grad)
    if max_norm > 0:
        parameters.grad.mul_((max_norm / norm).clamp(max=1.0))
    return norm


@dataclass
class PlacedState:
    """A state's moments, and its moving average if it has one, on the step's device."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    average: Tensor | None
    step: int


def adamw_update(
    parameters: AdapterParameters, placed: PlacedState, config: AdamWConfig, average_rate: float | None = None
) -> dict[Part, Tensor]:
    """One AdamW update of the parameters and of `placed`, in place. Returns the vectors of the new state.

    `average_rate`: the moving average becomes (1 - rate) * average + rate * masters. None: no average is kept.
    """
    on_gpu = parameters.flat.is_cuda
    counter = torch.tensor(float(placed.step), device=parameters.flat.device if on_gpu else None)
    with torch.no_grad():
        # The function behind torch.optim.AdamW. Constructing that class imports torch's compiler, which takes
        # seconds.
        adamw(
            [parameters.flat],
            [parameters.grad],
            [placed.exp_avg],
            [placed.exp_avg_sq],
            [],
            [counter],
            foreach=False,
            fused=on_gpu,
            amsgrad=False,
            beta1=config.beta1,
            beta2=config.beta2,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            eps=config.epsilon,
            maximize=False,
        )
    after = {Part.MASTER: parameters.flat, Part.EXP_AVG: placed.exp_avg, Part.EXP_AVG_SQ: placed.exp_avg_sq}
    if average_rate is not None and placed.average is not None:
        after[Part.AVERAGE] = placed.average.lerp_(parameters.flat, average_rate)
    return after
