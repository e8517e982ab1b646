"""AdamW over the adapter's float32 masters, with a state that is plain tensors.

The state belongs to a published version: restoring a version restores what its next step starts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from claas_trainer.step_errors import OptimizerStateError

STEP_KEY = "step"
_MASTER, _EXP_AVG, _EXP_AVG_SQ = "master", "exp_avg", "exp_avg_sq"


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW's settings; weight decay is decoupled (Loshchilov and Hutter, arXiv 1711.05101)."""

    learning_rate: float
    weight_decay: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


@dataclass(frozen=True)
class OptimizerState:
    """Everything the next step starts from; each mapping has the adapter's published tensor names.

    `step` counts the updates made so far. All tensors are float32, on the CPU.
    """

    masters: Mapping[str, Tensor]
    exp_avg: Mapping[str, Tensor]
    exp_avg_sq: Mapping[str, Tensor]
    step: int

    @classmethod
    def fresh(cls, masters: Mapping[str, Tensor]) -> OptimizerState:
        """The state before the first step on these weights: no moments yet."""
        weights = {name: _stored(tensor) for name, tensor in masters.items()}
        zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        return cls(weights, zeros, {name: tensor.clone() for name, tensor in zeros.items()}, 0)

    def to_tensors(self) -> dict[str, Tensor]:
        """One flat mapping to be written by safetensors: `master/NAME`, `exp_avg/NAME`, ..., `step`."""
        flat = {STEP_KEY: torch.tensor(self.step, dtype=torch.int64)}
        for group, tensors in self._groups().items():
            flat.update({f"{group}/{name}": tensor for name, tensor in tensors.items()})
        return flat

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> OptimizerState:
        """The inverse of `to_tensors`.

        Raises:
            OptimizerStateError: a tensor is missing, of another kind, or has the wrong shape or dtype.
        """
        groups: dict[str, dict[str, Tensor]] = {_MASTER: {}, _EXP_AVG: {}, _EXP_AVG_SQ: {}}
        for key, tensor in tensors.items():
            if key == STEP_KEY:
                continue
            group, _, name = key.partition("/")
            if group not in groups or not name:
                raise OptimizerStateError(f"optimiser state: {key!r} is no part of an AdamW state")
            groups[group][name] = tensor
        if STEP_KEY not in tensors:
            raise OptimizerStateError(f"optimiser state: {STEP_KEY!r} is missing; the file is not one of ours")
        state = cls(groups[_MASTER], groups[_EXP_AVG], groups[_EXP_AVG_SQ], int(tensors[STEP_KEY].item()))
        state.check({name: tensor.shape for name, tensor in state.masters.items()})
        return state

    def check(self, shapes: Mapping[str, torch.Size]) -> None:
        """That this is a state of an adapter with these tensors.

        Raises:
            OptimizerStateError: it isn't; the message names the first tensor that differs.
        """
        for group, tensors in self._groups().items():
            differing = sorted(shapes.keys() ^ tensors.keys())
            if differing:
                side = "has no" if differing[0] in shapes else "has an unknown"
                raise OptimizerStateError(
                    f"optimiser state: {group} {side} {differing[0]!r}: it belongs to another adapter "
                    "(other target modules or another base model)"
                )
            for name, tensor in tensors.items():
                if tensor.shape != shapes[name] or tensor.dtype != torch.float32:
                    raise OptimizerStateError(
                        f"optimiser state: {group}/{name} is {tuple(tensor.shape)} {tensor.dtype}, "
                        f"expected {tuple(shapes[name])} torch.float32: it belongs to another adapter"
                    )

    def _groups(self) -> dict[str, Mapping[str, Tensor]]:
        return {_MASTER: self.masters, _EXP_AVG: self.exp_avg, _EXP_AVG_SQ: self.exp_avg_sq}


def load_masters(parameters: Mapping[str, Parameter], state: OptimizerState) -> None:
    """Writes the state's masters into the adapter's parameters.

    Raises:
        OptimizerStateError: the state belongs to another adapter; nothing is written then.
    """
    state.check({name: parameter.shape for name, parameter in parameters.items()})
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state.masters[name])


def adamw_update(parameters: Mapping[str, Parameter], state: OptimizerState, config: AdamWConfig) -> OptimizerState:
    """One AdamW update of the parameters in place, from their `.grad`; gives the state after it."""
    names = sorted(parameters)
    optimizer = torch.optim.AdamW(
        [parameters[name] for name in names],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        weight_decay=config.weight_decay,
    )
    for name in names:
        device = parameters[name].device
        optimizer.state[parameters[name]] = {
            "step": torch.tensor(float(state.step)),
            "exp_avg": state.exp_avg[name].to(device, copy=True),
            "exp_avg_sq": state.exp_avg_sq[name].to(device, copy=True),
        }
    optimizer.step()
    moments = {name: optimizer.state[parameters[name]] for name in names}
    return OptimizerState(
        masters={name: _stored(parameters[name]) for name in names},
        exp_avg={name: _stored(moments[name]["exp_avg"]) for name in names},
        exp_avg_sq={name: _stored(moments[name]["exp_avg_sq"]) for name in names},
        step=state.step + 1,
    )


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
