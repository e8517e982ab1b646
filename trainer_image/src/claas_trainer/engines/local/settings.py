"""Translates a job's settings to those of the step."""

from __future__ import annotations

from claas_crds.v1alpha1.training import TeacherKind, TrainingConfig
from claas_trainer.sdpo.losses.support import Support
from claas_trainer.sdpo.settings import SdpoConfig
from claas_trainer.sdpo.teachers.average import AverageTeacher
from claas_trainer.sdpo.teachers.base import Teacher
from claas_trainer.sdpo.teachers.frozen import FrozenTeacher
from claas_trainer.sdpo.teachers.trust_region import TrustRegionTeacher

_TOP_K = 100


def step_config(training: TrainingConfig) -> SdpoConfig:
    """The step's settings."""
    return SdpoConfig(
        learning_rate=training.learning_rate,
        alpha=training.alpha,
        is_clip=training.is_clip,
        max_grad_norm=training.max_grad_norm,
        kl_reg_weight=training.kl_reg_weight,
        teacher_top_k=training.teacher_top_k or _TOP_K,
        support=Support(training.support.value),
        weight_decay=training.weight_decay,
        max_kl=training.max_kl,
        seed=training.seed,
    )


def teacher_of(training: TrainingConfig) -> Teacher:
    """The job's teacher."""
    match training.teacher:
        case TeacherKind.FROZEN:
            return FrozenTeacher()
        case TeacherKind.EMA:
            return AverageTeacher(training.teacher_update_rate)
        case TeacherKind.TRUST_REGION:
            return TrustRegionTeacher(training.teacher_update_rate)
