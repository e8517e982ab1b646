"""Measures how fast servers generate tokens, from their own counters, polled in the background."""

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
"""Number of readings kept: two minutes."""
_STRETCH_SECONDS = 1.0


@dataclass(frozen=True)
class Reading:
    """The counters of all servers, summed: requested at `asked_at`, received at `at` (`time.monotonic`). `busy`:
    whether a request runs or waits."""

    asked_at: float
    at: float
    tokens: int
    busy: bool


class Meter:
    """Polls `/metrics` of the pods from `start` to `stop`. `latest` and `since` are thread-safe.

    If a server does not answer or does not count tokens, there is no reading, because a sum over fewer servers would
    not be comparable.
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
        """The readings since a time (`time.monotonic`)."""
        # Copy first: the copy is atomic, iterating is not.
        return tuple(reading for reading in tuple(self._readings) if reading.at >= at)

    @property
    def runs(self) -> bool:
        """Whether it was started."""
        return self._task is not None

    def start(self) -> None:
        """Start polling in the running event loop; does nothing the second time."""
        if self._task is None:
            self._task = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """Stop polling."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def read(self) -> Reading | None:
        """Take a reading now; None if a server does not answer or count."""
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
    """Tokens served between two readings; None if one is missing or a counter was reset."""
    if first is None or last is None or last.at <= first.at or last.tokens < first.tokens:
        return None
    return Served(last.at - first.at, last.tokens - first.tokens)


def whole(readings: Sequence[Reading]) -> Served | None:
    """Tokens served from the first to the last reading."""
    return between(readings[0], readings[-1]) if readings else None


def unhindered(readings: Sequence[Reading]) -> Served | None:
    """The rate of serving when undisturbed; the preparation of the step slows it down at times.

    The third quartile of the rates over stretches of about a second; the rate over all readings if they cover less.
    Each stretch counts from its first request to its last answer, so that delayed readings never make serving look
    faster than it was."""
    stretches = []
    for index, first in enumerate(readings):
        last = next((each for each in readings[index:] if each.at - first.at >= _STRETCH_SECONDS), None)
        if between(first, last) and last is not None:
            stretches.append(Served(last.at - first.asked_at, last.tokens - first.tokens))
    ranked = sorted(stretches, key=lambda served: served.rate)
    return ranked[3 * len(ranked) // 4] if ranked else whole(readings)
