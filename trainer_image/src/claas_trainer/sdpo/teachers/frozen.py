"""The frozen teacher: the base model without the adapter."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from claas_trainer.sdpo.policy import Network
from claas_trainer.sdpo.teachers.base import Teacher


class FrozenTeacher(Teacher):
    """The base model itself; it never changes."""

    networks = (Network.BASE,)

    def logits(self, scored: Sequence[Tensor]) -> Tensor:
        return scored[0]
