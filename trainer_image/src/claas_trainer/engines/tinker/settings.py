"""A job's settings as the Tinker service takes them, and those that it can't follow."""

from __future__ import annotations

from collections.abc import Sequence

from tinker import AdamParams

from claas_contract.engine import TokenisedSample
from claas_contract.engine_refusals import TINKER_TOP_K
from claas_crds.v1alpha1.training import TrainingConfig
from claas_trainer.engines.base import RemoteTask
from claas_trainer.engines.settings import sdpo_config
from claas_trainer.errors import InputError
from claas_trainer.sdpo.errors import InvalidBatchError
from claas_trainer.sdpo.settings import SdpoConfig


def service_model(task: RemoteTask) -> str:
    """The service's name of the base model. Raises InputError if none is known."""
    tinker = task.spec.tinker
    name = tinker.base_model if tinker is not None and tinker.base_model else task.base_model
    if not name or name.startswith("/"):
        raise InputError("spec.engine.tinker.baseModel: give the Tinker service's name of the base model")
    return name


def check_length(samples: Sequence[TokenisedSample], context: int | None) -> None:
    """Checks that each sample fits the service's context, in tokens; None: unknown. A scored prompt takes a token
    more, because the service has to generate one. Raises InvalidBatchError that names the sample."""
    for index, sample in enumerate(samples):
        if context is not None and sample.tokens + 1 > context:
            raise InvalidBatchError(
                f"samples[{index}] is {sample.tokens} tokens long, prompt and response, and the Tinker service takes"
                f" {context - 1} of this base model: shorten or leave out this sample"
            )


def step_config(training: TrainingConfig) -> SdpoConfig:
    """The step's settings."""
    return sdpo_config(training, TINKER_TOP_K)


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
