"""How fast servers generate tokens, from their own counters, polled in the background."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from claas_trainer.handover.pacing import Served
from claas_trainer.logs import log
from claas_trainer.pods import ServingPod
from claas_vllm_client import VllmError

POLL_SECONDS = 0.25
_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Reading:
    """All servers' counters at a time (`time.monotonic`), added up; `busy`: whether a request runs or waits."""

    at: float
    tokens: int
    busy: bool


class Meter:
    """Polls `/metrics` of the pods from `start` to `stop`. `latest` may be read by any thread.

    A server that does not answer, or does not count tokens, is left out of that reading's sum: then there is no
    reading at all, because a sum over fewer servers means nothing.
    """

    def __init__(self, pods: Sequence[ServingPod]) -> None:
        self._pods = tuple(pods)
        self._lock = threading.Lock()
        self._latest: Reading | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def latest(self) -> Reading | None:
        """The last reading; None before the first."""
        with self._lock:
            return self._latest

    def start(self) -> None:
        """Begin to poll, in the running loop; once."""
        if self._task is None and self._pods:
            self._task = asyncio.create_task(self._poll())

    async def stop(self) -> None:
        """Poll no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def read(self) -> Reading | None:
        """Ask now; None where a server does not tell."""
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                loads = await asyncio.gather(*(pod.client.load() for pod in self._pods))
        except (VllmError, TimeoutError) as error:
            log("metrics-not-read", error=type(error).__name__)
            return None
        counted = [load.generated_tokens for load in loads if load.generated_tokens is not None]
        if not loads or len(counted) < len(loads):
            return None
        found = Reading(time.monotonic(), sum(counted), any(load.running or load.waiting for load in loads))
        with self._lock:
            self._latest = found
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
