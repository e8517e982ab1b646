"""The Share hand-over: serving goes on, and the step is taken beside it with weights that are there already."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from claas_contract.input import ServingTarget
from claas_contract.outcome import FailureReason
from claas_trainer.engines.access import GpuNeed, ServingAccess, WeightAccess
from claas_trainer.errors import ServingError
from claas_trainer.logs import log
from claas_trainer.messages.events import Reporter, SharingBegan, SharingEnded
from claas_trainer.serving.handover.base import Handover, PauseTimes
from claas_trainer.serving.handover.checks import check_answers, holding
from claas_trainer.serving.handover.export import exported_weights
from claas_trainer.serving.handover.meter import (
    Meter,
    Reading,
    between,
    unhindered,
    whole,
)
from claas_trainer.serving.handover.pacing import (
    TELLING_SECONDS,
    Served,
    rest_seconds,
    slowdown_percent,
)
from claas_trainer.serving.liveness import gone
from claas_trainer.serving.pods import ServingPod

_LEAST_REST_SECONDS = 0.1
_AIM = 0.9
"""Of the slowdown allowed: what serving loses between two readings is seen afterwards."""
_DRAIN_SECONDS = 0.05
"""What is queued on the device when a rest begins."""
_CLEARLY_LESS = 0.8
"""Of a rate: nearer to it is noise."""


class ShareHandover(Handover):
    """Pauses nothing. Each server whose memory the step may use is told to the supervisor, which ends the step when
    that server is gone: using its memory after that is undefined. Between its parts the step rests, so that serving
    keeps its share of tokens a second."""

    def __init__(self, pods: Sequence[ServingPod], serving: ServingTarget, reporter: Reporter) -> None:
        self._pods = tuple(pods)
        self._beside = self._pods
        """Those on the step's device."""
        self._most_slowdown_percent = serving.max_slowdown_percent
        self._reporter = reporter
        self._meter = Meter(self._pods)
        self._before: Served | None = None
        self._began: Reading | None = None
        self._answered: Reading | None = None
        """The reading that the last rest was the answer to."""
        self._rested = 0.0
        self._export: Mapping[str, object] | None = None

    @property
    def access(self) -> ServingAccess:
        return ServingAccess(WeightAccess.SHARED, self._export, self.rest)

    async def check(self, gpu: GpuNeed | None) -> None:
        """Every pod answers, its lock takes the token, it mounts the volume, and one has our GPU."""
        statuses = await asyncio.gather(*map(check_answers, self._pods))
        self._beside = holding(gpu, self._pods, statuses)
        if not self._meter.runs:
            self._export = await exported_weights(self._pods, statuses)
            # From here to the step is the time before it, against which it is measured.
            self._meter.start()

    def paused(self) -> AbstractAsyncContextManager[PauseTimes]:
        return self._shared()

    @asynccontextmanager
    async def _shared(self) -> AsyncIterator[PauseTimes]:
        times = PauseTimes(serving_gap=0.0)
        self._began = await self._meter.read()
        self._before = unhindered(self._meter.since(0.0))
        for each in self._beside:
            self._reporter.send(SharingBegan(pod=each.pod.name, url=each.pod.url))
        try:
            await self._check_alive()
            yield times
        finally:
            for each in self._beside:
                self._reporter.send(SharingEnded(url=each.pod.url))
            during = between(self._began, await self._meter.read())
            times.slowdown_percent = slowdown_percent(self._before, during) if during else None
            log("shared", slowdown_percent=times.slowdown_percent, rested_seconds=round(self._rested, 3))

    async def _check_alive(self) -> None:
        """A server that ended before it was watched would not be missed."""
        missing = await gone(
            [each.pod.url for each in self._beside], self._beside[0].client.tls if self._beside else None
        )
        if missing:
            names = ", ".join(each.pod.name for each in self._beside if each.pod.url in missing)
            raise ServingError(FailureReason.SERVING_LOST, f"pod {names}: vLLM ended before the step began")

    def rest(self) -> None:
        """Wait, where serving has lost more than it may since the step began."""
        latest = self._meter.latest
        during = between(self._began, latest)
        if latest is None or latest is self._answered or during is None or not latest.busy:
            return
        seconds = rest_seconds(self._before, during, _AIM * self._most_slowdown_percent)
        if seconds < _LEAST_REST_SECONDS:
            return
        self._answered = latest
        began = time.monotonic()
        time.sleep(seconds)
        self._rested += seconds
        alone = whole(self._meter.since(began + _DRAIN_SECONDS))
        if alone is None or self._before is None or alone.seconds < TELLING_SECONDS:
            return
        if alone.rate < _CLEARLY_LESS * self._before.rate:
            # There is less to answer by now; to wait for more would be in vain.
            self._before = alone

    async def close(self) -> None:
        await self._meter.stop()
