"""What the bench makes of tokens and the times at which they came."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest

from bench.serving.felt import Felt


def felt(folder: Path, *tokens: tuple[float, int, int]) -> Felt:
    """Tokens as (when, to which stream, how many at once)."""
    at, stream, count = (numpy.array(column) for column in zip(*tokens, strict=True))
    numpy.savez(folder / "felt.npz", at=at, stream=stream, count=count)
    return Felt(folder, json.dumps({"answered": 3, "failures": ["7.0 refused"]}))


def test_the_rate_counts_the_tokens_of_all_streams_within_the_time(tmp_path: Path) -> None:
    found = felt(tmp_path, (0.5, 0, 1), (1.0, 0, 2), (1.5, 1, 3), (2.0, 1, 50))
    assert found.rate(1.0, 2.0) == 5
    assert found.rate(0.0, 2.0) == 3
    assert (found.answered, found.failures) == (3, ["7.0 refused"])


def test_a_gap_belongs_to_its_stream_and_to_the_time_in_which_it_ended(tmp_path: Path) -> None:
    tokens = [(0.1 * step, 0, 1) for step in range(31)] + [(0.0, 1, 1), (1.5, 1, 1), (3.0, 1, 1)]
    found = felt(tmp_path, *tokens)
    assert found.gaps(1.0, 2.0).longest == pytest.approx(1500)
    assert found.gaps(1.0, 2.0).p50 == pytest.approx(100)
    # What began before and had not ended by then counts until then.
    assert found.gaps(0.0, 1.0).longest == pytest.approx(1000)


def test_a_stream_that_gets_nothing_any_more_is_not_overlooked(tmp_path: Path) -> None:
    found = felt(tmp_path, (0.0, 0, 1), (0.1, 0, 1), (0.0, 1, 1), (5.0, 1, 1))
    assert found.gaps(0.05, 4.0).longest == pytest.approx(4000)


def test_silence_is_what_no_stream_was_spared(tmp_path: Path) -> None:
    found = felt(tmp_path, (0.0, 0, 1), (1.0, 1, 1), (3.0, 0, 1), (4.0, 1, 1))
    assert found.silence(0.5, 4.5) == pytest.approx(2000)
    assert found.silence(1.5, 2.5) == pytest.approx(1000)
