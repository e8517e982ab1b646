"""From features to losses and back, one tile of response tokens at a time, so that only one tile's logits exist at
once.

A tile's logits are reduced to the support and one logsumexp of the others (`losses.support`). Autograd runs on these
reduced logits only; the gradient of the full logits follows from theirs: unchanged on the support, and g * softmax of
the others elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from claas_trainer.kernels.elementwise import others_gradient, row_logsumexp
from claas_trainer.sdpo.losses.sdpo import TokenLosses, divergence, sdpo_token_losses
from claas_trainer.sdpo.losses.support import ReducedLogits, Support, chosen_tokens
from claas_trainer.sdpo.policy import PolicyModel
from claas_trainer.sdpo.teachers.base import Teacher


@dataclass(frozen=True)
class Objective:
    """Settings of the loss: those of `sdpo_token_losses`, the support, and K."""

    alpha: float
    is_clip: float
    kl_reg_weight: float
    support: Support
    k: int


@dataclass(frozen=True)
class Scored:
    """Features of one micro-batch's response tokens: of the student, of the teacher's networks, and of the base model
    (None without a KL term), each [N, F]. `targets`, [N]: the response tokens; `old`, [N]: their recorded
    log-probabilities, NaN where there are none."""

    student: Tensor
    teacher: Sequence[Tensor]
    base: Tensor | None
    targets: Tensor
    old: Tensor


@dataclass
class Sums:
    """Running sums over tokens. They stay on the device until the end, so that no micro-batch waits for a
    transfer."""

    loss: Tensor
    divergence: Tensor
    ratio: Tensor
    ratio_max: Tensor
    clipped: Tensor
    kl_to_base: Tensor

    @classmethod
    def zero(cls, device: torch.device) -> Sums:
        return cls(*(torch.zeros((), dtype=torch.float64, device=device) for _ in range(6)))

    def add(self, losses: TokenLosses) -> None:
        """Add the sums of a tile."""
        self.loss += losses.loss.detach().double().sum()
        self.divergence += losses.divergence.detach().double().sum()
        self.ratio += losses.ratio.double().sum()
        self.ratio_max = torch.maximum(self.ratio_max, losses.ratio.double().max())
        self.clipped += losses.clipped.double().sum()
        if losses.kl_to_base is not None:
            self.kl_to_base += losses.kl_to_base.detach().double().sum()


def score(
    model: PolicyModel, teacher: Teacher, scored: Scored, objective: Objective, tile_rows: int, sums: Sums
) -> Tensor:
    """Gradient of the sum of all token losses with respect to the student's features, [N, F]."""
    gradient = torch.empty_like(scored.student)
    for start in range(0, len(scored.targets), tile_rows):
        tile = slice(start, start + tile_rows)
        gradient[tile] = _score_tile(model, teacher, _cut(scored, tile), objective, sums)
    return gradient


def _cut(scored: Scored, tile: slice) -> Scored:
    base = None if scored.base is None else scored.base[tile]
    teacher = [features[tile] for features in scored.teacher]
    return Scored(scored.student[tile], teacher, base, scored.targets[tile], scored.old[tile])


def _score_tile(model: PolicyModel, teacher: Teacher, tile: Scored, objective: Objective, sums: Sums) -> Tensor:
    targets = tile.targets.unsqueeze(-1)
    base = None if tile.base is None else _token_logprobs(model.logits(tile.base), targets)
    logits = model.logits(tile.student)
    tokens = chosen_tokens(logits, objective.support, objective.k)
    support = Support.FULL if tokens is None else objective.support
    taught = _reduce(teacher.logits([model.logits(features) for features in tile.teacher]), tokens)
    target = logits.gather(-1, targets).squeeze(-1).requires_grad_()
    student = _reduce(logits, tokens)
    leaves = [student.top.requires_grad_(), student.others.requires_grad_(), target]
    with torch.enable_grad():
        sampled = target - student.total()
        losses = sdpo_token_losses(
            student.logprobs(support),
            taught.logprobs(support),
            sampled,
            torch.where(tile.old.isnan(), sampled.detach(), tile.old),
            alpha=objective.alpha,
            is_clip=objective.is_clip,
            base=base,
            kl_reg_weight=objective.kl_reg_weight,
        )
        of_top, of_others, of_target = torch.autograd.grad(
            losses.loss.sum(), leaves, allow_unused=True, materialize_grads=True
        )
    sums.add(losses)
    return model.features_gradient(
        _logits_gradient(logits, student, tokens, targets, of_top, of_others, of_target, tile.student.dtype)
    )


def _reduce(logits: Tensor, tokens: Tensor | None) -> ReducedLogits:
    """Like `losses.support.reduced`, without gradient; overwrites the support's logits with -inf."""
    if tokens is None:
        return ReducedLogits(logits, logits.new_full(logits.shape[:1], -torch.inf))
    top = logits.gather(-1, tokens)
    logits.scatter_(-1, tokens, -torch.inf)
    return ReducedLogits(top, row_logsumexp(logits))


def _logits_gradient(
    logits: Tensor,
    student: ReducedLogits,
    tokens: Tensor | None,
    targets: Tensor,
    of_top: Tensor,
    of_others: Tensor,
    of_target: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient of the logits, [n, V], in the features' dtype, from those of the support's logits, of the others'
    logsumexp, and of the target's own logit."""
    if tokens is None:
        gradient = of_top.to(dtype, copy=True)
    else:
        # A row without others has no gradient there; -inf minus -inf would be NaN.
        others = student.others.detach().clamp(min=torch.finfo(logits.dtype).min)
        gradient = others_gradient(logits, others, of_others, dtype)
        gradient.scatter_(-1, tokens, of_top.to(dtype))
    return gradient.scatter_add_(-1, targets, of_target.unsqueeze(-1).to(dtype))


def _token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """[n, V] and [n, 1] -> [n]."""
    return logits.gather(-1, targets).squeeze(-1) - row_logsumexp(logits)


def response_logprobs(model: PolicyModel, features: Tensor, targets: Tensor, tile_rows: int) -> Tensor:
    """Log-probability of each response token, [N], from features, [N, F], and the tokens, [N]."""
    found = []
    for start in range(0, len(targets), tile_rows):
        tile = slice(start, start + tile_rows)
        found.append(_token_logprobs(model.logits(features[tile]), targets[tile].unsqueeze(-1)))
    return torch.cat(found)


def token_kl(model: PolicyModel, before: Tensor, after: Tensor, tile_rows: int) -> Tensor:
    """KL(before || after) over the whole vocabulary at each token, [N], float64, from features, [N, F]."""
    found = []
    for start in range(0, len(before), tile_rows):
        tile = slice(start, start + tile_rows)
        was, now = (model.logits(features[tile]).log_softmax(-1) for features in (before, after))
        found.append(divergence(now, was, 0.0).double())
    return torch.cat(found)
