"""The trust region teacher: a mixture of the base model and the student, both after the prompt with hindsight."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from claas_trainer.sdpo.errors import InvalidConfigError
from claas_trainer.sdpo.policy import Network
from claas_trainer.sdpo.teachers.base import Teacher


class TrustRegionTeacher(Teacher):
    """Logits (1 - rho) * base + rho * student, the weighted geometric mean of both distributions. It is the
    distribution nearest to the student within a bounded distance from the base model (arXiv 2601.20802).

    Raises:
        InvalidConfigError: rho is outside [0, 1].
    """

    networks = (Network.BASE, Network.STUDENT)

    def __init__(self, rho: float = 0.5) -> None:
        if not 0 <= rho <= 1:
            raise InvalidConfigError(f"teacher_update_rate is {rho}: it must be between 0 and 1")
        self._rho = rho

    def logits(self, scored: Sequence[Tensor]) -> Tensor:
        base, student = scored
        return base.lerp_(student, self._rho)
