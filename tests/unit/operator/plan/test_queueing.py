"""Turns at a Deployment: its adapters one after the other, the jobs of each first come, first served."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_operator.plan.queueing import in_turn, jobs_ahead
from tests.builders.world import NOW


@dataclass(frozen=True)
class Queued:
    adapter: str
    created: datetime | None
    name: str


def queued(name: str, seconds: int = 0) -> Queued:
    """A job of the adapter that its name begins with, created so many seconds after the first."""
    return Queued(name[0], NOW + timedelta(seconds=seconds), name)


def drawn(places: list[tuple[str, int]]) -> list[Queued]:
    return [queued(f"{adapter}{number}", seconds) for number, (adapter, seconds) in enumerate(places)]


adapters = st.sampled_from("abcdefg")
queues = st.lists(st.tuples(adapters, st.integers(0, 5)), max_size=25).map(drawn)
turns = st.none() | adapters

ORDERS = [
    ("adapters take turns", ["a1", "a2", "a3", "b1", "c1"], None, ["a1", "b1", "c1", "a2", "a3"]),
    ("the next is the one after who was last", ["a1", "a2", "b1", "c1"], "b", ["c1", "a1", "b1", "a2"]),
    ("after the last of the round comes the first", ["a1", "b1"], "c", ["a1", "b1"]),
    ("an adapter that is gone keeps its place in the round", ["a1", "d1"], "b", ["d1", "a1"]),
    ("who was last has the next turn when it is alone", ["b1", "b2"], "b", ["b1", "b2"]),
]


@pytest.mark.parametrize(("names", "last", "order"), [row[1:] for row in ORDERS], ids=[row[0] for row in ORDERS])
def test_turns(names: list[str], last: str | None, order: list[str]) -> None:
    waiting = [queued(name, number) for number, name in enumerate(names)]
    assert [job.name for job in in_turn(waiting, last)] == order


@given(waiting=queues, last=turns, data=st.data())
def test_the_order_is_the_same_however_the_jobs_are_listed(
    waiting: list[Queued], last: str | None, data: st.DataObject
) -> None:
    assert in_turn(data.draw(st.permutations(waiting)), last) == in_turn(waiting, last)


@given(waiting=queues, last=turns)
def test_the_number_of_jobs_ahead_is_the_place_in_the_order(waiting: list[Queued], last: str | None) -> None:
    for place, mine in enumerate(in_turn(waiting, last)):
        others = [job for job in waiting if job is not mine]
        assert jobs_ahead(mine, others, last) == place


@given(waiting=queues, last=turns)
def test_taking_turns_one_by_one_gives_the_order_that_was_foretold(waiting: list[Queued], last: str | None) -> None:
    foretold, left, taken = in_turn(waiting, last), list(waiting), []
    while left:
        first = in_turn(left, last)[0]
        left.remove(first)
        taken.append(first)
        last = first.adapter
    assert taken == foretold


@given(
    arrivals=st.lists(st.lists(st.tuples(adapters, st.integers(0, 3)), max_size=6), min_size=1, max_size=30),
    last=turns,
)
def test_an_adapter_with_a_job_has_a_turn_within_as_many_turns_as_there_are_adapters(
    arrivals: list[list[tuple[str, int]]], last: str | None
) -> None:
    """Whatever arrives before each turn; and the jobs of each adapter come in the order in which they arrived."""
    left: list[Queued] = []
    waits: Counter[str] = Counter()
    taken: dict[str, list[Queued]] = {}
    for moment, arrived in enumerate(arrivals):
        left += [queued(f"{adapter}{moment:03}{tie}", moment) for adapter, tie in dict.fromkeys(arrived)]
        if not left:
            continue
        first = in_turn(left, last)[0]
        left.remove(first)
        last = first.adapter
        taken.setdefault(last, []).append(first)
        waits[last] = 0
        for adapter in {job.adapter for job in left} - {last}:
            waits[adapter] += 1
            assert waits[adapter] < len("abcdefg")
    for jobs in taken.values():
        assert jobs == sorted(jobs, key=lambda job: (job.created, job.name))


def test_one_adapter_with_a_thousand_jobs_starves_none_of_ninety_nine_others() -> None:
    greedy = [Queued("greedy", NOW, f"g{number}") for number in range(1000)]
    others = [Queued(f"other-{number}", NOW + timedelta(hours=1), f"o{number}") for number in range(99)]
    order = in_turn([*greedy, *others], "greedy")
    assert {job.adapter for job in order[:99]} == {job.adapter for job in others}
