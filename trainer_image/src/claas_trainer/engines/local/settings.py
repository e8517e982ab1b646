"""Translates a job's settings to those of the step."""

from __future__ import annotations

from claas_crds.v1alpha1.training import TeacherKind, TrainingConfig
from claas_trainer.engines.settings import sdpo_config
from claas_trainer.sdpo.settings import SdpoConfig
from claas_trainer.sdpo.teachers.average import AverageTeacher
from claas_trainer.sdpo.teachers.base import Teacher
from claas_trainer.sdpo.teachers.frozen import FrozenTeacher
from claas_trainer.sdpo.teachers.trust_region import TrustRegionTeacher

_TOP_K = 100


def step_config(training: TrainingConfig) -> SdpoConfig:
    """The step's settings."""
    return sdpo_config(training, _TOP_K)


def teacher_of(training: TrainingConfig) -> Teacher:
    """The job's teacher."""
    match training.teacher:
        case TeacherKind.FROZEN:
            return FrozenTeacher()
        case TeacherKind.EMA:
            return AverageTeacher(training.teacher_update_rate)
        case TeacherKind.TRUST_REGION:
            return TrustRegionTeacher(training.teacher_update_rate)
