"""Rates of API keys."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from claas_gateway.access.rates import Rates


@example(1, [4.610876686783376, 0.0])
@given(st.integers(1, 600), st.lists(st.floats(0, 30), min_size=1, max_size=200))
def test_no_minute_has_more_than_twice_the_rate_and_a_key_that_waits_as_told_is_served(
    per_minute: int, pauses: list[float]
) -> None:
    now = 0.0
    rates = Rates(per_minute, lambda: now)
    served: list[float] = []
    for pause in pauses:
        now += pause
        wait = rates.take(b"key")
        if wait == 0:
            served.append(now)
        else:
            now += wait
            assert rates.take(b"key") == 0
            served.append(now)
    for start in served:
        assert sum(start <= at < start + 60 for at in served) <= 2 * per_minute


def test_keys_are_counted_apart() -> None:
    rates = Rates(1, lambda: 0.0)
    assert [rates.take(b"one"), rates.take(b"one"), rates.take(b"two")] == [0, 60, 0]


def test_zero_is_any_number() -> None:
    rates = Rates(0, lambda: 0.0)
    assert {rates.take(b"key") for _ in range(1000)} == {0}
