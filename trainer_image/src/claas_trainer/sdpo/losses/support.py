"""The support: the tokens over which student and teacher are compared, and their log-probabilities there.

The support is the student's (arXiv 2601.20802, section on top-K distillation): its K most likely tokens, at which the
teacher's logits are gathered too. Shapes: N response tokens, V vocabulary, K support, M = K + 1 with a tail bucket. A
row of logits is reduced to its K logits and one logsumexp of all others; the loss needs nothing else. Where only the
log-probabilities of the K are known, the tail is what they leave (`with_tail`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class Support(StrEnum):
    """Tokens over which the divergence is summed."""

    TOP_K_TAIL = "top_k_tail"
    """The student's top K, and one bucket for all other tokens."""
    TOP_K_RENORMALISED = "top_k_renormalised"
    """The student's top K alone, both distributions renormalised."""
    FULL = "full"
    """The whole vocabulary."""


@dataclass(frozen=True)
class ReducedLogits:
    """Rows of logits: `top`, [N, K], those on the support; `others`, [N], the logsumexp of all others, -inf if there
    are none."""

    top: Tensor
    others: Tensor

    def total(self) -> Tensor:
        """Logsumexp over the whole vocabulary, [N]."""
        return torch.logaddexp(self.top.logsumexp(-1), self.others)

    def logprobs(self, support: Support) -> Tensor:
        """Log-probabilities on the support, [N, M]; the probabilities sum to one. The tail bucket is computed as the
        logsumexp of the others, because 1 - p loses all digits in float32 when p is close to 1. It is clamped to the
        smallest probability of the dtype.
        """
        if support is Support.TOP_K_TAIL:
            total = self.total().unsqueeze(-1)
            least = math.log(torch.finfo(self.top.dtype).tiny)
            return torch.cat([self.top - total, (self.others.unsqueeze(-1) - total).clamp(min=least)], dim=-1)
        return self.top.log_softmax(-1)


def chosen_tokens(student: Tensor, support: Support, k: int) -> Tensor | None:
    """Tokens of the support, [N, K], from the student's logits, [N, V]; None for the whole vocabulary."""
    if support is Support.FULL or k >= student.shape[-1]:
        return None
    return student.detach().topk(k, dim=-1).indices


def reduced(logits: Tensor, tokens: Tensor | None) -> ReducedLogits:
    """[N, V] and [N, K] -> logits on the support and logsumexp of the others; differentiable."""
    if tokens is None:
        return ReducedLogits(logits, logits.new_full(logits.shape[:1], -torch.inf))
    return ReducedLogits(logits.gather(-1, tokens), logits.scatter(-1, tokens, -torch.inf).logsumexp(-1))


def support_logprobs(student: Tensor, teacher: Tensor, support: Support, k: int) -> tuple[Tensor, Tensor]:
    """The log-probabilities of student and teacher on the support, two [N, M], from logits or log-probabilities over
    the vocabulary, [N, V]. With K >= V every kind of support is the full vocabulary."""
    tokens = chosen_tokens(student, support, k)
    kind = Support.FULL if tokens is None else support
    return reduced(student, tokens).logprobs(kind), reduced(teacher, tokens).logprobs(kind)


def with_tail(top: Tensor, support: Support) -> Tensor:
    """Log-probabilities on the support, float64 [N, M], from those of its K tokens over the whole vocabulary, [N, K].

    The tail bucket is 1 minus the probabilities of the K. Below the resolution of the given dtype it is unknown, and
    it is clamped there, without a gradient, which would be rounding errors times 1 / tail.
    """
    if support is not Support.TOP_K_TAIL:
        return top.double().log_softmax(-1)
    held = top.double().logsumexp(-1, keepdim=True)
    return torch.cat([top.double(), _log_complement(held, torch.finfo(top.dtype).eps)], dim=-1)


def _log_complement(log_p: Tensor, least: float) -> Tensor:
    """log(max(1 - p, least)), also where p is close to 0 or rounded to above 1."""
    log_p = log_p.clamp(max=math.log1p(-least))
    near_one = log_p > -math.log(2)
    # The unused branch must not make the gradient NaN.
    of_near = torch.where(near_one, log_p, -1.0).expm1().neg().log()
    of_far = torch.where(near_one, -1.0, log_p).exp().neg().log1p()
    return torch.where(near_one, of_near, of_far)
