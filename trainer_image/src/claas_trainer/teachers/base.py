"""The interface of a teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from claas_trainer.batch import PolicyModel, TokenBatch


class Teacher(ABC):
    """Scores the student's responses after the prompt with hindsight."""

    @abstractmethod
    def logits(self, model: PolicyModel, batch: TokenBatch) -> Tensor:
        """Logits at the response tokens, [N, V], float32, without a graph."""
