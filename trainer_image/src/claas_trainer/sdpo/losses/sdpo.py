"""Self-distillation policy optimisation: the loss of one step, over log-probabilities.

Source: Hübotter et al. 2026, "Reinforcement Learning via Self-Distillation", arXiv 2601.20802. S is the student's
distribution after its own prompt, T the teacher's after the prompt with hindsight, both at the same response token.
Shapes: N response tokens, V vocabulary, K support, M = K + 1 with a tail bucket. All arithmetic is in the dtype of
the inputs: pass float32 or float64, never bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Bound on log-ratios before exp(). The authors' code has the same one.
_MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class TokenLosses:
    """Loss per response token and its parts, each [N]."""

    loss: Tensor
    divergence: Tensor
    ratio: Tensor
    clipped: Tensor
    kl_to_base: Tensor | None


def divergence(student: Tensor, teacher: Tensor, alpha: float) -> Tensor:
    """Divergence of normalised log-probabilities, [N, M] -> [N]. alpha 0: forward KL, KL(T || S). alpha 1: reverse
    KL, KL(S || T). In between the generalised Jensen-Shannon divergence with the mixture Q = (1 - alpha) S + alpha T:
    (1 - alpha) KL(S || Q) + alpha KL(T || Q). It tends to 0 at both ends, so the ends are cases of their own.
    """
    if alpha == 0:
        return _kl(teacher, teacher - student)
    if alpha == 1:
        return _kl(student, student - teacher)
    mixed = _log_mixture(teacher - student, alpha)  # log Q - log S
    to_student = _kl(student, -mixed)
    to_teacher = _kl(teacher, teacher - student - mixed)
    return (1 - alpha) * to_student + alpha * to_teacher


def importance_ratio(sampled: Tensor, old: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Importance ratio min(pi / pi_old, clip) of the sampled tokens, detached, and a mask of the clipped ones; each
    [N]."""
    ratio = (sampled.detach() - old).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp()
    return ratio.clamp(max=clip), ratio > clip


def k3(sampled: Tensor, base: Tensor) -> Tensor:
    """The k3 estimator of KL(S || base) from tokens sampled by S: r - log r - 1 with r = base / S; [N].

    log r is clamped, as in the authors' framework (verl, `kl_penalty` with `low_var_kl`): a single token that the
    base finds likely and S does not must neither dominate the batch nor overflow.
    """
    difference = (base - sampled).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return torch.expm1(difference) - difference


def sdpo_token_losses(
    student: Tensor,
    teacher: Tensor,
    sampled: Tensor,
    old: Tensor,
    *,
    alpha: float,
    is_clip: float,
    base: Tensor | None = None,
    kl_reg_weight: float = 0.0,
) -> TokenLosses:
    """ratio * divergence (+ weight * KL to base), per response token.

    `student`, `teacher`: [N, M] from `support`; only `student` and `sampled` carry gradients.
    `sampled`, `old`, `base`: [N], log-probability of the sampled token under the student now, under the policy that
    sampled it, and under the base model (needed only for a weight above 0). The batch's loss is the mean over all
    tokens of all samples.
    """
    diverged = divergence(student, teacher.detach(), alpha)
    ratio, clipped = importance_ratio(sampled, old, is_clip)
    loss = ratio * diverged
    kl_to_base = None if base is None else k3(sampled, base.detach())
    if kl_to_base is not None:
        loss = loss + kl_reg_weight * kl_to_base
    return TokenLosses(loss, diverged, ratio, clipped, kl_to_base)


def _kl(log_p: Tensor, d: Tensor) -> Tensor:
    """KL(p || q) as the sum of p (d + expm1(-d)) with d = log p - log q; [N, M] -> [N].

    Equal to the sum of p d, since p and q both sum to one, but no term is negative and there is no cancellation near
    d = 0. For large -d expm1 could overflow where p underflows, so q is used directly there.
    """
    p, near = log_p.exp(), d.clamp(-1, 1)
    far = p * (d - 1) + (log_p - d).exp()
    return torch.where(d.abs() <= 1, p * (near + torch.expm1(-near)), far).sum(-1)


def _log_mixture(d: Tensor, weight: float) -> Tensor:
    """log(1 - weight + weight e^d), exactly 0 at d = 0 and without overflow at any d."""
    near = torch.log1p(weight * torch.expm1(d.clamp(-1, 1)))
    far = torch.logaddexp(d.new_tensor(1 - weight).log(), d + d.new_tensor(weight).log())
    return torch.where(d.abs() <= 1, near, far)
