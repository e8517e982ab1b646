"""Bars of phases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from claas_gateway.dashboard.timeline import PHASES, bars
from claas_gateway.records import BatchState, FeedbackBatch
from tests.builders.feedback_story import NOW, batch

FORMED = batch("bt-1", "team-a", "coder", NOW)


def ended(**timings: float) -> FeedbackBatch:
    return replace(FORMED, state=BatchState.ACCOUNTED, timings=timings)


def test_phases_follow_one_another_on_the_scale_of_the_longest_batch() -> None:
    longest, shorter = bars([ended(queued=10, step=30), ended(step=20)], NOW)
    assert [(each.phase, each.left, each.width) for each in longest.segments] == [("queued", 0, 25), ("step", 25, 75)]
    assert [(each.left, each.width) for each in shorter.segments] == [(0, 50)]
    assert longest.total == 40


def test_the_serving_gap_is_told_and_is_no_phase() -> None:
    (bar,) = bars([ended(step=2.0, serving_gap=1.5)], NOW)
    assert bar.gap == 1.5
    assert [each.phase for each in bar.segments] == ["step"]


def test_a_batch_under_way_shows_how_long_it_has_waited_and_run() -> None:
    running = replace(FORMED, state=BatchState.SUBMITTED, submitted=NOW + timedelta(seconds=3))
    (bar,) = bars([running], NOW + timedelta(seconds=12))
    assert [(each.phase, each.seconds) for each in bar.segments] == [("gathered", 3), ("running", 9)]


def test_a_batch_that_ended_without_timings_has_an_empty_bar() -> None:
    (bar,) = bars([ended()], NOW)
    assert bar.segments == ()
    assert bar.text == "No phase is known yet"


@given(st.lists(st.dictionaries(st.sampled_from(PHASES), st.floats(), max_size=12), max_size=5))
def test_whatever_the_timings_say_every_segment_lies_in_its_bar(many: list[dict[str, float]]) -> None:
    for bar in bars([ended(**timings) for timings in many], NOW):
        for each in bar.segments:
            assert 0 <= each.left <= 100
            assert 0 <= each.width <= 100.001 - each.left
