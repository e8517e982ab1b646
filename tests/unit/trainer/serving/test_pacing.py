"""How long a step rests beside serving: what holds whatever was measured, and some cases by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_trainer.serving.handover.meter import Reading, between, unhindered
from claas_trainer.serving.handover.pacing import (
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
    first, last = Reading(1.0, 1.0, 100, busy=True), Reading(3.0, 3.0, 150, busy=True)
    assert between(first, last) == Served(2.0, 50)
    assert between(None, last) is None
    assert between(first, None) is None
    assert between(last, first) is None
    # A server that was restarted counts from 0 again.
    assert between(first, Reading(3.0, 3.0, 20, busy=True)) is None


def test_how_fast_serving_is_comes_from_the_seconds_in_which_nothing_held_it_up() -> None:
    """A preparation that computes holds serving up: from 2 to 4 s it made half as many tokens."""
    tokens = (0, 500, 1000, 1500, 2000, 2250, 2500, 2750, 3000, 3500)
    readings = [Reading(half / 2, half / 2, made, busy=True) for half, made in enumerate(tokens)]
    assert unhindered(readings) == Served(1.0, 1000)


def test_one_fast_second_is_no_measure_of_serving() -> None:
    tokens, readings = 0, []
    for quarter in range(81):
        tokens += 500 if 40 <= quarter < 44 else 250
        readings.append(Reading(quarter / 4, quarter / 4, tokens, busy=True))
    assert unhindered(readings) == Served(1.0, 1000)


def test_a_reader_that_was_held_up_does_not_take_serving_for_faster() -> None:
    held_up = Reading(0.0, 0.9, 0, busy=True)
    assert unhindered([held_up, Reading(2.0, 2.0, 2000, busy=True)]) == Served(2.0, 2000)


def test_readings_of_less_than_a_second_are_taken_as_a_whole() -> None:
    readings = [Reading(0.0, 0.0, 0, busy=True), Reading(0.5, 0.5, 400, busy=True)]
    assert unhindered(readings) == Served(0.5, 400)
    assert unhindered(readings[:1]) is None
    assert unhindered([]) is None


@given(st.lists(st.tuples(st.floats(0.01, 2), st.integers(0, 5000)), min_size=1, max_size=40))
def test_serving_is_never_taken_for_faster_than_it_ever_was(steps: list[tuple[float, int]]) -> None:
    at, tokens, readings = 0.0, 0, [Reading(0.0, 0.0, 0, busy=True)]
    for seconds, made in steps:
        at, tokens = at + seconds, tokens + made
        readings.append(Reading(at, at, tokens, busy=True))
    found = unhindered(readings)
    assert found is not None
    assert 0 <= found.rate <= max(made / seconds for seconds, made in steps) * (1 + 1e-9) + 1e-9
