"""The gradient that is written out tile by tile, against the dense reference, on models that are a head at most."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from claas_trainer.sdpo.losses.support import Support
from claas_trainer.sdpo.scoring import Objective, Scored, Sums, score, token_kl
from claas_trainer.sdpo.teachers.base import Teacher
from claas_trainer.sdpo.teachers.frozen import FrozenTeacher
from claas_trainer.sdpo.teachers.trust_region import TrustRegionTeacher
from tests.unit.trainer.sdpo.losses.dense_reference import kl, softmax
from tests.unit.trainer.sdpo.losses.drawing import VOCABULARY, Drawn, drawn, expected, logits, setting
from tests.unit.trainer.sdpo.losses.heads import CPU, HeadedModel, LogitsModel

ROWS = 7
CLIP = 1.5


def scored(rows: Drawn, *, kl_weight: float, teacher: list[Tensor] | None = None) -> Scored:
    taught = [rows.teacher] if teacher is None else teacher
    return Scored(rows.student, taught, rows.base if kl_weight else None, rows.sampled, rows.old)


@pytest.mark.parametrize("tile_rows", [1, 3, ROWS])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
@pytest.mark.parametrize("k", [5, VOCABULARY])
@pytest.mark.parametrize("support", list(Support))
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_a_tile_s_gradient_and_sums_are_the_dense_reference_s(
    alpha: float, support: Support, k: int, kl_weight: float, recorded: bool, tile_rows: int
) -> None:
    rows = drawn(31, ROWS, recorded=recorded)
    before = rows.student.clone()
    model, sums = LogitsModel(), Sums.zero(CPU)
    objective = Objective(alpha, CLIP, kl_weight, support, k)
    gradient = score(model, FrozenTeacher(), scored(rows, kl_weight=kl_weight), objective, tile_rows, sums)
    wanted = expected(rows, setting(alpha, support, k, CLIP, kl_weight))
    torch.testing.assert_close(gradient, wanted.gradient, rtol=1e-10, atol=1e-14)
    assert sums.loss.item() == pytest.approx(wanted.loss.sum().item(), rel=1e-10)
    assert sums.divergence.item() == pytest.approx(wanted.divergence.sum().item(), rel=1e-10)
    assert sums.ratio.item() == pytest.approx(wanted.ratio.sum().item(), rel=1e-10)
    assert sums.ratio_max.item() == pytest.approx(wanted.ratio.max().item(), rel=1e-10)
    assert sums.clipped.item() == wanted.ratio.eq(CLIP).sum().item()
    assert sums.kl_to_base.item() == pytest.approx(wanted.kl_to_base.sum().item() if kl_weight else 0, rel=1e-10)
    assert model.widest == tile_rows
    # The features are still needed: the distance that a step moved is measured against them.
    assert torch.equal(rows.student, before)


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_the_trust_region_teacher_is_between_base_and_student_and_has_no_gradient(rho: float) -> None:
    rows, hinted = drawn(32, ROWS), logits(40, ROWS)
    networks = scored(rows, kl_weight=0.0, teacher=[rows.teacher, hinted])
    teacher: Teacher = TrustRegionTeacher(rho)
    gradient = score(LogitsModel(), teacher, networks, Objective(0.5, CLIP, 0.0, Support.FULL, 1), 2, Sums.zero(CPU))
    between = dataclasses.replace(rows, teacher=(1 - rho) * rows.teacher + rho * hinted)
    wanted = expected(between, setting(0.5, Support.FULL, 1, CLIP, 0.0))
    torch.testing.assert_close(gradient, wanted.gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("support", list(Support))
def test_through_a_head_the_gradient_is_the_logits_times_the_head(support: Support) -> None:
    generator = torch.Generator().manual_seed(5)
    head = torch.randn(VOCABULARY, 6, generator=generator, dtype=torch.float64)
    features = [torch.randn(ROWS, 6, generator=generator, dtype=torch.float64) for _ in range(3)]
    rows = drawn(33, ROWS)
    student, teacher, base = (each @ head.t() for each in features)
    seen = Drawn(student, teacher, base, rows.sampled, rows.old)
    wanted = expected(seen, setting(0.5, support, 5, CLIP, 0.3))
    given = Scored(features[0], [features[1]], features[2], rows.sampled, rows.old)
    objective = Objective(0.5, CLIP, 0.3, support, 5)
    gradient = score(HeadedModel(head), FrozenTeacher(), given, objective, 3, Sums.zero(CPU))
    torch.testing.assert_close(gradient, wanted.gradient @ head, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("support", [Support.TOP_K_TAIL, Support.TOP_K_RENORMALISED])
def test_a_row_with_nothing_outside_its_support_has_no_gradient_there(support: Support) -> None:
    """Logits of -inf, as some models give to tokens that there are none of."""
    rows = drawn(34, ROWS)
    for tensor in (rows.student, rows.teacher, rows.base):
        tensor[:, 5:] = -torch.inf
    rows = dataclasses.replace(rows, sampled=rows.sampled % 5)
    sums = Sums.zero(CPU)
    objective = Objective(0.5, CLIP, 0.3, support, 5)
    gradient = score(LogitsModel(), FrozenTeacher(), scored(rows, kl_weight=0.3), objective, 3, sums)
    assert gradient.isfinite().all()
    assert not gradient[:, 5:].any()
    assert gradient[:, :5].any(-1).all()
    assert sums.loss.isfinite()


@pytest.mark.parametrize("tile_rows", [1, 3, ROWS])
def test_the_distance_at_each_token_is_the_kl_from_before_to_after(tile_rows: int) -> None:
    before, after = logits(41, ROWS), logits(42, ROWS)
    wanted = [kl(softmax(p), softmax(q)) for p, q in zip(before.tolist(), after.tolist(), strict=True)]
    assert token_kl(LogitsModel(), before, after, tile_rows).tolist() == pytest.approx(wanted, rel=1e-10)
