"""Translates a job's settings to those of the step, for every engine."""

from __future__ import annotations

from claas_crds.v1alpha1.training import TrainingConfig
from claas_trainer.sdpo.losses.support import Support
from claas_trainer.sdpo.settings import SdpoConfig


def sdpo_config(training: TrainingConfig, top_k: int) -> SdpoConfig:
    """The step's settings; `top_k`: the engine's K where the job chooses none."""
    return SdpoConfig(
        learning_rate=training.learning_rate,
        alpha=training.alpha,
        is_clip=training.is_clip,
        max_grad_norm=training.max_grad_norm,
        kl_reg_weight=training.kl_reg_weight,
        teacher_top_k=training.teacher_top_k or top_k,
        support=Support(training.support.value),
        weight_decay=training.weight_decay,
        max_kl=training.max_kl,
        seed=training.seed,
    )
