"""The SDPO loss and its gradient written again for the tests: over the whole vocabulary, in float64, term by term.

Straight from the formulas of arXiv 2601.20802, with plain sums of p * (log p - log q), derivatives taken by hand and
Python's floats, so that it shares nothing with what it judges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """`k` None: the whole vocabulary. `tail`: all tokens outside the top-K in one bucket; without it, the top-K
    renormalised."""

    alpha: float
    k: int | None = None
    tail: bool = True
    clip: float = math.inf
    kl_weight: float = 0.0


@dataclass(frozen=True)
class Row:
    """One response token: logits, which token was sampled, and its recorded log-probability if there is one."""

    student: Sequence[float]
    teacher: Sequence[float]
    base: Sequence[float]
    sampled: int
    old: float | None = None


@dataclass(frozen=True)
class Judged:
    """The loss of one row, its parts, and its gradient with respect to the student's logits."""

    loss: float
    gradient: list[float]
    divergence: float
    ratio: float
    kl_to_base: float


def judge(row: Row, setting: Setting) -> Judged:
    """ratio * divergence + weight * k3, where nothing but the divergence's and k3's student has a gradient."""
    student, base = softmax(row.student), softmax(row.base)
    logprob = math.log(student[row.sampled])
    ratio = min(math.exp(logprob - (logprob if row.old is None else row.old)), setting.clip)
    diverged, of_divergence = divergence_and_gradient(row.student, row.teacher, setting)
    base_over_student = base[row.sampled] / student[row.sampled]
    k3 = base_over_student - math.log(base_over_student) - 1
    # d k3 / d logprob = 1 - base / student, and d logprob / d logit_v = [v = sampled] - student_v.
    of_logprob = setting.kl_weight * (1 - base_over_student)
    gradient = [
        ratio * g + of_logprob * ((token == row.sampled) - p)
        for token, (g, p) in enumerate(zip(of_divergence, student, strict=True))
    ]
    return Judged(ratio * diverged + setting.kl_weight * k3, gradient, diverged, ratio, k3)


def divergence_and_gradient(
    student_logits: Sequence[float], teacher_logits: Sequence[float], setting: Setting
) -> tuple[float, list[float]]:
    vocabulary = range(len(student_logits))
    chosen = sorted(vocabulary, key=lambda token: -student_logits[token])[: setting.k]
    seen = list(vocabulary) if setting.tail else chosen
    # Where each token's mass goes: to a bucket of its own, or to the tail, the last bucket.
    bucket = {token: chosen.index(token) if token in chosen else len(chosen) for token in seen}
    student = softmax([student_logits[token] for token in seen])
    teacher = softmax([teacher_logits[token] for token in seen])
    buckets = range(max(bucket.values()) + 1)
    s = [math.fsum(p for token, p in zip(seen, student, strict=True) if bucket[token] == b) for b in buckets]
    t = [math.fsum(p for token, p in zip(seen, teacher, strict=True) if bucket[token] == b) for b in buckets]
    of_s = _derivative(s, t, setting.alpha)
    mean = math.fsum(p * g for p, g in zip(s, of_s, strict=True))
    # The way back through a softmax: p_v * (g_v - sum of p * g).
    gradient = [0.0 for _ in vocabulary]
    for token, p in zip(seen, student, strict=True):
        gradient[token] = p * (of_s[bucket[token]] - mean)
    return generalised_jsd(s, t, setting.alpha), gradient


def softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    total = math.fsum(weights)
    return [w / total for w in weights]


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def generalised_jsd(student: Sequence[float], teacher: Sequence[float], alpha: float) -> float:
    if alpha == 0:
        return kl(teacher, student)
    if alpha == 1:
        return kl(student, teacher)
    mixture = _mixture(student, teacher, alpha)
    return (1 - alpha) * kl(student, mixture) + alpha * kl(teacher, mixture)


def _derivative(student: Sequence[float], teacher: Sequence[float], alpha: float) -> list[float]:
    """Of `generalised_jsd` with respect to each of the student's probabilities."""
    if alpha == 0:
        return [-t / s for s, t in zip(student, teacher, strict=True)]
    if alpha == 1:
        return [math.log(s / t) + 1 for s, t in zip(student, teacher, strict=True)]
    # The mixture's own derivative sums to (1 - alpha) (1 - Q / Q) = 0.
    return [(1 - alpha) * math.log(s / m) for s, m in zip(student, _mixture(student, teacher, alpha), strict=True)]


def _mixture(student: Sequence[float], teacher: Sequence[float], alpha: float) -> list[float]:
    return [(1 - alpha) * s + alpha * t for s, t in zip(student, teacher, strict=True)]
