"""The local engine's work: what `local` imports when a step is really to be taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from traceback import clear_frames

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from claas_crds.contract import FailureReason
from claas_crds.training import DistillBatchRequestPayload, TrainingConfig
from claas_trainer.batch import StepSample
from claas_trainer.engines.base import GpuNeed, PreparedStep, StepPlan, TrainedVersion
from claas_trainer.engines.device import DeviceWeights, device_uuid, step_device
from claas_trainer.errors import EngineError, InputError, TrainerError
from claas_trainer.gpu import gpu_of
from claas_trainer.libraries import library_versions
from claas_trainer.lora import LoraAdapter, read_adapter
from claas_trainer.peft_model import AdaptedModel, attached, load_base
from claas_trainer.model_source import find_model, limits_of, read_config, read_tokenizer
from claas_trainer.optimizer import OptimizerState
from claas_trainer.step import StepConfig, StepResult, sdpo_step
from claas_trainer.step_errors import (
    AdapterError,
    InvalidBatchError,
    InvalidConfigError,
    NonFiniteError,
    OptimizerStateError,
    StepError,
)
from claas_trainer.store.content import Bytes, FileContent, Tensors
from claas_trainer.store.errors import storage_errors
from claas_trainer.store.record import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, OPTIMIZER_FILE
from claas_trainer.store.versions import StoredVersion
from claas_trainer.tokens import TokenisedBatch, tokenise

_MASTER_AND_MOMENTS_BYTES = 12


class LocalStep:
    """Everything a step needs, in host memory, and in the end what it left."""

    def __init__(
        self,
        plan: StepPlan,
        batch: TokenisedBatch,
        adapter_config: bytes,
        model: AdaptedModel,
        dtype: torch.dtype,
        state: OptimizerState,
        device: torch.device,
    ) -> None:
        self.plan = plan
        self.batch = batch
        self.adapter_config = adapter_config
        self.model = model
        self.dtype = dtype
        self.state = state
        self.device = device
        self.weights = DeviceWeights(model.peft, device)
        self._result: StepResult | None = None

    def describe(self) -> PreparedStep:
        elements = sum(parameter.numel() for parameter in self.model.trainable().values())
        gpu = None
        if self.device.type == "cuda":
            uuid = device_uuid(self.device)
            # A slice of a GPU is not listed under its own UUID: nothing can be said about it then.
            gpu = GpuNeed(uuid, self.weights.needed_bytes) if gpu_of(uuid) else None
        return PreparedStep(self.batch.counts, elements * (_MASTER_AND_MOMENTS_BYTES + self.dtype.itemsize), gpu)

    def take(self, training: TrainingConfig) -> dict[str, float]:
        """Take the step; gives its metrics."""
        self._result = sdpo_step(
            self.model,
            self.batch.samples,
            step_config(training),
            self.state,
            on_micro_batch=lambda number, count: self.plan.tell_progress(f"micro-batch {number} of {count}"),
        )
        return _metrics(self._result)

    def trained(self) -> TrainedVersion:
        """What `take` left."""
        if self._result is None:
            raise EngineError(FailureReason.INTERNAL, "engine local: asked for a version before the step was taken")
        return TrainedVersion(_files(self, self._result), _metrics(self._result), library_versions())


def prepare(payload: DistillBatchRequestPayload, plan: StepPlan, resources: ExitStack) -> LocalStep:
    """Check the samples and bring everything into host memory; `resources` are closed after the step.

    Raises TrainerError and StepError.
    """
    # Samples first: what is wrong with them should be said within a second, before gigabytes are read.
    folder = find_model(plan.model, plan.paths)
    batch = tokenise(payload.samples, read_tokenizer(folder), limits_of(read_config(folder)))
    adapter, adapter_config = _read_parent(plan.parent)
    state = _read_state(plan.parent, adapter)
    base = _load_base(folder)
    dtype = base.dtype
    model = resources.enter_context(attached(base, adapter))
    state = state or OptimizerState.fresh(model.trainable())
    prepared = LocalStep(plan, batch, adapter_config, model, dtype, state, step_device())
    _warm_up(prepared)
    return prepared


def _warm_up(prepared: LocalStep) -> None:
    """Take a step on two tokens, so that what is made or imported on first use is there before the pause.

    What it changes is undone: every step loads its masters first.
    """
    sample = prepared.batch.samples[0]
    short = StepSample(sample.student_prompt_ids[:1], sample.teacher_prompt_ids[:1], sample.response_ids[:1])
    sdpo_step(prepared.model, [short], StepConfig(), prepared.state)


def _load_base(folder: Path) -> PreTrainedModel:
    try:
        return load_base(folder)
    except AdapterError as error:
        raise InputError(f"model: {error}", FailureReason.MODEL_NOT_FOUND) from error


def _read_parent(parent: StoredVersion) -> tuple[LoraAdapter, bytes]:
    """The parent's adapter, and its configuration file as it is: the new version has the same."""
    try:
        with storage_errors(parent.folder):
            return read_adapter(parent.folder), (parent.folder / ADAPTER_CONFIG_FILE).read_bytes()
    except AdapterError as error:
        raise EngineError(FailureReason.PARENT_CORRUPT, str(error)) from error


def _read_state(parent: StoredVersion, adapter: LoraAdapter) -> OptimizerState | None:
    """The parent's optimiser state; None for a version that has none, such as the initial one."""
    path = parent.file(OPTIMIZER_FILE)
    if path is None:
        return None
    try:
        state = OptimizerState.from_tensors(load_file(path))
        state.check({name: tensor.shape for name, tensor in adapter.tensors.items()})
    except (OSError, SafetensorError, OptimizerStateError) as error:
        raise EngineError(FailureReason.PARENT_CORRUPT, f"{path}: {error}") from error
    return state


def step_config(training: TrainingConfig) -> StepConfig:
    """The step's settings from the job's."""
    return StepConfig(
        learning_rate=training.learning_rate,
        alpha=training.alpha,
        is_clip=training.is_clip,
        max_grad_norm=training.max_grad_norm,
        kl_reg_weight=training.kl_reg_weight,
        teacher_top_k=training.teacher_top_k,
        weight_decay=training.weight_decay,
        seed=training.seed,
    )


def _metrics(result: StepResult) -> dict[str, float]:
    return {name: float(value) for name, value in asdict(result.metrics).items() if value is not None}


def _files(step: LocalStep, result: StepResult) -> dict[str, FileContent]:
    weights = {name: tensor.to(step.dtype) for name, tensor in result.state.masters.items()}
    return {
        ADAPTER_CONFIG_FILE: Bytes(step.adapter_config),
        ADAPTER_WEIGHTS_FILE: Tensors(weights, {"format": "pt"}),
        OPTIMIZER_FILE: Tensors(result.state.to_tensors(), {"format": "pt"}),
    }


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turn what the step and its libraries raise into errors with a reason."""
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        # What the frames of a failed step hold would stay on the device, and vLLM could not wake beside it.
        clear_frames(error.__traceback__)
        known = _known(error)
        if known is None:
            raise
        raise known from error


def _known(error: Exception) -> TrainerError | None:
    match error:
        case torch.OutOfMemoryError() | MemoryError():
            return EngineError(
                FailureReason.OUT_OF_MEMORY,
                "the step does not fit into memory; give fewer or shorter samples, or more memory",
            )
        case InvalidBatchError():
            return EngineError(FailureReason.INVALID_SAMPLE, str(error))
        case InvalidConfigError():
            return InputError(f"training: {error}")
        case NonFiniteError():
            return EngineError(FailureReason.NOT_FINITE, str(error))
        case AdapterError():
            return InputError(f"lora: {error}")
        case StepError():
            return EngineError(FailureReason.INTERNAL, str(error))
    return None
