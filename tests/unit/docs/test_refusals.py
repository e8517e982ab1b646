"""That docs/gateway.md explains why feedback is refused."""

from __future__ import annotations

from pathlib import Path

from claas_gateway.feedback.plan.following import Refusal

PAGE = Path(__file__).resolve().parents[3] / "docs" / "gateway.md"


def test_the_page_explains_each_reason() -> None:
    page = PAGE.read_text("utf-8")
    assert [reason for reason in Refusal if f"`{reason.value}`" not in page] == []
