"""The chart's geometry: whatever was measured, everything lies inside the picture."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from claas_gateway.dashboard.chart import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Marks,
    Panel,
    Series,
    panel,
)

NO_MARKS = Marks({}, frozenset(), None)
values = st.one_of(st.none(), st.floats(), st.floats(0, 1))


@st.composite
def panels(draw: st.DrawFn) -> Panel:
    versions = sorted(draw(st.sets(st.integers(0, 10_000), max_size=90)))
    count = len(versions)
    series = [
        Series(f"line {index}", tuple(draw(st.lists(values, min_size=count, max_size=count))))
        for index in range(draw(st.integers(1, 3)))
    ]
    some = st.sampled_from([*versions, 10_001])
    marks = Marks(
        draw(st.dictionaries(some, st.integers(0, 10_000), max_size=3)),
        frozenset(draw(st.sets(some, max_size=3))),
        draw(st.one_of(st.none(), st.integers(0, 10_000))),
    )
    return panel("key", "Title", versions, series, marks)


def places(drawn: Panel) -> list[tuple[float, float]]:
    in_lines = [
        (float(x), float(y))
        for line in drawn.lines
        for path in line.paths
        for x, y in (pair.split(",") for pair in path.split(" "))
    ]
    in_points = [(point.x, point.y) for line in drawn.lines for point in line.points]
    marks = [*drawn.rollbacks, *drawn.rejections, *([drawn.served] if drawn.served else [])]
    return [
        *in_lines,
        *in_points,
        *((mark.x, TOP) for mark in marks),
        *((tick.at, TOP) for tick in drawn.across),
        *((LEFT, tick.at) for tick in drawn.up),
    ]


@settings(max_examples=50, deadline=None)
@given(panels())
def test_whatever_was_measured_all_is_inside_the_frame_and_a_number(drawn: Panel) -> None:
    for x, y in places(drawn):
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP <= y <= HEIGHT - BOTTOM


@settings(max_examples=50, deadline=None)
@given(panels())
def test_ticks_are_apart_and_in_order(drawn: Panel) -> None:
    up = [tick.at for tick in drawn.up]
    assert up == sorted(up, reverse=True)
    assert len({tick.label for tick in drawn.up}) == len(up) <= 8
    across = [tick.at for tick in drawn.across]
    assert across == sorted(across)
    assert len(across) <= 7


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=40))
def test_a_larger_value_is_never_lower(measured: list[float]) -> None:
    drawn = panel("key", "Title", range(len(measured)), [Series("line", tuple(measured))], NO_MARKS)
    points = sorted(drawn.lines[0].points, key=lambda point: point.value)
    assert [point.y for point in points] == sorted((point.y for point in points), reverse=True)


def test_a_line_has_a_gap_where_nothing_was_measured() -> None:
    drawn = panel("key", "Title", range(6), [Series("line", (1.0, 2.0, None, 3.0, math.nan, 4.0))], NO_MARKS)
    (line,) = drawn.lines
    assert len(line.paths) == 1
    assert [point.version for point in line.points] == [0, 1, 3, 5]


def test_with_many_versions_only_lonely_values_are_dots() -> None:
    measured = [float(number) for number in range(200)]
    drawn = panel(
        "key", "Title", range(200), [Series("line", (*measured[:50], None, 1.0, None, *measured[53:]))], NO_MARKS
    )
    (line,) = drawn.lines
    assert len(line.paths) == 2
    assert [point.version for point in line.points] == [51]


def test_marks_stand_at_their_versions_and_others_are_left_out() -> None:
    drawn = panel(
        "key", "Title", (3, 4, 5), [Series("line", (1.0, 2.0, 3.0))], Marks({4: 3, 9: 8}, frozenset({5, 9}), 3)
    )
    by_version = {point.version: point.x for point in drawn.lines[0].points}
    assert [(mark.x, mark.text) for mark in drawn.rollbacks] == [(by_version[4], "version 4 rolled back to 3")]
    assert [mark.x for mark in drawn.rejections] == [by_version[5]]
    assert drawn.served is not None
    assert drawn.served.x == by_version[3]


def test_the_description_tells_first_last_lowest_highest_and_marks() -> None:
    drawn = panel("key", "Title", (1, 2, 3), [Series("loss", (0.5, 0.2, 0.9))], Marks({3: 2}, frozenset({2}), None))
    assert drawn.description == (
        "loss: 0.5 at version 1, 0.9 at version 3; lowest 0.2 at version 2, highest 0.9 at version 3. "
        "Version 3 was rolled back to 2. Rejected: 2."
    )


def test_without_a_measurement_the_picture_says_so() -> None:
    drawn = panel("key", "Title", (1, 2), [Series("loss", (None, math.inf))], NO_MARKS)
    assert drawn.empty
    assert drawn.description == "Nothing was measured."
