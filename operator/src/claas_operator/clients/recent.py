"""Answers that hold for a few seconds, so that passes which follow each other ask once."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

RECENT_SECONDS = 15.0
"""How long a token, a CA or a claim that was found is not asked for again. The kubelet's copies are older."""


class Recent(Generic[T]):
    """What was answered lately. Only answers that are worth it are kept: what is missing or wrong is asked anew."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._known: dict[Hashable, tuple[float, T]] = {}

    def __len__(self) -> int:
        return len(self._known)

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[T]], keep: Callable[[T], bool]) -> T:
        """The answer to a question, asked if it was not lately."""
        now = self._clock()
        found = self._known.get(key)
        if found is not None and now - found[0] < self._seconds:
            return found[1]
        answer = await ask()
        for old in [each for each, (since, _) in self._known.items() if now - since >= self._seconds]:
            del self._known[old]
        self._known.pop(key, None)
        if keep(answer):
            self._known[key] = (now, answer)
        return answer
