"""The interface of a hand-over between serving and the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from claas_trainer.engines.base import GpuNeed


@dataclass
class PauseTimes:
    """Seconds that a pause took; filled in while it goes on, None for what did not happen."""

    sleep: float | None = None
    wake: float | None = None
    serving_gap: float | None = None


class Handover(ABC):
    """Makes room for the step and gives it back."""

    @abstractmethod
    async def check(self, gpu: GpuNeed | None) -> None:
        """Make sure, while serving goes on, that the hand-over can work. Raises TrainerError."""

    @abstractmethod
    def paused(self) -> AbstractAsyncContextManager[PauseTimes]:
        """Inside it the step has its device. On leaving, serving goes on, whatever happened inside.

        Raises TrainerError; when entering fails, serving goes on too.
        """
