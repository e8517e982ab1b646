"""The averaged teacher: the base model with a moving average of the adapter's weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from claas_trainer.sdpo.errors import InvalidConfigError
from claas_trainer.sdpo.policy import Network
from claas_trainer.sdpo.teachers.base import Teacher


class AverageTeacher(Teacher):
    """An exponential moving average (EMA) of the student, which follows it with a delay (arXiv 2601.20802).

    Raises:
        InvalidConfigError: the rate is outside (0, 1].
    """

    networks = (Network.AVERAGE,)

    def __init__(self, rate: float = 0.05) -> None:
        if not 0 < rate <= 1:
            raise InvalidConfigError(f"teacher_update_rate is {rate}: it must be above 0 and at most 1")
        self.average_rate = rate

    def logits(self, scored: Sequence[Tensor]) -> Tensor:
        return scored[0]
