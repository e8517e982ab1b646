"""Figures as they stand in a status."""

from __future__ import annotations

import time

import pytest

from claas_trainer.figures import seconds, seconds_since, significant


@pytest.mark.parametrize(
    ("exact", "read"),
    [
        (0.012345678, 0.0123457),
        (1.0000004, 1.0),
        (3.1234567e-09, 3.12346e-09),
        (123456.789, 123457.0),
        (12345678.0, 12345678.0),
        (-2.5, -2.5),
        (0.0, 0.0),
    ],
)
def test_metrics_have_six_significant_digits_and_counts_all_of_theirs(exact: float, read: float) -> None:
    assert significant({"figure": exact}) == {"figure": read}


def test_seconds_are_told_to_the_millisecond() -> None:
    assert seconds(1.23456789) == 1.235
    assert seconds_since(time.monotonic() - 2.0) == pytest.approx(2.0, abs=0.5)
    assert len(repr(seconds_since(time.monotonic() - 1 / 3)).split(".")[1]) <= 3
