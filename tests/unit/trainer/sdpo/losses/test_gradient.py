"""The loss of a token and its gradient, against a dense reference and against finite differences."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from claas_trainer.sdpo.losses.sdpo import TokenLosses, sdpo_token_losses
from claas_trainer.sdpo.losses.support import Support, support_logprobs
from tests.unit.trainer.sdpo.losses.drawing import ALPHAS, VOCABULARY, Drawn, drawn, expected, setting

CLIP = 1.5
WEIGHT = 0.3


def ours(student: Tensor, rows: Drawn, alpha: float, support: Support, k: int, kl_weight: float) -> TokenLosses:
    def of_sampled(logits: Tensor) -> Tensor:
        return logits.log_softmax(-1).gather(-1, rows.sampled.unsqueeze(-1)).squeeze(-1)

    return sdpo_token_losses(
        *support_logprobs(student, rows.teacher, support, k),
        of_sampled(student),
        rows.old,
        alpha=alpha,
        is_clip=CLIP,
        base=of_sampled(rows.base) if kl_weight else None,
        kl_reg_weight=kl_weight,
    )


def gradient_of(rows: Drawn, alpha: float, support: Support, k: int, kl_weight: float) -> tuple[TokenLosses, Tensor]:
    leaf = rows.student.clone().requires_grad_()
    losses = ours(leaf, rows, alpha, support, k, kl_weight)
    (found,) = torch.autograd.grad(losses.loss.sum(), leaf)
    return losses, found


def off(found: Tensor, wanted: Tensor) -> float:
    """The largest difference of two gradients in any row, relative to the row's largest entry."""
    return float(((found.double() - wanted).abs().amax(-1) / wanted.abs().amax(-1)).max())


@pytest.mark.parametrize("kl_weight", [0.0, WEIGHT])
@pytest.mark.parametrize("k", [1, 2, 7, VOCABULARY - 1, VOCABULARY])
@pytest.mark.parametrize("support", list(Support))
@pytest.mark.parametrize("alpha", ALPHAS)
def test_loss_and_gradient_are_the_dense_reference_s_in_float64(
    alpha: float, support: Support, k: int, kl_weight: float
) -> None:
    rows = drawn(20)
    wanted = expected(rows, setting(alpha, support, k, CLIP, kl_weight))
    losses, gradient = gradient_of(rows, alpha, support, k, kl_weight)
    assert 0 < losses.clipped.sum() < len(losses.clipped)
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-15)
    close(losses.loss.detach(), wanted.loss)
    close(losses.divergence.detach(), wanted.divergence)
    close(losses.ratio, wanted.ratio)
    if losses.kl_to_base is not None:
        close(losses.kl_to_base.detach(), wanted.kl_to_base)
    if support is Support.TOP_K_RENORMALISED and k == 1 and kl_weight == 0:
        assert not gradient.any()
    else:
        assert off(gradient, wanted.gradient) <= 1e-10


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    alpha=st.one_of(st.sampled_from(ALPHAS), st.floats(0.01, 0.99)),
    support=st.sampled_from(list(Support)),
    k=st.integers(2, VOCABULARY),
    kl_weight=st.sampled_from((0.0, WEIGHT)),
)
def test_in_float32_the_loss_keeps_five_digits_and_the_gradient_four(
    seed: int, alpha: float, support: Support, k: int, kl_weight: float
) -> None:
    rows = drawn(seed, dtype=torch.float32)
    wanted = expected(rows, setting(alpha, support, k, CLIP, kl_weight))
    losses, gradient = gradient_of(rows, alpha, support, k, kl_weight)
    # Below 1e-3 the loss is a difference of what agrees, and digits are gone with it; so it is with the gradients of
    # divergence and KL where they pull in opposite directions.
    told = wanted.loss.ge(1e-3).logical_and(wanted.divergence.ge(1e-3))
    bound = torch.where(told, 1e-5 * wanted.loss, 1e-8 + 1e-5 * wanted.loss)
    assert ((losses.loss.detach().double() - wanted.loss).abs() <= bound).all()
    if told.any():
        assert off(gradient[told], wanted.gradient[told]) <= 1e-4


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("support", list(Support))
def test_the_gradient_is_that_of_finite_differences(alpha: float, support: Support) -> None:
    # The gap between logits far exceeds the difference taken, so the top-K stays the same.
    rows = drawn(11, rows=1)
    losses, gradient = gradient_of(rows, alpha, support, 6, WEIGHT)
    h = 1e-6
    nudges = h * torch.eye(VOCABULARY, dtype=torch.float64)
    student, teacher, base = (logits.expand(VOCABULARY, -1) for logits in (rows.student, rows.teacher, rows.base))
    many = Drawn(student, teacher, base, rows.sampled.expand(VOCABULARY), rows.old.expand(VOCABULARY))

    def loss_at(student: Tensor) -> Tensor:
        found = ours(student, many, alpha, support, 6, WEIGHT)
        assert found.kl_to_base is not None
        # The ratio is a weight and has no gradient: it stays what it was.
        return losses.ratio * found.divergence + WEIGHT * found.kl_to_base

    slopes = (loss_at(many.student + nudges) - loss_at(many.student - nudges)) / (2 * h)
    torch.testing.assert_close(gradient[0], slopes, rtol=1e-5, atol=1e-8)
