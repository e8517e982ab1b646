"""The settings of one SDPO step, and how its work is cut into pieces."""

from __future__ import annotations

import math
from dataclasses import dataclass

from claas_trainer.sdpo.errors import InvalidConfigError
from claas_trainer.sdpo.losses.support import Support


@dataclass(frozen=True)
class SdpoConfig:
    """The settings of a step.

    `teacher_top_k` is the K of the support (the student's top K). `max_grad_norm` 0 switches clipping off.
    `kl_reg_weight` 0 saves the base model's forward pass. A step that moves the policy by more than `max_kl` nats per
    token fails; 0 sets no limit. `seed` is recorded with the version and seeds torch.

    Raises:
        InvalidConfigError: a value is outside its range.
    """

    learning_rate: float = 3e-5
    alpha: float = 0.5
    is_clip: float = 5.0
    max_grad_norm: float = 1.0
    kl_reg_weight: float = 0.0
    teacher_top_k: int = 100
    support: Support = Support.TOP_K_TAIL
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    max_kl: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = (
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("alpha", 0 <= self.alpha <= 1, "between 0 and 1"),
            ("is_clip", self.is_clip >= 1, "at least 1"),
            ("max_grad_norm", self.max_grad_norm >= 0, "at least 0"),
            ("kl_reg_weight", self.kl_reg_weight >= 0, "at least 0"),
            ("teacher_top_k", self.teacher_top_k >= 1, "at least 1"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("beta1", 0 <= self.beta1 < 1, "at least 0 and below 1"),
            ("beta2", 0 <= self.beta2 < 1, "at least 0 and below 1"),
            ("epsilon", self.epsilon > 0, "above 0"),
            ("max_kl", self.max_kl >= 0, "at least 0"),
        )
        for field, inside, wanted in ranges:
            value = getattr(self, field)
            if not inside or not math.isfinite(value):
                raise InvalidConfigError(f"{field} is {value}: it must be {wanted}")


@dataclass(frozen=True)
class Schedule:
    """How a step is divided into pieces. Affects time and memory, and the result only by rounding.

    `micro_batch_tokens`: tokens of one forward pass, where a sample counts with its longer sequence; a longer sample
    is a micro-batch of its own. `tile_rows`: response tokens whose logits exist at once.
    """

    micro_batch_tokens: int = 8192
    tile_rows: int = 1024

    def halved(self) -> Schedule | None:
        """Half of each; None if neither can be halved."""
        if self.micro_batch_tokens <= 1 and self.tile_rows <= 1:
            return None
        return Schedule(max(1, self.micro_batch_tokens // 2), max(1, self.tile_rows // 2))
