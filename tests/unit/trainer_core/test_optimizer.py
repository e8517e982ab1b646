"""AdamW's update and its state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import Parameter

from claas_trainer.optimizer import AdamWConfig, OptimizerState, adamw_update, load_masters
from claas_trainer.step_errors import OptimizerStateError

CONFIG = AdamWConfig(learning_rate=0.01, weight_decay=0.1)


def parameters(seed: int = 0) -> dict[str, Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: Parameter(torch.randn(3, 2, generator=generator)) for name in ("b", "a")}


def set_gradients(into: dict[str, Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(into):
        into[name].grad = torch.randn(3, 2, generator=generator)


def test_three_updates_are_those_of_the_formula() -> None:
    ours = parameters()
    state = OptimizerState.fresh(ours)
    weight = ours["a"].detach().double().clone()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 4):
        set_gradients(ours, step)
        assert ours["a"].grad is not None
        gradient = ours["a"].grad.double()
        state = adamw_update(ours, state, CONFIG)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        unbiased = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        weight = weight * (1 - 0.01 * 0.1) - 0.01 * unbiased
        torch.testing.assert_close(state.masters["a"].double(), weight, rtol=1e-5, atol=1e-6)
    assert state.step == 3


def test_a_state_through_a_file_continues_as_if_it_had_never_left_memory(tmp_path: Path) -> None:
    straight, resumed = parameters(), parameters()
    state = OptimizerState.fresh(straight)
    set_gradients(straight, 1)
    state = adamw_update(straight, state, CONFIG)
    save_file(state.to_tensors(), tmp_path / "state.safetensors")
    restored = OptimizerState.from_tensors(load_file(tmp_path / "state.safetensors"))
    load_masters(resumed, restored)
    for each in (straight, resumed):
        set_gradients(each, 2)
    one, other = adamw_update(straight, state, CONFIG), adamw_update(resumed, restored, CONFIG)
    assert one.step == other.step == 2
    for key, tensor in one.to_tensors().items():
        assert torch.equal(tensor, other.to_tensors()[key]), key


def test_an_update_leaves_the_state_before_it_as_it_was() -> None:
    ours = parameters()
    set_gradients(ours, 1)
    state = adamw_update(ours, OptimizerState.fresh(ours), CONFIG)
    kept = {key: tensor.clone() for key, tensor in state.to_tensors().items()}
    set_gradients(ours, 2)
    adamw_update(ours, state, CONFIG)
    for key, tensor in state.to_tensors().items():
        assert torch.equal(tensor, kept[key]), key


@pytest.mark.parametrize(
    ("key", "tensor", "said"),
    [
        ("step", None, "'step' is missing"),
        ("master/a", None, "unknown 'a'|has no 'a'"),
        ("exp_avg/a", None, "exp_avg has no 'a'"),
        ("exp_avg_sq/c", torch.zeros(3, 2), "exp_avg_sq has an unknown 'c'"),
        ("exp_avg/a", torch.zeros(2, 2), "exp_avg/a is"),
        ("exp_avg/a", torch.zeros(3, 2, dtype=torch.bfloat16), "exp_avg/a is"),
        ("momentum/a", torch.zeros(3, 2), "no part of an AdamW state"),
    ],
)
def test_a_broken_state_is_refused_by_the_name_of_the_tensor(
    key: str, tensor: torch.Tensor | None, said: str
) -> None:
    tensors = OptimizerState.fresh(parameters()).to_tensors()
    if tensor is None:
        del tensors[key]
    else:
        tensors[key] = tensor
    with pytest.raises(OptimizerStateError, match=said):
        OptimizerState.from_tensors(tensors)


def test_another_adapters_state_is_refused_and_writes_nothing() -> None:
    ours = parameters()
    before = {name: parameter.detach().clone() for name, parameter in ours.items()}
    other = OptimizerState.fresh({"a": torch.ones(3, 2), "z": torch.ones(3, 2)})
    with pytest.raises(OptimizerStateError, match="belongs to another adapter"):
        load_masters(ours, other)
    assert all(torch.equal(before[name], ours[name]) for name in ours)
