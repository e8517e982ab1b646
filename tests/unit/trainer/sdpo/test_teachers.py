"""Who the student learns from: the base, a moving average of the adapter, or what lies between base and student."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from claas_trainer.forward.peft_model import attached
from claas_trainer.model.lora import AdapterWeights
from claas_trainer.sdpo.batch import TokenSample
from claas_trainer.sdpo.errors import InvalidConfigError
from claas_trainer.sdpo.losses.support import Support
from claas_trainer.sdpo.optimizer import OptimizerState, Part
from claas_trainer.sdpo.settings import SdpoConfig
from claas_trainer.sdpo.step import SdpoResult, sdpo_step
from claas_trainer.sdpo.teachers.average import AverageTeacher
from claas_trainer.sdpo.teachers.base import Teacher
from claas_trainer.sdpo.teachers.frozen import FrozenTeacher
from claas_trainer.sdpo.teachers.trust_region import TrustRegionTeacher
from tests.unit.trainer.core.models import Way, flat, gradient, masters, off, step
from tests.unit.trainer.core.watched import Watched

CONFIG = SdpoConfig(learning_rate=1e-2, support=Support.FULL, max_grad_norm=0, alpha=0.0)


def taught_by(
    base: PreTrainedModel,
    adapter: AdapterWeights,
    samples: Sequence[TokenSample],
    teacher: Callable[[Any, Tensor], Tensor],
) -> tuple[float, Tensor]:
    """KL(T || S) by plain autograd, one sample at a time; `teacher` gives T's logits for hinted ids."""
    total = torch.zeros((), dtype=torch.float64)
    with attached(base, adapter) as model:
        hinted = [torch.tensor([[*sample.teacher_prompt_ids, *sample.response_ids]]) for sample in samples]
        with torch.no_grad():
            taught = [teacher(model.peft, ids) for ids in hinted]
        for sample, logits in zip(samples, taught, strict=True):
            rows = slice(-len(sample.response_ids) - 1, -1)
            plain = torch.tensor([[*sample.student_prompt_ids, *sample.response_ids]])
            t = logits[0, rows].double().log_softmax(-1)
            s = model.peft(input_ids=plain).logits[0, rows].double().log_softmax(-1)
            total = total + (t.exp() * (t - s)).sum()
        loss = total / sum(len(sample.response_ids) for sample in samples)
        parameters = model.trainable()
        found = torch.autograd.grad(loss, [parameters[name] for name in sorted(parameters)])
    return loss.item(), torch.cat([g.flatten() for g in found])


@pytest.fixture
def unrecorded(samples: list[TokenSample]) -> list[TokenSample]:
    """With ratio 1, so that the loss is the divergence."""
    return [dataclasses.replace(sample, old_logprobs=None) for sample in samples]


def base_logits(peft: Any, ids: Tensor) -> Tensor:
    with peft.disable_adapter():
        logits: Tensor = peft(input_ids=ids).logits
    return logits


def student_logits(peft: Any, ids: Tensor) -> Tensor:
    logits: Tensor = peft(input_ids=ids).logits
    return logits


def assert_taught(result: SdpoResult, loss: float, wanted: Tensor) -> None:
    assert result.metrics.divergence == pytest.approx(loss, rel=1e-5)
    assert off(gradient(result, CONFIG), wanted) < 1e-5


@pytest.mark.parametrize(
    ("teacher", "logits"),
    [
        (FrozenTeacher(), base_logits),
        (TrustRegionTeacher(0.0), base_logits),
        (TrustRegionTeacher(0.3), lambda peft, ids: base_logits(peft, ids).lerp(student_logits(peft, ids), 0.3)),
        (TrustRegionTeacher(1.0), student_logits),
        # Before the first step the average is the adapter itself.
        (AverageTeacher(0.05), student_logits),
    ],
    ids=["frozen", "trust-0", "trust-0.3", "trust-1", "average"],
)
def test_a_first_step_is_taught_by_the_teachers_hinted_logits(
    way: Way,
    base: PreTrainedModel,
    adapter: AdapterWeights,
    unrecorded: list[TokenSample],
    teacher: Teacher,
    logits: Callable[[Any, Tensor], Tensor],
) -> None:
    loss, wanted = taught_by(base, adapter, unrecorded, logits)
    assert_taught(step(way, adapter, unrecorded, CONFIG, teacher=teacher), loss, wanted)


def test_a_trust_region_without_extent_is_the_frozen_teacher_bit_for_bit(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    frozen = step(way, adapter, samples, CONFIG)
    nowhere = step(way, adapter, samples, CONFIG, teacher=TrustRegionTeacher(0.0))
    assert torch.equal(masters(frozen), masters(nowhere))
    assert frozen.metrics == nowhere.metrics


def test_the_average_starts_from_the_masters_and_follows_them_at_its_rate(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    rate = 0.3
    with way(adapter) as model:
        state = OptimizerState.fresh(adapter.tensors, model.layout)
        average = state.vectors[Part.MASTER].clone()
        for _ in range(3):
            state = sdpo_step(model, samples, CONFIG, state, AverageTeacher(rate)).state
            average = average.lerp(state.vectors[Part.MASTER], rate)
            assert torch.equal(state.vectors[Part.AVERAGE], average)
    assert not torch.equal(average, state.vectors[Part.MASTER])


def test_later_steps_are_taught_by_the_average_and_not_by_the_student_or_the_base(
    way: Way, base: PreTrainedModel, adapter: AdapterWeights, unrecorded: list[TokenSample]
) -> None:
    teacher = AverageTeacher(0.3)
    config = dataclasses.replace(CONFIG, beta1=0.0)
    state = step(way, adapter, unrecorded, config, teacher=teacher).state
    now = AdapterWeights(adapter.shape, state.masters)
    average = state.named(Part.AVERAGE)

    def average_logits(peft: Any, ids: Tensor) -> Tensor:
        parameters = {name.replace(".default.", "."): p for name, p in peft.named_parameters()}
        for name, values in average.items():
            parameters[name].copy_(values)
        logits: Tensor = peft(input_ids=ids).logits
        for name, values in now.tensors.items():
            parameters[name].copy_(values)
        return logits

    loss, wanted = taught_by(base, now, unrecorded, average_logits)
    result = step(way, adapter, unrecorded, config, state, teacher)
    assert result.metrics.divergence == pytest.approx(loss, rel=1e-5)
    assert off(flat(result.state.named(Part.EXP_AVG)), wanted) < 1e-5
    for other in (base_logits, student_logits):
        assert taught_by(base, now, unrecorded, other)[0] != pytest.approx(loss, rel=1e-3)


def test_the_average_is_stored_and_restored_with_the_state(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    teacher = AverageTeacher(0.3)
    with way(adapter) as model:
        state = OptimizerState.fresh(adapter.tensors, model.layout)
        first = sdpo_step(model, samples, CONFIG, state, teacher).state
        straight = sdpo_step(model, samples[:4], CONFIG, first, teacher).state
        stored = OptimizerState.from_tensors(first.to_tensors(), model.layout)
    assert torch.equal(stored.vectors[Part.AVERAGE], first.vectors[Part.AVERAGE])
    resumed = step(way, adapter, samples[:4], CONFIG, stored, teacher).state
    for key, tensor in straight.to_tensors().items():
        assert torch.equal(tensor, resumed.to_tensors()[key]), key
    # Without it, the average would begin anew from the masters.
    forgotten = OptimizerState(
        stored.layout, {part: v for part, v in stored.vectors.items() if part is not Part.AVERAGE}, stored.step
    )
    assert not torch.equal(
        masters(step(way, adapter, samples[:4], CONFIG, forgotten, teacher)), flat(resumed.masters)
    )


def test_a_teacher_without_an_average_keeps_none(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    averaged = step(way, adapter, samples, CONFIG, teacher=AverageTeacher(0.3)).state
    assert Part.AVERAGE in averaged.vectors
    assert Part.AVERAGE not in step(way, adapter, samples, CONFIG, averaged).state.vectors


@pytest.mark.parametrize(
    ("teacher", "forwards"),
    [
        (FrozenTeacher(), ["base"]),
        (AverageTeacher(0.1), ["average"]),
        (TrustRegionTeacher(0.5), ["base", "student"]),
    ],
    ids=["frozen", "average", "trust"],
)
@pytest.mark.parametrize("kl_weight", [0.0, 0.1])
def test_each_teacher_costs_its_own_forwards_and_no_others(
    way: Way,
    adapter: AdapterWeights,
    samples: list[TokenSample],
    teacher: Teacher,
    forwards: list[str],
    kl_weight: float,
) -> None:
    with way(adapter) as model:
        watched = Watched(model)
        state = OptimizerState.fresh(adapter.tensors, model.layout)
        config = dataclasses.replace(CONFIG, kl_reg_weight=kl_weight)
        metrics = sdpo_step(watched, samples, config, state, teacher).metrics
    # The last one measures how far the policy moved.
    assert watched.forwards == [*forwards, *(["base"] if kl_weight else []), "train", "student"]
    assert (metrics.kl_to_base is None) == (kl_weight == 0)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1])
def test_a_rate_of_the_average_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(InvalidConfigError, match="teacher_update_rate"):
        AverageTeacher(rate)


@pytest.mark.parametrize("rho", [-0.1, 1.1])
def test_a_trust_region_outside_its_range_is_refused(rho: float) -> None:
    with pytest.raises(InvalidConfigError, match="teacher_update_rate"):
        TrustRegionTeacher(rho)
