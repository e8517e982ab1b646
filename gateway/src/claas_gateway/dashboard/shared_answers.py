"""Answers that many readers share for a moment, so that many open pages cost the store as much as one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar, cast

T = TypeVar("T")

_MOST = 256
"""Answers kept at a time."""


class SharedAnswers:
    """Keeps an answer for some seconds; who asks for it while it is being made waits for the same one."""

    def __init__(self, keep_seconds: float, clock: Callable[[], float]) -> None:
        self._keep_seconds = keep_seconds
        self._clock = clock
        self._answers: dict[Hashable, tuple[float, asyncio.Future[object]]] = {}

    async def get(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """The answer for a key. A failure is raised for all who wait, and not kept."""
        begun, answer = self._answers.get(key, (0.0, None))
        if answer is None or (answer.done() and self._clock() - begun >= self._keep_seconds):
            self._forget_old()
            answer = asyncio.ensure_future(cast(Awaitable[object], make()))
            self._answers[key] = (self._clock(), answer)
            answer.add_done_callback(lambda done: self._drop_failure(key, done))
        return cast(T, await asyncio.shield(answer))

    def forget(self) -> None:
        """Have everything made anew: what it was made from has changed."""
        self._answers = {}

    def _drop_failure(self, key: Hashable, done: asyncio.Future[object]) -> None:
        if (done.cancelled() or done.exception() is not None) and self._answers.get(key, (0.0, None))[1] is done:
            del self._answers[key]

    def _forget_old(self) -> None:
        if len(self._answers) < _MOST:
            return
        now = self._clock()
        self._answers = {
            key: (begun, answer)
            for key, (begun, answer) in self._answers.items()
            if not answer.done() or now - begun < self._keep_seconds
        }
