"""One SDPO step on a small random model, against autograd without any of its machinery."""

from __future__ import annotations

import dataclasses
import math
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from claas_trainer.batch import PolicyModel, StepSample, TokenBatch
from claas_trainer.lora import LoraAdapter
from claas_trainer.losses.sdpo import Support
from claas_trainer.peft_model import AdaptedModel, attached
from claas_trainer.optimizer import OptimizerState
from claas_trainer.step import StepConfig, StepResult, sdpo_step
from claas_trainer.step_errors import (
    InvalidBatchError,
    InvalidConfigError,
    NonFiniteError,
    OptimizerStateError,
)

CONFIG = StepConfig(learning_rate=1e-3, teacher_top_k=10, micro_batch_size=3, max_grad_norm=0)


def step(
    base: PreTrainedModel,
    adapter: LoraAdapter,
    samples: Sequence[StepSample],
    config: StepConfig = CONFIG,
    state: OptimizerState | None = None,
) -> StepResult:
    with attached(base, adapter) as model:
        return sdpo_step(model, samples, config, state)


def gradient(result: StepResult, config: StepConfig = CONFIG) -> Tensor:
    """After a first step the first moment is (1 - beta1) times the gradient."""
    moments = result.state.exp_avg
    return torch.cat([moments[name].flatten() for name in sorted(moments)]) / (1 - config.beta1)


def masters(result: StepResult) -> Tensor:
    return torch.cat([result.state.masters[name].flatten() for name in sorted(result.state.masters)])


def plain_gradient(
    model: AdaptedModel, samples: Sequence[StepSample], alpha: float, clip: float, kl: float
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
    base: PreTrainedModel, adapter: LoraAdapter, samples: list[StepSample], alpha: float, kl: float
) -> None:
    config = dataclasses.replace(CONFIG, alpha=alpha, kl_reg_weight=kl, support=Support.FULL, is_clip=1.5)
    with attached(base, adapter) as model:
        loss, expected = plain_gradient(model, samples, alpha, 1.5, kl)
    result = step(base, adapter, samples, config)
    assert result.metrics.loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(gradient(result), expected, rtol=1e-3, atol=1e-6)
    assert result.metrics.grad_norm == pytest.approx(expected.norm().item(), rel=1e-4)


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_the_micro_batch_size_changes_nothing_but_rounding(
    base: PreTrainedModel, adapter: LoraAdapter, samples: list[StepSample], size: int
) -> None:
    usual = step(base, adapter, samples)
    other = step(base, adapter, samples, dataclasses.replace(CONFIG, micro_batch_size=size))
    assert other.metrics.loss == pytest.approx(usual.metrics.loss, rel=1e-5)
    torch.testing.assert_close(gradient(other), gradient(usual), rtol=1e-3, atol=1e-7)


def test_the_order_of_the_samples_changes_not_a_bit(
    base: PreTrainedModel, adapter: LoraAdapter, samples: list[StepSample]
) -> None:
    usual = step(base, adapter, samples)
    shuffled = random.Random(0).sample(samples, len(samples))
    other = step(base, adapter, shuffled)
    assert shuffled != samples
    assert other.metrics == usual.metrics
    assert torch.equal(masters(other), masters(usual))


def test_the_same_input_and_seed_give_the_same_bytes(
    base: PreTrainedModel, adapter: LoraAdapter, samples: list[StepSample]
) -> None:
    one = step(base, adapter, samples)
    torch.rand(3)
    other = step(base, adapter, samples)
    for key, tensor in one.state.to_tensors().items():
        assert torch.equal(tensor, other.state.to_tensors()[key]), key
    assert one.metrics == other.metrics


def test_two_steps_through_a_stored_state_are_two_steps_in_a_row(
    base: PreTrainedModel, adapter: LoraAdapter, samples: list[StepSample]
) -> None:
    with attached(base, adapter) as model:
        first = sdpo_step(model, samples, CONFIG)
        straight = sdpo_step(model, samples[:4], CONFIG, first.state)
    stored = OptimizerState.from_tensors(first.state.to_tensors())
    # The adapter as it was before: the masters of the state are what counts.
    resumed = step(base, adapter, samples[:4], state=stored)
    assert resumed.state.step == 2
    assert torch.equal(masters(resumed), masters(straight))
    assert not torch.equal(masters(resumed), masters(first))


def test_a_step_moves_the_adapter_towards_the_teacher(
    base: PreTrainedModel, adapter: LoraAdapter, samples: list[StepSample]
) -> None:
    state, losses = None, []
    for _ in range(8):
        result = step(base, adapter, samples, state=state)
        state = result.state
        losses.append(result.metrics.divergence)
        assert result.metrics.kl_to_parent > 0
    assert losses[-1] < 0.9 * losses[0]


def test_a_step_tells_which_micro_batch_it_is_at(
    base: PreTrainedModel, adapter: LoraAdapter, samples: list[StepSample]
) -> None:
    told: list[tuple[int, int]] = []
    with attached(base, adapter) as model:
        config = dataclasses.replace(CONFIG, micro_batch_size=len(samples) // 2)
        sdpo_step(model, samples, config, on_micro_batch=lambda number, count: told.append((number, count)))
    assert told == [(number, len(told)) for number in range(1, len(told) + 1)]
    assert len(told) >= 2


def test_nothing_to_learn_moves_nothing(base: PreTrainedModel, fresh: LoraAdapter) -> None:
    """A teacher that saw no more than the student, and an adapter that still changes nothing."""
    sample = StepSample((3, 4, 5), (3, 4, 5), (6, 7))
    result = step(base, fresh, [sample], dataclasses.replace(CONFIG, weight_decay=0.0))
    assert result.metrics.loss == 0
    assert result.metrics.kl_to_parent == 0
    assert result.metrics.grad_norm < 1e-6


def test_samples_without_recorded_logprobs_have_ratio_one(
    base: PreTrainedModel, adapter: LoraAdapter, samples: list[StepSample]
) -> None:
    unrecorded = [dataclasses.replace(sample, old_logprobs=None) for sample in samples]
    metrics = step(base, adapter, unrecorded).metrics
    assert (metrics.ratio_mean, metrics.ratio_max, metrics.clipped_fraction) == (1, 1, 0)
    assert metrics.loss == pytest.approx(metrics.divergence)


def test_ratios_are_clipped_and_reported(base: PreTrainedModel, adapter: LoraAdapter) -> None:
    sample = StepSample((3, 4), (3, 4, 9), (5, 6, 7, 8), old_logprobs=(-60.0, -60.0, -0.0, -0.0))
    metrics = step(base, adapter, [sample], dataclasses.replace(CONFIG, is_clip=2.0)).metrics
    assert metrics.ratio_max == 2
    assert metrics.clipped_fraction == 0.5
    assert 1 < metrics.ratio_mean < 2


def test_the_gradient_is_clipped_by_its_global_norm(
    base: PreTrainedModel, adapter: LoraAdapter, samples: list[StepSample]
) -> None:
    free = step(base, adapter, samples)
    limit = free.metrics.grad_norm / 10
    clipped = step(base, adapter, samples, dataclasses.replace(CONFIG, max_grad_norm=limit))
    assert clipped.metrics.grad_norm == pytest.approx(free.metrics.grad_norm)
    assert gradient(clipped).norm().item() == pytest.approx(limit, rel=1e-4)


class Watched(PolicyModel):
    """Passes all on to the model; notes each forward, and how many graphs were alive at once."""

    def __init__(self, model: AdaptedModel, poison: float = 1.0) -> None:
        self._model = model
        self._poison = poison
        self._off = False
        self._alive: list[weakref.ref[Tensor]] = []
        self.forwards: list[str] = []
        self.most_graphs = 0

    @property
    def device(self) -> torch.device:
        return self._model.device

    @property
    def vocabulary_size(self) -> int:
        return self._model.vocabulary_size

    def trainable(self) -> dict[str, nn.Parameter]:
        return self._model.trainable()

    def response_logits(self, batch: TokenBatch) -> Tensor:
        logits = self._model.response_logits(batch)
        self.forwards.append("base" if self._off else "train" if logits.requires_grad else "measure")
        if logits.requires_grad:
            self._alive = [ref for ref in self._alive if ref() is not None]
            self._alive.append(weakref.ref(logits))
            self.most_graphs = max(self.most_graphs, len(self._alive))
            logits = logits * self._poison
        return logits

    def adapter_off(self) -> AbstractContextManager[None]:
        return self._switched_off()

    @contextmanager
    def _switched_off(self) -> Iterator[None]:
        self._off = True
        with self._model.adapter_off():
            yield
        self._off = False


def test_each_micro_batchs_graph_is_gone_before_the_next_is_made(
    base: PreTrainedModel, adapter: LoraAdapter, samples: list[StepSample]
) -> None:
    with attached(base, adapter) as model:
        watched = Watched(model)
        sdpo_step(watched, samples, dataclasses.replace(CONFIG, micro_batch_size=1))
    assert watched.forwards.count("train") == len(samples)
    # The last one may still be named by the loop's variables while the next is made.
    assert watched.most_graphs <= 2


@pytest.mark.parametrize(("weight", "base_forwards"), [(0.0, 1), (0.1, 2)])
def test_without_a_kl_term_the_base_model_is_run_for_the_teacher_alone(
    base: PreTrainedModel,
    adapter: LoraAdapter,
    samples: list[StepSample],
    weight: float,
    base_forwards: int,
) -> None:
    config = dataclasses.replace(CONFIG, kl_reg_weight=weight, micro_batch_size=100)
    with attached(base, adapter) as model:
        watched = Watched(model)
        metrics = sdpo_step(watched, samples, config).metrics
    assert watched.forwards.count("base") == base_forwards
    assert watched.forwards.count("train") == 1
    assert (metrics.kl_to_base is None) == (weight == 0)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_no_number_fails_and_updates_nothing(
    base: PreTrainedModel, adapter: LoraAdapter, samples: list[StepSample], poison: float
) -> None:
    with attached(base, adapter) as model:
        with pytest.raises(NonFiniteError, match="was not updated"):
            sdpo_step(Watched(model, poison), samples, CONFIG)
        assert all(torch.equal(p, adapter.tensors[name]) for name, p in model.trainable().items())


def test_a_gradient_that_is_no_number_fails_and_updates_nothing(
    base: PreTrainedModel, adapter: LoraAdapter, samples: list[StepSample]
) -> None:
    with attached(base, adapter) as model:
        first = next(iter(model.trainable().values()))
        hook: Callable[..., object] = first.register_hook
        hook(lambda grad: grad * math.nan)
        with pytest.raises(NonFiniteError, match="gradient's norm is nan"):
            sdpo_step(model, samples, CONFIG)
        assert all(torch.equal(p, adapter.tensors[name]) for name, p in model.trainable().items())


def test_another_adapters_state_is_refused(
    base: PreTrainedModel, adapter: LoraAdapter, samples: list[StepSample]
) -> None:
    foreign = OptimizerState.fresh({"somebody.else": torch.zeros(2)})
    with pytest.raises(OptimizerStateError, match="belongs to another adapter"):
        step(base, adapter, samples, state=foreign)


GOOD = StepSample((1, 2), (1, 2, 3), (4, 5), (-0.5, -0.5))


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (dataclasses.replace(GOOD, response_ids=(), old_logprobs=()), r"\[1\]\.response_ids is empty"),
        (dataclasses.replace(GOOD, student_prompt_ids=()), r"\[1\]\.student_prompt_ids is empty"),
        (dataclasses.replace(GOOD, teacher_prompt_ids=(1, 96)), r"\[1\]\.teacher_prompt_ids .* 0\.\.95"),
        (dataclasses.replace(GOOD, response_ids=(4, -1)), r"\[1\]\.response_ids .* outside"),
        (dataclasses.replace(GOOD, old_logprobs=(-0.5,)), r"\[1\]\.old_logprobs has 1 values for 2"),
        (dataclasses.replace(GOOD, old_logprobs=(-0.5, math.nan)), r"\[1\]\.old_logprobs .* no log-prob"),
        (dataclasses.replace(GOOD, old_logprobs=(-0.5, 0.5)), r"\[1\]\.old_logprobs .* no log-prob"),
    ],
)
def test_a_sample_that_cannot_be_trained_on_is_named_by_index_and_field(
    base: PreTrainedModel, adapter: LoraAdapter, bad: StepSample, said: str
) -> None:
    with pytest.raises(InvalidBatchError, match=said):
        step(base, adapter, [GOOD, bad])


def test_an_empty_batch_is_refused(base: PreTrainedModel, adapter: LoraAdapter) -> None:
    with pytest.raises(InvalidBatchError, match="there are none"):
        step(base, adapter, [])


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
        {"micro_batch_size": 0},
        {"weight_decay": -0.1},
        {"beta1": 1.0},
    ],
)
def test_a_setting_outside_its_range_is_named(wrong: dict[str, float]) -> None:
    (field,) = wrong
    with pytest.raises(InvalidConfigError, match=field):
        dataclasses.replace(CONFIG, **wrong)  # type: ignore[arg-type]


def test_the_defaults_are_those_that_claas_users_know() -> None:
    config = StepConfig()
    assert (config.learning_rate, config.alpha, config.is_clip, config.max_grad_norm) == (3e-5, 0.5, 5.0, 1.0)
    assert (config.kl_reg_weight, config.teacher_top_k, config.weight_decay) == (0.0, 100, 0.01)


def test_a_support_larger_than_the_vocabulary_is_the_full_one(
    base: PreTrainedModel, adapter: LoraAdapter, samples: list[StepSample]
) -> None:
    wide = step(base, adapter, samples, dataclasses.replace(CONFIG, teacher_top_k=100))
    full = step(base, adapter, samples, dataclasses.replace(CONFIG, support=Support.FULL))
    assert torch.equal(masters(wide), masters(full))
