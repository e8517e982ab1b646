"""The hand-over Share: serving goes on, and the step uses the weights that vLLM serves."""

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
from claas_trainer.serving.handover.meter import Meter, Reading, between, unhindered, whole
from claas_trainer.serving.handover.pacing import TELLING_SECONDS, Served, rest_seconds, slowdown_percent
from claas_trainer.serving.liveness import gone
from claas_trainer.serving.pods import ServingPod

_LEAST_REST_SECONDS = 0.1
_AIM = 0.9
"""Fraction of the allowed slowdown to aim at, because losses between two readings show only afterwards."""
_DRAIN_SECONDS = 0.05
"""Time for work that is queued on the device when a wait begins."""
_CLEARLY_LESS = 0.8
"""Fraction of a rate below which a difference is more than noise."""


class ShareHandover(Handover):
    """Pauses nothing.

    Announces each server whose memory the step may use to the supervisor, which ends the step when that server ends:
    using its memory afterwards is undefined behaviour. Between its parts the step waits, so that serving keeps its
    share of tokens per second."""

    def __init__(self, pods: Sequence[ServingPod], serving: ServingTarget, reporter: Reporter) -> None:
        self._pods = tuple(pods)
        self._beside = self._pods
        """The pods on the step's device."""
        self._most_slowdown_percent = serving.max_slowdown_percent
        self._reporter = reporter
        self._meter = Meter(self._pods)
        self._before: Served | None = None
        self._began: Reading | None = None
        self._answered: Reading | None = None
        """The reading on which the last wait was based; each reading causes at most one wait."""
        self._rested = 0.0
        self._export: Mapping[str, object] | None = None

    @property
    def access(self) -> ServingAccess:
        return ServingAccess(WeightAccess.SHARED, self._export, self.rest)

    async def check(self, gpu: GpuNeed | None) -> None:
        """Checks that every pod answers, accepts the token and mounts the volume, and that one is on the trainer's
        GPU."""
        statuses = await asyncio.gather(*map(check_answers, self._pods))
        self._beside = holding(gpu, self._pods, statuses)
        if not self._meter.runs:
            self._export = await exported_weights(self._pods, statuses)
            # The rate from here to the start of the step is the baseline.
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
        """Raises ServingError if a server ended before the supervisor watched it, because the supervisor would not
        notice."""
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
            # Serving did not speed up during the wait, so its load has dropped: lower the baseline.
            self._before = alone

    async def close(self) -> None:
        await self._meter.stop()
