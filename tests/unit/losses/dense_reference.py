"""The SDPO loss written again for the tests: over the whole vocabulary, in float64, term by term.

Straight from the formulas of arXiv 2601.20802, with plain sums of p * (log p - log q) and Python's floats,
so that it shares nothing with what it judges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / math.fsum(weights) for w in weights]


def bucketed(probabilities: Sequence[float], tokens: Sequence[int]) -> list[float]:
    """The chosen tokens' probabilities, and that of all the others together."""
    rest = [p for index, p in enumerate(probabilities) if index not in tokens]
    return [*(probabilities[token] for token in tokens), math.fsum(rest)]


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def generalised_jsd(student: Sequence[float], teacher: Sequence[float], alpha: float) -> float:
    if alpha == 0:
        return kl(teacher, student)
    if alpha == 1:
        return kl(student, teacher)
    mixture = [(1 - alpha) * s + alpha * t for s, t in zip(student, teacher, strict=True)]
    return (1 - alpha) * kl(student, mixture) + alpha * kl(teacher, mixture)


def divergence(
    student_logits: Sequence[float], teacher_logits: Sequence[float], alpha: float, k: int | None
) -> float:
    """On the student's top-K and a tail bucket, or over the full vocabulary when K is None."""
    student, teacher = softmax(student_logits), softmax(teacher_logits)
    if k is not None:
        tokens = sorted(range(len(student)), key=lambda index: -student[index])[:k]
        student, teacher = bucketed(student, tokens), bucketed(teacher, tokens)
    return generalised_jsd(student, teacher, alpha)
