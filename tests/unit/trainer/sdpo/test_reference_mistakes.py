"""What an earlier system got wrong in its step, one test for each; 8 and 9 are about serving and stand with the
trainer's tests."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from claas_trainer.forward.peft_model import attached, load_base
from claas_trainer.model.lora import AdapterWeights, LoraShape, new_adapter
from claas_trainer.sdpo.batch import TokenBatch, TokenSample
from claas_trainer.sdpo.losses.support import Support
from claas_trainer.sdpo.optimizer import OptimizerState
from claas_trainer.sdpo.policy import Network, PolicyModel
from claas_trainer.sdpo.scoring import Objective, Scored, Sums, score
from claas_trainer.sdpo.settings import Schedule, SdpoConfig
from claas_trainer.sdpo.step import sdpo_step
from claas_trainer.sdpo.teachers.frozen import FrozenTeacher
from tests.unit.trainer.core.models import (
    CPU,
    Way,
    build,
    decoder,
    gradient,
    host_weights,
    learned,
    off,
    shape_of,
    step,
)
from tests.unit.trainer.core.watched import Watched
from tests.unit.trainer.sdpo.losses.drawing import Drawn, expected, setting
from tests.unit.trainer.sdpo.losses.heads import HeadedModel, LogitsModel

CONFIG = SdpoConfig(learning_rate=1e-3, teacher_top_k=10, max_grad_norm=0)


def scored(
    student: Tensor, teacher: Tensor, targets: Tensor, objective: Objective, base: Tensor | None = None
) -> tuple[Tensor, Sums]:
    """The gradient and the sums of rows of logits, recorded with the policy's own log-probabilities."""
    sums = Sums.zero(CPU)
    old = torch.full(targets.shape, torch.nan, dtype=student.dtype)
    rows = Scored(student, [teacher], base, targets, old)
    return score(LogitsModel(), FrozenTeacher(), rows, objective, len(targets), sums), sums


def kl(p: Tensor, q: Tensor) -> float:
    p, q = p.double(), q.double()
    return float((p * (p / q).log()).sum())


def test_mistake_01_alpha_0_has_a_loss_and_a_gradient(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    """There, it was the limit of the divergence between the endpoints, which is 0."""
    at_zero = step(way, adapter, samples, dataclasses.replace(CONFIG, alpha=0.0, support=Support.FULL))
    assert at_zero.metrics.divergence > 0.1
    assert at_zero.metrics.grad_norm > 0.01
    student, teacher = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.3, 0.5])
    _, sums = scored(
        student.log()[None], teacher.log()[None], torch.tensor([0]), Objective(0.0, 5, 0, Support.FULL, 1)
    )
    assert sums.divergence.item() == pytest.approx(kl(teacher, student), rel=1e-5)


@pytest.mark.parametrize("support", [Support.TOP_K_TAIL, Support.FULL])
def test_mistake_02_alpha_1_is_the_reverse_kl_whichever_token_was_sampled(support: Support) -> None:
    """There, it was log pi_S - log pi_T of the sampled token with the teacher's log-probability cut at -20: about -44
    where the truth was 0.036, and another number for each token."""
    student = torch.tensor([0.6, 0.3, 0.1 - 1e-12, 1e-12]).double()
    teacher = torch.tensor([0.5, 0.3, 0.2 - 1e-30, 1e-30]).double()
    truth = kl(student, teacher)
    for token in range(4):
        found, sums = scored(
            student.log()[None], teacher.log()[None], torch.tensor([token]), Objective(1.0, 5, 0, support, 3)
        )
        assert sums.loss.item() == pytest.approx(truth, rel=1e-6), token
        # The gradient of KL(S || T) over the whole distribution.
        ratio = (student / teacher).log()
        torch.testing.assert_close(found[0], student * (ratio - truth), rtol=1e-5, atol=1e-9)


def test_mistake_03_k3_estimates_kl_of_student_and_base_and_not_of_base_and_student() -> None:
    """There, its ratio stood upside down: 40.06 where the true KL was 2.50."""
    student, base = torch.tensor([0.90, 0.09, 0.01]).double(), torch.tensor([0.002, 0.298, 0.70]).double()
    mean = 0.0
    for token, probability in enumerate(student.tolist()):
        _, sums = scored(
            student.log()[None],
            student.log()[None],
            torch.tensor([token]),
            Objective(0.5, 5, 1.0, Support.FULL, 1),
            base.log()[None],
        )
        assert sums.loss.item() == pytest.approx(sums.kl_to_base.item())
        mean += probability * sums.kl_to_base.item()
    assert mean == pytest.approx(kl(student, base), rel=1e-6)
    assert kl(base, student) != pytest.approx(kl(student, base), rel=0.1)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_mistake_04_mass_of_the_student_where_the_teacher_has_none_gets_a_gradient(alpha: float) -> None:
    """There, the support was the teacher's top-K without a tail: what only the student likes was left as it was."""
    student = torch.tensor([[2.0, 1.0, 5.0, 0.0, 0.0, 0.0]])
    teacher = torch.tensor([[5.0, 4.0, -3.0, 0.0, 0.0, 0.0]])
    found, _ = scored(student, teacher, torch.tensor([0]), Objective(alpha, 5, 0, Support.TOP_K_TAIL, 2))
    # Descending moves against the gradient: the student's own favourite goes down.
    assert found[0, 2] > 0.05
    # And so does mass outside the student's top-K, which stands in the tail.
    outside = torch.tensor([[5.0, 4.0, 3.9, 3.9, 3.9, 3.9]])
    certain = torch.tensor([[9.0, 8.0, 0.0, 0.0, 0.0, 0.0]])
    found, _ = scored(outside, certain, torch.tensor([0]), Objective(alpha, 5, 0, Support.TOP_K_TAIL, 2))
    assert (found[0, 2:] > 1e-3).all()


def test_mistake_05_logits_and_loss_are_float32_over_a_bfloat16_model(
    model_folder: Path, adapter: AdapterWeights
) -> None:
    """There, all was bfloat16: at small gaps the gradient's cosine with float32's was between 0.52 and 0.72."""
    weights = host_weights(model_folder, torch.bfloat16)
    with attached(load_base(model_folder, torch.bfloat16), adapter) as generic:
        for model in (generic, decoder(weights, adapter)):
            model.place(model.layout.gather(adapter.tensors))
            model.refresh()
            features = model.features(TokenBatch.of([(1, 2, 3)], [(4, 5)], CPU), Network.STUDENT)
            logits = model.logits(features)
            assert logits.dtype is torch.float32
            assert not torch.equal(logits, logits.bfloat16().float())

    class Half(HeadedModel):
        def logits(self, features: Tensor) -> Tensor:
            return features.float() @ self.head.float().t()

        def features_gradient(self, gradient: Tensor) -> Tensor:
            return gradient.to(self.head.dtype) @ self.head

    generator = torch.Generator().manual_seed(0)
    head = (0.1 * torch.randn(40, 64, generator=generator)).bfloat16()
    student = torch.randn(32, 64, generator=generator).bfloat16()
    # As small a gap as features in bfloat16 can have.
    teacher = (student.float() * (1 + 0.01 * torch.randn(32, 64, generator=generator))).bfloat16()
    targets, unrecorded = torch.zeros(32, dtype=torch.long), torch.full((32,), torch.nan)
    objective = Objective(0.5, 5, 0, Support.TOP_K_TAIL, 10)
    rows = Scored(student, [teacher], None, targets, unrecorded)
    found = score(Half(head), FrozenTeacher(), rows, objective, 8, Sums.zero(CPU))

    s, t = (features.double() @ head.double().t() for features in (student, teacher))
    exact = expected(Drawn(s, t, s, targets, unrecorded), setting(0.5, Support.TOP_K_TAIL, 10, 5.0, 0.0)).gradient
    wanted = (exact @ head.double()).flatten()
    assert torch.cosine_similarity(found.double().flatten(), wanted, dim=0) >= 0.999


def test_mistake_06_a_micro_batch_s_graph_is_gone_before_the_next_and_the_mean_is_over_all_tokens(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    """There, all graphs were kept until one backward: memory grew with the batch."""
    with way(adapter) as model:
        watched = Watched(model)
        state = OptimizerState.fresh(adapter.tensors, model.layout)
        result = sdpo_step(watched, samples, CONFIG, state, schedule=Schedule(1, 1000))
    assert watched.forwards.count("train") == len(samples) > 1
    assert watched.most_passes == 1
    # Answers of unlike lengths: a mean of the samples' means would be another number.
    assert len({len(sample.response_ids) for sample in samples}) > 1
    alone = [step(way, adapter, [sample], CONFIG) for sample in samples]
    lengths = [len(sample.response_ids) for sample in samples]
    weighted = sum(gradient(one, CONFIG) * length for one, length in zip(alone, lengths, strict=True)) / sum(lengths)
    assert isinstance(weighted, Tensor)
    assert off(gradient(result, CONFIG), weighted) < 1e-5
    plain = sum(gradient(one, CONFIG) for one in alone) / len(alone)
    assert isinstance(plain, Tensor)
    assert off(gradient(result, CONFIG), plain) > 0.01


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_mistake_07_without_a_kl_term_the_base_is_run_for_the_teacher_alone(
    way: Way, adapter: AdapterWeights, samples: list[TokenSample], weight: float
) -> None:
    """There, a forward of the base was made for a term of weight 0."""
    with way(adapter) as model:
        watched = Watched(model)
        state = OptimizerState.fresh(adapter.tensors, model.layout)
        metrics = sdpo_step(watched, samples, dataclasses.replace(CONFIG, kl_reg_weight=weight), state).metrics
    assert watched.forwards.count("base") == (2 if weight else 1)
    assert (metrics.kl_to_base is None) == (weight == 0)


@pytest.mark.parametrize("head_dim", [16, 12])
def test_mistake_10_the_width_of_a_head_is_the_configuration_s_own(head_dim: int, tmp_path: Path) -> None:
    """There, it was hidden / heads, which is wrong for several sizes of Qwen3."""
    folder = build("qwen3", tmp_path, head_dim=head_dim)
    shape = shape_of(folder)
    assert shape.head_dim == head_dim != shape.hidden // shape.heads
    weights = host_weights(folder)
    assert weights.layer(0).qkv.shape == ((4 + 2 * 2) * head_dim, 32)
    assert weights.layer(0).o.shape == (32, 4 * head_dim)
    adapter = new_adapter(folder, LoraShape(4, 8), seed=0)
    prefix = "base_model.model.model.layers.0.self_attn"
    assert adapter.tensors[f"{prefix}.q_proj.lora_B.weight"].shape == (4 * head_dim, 4)
    assert adapter.tensors[f"{prefix}.k_proj.lora_B.weight"].shape == (2 * head_dim, 4)
    assert adapter.tensors[f"{prefix}.o_proj.lora_A.weight"].shape == (4, 4 * head_dim)
    assert decoder(weights, adapter).layout.shapes == {name: t.shape for name, t in adapter.tensors.items()}


def test_mistake_11_the_next_tenant_does_not_feel_the_last_one_s_adapter(
    base: PreTrainedModel, model_folder: Path, adapter: AdapterWeights, samples: list[TokenSample]
) -> None:
    """There, the base model was wrapped a second time and the last tenant's adapter stayed active in it."""
    others = learned(model_folder, ("q_proj", "v_proj"))
    weights = host_weights(model_folder)

    def masters_of(model: PolicyModel, of: AdapterWeights) -> Tensor:
        state = OptimizerState.fresh(of.tensors, model.layout)
        return sdpo_step(model, samples, CONFIG, state).state.vectors[next(iter(state.vectors))]

    with attached(load_base(model_folder, torch.float32), others) as model:
        alone = masters_of(model, others)
    with attached(base, adapter) as model:
        masters_of(model, adapter)
    with attached(base, others) as model:
        assert torch.equal(masters_of(model, others), alone)
    alone = masters_of(decoder(host_weights(model_folder), others), others)
    masters_of(decoder(weights, adapter), adapter)
    assert torch.equal(masters_of(decoder(weights, others), others), alone)
    # One model's next step is another state's, even of the same shape.
    model_of_both = decoder(weights, adapter)
    halved = AdapterWeights(adapter.shape, {name: tensor / 2 for name, tensor in adapter.tensors.items()})
    masters_of(model_of_both, halved)
    assert torch.equal(masters_of(model_of_both, adapter), masters_of(decoder(weights, adapter), adapter))
