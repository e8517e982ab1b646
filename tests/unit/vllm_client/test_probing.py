"""Whether an adapter is applied: no healthy version is accused, whatever rounding does; the base in disguise is."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from claas_vllm_client.probing import (
    NOISE_NATS,
    AnswerPosition,
    Finding,
    ProbeRecord,
    ProbeSpec,
    distance,
    judge,
    judge_successor,
    parse_record,
    record_of,
    worth_keeping,
)
from claas_vllm_client.wire import ProbeAnswer

SPEC = ProbeSpec("Hello")
VOCABULARY = 40
LISTED = 5
# Answers are remembered to five decimals.
MOST_NOISE = NOISE_NATS - 2e-5

Model = Sequence[Sequence[float]]
"""Log-probabilities of a vocabulary at each place; whatever was chosen before, so that answers can be compared."""

_logits = st.lists(st.floats(-8.0, 8.0, allow_nan=False), min_size=VOCABULARY, max_size=VOCABULARY)
_seeds = st.integers(0, 2**32)


def model_of(logits: Sequence[Sequence[float]]) -> Model:
    normalised = []
    for place in logits:
        total = math.log(sum(math.exp(value) for value in place))
        normalised.append([value - total for value in place])
    return normalised


def answer(model: Model, seed: int | None = None, noise: float = MOST_NOISE) -> ProbeAnswer:
    """A greedy answer; with a seed each log-probability is moved by at most the noise."""
    rounding = random.Random(seed)
    chosen, likeliest = [], []
    for place in model:
        moved = [value + (rounding.uniform(-noise, noise) if seed is not None else 0.0) for value in place]
        order = sorted(range(len(moved)), key=lambda token: -moved[token])[:LISTED]
        chosen.append(order[0])
        likeliest.append({f"token_id:{token}": moved[token] for token in order})
    return ProbeAnswer("n@1", "", tuple(chosen), tuple(0.0 for _ in chosen), tuple(likeliest))


def record(adapter: ProbeAnswer, base: ProbeAnswer) -> ProbeRecord:
    return record_of(SPEC, adapter, base)


def random_model(seed: int, places: int = 8) -> Model:
    source = random.Random(seed)
    return model_of([[source.gauss(0.0, 2.0) for _ in range(VOCABULARY)] for _ in range(places)])


def moved_model(model: Model, by: float, seed: int) -> Model:
    source = random.Random(seed)
    return model_of([[value + source.gauss(0.0, by) for value in place] for place in model])


@settings(max_examples=100, deadline=None)
@given(_seeds, st.floats(0.0, 4.0), st.tuples(_seeds, _seeds, _seeds, _seeds))
def test_no_healthy_version_is_accused_whatever_rounding_does(
    seed: int, difference: float, noise: tuple[int, int, int, int]
) -> None:
    base = random_model(seed)
    adapter = moved_model(base, difference, seed + 1)
    recorded = record(answer(adapter, noise[0]), answer(base, noise[1]))
    now = record(answer(adapter, noise[2]), answer(base, noise[3]))
    assert judge(now, recorded) is not Finding.NOT_APPLIED


@settings(max_examples=100, deadline=None)
@given(_seeds, st.tuples(_seeds, _seeds, _seeds, _seeds))
def test_the_base_in_the_place_of_a_version_that_differs_is_seen(seed: int, noise: tuple[int, int, int, int]) -> None:
    base = random_model(seed)
    adapter = random_model(seed + 1)
    recorded = record(answer(adapter, noise[0], 0.02), answer(base, noise[1], 0.02))
    # One pair in some thousands lists tokens by which it can't be told apart.
    assume((recorded.separation or 0.0) > 4 * NOISE_NATS)
    now = record(answer(base, noise[2], 0.02), answer(base, noise[3], 0.02))
    assert judge(now, recorded) is Finding.NOT_APPLIED
    healthy = record(answer(adapter, noise[2], 0.02), answer(base, noise[3], 0.02))
    assert judge(healthy, recorded) is Finding.APPLIED


@settings(deadline=None)
@given(_seeds, _seeds, _seeds)
def test_distance_moves_no_further_than_rounding_does(seed: int, one: int, other: int) -> None:
    model = random_model(seed)
    apart = distance(record(answer(model, one), answer(model)).adapter, record(answer(model), answer(model)).adapter)
    assert apart is not None
    assert apart <= MOST_NOISE + 1e-5
    same = record(answer(model, other), answer(model, other))
    assert same.separation == 0.0


BASE = random_model(1)
FAR = random_model(2)
NEAR = moved_model(BASE, 0.01, 3)
OTHER_BASE = random_model(4)
NEAR_OTHER = moved_model(OTHER_BASE, 0.01, 5)


@pytest.mark.parametrize(
    ("now", "recorded", "finding"),
    [
        (record(answer(BASE), answer(BASE)), None, Finding.OPEN),
        (record(answer(BASE), answer(BASE)), record(answer(BASE), answer(BASE)), Finding.OPEN),
        (record(answer(BASE), answer(BASE)), record(answer(NEAR), answer(BASE)), Finding.OPEN),
        (record(answer(FAR), answer(BASE)), record(answer(FAR), answer(BASE)), Finding.APPLIED),
        (record(answer(BASE), answer(BASE)), record(answer(FAR), answer(BASE)), Finding.NOT_APPLIED),
        (record(answer(OTHER_BASE), answer(OTHER_BASE)), record(answer(FAR), answer(BASE)), Finding.OPEN),
        (record(answer([]), answer([])), record(answer(FAR), answer(BASE)), Finding.OPEN),
    ],
    ids=["no record", "version 0", "hardly moved", "as before", "the base", "another base", "no log-probabilities"],
)
def test_a_version_is(now: ProbeRecord, recorded: ProbeRecord | None, finding: Finding) -> None:
    assert judge(now, recorded) is finding


@pytest.mark.parametrize(
    ("now", "parent", "finding"),
    [
        (record(answer(BASE), answer(BASE)), record(answer(FAR), answer(BASE)), Finding.NOT_APPLIED),
        (record(answer(FAR), answer(BASE)), record(answer(FAR), answer(BASE)), Finding.APPLIED),
        (record(answer(BASE), answer(BASE)), record(answer(NEAR), answer(BASE)), Finding.OPEN),
        (record(answer(BASE), answer(BASE)), record(answer(BASE), answer(BASE)), Finding.OPEN),
        (record(answer(BASE), answer(BASE)), None, Finding.OPEN),
        (record(answer(FAR), answer(FAR)), record(answer(FAR), answer(BASE)), Finding.OPEN),
    ],
    ids=[
        "the base",
        "near its parent",
        "a parent that hardly moved",
        "a parent without effect",
        "no parent",
        "right, and an adapter answers for the base",
    ],
)
def test_a_version_that_answers_for_the_first_time_is(
    now: ProbeRecord, parent: ProbeRecord | None, finding: Finding
) -> None:
    assert judge_successor(now, parent) is finding


@pytest.mark.parametrize(
    ("now", "kept"),
    [
        (record(answer(FAR, 1), answer(BASE, 2)), True),
        (record(answer(FAR), answer(FAR)), True),
        (record(answer(BASE), answer(BASE)), True),
        (record(answer(OTHER_BASE), answer(NEAR_OTHER)), False),
    ],
    ids=["as before", "an adapter answers for the base", "the base answers for the version", "another base"],
)
def test_a_record_is_made_anew_only_when_neither_answers_as_it_did(now: ProbeRecord, kept: bool) -> None:
    assert worth_keeping(record(answer(FAR), answer(BASE)), now) is kept


def test_what_was_remembered_of_another_probe_or_cannot_be_read_counts_as_nothing() -> None:
    kept = record(answer(FAR), answer(BASE)).model_dump(mode="json")
    assert parse_record(kept, SPEC) == record(answer(FAR), answer(BASE))
    assert parse_record(kept, ProbeSpec("Hello", max_tokens=9)) is None
    assert parse_record(kept, ProbeSpec("Hello!")) is None
    assert parse_record({"probe": SPEC.digest, "adapter": 7}, SPEC) is None
    assert parse_record(None, SPEC) is None


@settings(max_examples=40, deadline=None)
@given(st.lists(_logits, min_size=1, max_size=2))
def test_a_step_keeps_a_remembered_answer_small(logits: list[list[float]]) -> None:
    kept = record(answer(model_of(logits * 20)), answer(model_of(logits * 20)))
    assert len(kept.model_dump_json()) < 16 * 1024
    assert all(isinstance(step, AnswerPosition) for step in kept.adapter)
