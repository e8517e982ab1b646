"""Over which tokens student and teacher are compared, and their log-probabilities there.

The support is the student's (arXiv 2601.20802, section on top-K distillation): its K likeliest tokens, the teacher
gathered at the same ones. Shapes: N response tokens, V vocabulary, K support, M = K + 1 with a tail bucket. A row of
logits is reduced to its K logits and one log-sum-exp of all the others, which is all that the loss sees of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class Support(StrEnum):
    """Over which tokens the divergence is summed."""

    TOP_K_TAIL = "top_k_tail"
    """The student's top-K, and one bucket for everything else."""
    TOP_K_RENORMALISED = "top_k_renormalised"
    """The student's top-K, each distribution made to sum to one on them."""
    FULL = "full"
    """The whole vocabulary."""


@dataclass(frozen=True)
class ReducedLogits:
    """Rows of logits: `top`, [N, K], those on the support; `others`, [N], the logsumexp of all the rest, -inf where
    there is none."""

    top: Tensor
    others: Tensor

    def total(self) -> Tensor:
        """The logsumexp over the whole vocabulary, [N]."""
        return torch.logaddexp(self.top.logsumexp(-1), self.others)

    def logprobs(self, support: Support) -> Tensor:
        """Log-probabilities on the support, [N, M], which sum to one.

        The tail is log(1 - sum of the chosen), taken as the logsumexp of the others: 1 - p has no digits left in
        float32 where p is close to 1. It is clamped to what the dtype can hold as a probability.
        """
        if support is Support.TOP_K_TAIL:
            total = self.total().unsqueeze(-1)
            least = math.log(torch.finfo(self.top.dtype).tiny)
            return torch.cat([self.top - total, (self.others.unsqueeze(-1) - total).clamp(min=least)], dim=-1)
        return self.top.log_softmax(-1)


def chosen_tokens(student: Tensor, support: Support, k: int) -> Tensor | None:
    """The support's tokens, [N, K], from the student's logits, [N, V]; None for the whole vocabulary."""
    if support is Support.FULL or k >= student.shape[-1]:
        return None
    return student.detach().topk(k, dim=-1).indices


def reduced(logits: Tensor, tokens: Tensor | None) -> ReducedLogits:
    """[N, V] and [N, K] -> the logits there and the logsumexp of the others; differentiable."""
    if tokens is None:
        return ReducedLogits(logits, logits.new_full(logits.shape[:1], -torch.inf))
    return ReducedLogits(logits.gather(-1, tokens), logits.scatter(-1, tokens, -torch.inf).logsumexp(-1))


def support_logprobs(student: Tensor, teacher: Tensor, support: Support, k: int) -> tuple[Tensor, Tensor]:
    """The log-probabilities of student and teacher on the support, two [N, M], from logits or log-probabilities over
    the vocabulary, [N, V]. With K >= V every kind is the full vocabulary."""
    tokens = chosen_tokens(student, support, k)
    kind = Support.FULL if tokens is None else support
    return reduced(student, tokens).logprobs(kind), reduced(teacher, tokens).logprobs(kind)
