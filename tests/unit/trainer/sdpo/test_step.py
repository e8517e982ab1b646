"""One SDPO step on a small random model, both ways, against autograd without any of its machinery."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from claas_trainer.forward.peft_model import AdaptedModel, attached
from claas_trainer.forward.weights.host import HostWeights
from claas_trainer.model.lora import AdapterWeights
from claas_trainer.sdpo.batch import TokenBatch, TokenSample, micro_batches
from claas_trainer.sdpo.errors import (
    InvalidBatchError,
    InvalidConfigError,
    NonFiniteError,
    OptimizerStateError,
    PolicyMovedError,
)
from claas_trainer.sdpo.losses.support import Support
from claas_trainer.sdpo.optimizer import OptimizerState
from claas_trainer.sdpo.parameters import Layout
from claas_trainer.sdpo.settings import Schedule, SdpoConfig
from claas_trainer.sdpo.step import sdpo_step
from tests.unit.trainer.core.models import Way, decoder, gradient, masters, off, step
from tests.unit.trainer.core.watched import Scarce, Watched

CONFIG = SdpoConfig(learning_rate=1e-3, teacher_top_k=10, max_grad_norm=0)
SMALL = Schedule(micro_batch_tokens=40, tile_rows=3)


def plain_gradient(
    model: AdaptedModel, samples: Sequence[TokenSample], alpha: float, clip: float, kl: float
) -> tuple[float, Tensor]:
    """Full vocabulary, one sample at a time, one graph for all, one backward; the formulas as they are read."""

    def logprobs(prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
        logits = model.peft(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
        rows: Tensor = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
        return rows

    total = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        with torch.no_grad(), model.peft.disable_adapter():
            t = logprobs(sample.teacher_prompt_ids, sample.response_ids)
            base = logprobs(sample.student_prompt_ids, sample.response_ids)
        s = logprobs(sample.student_prompt_ids, sample.response_ids)
        rows = range(len(sample.response_ids))
        lp, base_lp = s[rows, sample.response_ids], base[rows, sample.response_ids]
        old = lp.detach() if sample.old_logprobs is None else torch.tensor(sample.old_logprobs).double()
        ratio = (lp.detach() - old).exp().clamp(max=clip)
        m = ((1 - alpha) * s.exp() + alpha * t.exp()).log()
        js = (1 - alpha) * (s.exp() * (s - m)).sum(-1) + alpha * (t.exp() * (t - m)).sum(-1)
        k3 = (base_lp - lp).exp() - (base_lp - lp) - 1
        total = total + (ratio * js + kl * k3).sum()
    loss = total / sum(len(sample.response_ids) for sample in samples)
    parameters = model.trainable()
    found = torch.autograd.grad(loss, [parameters[name] for name in sorted(parameters)])
    return loss.item(), torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize(("alpha", "kl"), [(0.5, 0.0), (0.5, 0.2), (0.2, 0.0)])
def test_loss_and_gradient_are_those_of_plain_autograd(
    way: Way, base: PreTrainedModel, adapter: AdapterWeights, samples: list[TokenSample], alpha: float, kl: float
) -> None:
    config = dataclasses.replace(CONFIG, alpha=alpha, kl_reg_weight=kl, support=Support.FULL, is_clip=1.5)
    with attached(base, adapter) as model:
        loss, expected = plain_gradient(model, samples, alpha, 1.5, kl)
    result = step(way, adapter, samples, config)
    assert result.metrics.loss == pytest.approx(loss, rel=1e-5)
    assert off(gradient(result, config), expected) < 1e-5
    assert result.metrics.grad_norm == pytest.approx(expected.norm().item(), rel=1e-5)


@pytest.mark.parametrize(
    "schedule",
    [Schedule(1, 1), Schedule(40, 3), Schedule(60, 10_000), Schedule(10_000, 5)],
    ids=lambda schedule: f"{schedule.micro_batch_tokens}-{schedule.tile_rows}",
)
def test_micro_batches_and_tiles_change_nothing_but_rounding(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample], schedule: Schedule
) -> None:
    """All in one packed or padded forward, or each sample by itself."""
    usual = step(way, adapter, samples, CONFIG)
    other = step(way, adapter, samples, CONFIG, schedule=schedule)
    assert usual.metrics.micro_batches == 1
    assert (other.metrics.micro_batches > 1) == (schedule.micro_batch_tokens < 10_000)
    assert other.metrics.loss == pytest.approx(usual.metrics.loss, rel=1e-5)
    assert other.metrics.kl_to_parent == pytest.approx(usual.metrics.kl_to_parent, rel=1e-3)
    assert off(gradient(other, CONFIG), gradient(usual, CONFIG)) < 1e-5


def test_the_order_of_the_samples_changes_not_a_bit(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    usual = step(way, adapter, samples, CONFIG, schedule=SMALL)
    shuffled = random.Random(0).sample(samples, len(samples))
    other = step(way, adapter, shuffled, CONFIG, schedule=SMALL)
    assert shuffled != samples
    assert other.metrics == usual.metrics
    assert torch.equal(masters(other), masters(usual))


def test_the_same_input_and_seed_give_the_same_bytes(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    one = step(way, adapter, samples, CONFIG)
    torch.rand(3)
    other = step(way, adapter, samples, CONFIG)
    for key, tensor in one.state.to_tensors().items():
        assert torch.equal(tensor, other.state.to_tensors()[key]), key
    assert one.metrics == other.metrics


def test_two_steps_through_a_stored_state_are_two_steps_in_a_row(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    with way(adapter) as model:
        first = sdpo_step(model, samples, CONFIG, OptimizerState.fresh(adapter.tensors, model.layout))
        straight = sdpo_step(model, samples[:4], CONFIG, first.state)
        stored = OptimizerState.from_tensors(first.state.to_tensors(), model.layout)
    # The adapter as it was before: the masters of the state are what counts.
    resumed = step(way, adapter, samples[:4], CONFIG, stored)
    assert resumed.state.step == 2
    assert torch.equal(masters(resumed), masters(straight))
    assert not torch.equal(masters(resumed), masters(first))


def test_a_step_leaves_the_state_that_it_started_from_as_it_was(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    with way(adapter) as model:
        state = OptimizerState.fresh(adapter.tensors, model.layout)
        before = {part: vector.clone() for part, vector in state.vectors.items()}
        sdpo_step(model, samples, CONFIG, state)
    assert state.step == 0
    assert all(torch.equal(state.vectors[part], vector) for part, vector in before.items())


def test_a_step_writes_to_none_of_the_base_s_weights(
    weights: HostWeights, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    """They may be a running server's own."""

    def all_of_them() -> list[Tensor]:
        layers = [weights.layer(index) for index in range(weights.shape.layers)]
        tensors = [tensor for layer in layers for tensor in vars(layer).values() if tensor is not None]
        return [*tensors, weights.head, weights.final_norm]

    before = [tensor.clone() for tensor in all_of_them()]
    model = decoder(weights, adapter, checkpointed_layers=1)
    state = OptimizerState.fresh(adapter.tensors, model.layout)
    sdpo_step(model, samples, dataclasses.replace(CONFIG, kl_reg_weight=0.1), state)
    assert all(torch.equal(one, other) for one, other in zip(all_of_them(), before, strict=True))


def test_a_step_moves_the_adapter_towards_the_teacher(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    state, losses = None, []
    for _ in range(8):
        result = step(way, adapter, samples, CONFIG, state)
        state = result.state
        losses.append(result.metrics.divergence)
        assert result.metrics.kl_to_parent > 0
    assert losses[-1] < 0.9 * losses[0]


def test_a_step_tells_which_micro_batch_it_is_at(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    told: list[tuple[int, int]] = []
    with way(adapter) as model:
        state = OptimizerState.fresh(adapter.tensors, model.layout)
        result = sdpo_step(
            model, samples, CONFIG, state, schedule=SMALL, on_micro_batch=lambda *place: told.append(place)
        )
    assert told == [(number, len(told)) for number in range(1, len(told) + 1)]
    assert len(told) == result.metrics.micro_batches >= 2


def test_a_step_of_one_micro_batch_has_places_to_rest_in_between_its_layers(
    weights: HostWeights, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    model, rests = decoder(weights, adapter, checkpointed_layers=1), []
    model.before_layer = lambda: rests.append(True)
    state = OptimizerState.fresh(adapter.tensors, model.layout)
    metrics = sdpo_step(model, samples, CONFIG, state, schedule=Schedule(10**6, 10**6)).metrics
    assert metrics.micro_batches == 1
    # The teacher's forward, the student's, the way back, and the forward on which the distance moved is measured.
    assert len(rests) == 4 * weights.shape.layers


def test_nothing_to_learn_moves_nothing(way: Way, fresh: AdapterWeights) -> None:
    """A teacher that saw no more than the student, and an adapter that still changes nothing."""
    sample = TokenSample((3, 4, 5), (3, 4, 5), (6, 7))
    result = step(way, fresh, [sample], dataclasses.replace(CONFIG, weight_decay=0.0))
    assert result.metrics.loss == 0
    assert result.metrics.kl_to_parent < 1e-6
    assert result.metrics.grad_norm < 1e-6


def test_samples_without_recorded_logprobs_have_ratio_one(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    unrecorded = [dataclasses.replace(sample, old_logprobs=None) for sample in samples]
    metrics = step(way, adapter, unrecorded, CONFIG).metrics
    assert (metrics.ratio_mean, metrics.ratio_max, metrics.clipped_fraction) == (1, 1, 0)
    assert metrics.loss == pytest.approx(metrics.divergence)


def test_ratios_are_clipped_and_reported(way: Way, adapter: AdapterWeights) -> None:
    sample = TokenSample((3, 4), (3, 4, 9), (5, 6, 7, 8), old_logprobs=(-60.0, -60.0, -0.0, -0.0))
    metrics = step(way, adapter, [sample], dataclasses.replace(CONFIG, is_clip=2.0)).metrics
    assert metrics.ratio_max == 2
    assert metrics.clipped_fraction == 0.5
    assert 1 < metrics.ratio_mean < 2


def test_the_gradient_is_clipped_by_its_global_norm(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    free = step(way, adapter, samples, CONFIG)
    limit = free.metrics.grad_norm / 10
    clipped = step(way, adapter, samples, dataclasses.replace(CONFIG, max_grad_norm=limit))
    assert clipped.metrics.grad_norm == pytest.approx(free.metrics.grad_norm)
    assert gradient(clipped, CONFIG).norm().item() == pytest.approx(limit, rel=1e-4)


def watched_step(
    way: Way,
    adapter: AdapterWeights,
    samples: Sequence[TokenSample],
    watch: Callable[..., Watched],
    **options: object,
) -> Watched:
    """A step whose model was wrapped by `watch`."""
    with way(adapter) as model:
        watched = watch(model)
        state = OptimizerState.fresh(adapter.tensors, model.layout)
        config = options.pop("config", CONFIG)
        sdpo_step(watched, samples, config, state, **options)  # type: ignore[arg-type]
    return watched


def test_the_model_is_cleared_after_a_step_and_after_one_that_failed(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    assert watched_step(way, adapter, samples, Watched).cleared

    def broken(batch: TokenBatch) -> None:
        raise RuntimeError("in mid-step")

    with way(adapter) as model:
        failed = Watched(model, broken)
        with pytest.raises(RuntimeError, match="in mid-step"):
            sdpo_step(failed, samples, CONFIG, OptimizerState.fresh(adapter.tensors, model.layout))
    assert failed.cleared


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_no_number_fails_and_gives_nothing(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample], poison: float
) -> None:
    spoilt = {name: tensor.clone() for name, tensor in adapter.tensors.items()}
    next(iter(spoilt.values()))[0, 0] = poison
    with way(adapter) as model:
        state = OptimizerState.fresh(spoilt, model.layout)
        with pytest.raises(NonFiniteError, match="was not updated"):
            sdpo_step(model, samples, CONFIG, state)
    for name, tensor in state.masters.items():
        torch.testing.assert_close(tensor, spoilt[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_fails_and_gives_nothing(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample], poison: float
) -> None:
    with way(adapter) as model:
        watched = Watched(model, gradients=lambda gradient: gradient * poison)
        state = OptimizerState.fresh(adapter.tensors, model.layout)
        with pytest.raises(NonFiniteError, match="gradient's norm is nan"):
            sdpo_step(watched, samples, CONFIG, state)
    assert all(torch.equal(tensor, adapter.tensors[name]) for name, tensor in state.masters.items())


def test_a_step_that_moves_the_policy_too_far_fails(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    moved = step(way, adapter, samples, CONFIG).metrics.kl_to_parent
    assert moved > 0
    step(way, adapter, samples, dataclasses.replace(CONFIG, max_kl=1.1 * moved))
    with pytest.raises(PolicyMovedError, match="max_kl is"):
        step(way, adapter, samples, dataclasses.replace(CONFIG, max_kl=0.9 * moved))


def test_an_update_to_a_policy_that_is_no_number_fails(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    with pytest.raises(NonFiniteError, match="updated policy"):
        step(way, adapter, samples, dataclasses.replace(CONFIG, learning_rate=1e30))


@pytest.mark.parametrize(("times", "at"), [(1, 0), (1, 1), (3, 1)])
def test_where_memory_runs_out_the_step_begins_again_in_smaller_pieces_and_counts_nothing_twice(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample], times: int, at: int
) -> None:
    usual = step(way, adapter, samples, CONFIG)
    told: list[tuple[int, int]] = []
    with way(adapter) as model:
        state = OptimizerState.fresh(adapter.tensors, model.layout)
        # Half of this is less than all samples, and more than the longest.
        schedule = Schedule(60, 8)
        scarce = Watched(model, Scarce(times, at))
        result = sdpo_step(
            scarce, samples, CONFIG, state, schedule=schedule, on_micro_batch=lambda *place: told.append(place)
        )
    assert [number for number, _ in told].count(1) == times + 1
    for _ in range(times):
        half = schedule.halved()
        assert half is not None
        schedule = half
    assert result.schedule == schedule
    assert result.metrics.micro_batches == told[-1][1]
    assert result.metrics.micro_batches == len(list(micro_batches(samples, schedule.micro_batch_tokens)))
    assert result.metrics.loss == pytest.approx(usual.metrics.loss, rel=1e-5)
    assert result.metrics.divergence == pytest.approx(usual.metrics.divergence, rel=1e-5)
    assert result.metrics.ratio_mean == pytest.approx(usual.metrics.ratio_mean, rel=1e-5)
    assert off(gradient(result, CONFIG), gradient(usual, CONFIG)) < 1e-5


def test_memory_that_suffices_for_nothing_is_an_error_and_not_an_endless_loop(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    def full(batch: TokenBatch) -> None:
        raise torch.OutOfMemoryError

    with way(adapter) as model:
        state = OptimizerState.fresh(adapter.tensors, model.layout)
        with pytest.raises(torch.OutOfMemoryError):
            sdpo_step(Watched(model, full), samples, CONFIG, state)


def test_a_schedule_is_halved_until_nothing_is_left_to_halve() -> None:
    schedule: Schedule | None = Schedule(8, 3)
    seen = []
    while schedule is not None:
        seen.append((schedule.micro_batch_tokens, schedule.tile_rows))
        schedule = schedule.halved()
    assert seen == [(8, 3), (4, 1), (2, 1), (1, 1)]


def test_another_adapters_state_is_refused(way: Way, adapter: AdapterWeights, samples: list[TokenSample]) -> None:
    foreign = OptimizerState.fresh({"somebody.else": torch.zeros(2)})
    with pytest.raises(OptimizerStateError, match="belongs to another adapter"):
        step(way, adapter, samples, CONFIG, foreign)


def test_a_state_in_another_order_is_never_taken_for_one_in_the_model_s(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    """Vectors of one length whose tensors stand elsewhere would scramble the adapter without a word."""
    usual = step(way, adapter, samples, CONFIG)
    other = Layout(dict(reversed(usual.state.layout.shapes.items())))
    result = step(way, adapter, samples, CONFIG, OptimizerState.fresh(adapter.tensors, other))
    assert torch.equal(masters(result), masters(usual))
    assert torch.equal(gradient(result, CONFIG), gradient(usual, CONFIG))


GOOD = TokenSample((1, 2), (1, 2, 3), (4, 5), (-0.5, -0.5))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (dataclasses.replace(GOOD, response_ids=(), old_logprobs=()), r"\[1\]\.response_ids is empty"),
        (dataclasses.replace(GOOD, student_prompt_ids=()), r"\[1\]\.student_prompt_ids is empty"),
        (dataclasses.replace(GOOD, teacher_prompt_ids=(1, 96)), r"\[1\]\.teacher_prompt_ids .* 0\.\.95"),
        (dataclasses.replace(GOOD, response_ids=(4, -1)), r"\[1\]\.response_ids .* outside"),
        (dataclasses.replace(GOOD, old_logprobs=(-0.5,)), r"\[1\]\.old_logprobs has 1 values for 2"),
        (dataclasses.replace(GOOD, old_logprobs=(-0.5, math.nan)), r"\[1\]\.old_logprobs .* invalid log-prob"),
        (dataclasses.replace(GOOD, old_logprobs=(-0.5, 0.5)), r"\[1\]\.old_logprobs .* invalid log-prob"),
    ],
)
def test_a_sample_that_cannot_be_trained_on_is_named_by_index_and_field(
    way: Way, adapter: AdapterWeights, bad: TokenSample, said: str
) -> None:
    with pytest.raises(InvalidBatchError, match=said):
        step(way, adapter, [GOOD, bad], CONFIG)


def test_an_empty_batch_is_refused(way: Way, adapter: AdapterWeights) -> None:
    with pytest.raises(InvalidBatchError, match="samples: empty"):
        step(way, adapter, [], CONFIG)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"alpha": 1.1},
        {"is_clip": 0.5},
        {"max_grad_norm": -1.0},
        {"kl_reg_weight": math.inf},
        {"teacher_top_k": 0},
        {"weight_decay": -0.1},
        {"beta1": 1.0},
        {"max_kl": -1.0},
    ],
)
def test_a_setting_outside_its_range_is_named(wrong: dict[str, float]) -> None:
    (field,) = wrong
    with pytest.raises(InvalidConfigError, match=field):
        dataclasses.replace(CONFIG, **wrong)  # type: ignore[arg-type]


def test_the_defaults_are_those_that_claas_users_know() -> None:
    config = SdpoConfig()
    assert (config.learning_rate, config.alpha, config.is_clip, config.max_grad_norm) == (3e-5, 0.5, 5.0, 1.0)
    assert (config.kl_reg_weight, config.teacher_top_k, config.weight_decay) == (0.0, 100, 0.01)
    assert config.max_kl == 0


def test_a_support_larger_than_the_vocabulary_is_the_full_one(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    wide = step(way, adapter, samples, dataclasses.replace(CONFIG, teacher_top_k=100))
    full = step(way, adapter, samples, dataclasses.replace(CONFIG, support=Support.FULL))
    assert torch.equal(masters(wide), masters(full))
