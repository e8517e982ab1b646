"""What the operator's bench makes of what it sees: figures, bars, table rows, a process's use of the machine."""

from __future__ import annotations

import os

import pytest

from bench.scale.bars import Bar, Figure, at_least, at_most, below, table
from bench.scale.progress import Progress
from bench.scale.usage import Usage


@pytest.mark.parametrize(
    ("bar", "value", "met"),
    [
        (at_least(40), 40.0, True),
        (at_least(40), 39.9, False),
        (at_most(25), 25.0, True),
        (at_most(25), 25.1, False),
        (below(300), 299.9, True),
        (below(300), 300.0, False),
        (at_most(5), None, False),
        (None, None, True),
    ],
)
def test_a_figure_keeps_to_its_bar_or_does_not(bar: Bar | None, value: float | None, met: bool) -> None:
    assert Figure("it", value, "s", bar).met is met


def test_the_table_says_of_each_figure_what_it_had_to_be_and_whether_it_was() -> None:
    lines = table(
        [
            Figure("admitted", 41.234, "a second", at_least(40)),
            Figure("woken", None, "s", at_most(5)),
            Figure("applied", 1234.5, "a second"),
        ]
    ).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2:] == [
        ["admitted", "41.23 a second", ">= 40", "met"],
        ["woken", "none", "<= 5", "MISSED"],
        ["applied", "1,234 a second", "", ""],
    ]
    assert len({len(line) for line in lines}) == 1


def test_a_job_is_admitted_with_its_first_phase_and_ends_once() -> None:
    progress = Progress("load")

    def rows(*cells: list[str]) -> dict[str, object]:
        return {"rows": [{"cells": row, "object": None} for row in cells]}

    columns = [{"name": "Name"}, {"name": "Adapter"}, {"name": "Phase"}]
    events = [
        {"columnDefinitions": columns, **rows(["a", "tone", ""])},
        rows(["a", "tone", "Queued"]),
        rows(["b", "tone", ""], ["a", "tone", "Preparing"]),
        rows(["a", "tone", "Succeeded"]),
        rows(["a", "tone", "Succeeded"], ["b", "tone", "Failed"]),
    ]
    for now, event in enumerate(events):
        progress.take(event, float(now))  # type: ignore[arg-type]
    assert progress.created == {"a": 0.0, "b": 2.0}
    assert progress.admitted == {"a": 1.0, "b": 4.0}
    assert (progress.succeeded, progress.failed, progress.ended) == ({"a": 3.0}, {"b": 4.0}, 2)


def test_the_use_of_this_process_grows_with_what_it_does_and_never_shrinks_below_it() -> None:
    before = Usage.of(os.getpid())
    ballast = bytearray(os.urandom(1) * 50_000_000)
    after = Usage.of(os.getpid())
    assert after.cpu_seconds >= before.cpu_seconds
    assert after.peak_mb >= after.resident_mb
    assert after.resident_mb > before.resident_mb + len(ballast) / 1e6 / 2
