"""Random logits, and the dense reference over rows of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from claas_trainer.sdpo.losses.support import Support
from tests.unit.trainer.sdpo.losses.dense_reference import Judged, Row, Setting, judge

ALPHAS = (0.0, 0.1, 0.5, 0.9, 1.0)
VOCABULARY = 40


def logits(seed: int, rows: int = 6, spread: float = 2.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, VOCABULARY, generator=generator, dtype=torch.float64) * spread).to(dtype)


@dataclass(frozen=True)
class Drawn:
    """Rows of logits, [N, V], the sampled tokens, [N], and their recorded log-probabilities, NaN where none is."""

    student: Tensor
    teacher: Tensor
    base: Tensor
    sampled: Tensor
    old: Tensor


def drawn(seed: int, rows: int = 6, *, recorded: bool = True, dtype: torch.dtype = torch.float64) -> Drawn:
    student, teacher, base = (logits(seed + shift, rows, dtype=dtype) for shift in range(3))
    generator = torch.Generator().manual_seed(seed)
    sampled = torch.randint(VOCABULARY, (rows,), generator=generator)
    old = student.log_softmax(-1).gather(-1, sampled.unsqueeze(-1)).squeeze(-1)
    old = old + 2 * torch.randn(rows, generator=generator, dtype=torch.float64).to(dtype)
    if not recorded:
        old[::2] = torch.nan
    return Drawn(student, teacher, base, sampled, old)


def setting(alpha: float, support: Support, k: int, clip: float, kl_weight: float) -> Setting:
    """The reference's setting for one of ours."""
    tail = support is not Support.TOP_K_RENORMALISED
    return Setting(alpha, None if support is Support.FULL else k, tail, clip, kl_weight)


@dataclass(frozen=True)
class Expected:
    """What the reference says of rows: [N], and the gradient of the student's logits, [N, V]; float64."""

    loss: Tensor
    gradient: Tensor
    divergence: Tensor
    ratio: Tensor
    kl_to_base: Tensor


def expected(rows: Drawn, wanted: Setting) -> Expected:
    judged: list[Judged] = []
    for student, teacher, base, sampled, old in zip(
        rows.student.double().tolist(),
        rows.teacher.double().tolist(),
        rows.base.double().tolist(),
        rows.sampled.tolist(),
        rows.old.double().tolist(),
        strict=True,
    ):
        judged.append(judge(Row(student, teacher, base, sampled, None if old != old else old), wanted))
    return Expected(
        *(
            torch.tensor([getattr(row, name) for row in judged], dtype=torch.float64)
            for name in ("loss", "gradient", "divergence", "ratio", "kl_to_base")
        )
    )
