"""How fast servers generate tokens, from their own counters, polled in the background."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from claas_trainer.logs import log
from claas_trainer.serving.handover.pacing import Served
from claas_trainer.serving.pods import ServingPod
from claas_vllm_client import VllmError

POLL_SECONDS = 0.25
_TIMEOUT_SECONDS = 5.0
_KEPT = 480
"""Readings: those of two minutes."""
_STRETCH_SECONDS = 1.0


@dataclass(frozen=True)
class Reading:
    """All servers' counters, added up: asked for at `asked_at` and known at `at` (`time.monotonic`). `busy`: whether
    a request runs or waits."""

    asked_at: float
    at: float
    tokens: int
    busy: bool


class Meter:
    """Polls `/metrics` of the pods from `start` to `stop`. `latest` and `since` may be asked by any thread.

    A server that does not answer, or does not count tokens, is left out of that reading's sum: then there is no
    reading at all, because a sum over fewer servers means nothing.
    """

    def __init__(self, pods: Sequence[ServingPod]) -> None:
        self._pods = tuple(pods)
        self._readings: deque[Reading] = deque(maxlen=_KEPT)
        self._task: asyncio.Task[None] | None = None

    @property
    def latest(self) -> Reading | None:
        """The last reading; None before the first."""
        return self._readings[-1] if self._readings else None

    def since(self, at: float) -> tuple[Reading, ...]:
        """The readings from a time (`time.monotonic`) on."""
        # A copy first, which no other thread can interrupt.
        return tuple(reading for reading in tuple(self._readings) if reading.at >= at)

    @property
    def runs(self) -> bool:
        """Whether it was started."""
        return self._task is not None

    def start(self) -> None:
        """Begin to poll, in the running loop; once."""
        if self._task is None:
            self._task = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """Poll no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def read(self) -> Reading | None:
        """Ask now; None where a server does not tell."""
        asked_at = time.monotonic()
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                loads = await asyncio.gather(*(pod.client.load() for pod in self._pods))
        except (VllmError, TimeoutError) as error:
            log("metrics-not-read", error=type(error).__name__)
            return None
        counted = [load.generated_tokens for load in loads if load.generated_tokens is not None]
        if not loads or len(counted) < len(loads):
            return None
        busy = any(load.running or load.waiting for load in loads)
        found = Reading(asked_at, time.monotonic(), sum(counted), busy)
        self._readings.append(found)
        return found

    async def _poll(self) -> None:
        while True:
            await self.read()
            await asyncio.sleep(POLL_SECONDS)


def between(first: Reading | None, last: Reading | None) -> Served | None:
    """What was served from one reading to another; None where one is missing, or a counter began anew."""
    if first is None or last is None or last.at <= first.at or last.tokens < first.tokens:
        return None
    return Served(last.at - first.at, last.tokens - first.tokens)


def whole(readings: Sequence[Reading]) -> Served | None:
    """What was served from the first to the last of them."""
    return between(readings[0], readings[-1]) if readings else None


def unhindered(readings: Sequence[Reading]) -> Served | None:
    """How fast serving is when nothing holds it up, as a step's own preparation does now and then: of all stretches
    of about a second one that is faster than three quarters of them; all readings, where they are of less than one.
    Never faster than it was: who reads may be held up too."""
    stretches = []
    for index, first in enumerate(readings):
        last = next((each for each in readings[index:] if each.at - first.at >= _STRETCH_SECONDS), None)
        if between(first, last) and last is not None:
            stretches.append(Served(last.at - first.asked_at, last.tokens - first.tokens))
    ranked = sorted(stretches, key=lambda served: served.rate)
    return ranked[3 * len(ranked) // 4] if ranked else whole(readings)
