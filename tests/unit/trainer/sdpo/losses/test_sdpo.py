"""The SDPO loss against an independent dense reference, and its properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from claas_trainer.sdpo.losses.sdpo import divergence, importance_ratio, k3, sdpo_token_losses
from claas_trainer.sdpo.losses.support import Support, support_logprobs
from tests.unit.trainer.sdpo.losses import dense_reference
from tests.unit.trainer.sdpo.losses.dense_reference import Setting, divergence_and_gradient
from tests.unit.trainer.sdpo.losses.drawing import ALPHAS, VOCABULARY, logits


def ours(student: Tensor, teacher: Tensor, alpha: float, support: Support, k: int) -> Tensor:
    return divergence(*support_logprobs(student, teacher, support, k), alpha)


def reference(student: Tensor, teacher: Tensor, alpha: float, k: int | None) -> Tensor:
    rows = zip(student.double().tolist(), teacher.double().tolist(), strict=True)
    found = [divergence_and_gradient(s, t, Setting(alpha, k))[0] for s, t in rows]
    return torch.tensor(found, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    alpha=st.sampled_from((*ALPHAS, 0.003, 0.37)),
    k=st.integers(1, VOCABULARY),
    spread=st.sampled_from((0.1, 1.0, 3.0)),
    gap=st.sampled_from((1e-3, 0.1, 1.0, 3.0)),
)
def test_float32_keeps_five_digits_and_is_exact_to_1e_8_near_zero(
    seed: int, alpha: float, k: int, spread: float, gap: float
) -> None:
    student = logits(seed, spread=spread, dtype=torch.float32)
    teacher = student + logits(seed + 1, spread=gap, dtype=torch.float32)
    expected = reference(student, teacher, alpha, k)
    got = ours(student, teacher, alpha, Support.TOP_K_TAIL, k).double()
    assert ((got - expected).abs() <= torch.where(expected >= 1e-3, 1e-5 * expected, 1e-8)).all()


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("support", list(Support))
@pytest.mark.parametrize("k", [VOCABULARY, VOCABULARY + 60])
def test_k_of_the_whole_vocabulary_is_the_full_divergence(alpha: float, support: Support, k: int) -> None:
    student, teacher = logits(4), logits(5)
    full = ours(student, teacher, alpha, Support.FULL, 1)
    torch.testing.assert_close(ours(student, teacher, alpha, support, k), full, rtol=0, atol=0)


@pytest.mark.parametrize("alpha", [1e-6, 1 - 1e-6])
def test_between_the_endpoints_the_divergence_vanishes_as_alpha_does_but_at_them_it_is_the_kl(
    alpha: float,
) -> None:
    student, teacher = logits(6), logits(7)
    end = round(alpha)
    assert (ours(student, teacher, alpha, Support.FULL, 1) < 1e-4).all()
    assert (ours(student, teacher, end, Support.FULL, 1) > 0.1).all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_every_alpha_gives_a_gradient_to_the_student_and_none_to_the_teacher(alpha: float) -> None:
    student, teacher = logits(8).requires_grad_(), logits(9).requires_grad_()
    chosen = support_logprobs(student, teacher, Support.TOP_K_TAIL, 5)
    zeros = torch.zeros(6, dtype=torch.float64)
    losses = sdpo_token_losses(*chosen, zeros, zeros, alpha=alpha, is_clip=5.0)
    torch.autograd.backward(losses.loss.sum())
    assert student.grad is not None
    assert student.grad.norm() > 1e-3
    assert teacher.grad is None or not teacher.grad.any()


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("support", list(Support))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_exactly_zero_when_student_and_teacher_agree(
    alpha: float, support: Support, dtype: torch.dtype
) -> None:
    student = logits(10, spread=5.0, dtype=dtype).requires_grad_()
    value = ours(student, student.detach().clone(), alpha, support, 9)
    torch.autograd.backward(value.sum())
    assert (value == 0).all()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    alpha=st.floats(0, 1),
    support=st.sampled_from(list(Support)),
    k=st.integers(1, VOCABULARY),
    spread=st.sampled_from((1e-4, 1.0, 30.0, 300.0)),
    gap=st.sampled_from((1e-6, 1e-3, 1.0, 100.0)),
)
def test_it_is_never_negative_and_always_finite_with_a_finite_gradient(
    seed: int, alpha: float, support: Support, k: int, spread: float, gap: float
) -> None:
    student = logits(seed, spread=spread, dtype=torch.float32).requires_grad_()
    teacher = student.detach() + logits(seed + 1, spread=gap, dtype=torch.float32)
    value = ours(student, teacher, alpha, support, k)
    torch.autograd.backward(value.sum())
    assert student.grad is not None
    assert (value >= 0).all()
    assert value.isfinite().all()
    assert student.grad.isfinite().all()


def test_the_tail_lets_student_mass_outside_the_support_be_pulled_down() -> None:
    """With the mass outside the support left out, its tokens would get no gradient of their own."""
    student = torch.tensor([[2.0, 1.9, 1.8, 1.7]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[9.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.autograd.backward(ours(student, teacher, 0.0, Support.TOP_K_TAIL, 2).sum())
    assert student.grad is not None
    # Minimising moves against the gradient: down for tokens that the teacher does not want.
    assert (student.grad[0, 2:] > 1e-2).all()


def test_the_tail_keeps_its_digits_where_the_student_is_nearly_certain() -> None:
    """1 - p in float32 would be 0 here, and so would be every trace of what is outside the support."""
    certain = torch.tensor([[20.0, 1.0, 1.0]])
    student, _ = support_logprobs(certain, certain, Support.TOP_K_TAIL, 1)
    assert student[0, -1].item() == pytest.approx(math.log(2) - 19, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tail_without_any_mass_is_clamped_to_what_the_dtype_holds(dtype: torch.dtype) -> None:
    masked = torch.tensor([[0.0, -math.inf, -math.inf]], dtype=dtype)
    student, teacher = support_logprobs(masked, torch.zeros_like(masked), Support.TOP_K_TAIL, 1)
    assert student[0, -1].item() == pytest.approx(math.log(torch.finfo(dtype).tiny))
    assert divergence(student, teacher, 0.5).isfinite().all()


def test_the_reverse_kl_is_the_true_one_and_no_sampled_estimate() -> None:
    """A teacher that gives the sampled token almost nothing must not blow up KL(S || T) elsewhere."""
    student = torch.tensor([[5.0, 5.0, -20.0]])
    teacher = torch.tensor([[5.2, 4.8, -40.0]])
    expected = reference(student, teacher, 1.0, None)
    got = ours(student, teacher, 1.0, Support.TOP_K_TAIL, 2).double()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)
    assert (got > 0).all()


def test_k3_estimates_the_kl_from_student_to_base_and_not_the_other_way() -> None:
    student = torch.tensor([0.90, 0.09, 0.01], dtype=torch.float64)
    base = torch.tensor([0.20, 0.30, 0.50], dtype=torch.float64)
    # The mean over what the student samples, exactly: each token weighted by its own probability.
    mean = (student * k3(student.log(), base.log())).sum().item()
    assert mean == pytest.approx(dense_reference.kl(student.tolist(), base.tolist()), rel=1e-12)
    assert mean != pytest.approx(dense_reference.kl(base.tolist(), student.tolist()), rel=0.1)
    assert (k3(student.log(), base.log()) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-500, 0), st.floats(-500, 0)), min_size=1))
def test_k3_is_bounded_and_within_its_bound_exact(pairs: list[tuple[float, float]]) -> None:
    """The log-ratio is clamped to 20 on both sides: no token has more than e^20 to say, or a gradient beyond."""
    sampled = torch.tensor([pair[0] for pair in pairs], dtype=torch.float64, requires_grad=True)
    base = torch.tensor([pair[1] for pair in pairs], dtype=torch.float64)
    value = k3(sampled, base)
    torch.autograd.backward(value.sum())
    assert sampled.grad is not None
    assert (value <= math.exp(20) - 21).all()
    assert (sampled.grad.abs() <= math.exp(20)).all()
    for got, (s, b) in zip(value.tolist(), pairs, strict=True):
        if abs(b - s) <= 20:
            assert got == pytest.approx(math.exp(b - s) - (b - s) - 1, rel=1e-9, abs=1e-9)


def test_one_unlikely_token_does_not_make_the_loss_infinite_in_float32() -> None:
    sampled = torch.tensor([-120.0, -1.0], requires_grad=True)
    losses = sdpo_token_losses(
        torch.log(torch.tensor([[0.5, 0.5]] * 2)),
        torch.log(torch.tensor([[0.5, 0.5]] * 2)),
        sampled,
        sampled.detach(),
        alpha=0.5,
        is_clip=5.0,
        base=torch.tensor([-1.0, -1.0]),
        kl_reg_weight=0.1,
    )
    torch.autograd.backward(losses.loss.sum())
    assert losses.loss.isfinite().all()
    assert sampled.grad is not None
    assert sampled.grad.isfinite().all()


def test_the_kl_term_pulls_the_sampled_tokens_probability_towards_the_base() -> None:
    sampled = torch.tensor([-1.0, -3.0], requires_grad=True)
    base = torch.tensor([-2.0, -2.0])
    torch.autograd.backward(k3(sampled, base).sum())
    assert sampled.grad is not None
    assert sampled.grad[0] > 0  # above the base: descending lowers it
    assert sampled.grad[1] < 0


def test_the_ratio_is_clipped_above_and_says_where() -> None:
    sampled = torch.tensor([-1.0, -1.0, -1.0, 0.0], requires_grad=True)
    old = torch.tensor([-1.0, -9.0, -0.5, -1e6])
    ratio, clipped = importance_ratio(sampled, old, 5.0)
    torch.testing.assert_close(ratio, torch.tensor([1.0, 5.0, math.exp(-0.5), 5.0]))
    assert clipped.tolist() == [False, True, False, True]
    assert not ratio.requires_grad


@settings(max_examples=50, deadline=None)
@given(
    lp=st.lists(st.tuples(st.floats(-1e5, 0), st.floats(-1e5, 0)), min_size=1, max_size=8),
    clip=st.floats(1, 20),
)
def test_no_ratio_is_above_the_clip(lp: list[tuple[float, float]], clip: float) -> None:
    sampled, old = torch.tensor(lp, dtype=torch.float64).unbind(-1)
    ratio, _ = importance_ratio(sampled, old, clip)
    assert (ratio <= clip).all()
    assert (ratio > 0).all()


def test_the_loss_is_ratio_times_divergence_plus_weight_times_kl() -> None:
    student, teacher = logits(13), logits(14)
    chosen = support_logprobs(student, teacher, Support.TOP_K_TAIL, 6)
    sampled, old, base = (-logits(seed).abs()[:, 0] for seed in (15, 16, 17))
    losses = sdpo_token_losses(*chosen, sampled, old, alpha=0.5, is_clip=2.0, base=base, kl_reg_weight=0.3)
    ratio = (sampled - old).exp().clamp(max=2.0)
    expected = ratio * reference(student, teacher, 0.5, 6) + 0.3 * k3(sampled, base)
    torch.testing.assert_close(losses.loss, expected, rtol=1e-10, atol=0)
    assert losses.kl_to_base is not None


def test_float32_finds_the_gradient_where_bfloat16_arithmetic_loses_it() -> None:
    student = logits(18, rows=64)
    teacher = student + logits(19, rows=64, spread=0.02)

    def gradient(dtype: torch.dtype) -> Tensor:
        leaf = student.to(dtype).requires_grad_()
        value = ours(leaf, teacher.to(dtype), 0.5, Support.TOP_K_TAIL, 10)
        (found,) = torch.autograd.grad(value.sum(), leaf)
        return found.double().flatten()

    exact = gradient(torch.float64)
    assert torch.cosine_similarity(gradient(torch.float32), exact, dim=0) > 0.9999
    assert torch.cosine_similarity(gradient(torch.bfloat16), exact, dim=0) < 0.9
