"""A job's settings reach the step, every one of them."""

from __future__ import annotations

import dataclasses

import pytest

from claas_crds.v1alpha1.training import SupportKind, TeacherKind, TrainingConfig
from claas_trainer.engines.local.settings import step_config, teacher_of
from claas_trainer.sdpo.losses.support import Support
from claas_trainer.sdpo.policy import Network

OTHER = {
    "learning_rate": 1e-4,
    "alpha": 0.25,
    "is_clip": 2.0,
    "max_grad_norm": 0.5,
    "kl_reg_weight": 0.1,
    "teacher_top_k": 20,
    "support": SupportKind.FULL,
    "weight_decay": 0.5,
    "max_kl": 0.3,
    "seed": 7,
}


def test_every_setting_is_passed_on_as_it_is() -> None:
    found = dataclasses.asdict(step_config(TrainingConfig.model_validate(OTHER)))
    assert {name: found[name] for name in OTHER} == OTHER
    of_the_teacher = {"teacher", "teacher_update_rate"}
    # Looked at when the samples are tokenised, before there is a step.
    of_the_samples = {"require_recorded_prompt"}
    assert set(OTHER) | of_the_teacher | of_the_samples == set(TrainingConfig.model_fields)


@pytest.mark.parametrize("support", SupportKind)
def test_every_support_has_its_counterpart(support: SupportKind) -> None:
    assert step_config(TrainingConfig(support=support)).support is Support(support.value)


@pytest.mark.parametrize(
    ("teacher", "networks", "rate"),
    [
        (TeacherKind.FROZEN, (Network.BASE,), None),
        (TeacherKind.EMA, (Network.AVERAGE,), 0.2),
        (TeacherKind.TRUST_REGION, (Network.BASE, Network.STUDENT), None),
    ],
)
def test_every_teacher_can_be_named(teacher: TeacherKind, networks: tuple[Network, ...], rate: float | None) -> None:
    made = teacher_of(TrainingConfig(teacher=teacher, teacher_update_rate=0.2))
    assert (made.networks, made.average_rate) == (networks, rate)
