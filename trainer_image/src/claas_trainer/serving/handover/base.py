"""The interface of a hand-over between serving and the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from claas_trainer.engines.base import GpuNeed, WeightAccess


@dataclass
class PauseTimes:
    """What serving noticed of a step; filled in while it goes on, None for what did not happen or can't be told.

    `sleep`, `wake`, `serving_gap`: seconds. `slowdown_percent`: how much of its tokens a second serving lost.
    """

    sleep: float | None = None
    wake: float | None = None
    serving_gap: float | None = None
    slowdown_percent: float | None = None


class Handover(ABC):
    """Makes room for the step and gives it back."""

    weights: WeightAccess = WeightAccess.COPY
    """How the step comes by the base model's weights."""
    export: Mapping[str, object] | None = None
    """What vLLM's worker extension answered when it was asked for its weights; None where nobody asked."""

    @abstractmethod
    async def check(self, gpu: GpuNeed | None) -> None:
        """Make sure, while serving goes on, that the hand-over can work. Raises TrainerError."""

    @abstractmethod
    def paused(self) -> AbstractAsyncContextManager[PauseTimes]:
        """Inside it the step has its device. On leaving, serving goes on, whatever happened inside.

        Raises TrainerError; when entering fails, serving goes on too.
        """

    def rest(self) -> None:
        """Called by the thread that computes, between parts of the step: may wait, for the sake of serving."""
        return

    async def close(self) -> None:
        """Let go of everything."""
        return
