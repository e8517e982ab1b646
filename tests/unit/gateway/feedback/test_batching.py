"""Which waiting items form a batch, and when."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_gateway.feedback.plan.batching import Gathering, WaitingItem, batches_of
from claas_gateway.records import FeedbackItem, ItemState

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)


def waiting(name: str, *, age: float = 0.0, size: int = 1, rate: float | None = None) -> WaitingItem:
    training = {} if rate is None else {"learning_rate": rate}
    return WaitingItem(
        FeedbackItem(
            id=name,
            request_id="fr-1",
            position=0,
            namespace="team",
            adapter="tone",
            created=NOW - timedelta(seconds=age),
            feedback="Shorter.",
            state=ItemState.STORED,
            training=dict(training),
        ),
        size,
    )


def gathering(*, window: float = 10.0, most: int = 3, most_bytes: int = 100) -> Gathering:
    return Gathering(timedelta(seconds=window), most, most_bytes)


CASES: list[tuple[str, Sequence[WaitingItem], list[list[str]], float | None]] = [
    ("nothing waits", [], [], None),
    ("one waits for others", [waiting("a", age=4)], [], 6.0),
    ("the window is over", [waiting("a", age=10), waiting("b")], [["a", "b"]], None),
    ("as many as a batch takes", [waiting("a"), waiting("b"), waiting("c")], [["a", "b", "c"]], None),
    ("one more than that", [*map(waiting, "abcd")], [["a", "b", "c"]], 10.0),
    (
        "settings that differ",
        [waiting("a", age=10, rate=1), waiting("b", age=9), waiting("c", rate=1)],
        [["a", "c"]],
        1.0,
    ),
    ("more bytes than fit", [waiting("a", size=60), waiting("b", size=60)], [["a"]], 10.0),
    ("one item too large for any batch", [waiting("a", size=500)], [["a"]], None),
    ("exactly as many bytes as fit", [waiting("a", size=40), waiting("b", size=60)], [["a", "b"]], None),
]


@pytest.mark.parametrize(("items", "due", "again"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_batch_is_due_when_its_window_is_over_or_it_is_full(
    items: Sequence[WaitingItem], due: list[list[str]], again: float | None
) -> None:
    plan = batches_of(items, gathering(), NOW)
    assert [[item.id for item in batch] for batch in plan.due] == due
    assert plan.again == (None if again is None else NOW + timedelta(seconds=again))


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.integers(1, 150), st.sampled_from([None, 1e-5, 2e-5])),
        max_size=40,
    ),
    st.integers(1, 9),
)
def test_each_item_is_in_one_due_batch_or_is_looked_at_again(
    sizes: list[tuple[float, int, float | None]], most: int
) -> None:
    ages = sorted((age for age, _, _ in sizes), reverse=True)
    items = [
        waiting(f"fb-{place}", age=age, size=size, rate=rate)
        for place, (age, (_, size, rate)) in enumerate(zip(ages, sizes, strict=True))
    ]
    plan = batches_of(items, gathering(most=most), NOW)
    batched = [item.id for batch in plan.due for item in batch]
    assert len(batched) == len(set(batched))
    left = [each.item for each in items if each.item.id not in batched]
    assert (plan.again is None) == (not left)
    assert all(item.created + timedelta(seconds=10) > NOW for item in left)
    by_id = {each.item.id: each for each in items}
    for batch in plan.due:
        assert len({repr(item.training) for item in batch}) == 1
        assert len(batch) <= most
        assert len(batch) == 1 or sum(by_id[item.id].size for item in batch) <= 100
        assert [item.id for item in batch] == sorted((item.id for item in batch), key=lambda name: int(name[3:]))


@given(st.lists(st.floats(0, 30), min_size=1, max_size=20))
def test_passes_at_the_times_that_are_asked_for_leave_nothing_waiting(ages: list[float]) -> None:
    items = [waiting(f"fb-{place}", age=age) for place, age in enumerate(sorted(ages, reverse=True))]
    now, looks = NOW, 0
    while items:
        plan = batches_of(items, gathering(), now)
        batched = {item.id for batch in plan.due for item in batch}
        items = [each for each in items if each.item.id not in batched]
        assert plan.again is None or plan.again > now
        now, looks = plan.again or now, looks + 1
        assert looks <= len(ages) + 1
