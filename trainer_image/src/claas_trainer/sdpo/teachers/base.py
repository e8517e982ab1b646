"""The interface of a teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from claas_trainer.sdpo.policy import Network


class Teacher(ABC):
    """Who scores the student's responses after the prompt with hindsight: which networks are run, and what their
    logits come to. Nothing of a teacher carries a gradient."""

    networks: tuple[Network, ...]
    """Each is run once on every prompt with hindsight."""
    average_rate: float | None = None
    """How far a moving average of the adapter follows each step; None keeps no average."""

    @abstractmethod
    def logits(self, scored: Sequence[Tensor]) -> Tensor:
        """The teacher's logits, [n, V], from those of its networks, in their order. May overwrite them."""
