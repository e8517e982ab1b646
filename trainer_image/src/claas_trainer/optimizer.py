"""AdamW over the adapter's float32 masters, with a state that belongs to a published version.

Restoring a version restores what its next step starts from: masters, moments, and the moving average where the
teacher has one. AdamW, clipping and copies work on each as one flat vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from claas_trainer.parameters import AdapterParameters, Layout
from claas_trainer.step_errors import OptimizerStateError

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
    """The vectors of a state; their values stand in the names of stored tensors."""

    MASTER = "master"
    EXP_AVG = "exp_avg"
    EXP_AVG_SQ = "exp_avg_sq"
    AVERAGE = "average"
    """The moving average of the masters: there only when the teacher is one."""


_NEEDED = (Part.MASTER, Part.EXP_AVG, Part.EXP_AVG_SQ)


@dataclass(frozen=True)
class OptimizerState:
    """Everything the next step starts from: float32 vectors on the CPU in one layout, and the updates made so far."""

    layout: Layout
    vectors: Mapping[Part, Tensor]
    step: int

    @classmethod
    def fresh(cls, masters: Mapping[str, Tensor], layout: Layout | None = None, *, pin: bool = False) -> OptimizerState:
        """The state before the first step on these weights: no moments yet."""
        layout = layout or _layout_of(masters)
        vectors = {Part.MASTER: layout.gather(masters, pin=pin)}
        for part in (Part.EXP_AVG, Part.EXP_AVG_SQ):
            vectors[part] = torch.zeros(layout.elements, pin_memory=pin)
        return cls(layout, vectors, 0)

    def named(self, part: Part) -> dict[str, Tensor]:
        """One vector by the adapter's published tensor names."""
        return self.layout.views(self.vectors[part])

    @property
    def masters(self) -> dict[str, Tensor]:
        """The adapter's weights by name."""
        return self.named(Part.MASTER)

    def to_tensors(self) -> dict[str, Tensor]:
        """One flat mapping to be written by safetensors: `master/NAME`, `exp_avg/NAME`, ..., `step`."""
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
            OptimizerStateError: a tensor is missing, of another kind, or has the wrong shape or dtype.
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

    def check(self, layout: Layout) -> None:
        """That this is a state of an adapter of this layout.

        Raises:
            OptimizerStateError: it isn't; the message names the first tensor that differs.
        """
        _check(Part.MASTER, self.masters, layout)


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
    """Scales the gradient down to the global norm, unless `max_norm` is 0; gives the norm before, on the device."""
    norm = torch.linalg.vector_norm(parameters.grad)
    if max_norm > 0:
        parameters.grad.mul_((max_norm / norm).clamp(max=1.0))
    return norm


def adamw_update(
    parameters: AdapterParameters, state: OptimizerState, config: AdamWConfig, average_rate: float | None = None
) -> OptimizerState:
    """One AdamW update of the parameters in place, from their gradient; gives the state after it.

    `average_rate`: the moving average becomes (1 - rate) * average + rate * masters; a state that has none yet
    starts it from the masters before the update. None keeps no average.
    """
    device = parameters.flat.device
    masters = torch.nn.Parameter(parameters.flat, requires_grad=True)
    masters.grad = parameters.grad
    optimizer = torch.optim.AdamW(
        [masters],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=device.type == "cuda",
    )
    average = _average(parameters, state) if average_rate is not None else None
    moments = {
        "exp_avg": state.vectors[Part.EXP_AVG].to(device, copy=True, non_blocking=True),
        "exp_avg_sq": state.vectors[Part.EXP_AVG_SQ].to(device, copy=True, non_blocking=True),
    }
    counter = torch.tensor(float(state.step), device=device if device.type == "cuda" else None)
    optimizer.state[masters] = {"step": counter, **moments}
    optimizer.step()
    after = {
        Part.MASTER: parameters.flat,
        Part.EXP_AVG: moments["exp_avg"],
        Part.EXP_AVG_SQ: moments["exp_avg_sq"],
    }
    if average is not None and average_rate is not None:
        after[Part.AVERAGE] = average.lerp_(parameters.flat, average_rate)
    stored = {part: _stored(vector) for part, vector in after.items()}
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return OptimizerState(parameters.layout, stored, state.step + 1)


def _average(parameters: AdapterParameters, state: OptimizerState) -> Tensor:
    found = state.vectors.get(Part.AVERAGE)
    return (parameters.flat if found is None else found).to(parameters.flat.device, copy=True)


def _stored(vector: Tensor) -> Tensor:
    host = torch.empty(vector.shape, dtype=torch.float32, pin_memory=vector.is_cuda)
    return host.copy_(vector, non_blocking=True)
