"""AdamW's update and its state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from claas_trainer.sdpo.errors import OptimizerStateError
from claas_trainer.sdpo.optimizer import AdamWConfig, OptimizerState, Part, PlacedState, adamw_update, clip_gradient
from claas_trainer.sdpo.parameters import AdapterParameters, Layout

CONFIG = AdamWConfig(learning_rate=0.01, weight_decay=0.1)
LAYOUT = Layout({"b": torch.Size((3, 2)), "a": torch.Size((3, 2))})


def weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 2, generator=generator) for name in ("b", "a")}


def placed(state: OptimizerState) -> AdapterParameters:
    """As a step has them: the state's masters, and no gradient yet."""
    return AdapterParameters(state.layout, state.vectors[Part.MASTER], torch.device("cpu"))


def updated(state: OptimizerState, seed: int, average_rate: float | None = None) -> OptimizerState:
    """One update with a gradient made from the seed, by the names of the tensors."""
    parameters = placed(state)
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(parameters.gradients):
        parameters.gradients[name].copy_(torch.randn(3, 2, generator=generator))
    average = state.vectors.get(Part.AVERAGE, state.vectors[Part.MASTER]).clone() if average_rate else None
    exp_avg, exp_avg_sq = (state.vectors[part].clone() for part in (Part.EXP_AVG, Part.EXP_AVG_SQ))
    moments = PlacedState(exp_avg, exp_avg_sq, average, state.step)
    return OptimizerState(state.layout, adamw_update(parameters, moments, CONFIG, average_rate), state.step + 1)


def test_three_updates_are_those_of_the_formula() -> None:
    state = OptimizerState.fresh(weights(), LAYOUT)
    weight = state.masters["a"].double().clone()
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in range(1, 4):
        # "a" comes first in the order of names.
        gradient = torch.randn(3, 2, generator=torch.Generator().manual_seed(step)).double()
        state = updated(state, step)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        unbiased = (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        weight = weight * (1 - 0.01 * 0.1) - 0.01 * unbiased
        torch.testing.assert_close(state.masters["a"].double(), weight, rtol=1e-5, atol=1e-6)
    assert state.step == 3


@pytest.mark.parametrize("average_rate", [None, 0.2])
def test_a_state_through_a_file_continues_as_if_it_had_never_left_memory(
    tmp_path: Path, average_rate: float | None
) -> None:
    state = updated(OptimizerState.fresh(weights(), LAYOUT), 1, average_rate)
    save_file(state.to_tensors(), tmp_path / "state.safetensors")
    restored = OptimizerState.from_tensors(load_file(tmp_path / "state.safetensors"), LAYOUT)
    one, other = updated(state, 2, average_rate), updated(restored, 2, average_rate)
    assert one.step == other.step == 2
    assert (Part.AVERAGE in one.vectors) == (average_rate is not None)
    for key, tensor in one.to_tensors().items():
        assert torch.equal(tensor, other.to_tensors()[key]), key


def test_a_stored_state_is_the_same_in_whatever_layout_it_is_read() -> None:
    state = updated(OptimizerState.fresh(weights(), LAYOUT), 1, 0.2)
    other = OptimizerState.from_tensors(state.to_tensors(), Layout(dict(reversed(LAYOUT.shapes.items()))))
    assert list(other.layout.shapes) != list(state.layout.shapes)
    assert not torch.equal(other.vectors[Part.MASTER], state.vectors[Part.MASTER])
    for part in Part:
        assert all(torch.equal(tensor, state.named(part)[name]) for name, tensor in other.named(part).items())
    one, another = updated(state, 2, 0.2).to_tensors(), updated(other, 2, 0.2).to_tensors()
    assert all(torch.equal(tensor, another[key]) for key, tensor in one.items())


def test_the_average_is_between_the_old_one_and_the_new_masters() -> None:
    before = OptimizerState.fresh(weights(), LAYOUT)
    after = updated(before, 1, 0.2)
    for name, average in after.named(Part.AVERAGE).items():
        torch.testing.assert_close(average, 0.8 * before.masters[name] + 0.2 * after.masters[name])
    assert torch.equal(updated(before, 1, 1.0).vectors[Part.AVERAGE], after.vectors[Part.MASTER])


@pytest.mark.parametrize(("limit", "wanted"), [(0.0, 5.0), (10.0, 5.0), (2.5, 2.5)])
def test_a_gradient_is_scaled_down_to_the_limit_and_never_up(limit: float, wanted: float) -> None:
    parameters = placed(OptimizerState.fresh(weights(), LAYOUT))
    parameters.grad[0], parameters.grad[7] = 3.0, -4.0
    assert clip_gradient(parameters, limit).item() == pytest.approx(5.0)
    assert parameters.grad.norm().item() == pytest.approx(wanted)
    assert (parameters.grad[7] / parameters.grad[0]).item() == pytest.approx(-4 / 3)


def test_a_gradient_of_zero_stays_zero() -> None:
    parameters = placed(OptimizerState.fresh(weights(), LAYOUT))
    assert clip_gradient(parameters, 1.0).item() == 0
    assert not parameters.grad.any()


@pytest.mark.parametrize(
    ("key", "tensor", "said"),
    [
        ("step", None, "'step' is missing"),
        ("master/a", None, "unknown 'a'|has no 'a'"),
        ("exp_avg/a", None, "exp_avg has no 'a'"),
        ("exp_avg_sq/c", torch.zeros(3, 2), "exp_avg_sq has an unknown 'c'"),
        ("average/a", None, "average has no 'a'"),
        ("exp_avg/a", torch.zeros(2, 2), "exp_avg/a is"),
        ("exp_avg/a", torch.zeros(3, 2, dtype=torch.bfloat16), "exp_avg/a is"),
        ("momentum/a", torch.zeros(3, 2), "no part of an AdamW state"),
    ],
)
def test_a_broken_state_is_refused_by_the_name_of_the_tensor(
    key: str, tensor: torch.Tensor | None, said: str
) -> None:
    tensors = updated(OptimizerState.fresh(weights(), LAYOUT), 1, 0.2).to_tensors()
    if tensor is None:
        del tensors[key]
    else:
        tensors[key] = tensor
    with pytest.raises(OptimizerStateError, match=said):
        OptimizerState.from_tensors(tensors)


def test_a_state_in_another_layout_is_the_same_state() -> None:
    state = updated(OptimizerState.fresh(weights(), LAYOUT), 1, 0.2)
    assert state.arranged(LAYOUT) is state
    other = state.arranged(Layout(dict(reversed(LAYOUT.shapes.items()))))
    assert not torch.equal(other.vectors[Part.MASTER], state.vectors[Part.MASTER])
    assert other.step == state.step
    for part in Part:
        assert all(torch.equal(tensor, state.named(part)[name]) for name, tensor in other.named(part).items())


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"a": (3, 2), "z": (3, 2)}, "belongs to another adapter"),
        ({"b": (3, 2), "a": (2, 2)}, "master/a is"),
        ({"b": (3, 2)}, "unknown 'a'"),
    ],
)
def test_another_adapters_state_is_refused(shapes: dict[str, tuple[int, ...]], said: str) -> None:
    layout = Layout({name: torch.Size(shape) for name, shape in shapes.items()})
    with pytest.raises(OptimizerStateError, match=said):
        OptimizerState.fresh(weights(), LAYOUT).arranged(layout)
