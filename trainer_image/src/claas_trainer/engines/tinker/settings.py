"""A job's settings as the Tinker service takes them, and those that it can't follow."""

from __future__ import annotations

from tinker import AdamParams

from claas_contract.engine import DistillBatchRequestPayload
from claas_contract.engine_refusals import TINKER_TOP_K, engine_refusals
from claas_crds.v1alpha1.training import TrainingConfig
from claas_trainer.engines.base import RemoteTask
from claas_trainer.errors import InputError
from claas_trainer.sdpo.losses.support import Support
from claas_trainer.sdpo.settings import SdpoConfig


def check_settings(payload: DistillBatchRequestPayload, task: RemoteTask) -> None:
    """Checks that the service can follow the settings. Raises InputError that names each one that it can't."""
    refusals = engine_refusals(task.spec, payload.training, task.lora)
    if payload.save_in_place:
        refusals.append("save_in_place: each step makes new checkpoints; leave it out, or set it to false")
    if refusals:
        raise InputError("; ".join(refusals))


def step_config(training: TrainingConfig) -> SdpoConfig:
    """The step's settings."""
    return SdpoConfig(
        learning_rate=training.learning_rate,
        alpha=training.alpha,
        is_clip=training.is_clip,
        max_grad_norm=training.max_grad_norm,
        kl_reg_weight=training.kl_reg_weight,
        teacher_top_k=training.teacher_top_k or TINKER_TOP_K,
        support=Support(training.support.value),
        weight_decay=training.weight_decay,
        max_kl=training.max_kl,
        seed=training.seed,
    )


def adam_params(config: SdpoConfig) -> AdamParams:
    """The update's settings. The service clips the gradient by its global norm before the update; a norm of 0 means
    no clipping there too."""
    return AdamParams(
        learning_rate=config.learning_rate,
        beta1=config.beta1,
        beta2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        grad_clip_norm=config.max_grad_norm,
    )
