"""Answers are asked for once in a few seconds, and again at once where they are bad."""

from __future__ import annotations

from claas_operator.clients.recent import Recent


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_an_answer_holds_for_some_seconds_and_a_bad_one_not_at_all() -> None:
    clock, asked = Clock(), 0
    answers = iter(["good", "bad", "bad", "better"])

    async def ask() -> str:
        nonlocal asked
        asked += 1
        return next(answers)

    recent: Recent[str] = Recent(15, clock)

    async def get() -> str:
        return await recent.get("key", ask, lambda answer: answer != "bad")

    assert [await get(), await get()] == ["good", "good"]
    clock.now = 14.9
    assert (await get(), asked) == ("good", 1)
    clock.now = 15.0
    assert [await get(), await get(), await get(), await get()] == ["bad", "bad", "better", "better"]
    assert asked == 4


async def test_what_is_out_of_date_is_not_kept() -> None:
    clock = Clock()
    recent: Recent[str] = Recent(15, clock)

    async def ask() -> str:
        return "answer"

    for number in range(100):
        clock.now = number * 10.0
        await recent.get(number, ask, bool)
    assert len(recent) == 2
