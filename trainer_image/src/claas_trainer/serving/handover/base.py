"""The interface of a hand-over between serving and the step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from claas_trainer.engines.access import GpuNeed, ServingAccess


@dataclass
class PauseTimes:
    """Effects of a step on serving, filled in as they are known; None if one did not happen or is unknown.

    `sleep`, `wake`, `serving_gap`: seconds. `slowdown_percent`: loss of tokens per second.
    """

    sleep: float | None = None
    wake: float | None = None
    serving_gap: float | None = None
    slowdown_percent: float | None = None


class Handover(ABC):
    """Makes room for a step, and restores serving after it."""

    @property
    def access(self) -> ServingAccess:
        """The step's access to serving; known after the first `check`."""
        return ServingAccess()

    @abstractmethod
    async def check(self, gpu: GpuNeed | None) -> None:
        """Check that the hand-over will work, while serving goes on. Raises TrainerError."""

    @abstractmethod
    def paused(self) -> AbstractAsyncContextManager[PauseTimes]:
        """Context manager: inside, the step has its device; on exit serving is restored, also after an error. Raises
        TrainerError; serving goes on if entering fails.
        """

    async def close(self) -> None:
        """Free all resources."""
        return
