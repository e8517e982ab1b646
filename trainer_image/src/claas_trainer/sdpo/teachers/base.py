"""The interface of a teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from claas_trainer.sdpo.policy import Network


class Teacher(ABC):
    """Scores the student's responses after the prompt with hindsight: which networks run, and how their logits
    combine. A teacher has no gradient."""

    networks: tuple[Network, ...]
    """Networks to run on every prompt with hindsight."""
    average_rate: float | None = None
    """Weight of the new adapter in the moving average after each step; None: no average is kept."""

    @abstractmethod
    def logits(self, scored: Sequence[Tensor]) -> Tensor:
        """The teacher's logits, [n, V], from those of its networks, in their order. May overwrite them."""
