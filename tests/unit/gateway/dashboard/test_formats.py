"""Times and numbers as pages print them."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest

from claas_gateway.dashboard.formats import ago, machine_time, number, seconds, shortened, utc

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("passed", "words"),
    [
        (timedelta(seconds=-5), "just now"),
        (timedelta(seconds=59), "59 s ago"),
        (timedelta(minutes=3, seconds=59), "3 min ago"),
        (timedelta(hours=47), "47 h ago"),
        (timedelta(days=9), "9 days ago"),
    ],
)
def test_an_age_has_one_unit(passed: timedelta, words: str) -> None:
    assert ago(NOW - passed, NOW) == words


def test_times_are_in_utc_wherever_they_come_from() -> None:
    elsewhere = datetime(2026, 11, 27, 14, 30, tzinfo=timezone(timedelta(hours=2)))
    assert utc(elsewhere) == "2026-11-27 12:30:00"
    assert machine_time(elsewhere.replace(tzinfo=None)) == "2026-11-27T14:30:00Z"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "not finite"), (3.0, "3"), (0.0123456, "0.01235"), (-1.5, "-1.5"), (1e300, "1e+300")],
)
def test_a_number_has_four_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.25, "0.25 s"), (12.34, "12.3 s"), (59.99, "60 s"), (125.0, "2 min 5 s"), (7_300.0, "2 h 1 min")],
)
def test_a_duration_has_the_units_that_people_use(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_a_long_text_is_cut_and_keeps_to_one_line() -> None:
    assert shortened("one\n two", 20) == "one two"
    assert shortened("x" * 30, 10) == "x" * 9 + "…"
