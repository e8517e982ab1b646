"""How long a step rests beside serving: what holds whatever was measured, and some cases by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_trainer.handover.meter import Reading, between
from claas_trainer.handover.pacing import (
    LONGEST_REST_SECONDS,
    TELLING_SECONDS,
    Served,
    rest_seconds,
    slowdown_percent,
)

BEFORE = Served(10.0, 1000)

befores = st.builds(Served, st.floats(0.5, 60), st.integers(1, 10**6))
durings = st.builds(Served, st.floats(TELLING_SECONDS, 60), st.integers(0, 10**6))
limits = st.integers(1, 90)


@pytest.mark.parametrize(
    ("during", "limit", "seconds"),
    [
        (Served(1.0, 100), 40, 0.0),
        (Served(1.0, 60), 40, 0.0),
        (Served(1.0, 150), 40, 0.0),
        (Served(1.0, 20), 40, 1.0),
        (Served(1.0, 0), 50, 1.0),
        (Served(1.0, 40), 80, 0.0),
        (Served(60.0, 0), 1, LONGEST_REST_SECONDS),
    ],
)
def test_a_step_rests_for_what_serving_lost_beyond_its_share(during: Served, limit: int, seconds: float) -> None:
    assert rest_seconds(BEFORE, during, limit) == pytest.approx(seconds)


@given(before=befores, during=durings, limit=limits)
def test_after_a_rest_serving_has_its_share_and_no_more(before: Served, during: Served, limit: int) -> None:
    rest = rest_seconds(before, during, limit)
    assert 0 <= rest <= LONGEST_REST_SECONDS
    share = (1 - limit / 100) * before.rate
    if rest == 0:
        assert during.rate >= share * (1 - 1e-9)
        return
    average = (during.tokens + before.rate * rest) / (during.seconds + rest)
    assert average <= share * (1 + 1e-9)
    if rest < LONGEST_REST_SECONDS:
        assert average == pytest.approx(share)


@given(before=befores, during=durings, limit=limits)
def test_a_larger_limit_never_makes_the_step_rest_longer(before: Served, during: Served, limit: int) -> None:
    assert rest_seconds(before, during, min(90, limit + 5)) <= rest_seconds(before, during, limit) + 1e-9


@given(during=durings, limit=limits)
def test_where_nothing_was_served_there_is_nothing_to_rest_for(during: Served, limit: int) -> None:
    for before in (None, Served(5.0, 0), Served(0.0, 7)):
        assert rest_seconds(before, during, limit) == 0
        assert slowdown_percent(before, during) is None


@pytest.mark.parametrize(
    ("tokens", "percent"), [(100, 0.0), (60, 40.0), (0, 100.0), (200, 0.0)], ids=["none", "some", "all", "faster"]
)
def test_the_slowdown_is_what_serving_lost_of_its_rate(tokens: int, percent: float) -> None:
    assert slowdown_percent(BEFORE, Served(1.0, tokens)) == pytest.approx(percent)


def test_a_moment_says_nothing() -> None:
    during = Served(TELLING_SECONDS / 2, 0)
    assert slowdown_percent(BEFORE, during) is None
    assert rest_seconds(BEFORE, during, 1) == 0


def test_readings_that_do_not_follow_each_other_say_nothing() -> None:
    first, last = Reading(1.0, 100, busy=True), Reading(3.0, 150, busy=True)
    assert between(first, last) == Served(2.0, 50)
    assert between(None, last) is None
    assert between(first, None) is None
    assert between(last, first) is None
    # A server that was restarted counts from 0 again.
    assert between(first, Reading(3.0, 20, busy=True)) is None
