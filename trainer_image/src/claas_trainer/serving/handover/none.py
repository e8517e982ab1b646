"""No hand-over: nothing is served, or the step does not need vLLM's device or weights."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from claas_trainer.engines.access import GpuNeed
from claas_trainer.serving.handover.base import Handover, PauseTimes


class NoHandover(Handover):
    """Leaves serving alone."""

    async def check(self, gpu: GpuNeed | None) -> None:
        return

    def paused(self) -> AbstractAsyncContextManager[PauseTimes]:
        return _nothing()


@asynccontextmanager
async def _nothing() -> AsyncIterator[PauseTimes]:
    yield PauseTimes(serving_gap=0.0)
