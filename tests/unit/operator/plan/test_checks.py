"""The order of checks is data: the architecture page tells it, and each check says why it stands where it does."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from claas_operator.plan.adapter.ready_checks import READY_CHECKS
from claas_operator.plan.checks import first_answer
from claas_operator.plan.job.job import JOB_CHECKS
from claas_operator.plan.job.obstacles import OBSTACLES

PAGE = Path(__file__).parents[4] / "docs" / "architecture.md"
TABLES: dict[str, tuple[Callable[..., object], ...]] = {
    "READY_CHECKS": READY_CHECKS,
    "JOB_CHECKS": JOB_CHECKS,
    "OBSTACLES": OBSTACLES,
}


@pytest.mark.parametrize("name", TABLES)
def test_the_page_tells_the_checks_in_their_order(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \|[^|]*\|([^|]*)\|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert re.findall(r"`(\w+)`", row) == [check.__name__ for check in TABLES[name]]


@pytest.mark.parametrize(
    "check", [check for checks in TABLES.values() for check in checks], ids=lambda check: check.__name__
)
def test_a_check_says_why_it_stands_where_it_stands(check: Callable[..., object]) -> None:
    assert check.__doc__


def test_the_first_check_that_has_an_answer_gives_it_and_the_others_are_not_asked() -> None:
    asked: list[str] = []

    def silent(subject: str) -> str | None:
        asked.append(subject)
        return None

    def asked_too_late(subject: str) -> str | None:
        raise AssertionError(subject)

    assert first_answer((silent, str.upper, asked_too_late), "no") == "NO"
    assert first_answer((silent,), "no") is None
    assert asked == ["no", "no"]
