"""The interface of a hand-over between serving and the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from claas_trainer.engines.access import GpuNeed, ServingAccess


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

    @property
    def access(self) -> ServingAccess:
        """What the step may have of serving; known after the first `check`."""
        return ServingAccess()

    @abstractmethod
    async def check(self, gpu: GpuNeed | None) -> None:
        """Make sure, while serving goes on, that the hand-over can work. Raises TrainerError."""

    @abstractmethod
    def paused(self) -> AbstractAsyncContextManager[PauseTimes]:
        """Inside it the step has its device. On leaving, serving goes on, whatever happened inside.

        Raises TrainerError; when entering fails, serving goes on too.
        """

    async def close(self) -> None:
        """Let go of everything."""
        return
