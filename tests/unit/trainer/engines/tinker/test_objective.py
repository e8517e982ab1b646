"""The loss on the log-probabilities that the service tells has the gradient that full logits would give it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from claas_trainer.engines.tinker.objective import BatchLoss, ScoredSample
from claas_trainer.sdpo.errors import NonFiniteError
from claas_trainer.sdpo.losses.support import Support, with_tail
from claas_trainer.sdpo.settings import SdpoConfig
from tests.unit.trainer.sdpo.losses.drawing import ALPHAS, VOCABULARY, Drawn, drawn, expected, setting

CLIP = 1.5
WEIGHT = 0.3
PROMPT = (3, 1, 4, 1)
TAILED = (Support.TOP_K_TAIL, Support.TOP_K_RENORMALISED)


def config(alpha: float = 0.5, support: Support = Support.TOP_K_TAIL, kl_weight: float = 0.0) -> SdpoConfig:
    return SdpoConfig(alpha=alpha, support=support, is_clip=CLIP, kl_reg_weight=kl_weight)


def of_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    """[N, V] and [N, M] -> [N, M]."""
    return logits.log_softmax(-1).gather(-1, tokens)


def sample_of(rows: Drawn, k: int, kl_weight: float = 0.0) -> ScoredSample:
    support = rows.student.topk(k).indices
    known = torch.where(rows.old.isnan(), of_tokens(rows.student, rows.sampled.unsqueeze(-1)).squeeze(-1), rows.old)
    base = of_tokens(rows.base, rows.sampled.unsqueeze(-1)).squeeze(-1)
    return ScoredSample(
        PROMPT,
        tuple(rows.sampled.tolist()),
        support,
        of_tokens(rows.teacher, support),
        known,
        base if kl_weight else None,
    )


def told(sample: ScoredSample, logits: Tensor) -> Tensor:
    """As the service tells it: the targets' log-probabilities after each input token, from the response's logits."""
    prompt = torch.zeros(len(PROMPT) - 1, logits.shape[-1], dtype=logits.dtype)
    return of_tokens(torch.cat([prompt, logits]), sample.targets())


def through_the_service(objective: BatchLoss, samples: list[ScoredSample], logits: list[Tensor]) -> list[Tensor]:
    """The gradient of the logits, by way of weights on the log-probabilities alone."""
    leaves = [each.clone().requires_grad_() for each in logits]
    forward = [told(sample, leaf) for sample, leaf in zip(samples, leaves, strict=True)]
    received = [each.detach().requires_grad_() for each in forward]
    objective.loss(received).backward()  # type: ignore[no-untyped-call]
    for each in received:
        assert each.grad is not None
    surrogate = sum(
        ((out * each.grad).sum() for out, each in zip(forward, received, strict=True) if each.grad is not None),
        torch.zeros(()),
    )
    return list(torch.autograd.grad(surrogate, leaves))


def spread_out(rows: Drawn, spread: float) -> Drawn:
    """The rows with logits times `spread`, and the same importance ratios."""
    sampled = rows.sampled.unsqueeze(-1)
    shift = (of_tokens(rows.student * spread, sampled) - of_tokens(rows.student, sampled)).squeeze(-1)
    return replace(rows, student=rows.student * spread, teacher=rows.teacher * spread, old=rows.old + shift)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    alpha=st.sampled_from(ALPHAS),
    support=st.sampled_from(TAILED),
    k=st.integers(2, VOCABULARY - 1),
    kl_weight=st.sampled_from((0.0, WEIGHT)),
    spread=st.floats(0.05, 4.0),
)
def test_loss_and_gradient_are_those_of_full_logits(
    seed: int, alpha: float, support: Support, k: int, kl_weight: float, spread: float
) -> None:
    rows = drawn(seed)
    # k3 is bounded where the base model finds a token e^20 times likelier; the reference has no such bound.
    spread = min(spread, 1.0) if kl_weight else spread
    rows = spread_out(rows, spread)
    sample, wanted = sample_of(rows, k, kl_weight), expected(rows, setting(alpha, support, k, CLIP, kl_weight))
    objective = BatchLoss([sample], config(alpha, support, kl_weight))
    (gradient,) = through_the_service(objective, [sample], [rows.student])
    figures = objective.figures
    assert figures is not None
    # 1 minus the probabilities of the K loses digits as the tail gets small, in float64 as in any dtype.
    tails = [
        with_tail(of_tokens(each, sample.support), Support.TOP_K_TAIL)[:, -1] for each in (rows.student, rows.teacher)
    ]
    tail = torch.cat(tails).exp().min().item()
    lost = 1e-15 / tail if support is Support.TOP_K_TAIL else 0.0
    torch.testing.assert_close(gradient, wanted.gradient / len(rows.sampled), rtol=1e-8, atol=1e-11 + 100 * lost)
    assert figures.loss == pytest.approx(wanted.loss.mean().item(), rel=1e-9 + 100 * lost, abs=1e-13)
    assert figures.divergence == pytest.approx(wanted.divergence.mean().item(), rel=1e-9 + 100 * lost, abs=1e-13)
    assert figures.ratio_mean == pytest.approx(wanted.ratio.mean().item())
    assert figures.ratio_max == pytest.approx(wanted.ratio.max().item())
    assert figures.clipped_fraction == (wanted.ratio == CLIP).double().mean().item()
    assert (figures.kl_to_base is None) == (kl_weight == 0)
    if figures.kl_to_base is not None:
        assert figures.kl_to_base == pytest.approx(wanted.kl_to_base.mean().item())


def test_the_batch_is_divided_by_its_tokens_not_by_its_samples() -> None:
    rows = [drawn(1, 2), drawn(5, 9)]
    samples = [sample_of(each, 7) for each in rows]
    objective = BatchLoss(samples, config())
    found = through_the_service(objective, samples, [each.student for each in rows])
    wanted = [expected(each, setting(0.5, Support.TOP_K_TAIL, 7, CLIP, 0.0)) for each in rows]
    for gradient, alone in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, alone.gradient / 11, rtol=1e-8, atol=1e-12)
    assert objective.figures is not None
    assert objective.figures.loss == pytest.approx(sum(each.loss.sum().item() for each in wanted) / 11)
    assert (objective.figures.samples, objective.figures.tokens) == (2, 11)


def test_without_recorded_log_probabilities_the_ratio_is_one() -> None:
    rows = drawn(3)
    sample = replace(sample_of(rows, 7), old=None)
    objective = BatchLoss([sample], config())
    through_the_service(objective, [sample], [rows.student])
    assert objective.figures is not None
    assert (objective.figures.ratio_mean, objective.figures.ratio_max) == (1.0, 1.0)


def test_a_response_token_among_the_k_counts_once_in_the_divergence() -> None:
    rows = drawn(4)
    rows = replace(rows, sampled=rows.student.argmax(-1))
    sample = sample_of(rows, 5, WEIGHT)
    assert (sample.targets()[len(PROMPT) - 1 :, 0:1] == sample.support).any(-1).all()
    wanted = expected(rows, setting(0.5, Support.TOP_K_TAIL, 5, CLIP, WEIGHT))
    (gradient,) = through_the_service(BatchLoss([sample], config(kl_weight=WEIGHT)), [sample], [rows.student])
    torch.testing.assert_close(gradient, wanted.gradient / len(rows.sampled), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("gap", [8.0, 16.0, 24.0, 60.0])
def test_rounding_in_a_tiny_tail_is_not_blown_up(alpha: float, gap: float) -> None:
    # The student is nearly certain of one token, the teacher is not; all in float32, as the service tells it.
    student = torch.linspace(0.1, -0.1, VOCABULARY).unsqueeze(0)
    student[0, 7] = gap
    rows = replace(drawn(2, 1, dtype=torch.float32), student=student, sampled=torch.tensor([7]), old=torch.zeros(1))
    sample = sample_of(rows, 20)
    (found,) = through_the_service(BatchLoss([sample], config(alpha)), [sample], [student])
    wanted = expected(rows, setting(alpha, Support.TOP_K_TAIL, 20, CLIP, 0.0))
    assert (found.double() - wanted.gradient).abs().max() <= 1.0
    if gap <= 8:
        torch.testing.assert_close(found.double(), wanted.gradient, rtol=1e-3, atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(exponent=st.floats(-15.0, 0.0))
def test_a_tail_keeps_its_digits_near_nothing_and_near_all(exponent: float) -> None:
    held = 10.0**exponent
    top = torch.tensor([[math.log(held / 2), math.log(held / 2)]], dtype=torch.float64)
    assert with_tail(top, Support.TOP_K_TAIL)[0, -1].item() == pytest.approx(
        math.log1p(-min(held, 1 - 2.3e-16)), rel=1e-9
    )


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 2**-23), (torch.float64, 2**-52)])
def test_probabilities_that_rounding_raised_above_one_leave_the_least_tail(dtype: torch.dtype, least: float) -> None:
    top = torch.tensor([[math.log(0.75), math.log(0.2500001)], [0.0, -200.0]], dtype=dtype).requires_grad_()
    found = with_tail(top, Support.TOP_K_TAIL)
    assert found[:, -1].exp().tolist() == pytest.approx([least, least])
    (gradient,) = torch.autograd.grad(found[:, -1].sum(), top)
    assert not gradient.any()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_is_a_veto(broken: float) -> None:
    rows = drawn(1)
    sample = sample_of(rows, 7)
    logprobs = told(sample, rows.student)
    logprobs[-1, 3] = broken
    objective = BatchLoss([sample], config())
    with pytest.raises(NonFiniteError, match="the adapter was not updated"):
        objective.loss([logprobs.requires_grad_()])
    assert objective.figures is None


def test_the_distance_is_measured_over_all_response_tokens() -> None:
    rows = [drawn(1, 2), drawn(5, 9)]
    samples = [sample_of(each, 7) for each in rows]
    objective = BatchLoss(samples, config())
    before = [told(sample, each.student) for sample, each in zip(samples, rows, strict=True)]
    objective.loss([each.requires_grad_() for each in before])
    assert objective.moved(before) == (0.0, 0.0)
    after = [told(samples[0], rows[0].student), told(samples[1], rows[1].student + 0.3 * rows[1].teacher)]
    moved, furthest = objective.moved(after)
    assert moved == pytest.approx(furthest * 9 / 11)
    whole = (
        rows[1].student.softmax(-1) * (rows[1].student.log_softmax(-1) - after_logits(rows[1]).log_softmax(-1))
    ).sum(-1)
    assert 0 < furthest <= whole.mean().item()


def after_logits(rows: Drawn) -> Tensor:
    return rows.student + 0.3 * rows.teacher
