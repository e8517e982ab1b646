"""The work of the local engine, imported only for a step."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch

from claas_contract.engine import OWN_FILES, DistillBatchRequestPayload, TokenisedSample
from claas_contract.outcome import FailureReason
from claas_trainer.engines.access import WeightAccess
from claas_trainer.engines.base import EngineReadiness, EngineTask, TrainedVersion
from claas_trainer.engines.local.base_model import base_fingerprint, check_base, check_decoder
from claas_trainer.engines.local.decoder_placement import DecoderPlacement
from claas_trainer.engines.local.device import device_name, step_device
from claas_trainer.engines.local.gpu_memory import GpuMemory
from claas_trainer.engines.local.held_model import HeldModel
from claas_trainer.engines.local.placement import Fit, Placement, SdpoInput
from claas_trainer.engines.local.settings import step_config, teacher_of
from claas_trainer.engines.local.version_files import EarlierVersions, read_parent, read_state, state_files
from claas_trainer.engines.local.weight_access import open_weights
from claas_trainer.errors import EngineError
from claas_trainer.figures import seconds_since
from claas_trainer.forward.weights.finite import weights_blamed
from claas_trainer.heavy_imports import first_import_of
from claas_trainer.kernels.short_queue import ShortQueue
from claas_trainer.libraries import library_versions
from claas_trainer.logs import log
from claas_trainer.model.config import read_config
from claas_trainer.model.config_shape import read_shape
from claas_trainer.model.lora import AdapterWeights
from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.batch import TokenSample, digest
from claas_trainer.sdpo.errors import UnsupportedModelError
from claas_trainer.sdpo.old_policy import OLD_VECTORS, with_old_logprobs
from claas_trainer.sdpo.optimizer import OptimizerState
from claas_trainer.sdpo.settings import Schedule
from claas_trainer.sdpo.step import SdpoResult, sdpo_step
from claas_trainer.sdpo.transfers import reserve_pinned
from claas_trainer.store.content import Bytes, FileContent
from claas_trainer.store.record import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, LocalProvenance
from claas_trainer.store.tensors import Tensors

_MASTER_BYTES = 4


class PreparedTraining:
    """All that a step needs, in host memory, and its result afterwards."""

    def __init__(
        self,
        task: EngineTask,
        inputs: SdpoInput,
        adapter_config: bytes,
        base_fingerprint: str,
        placement: Placement,
        state: OptimizerState,
        earlier: EarlierVersions,
        mapped_folder: Path | None,
    ) -> None:
        """`mapped_folder`: the base model's folder if its weights are used without a copy."""
        self.task = task
        self._mapped_folder = mapped_folder
        self._inputs = inputs
        self._adapter_config = adapter_config
        self._base_fingerprint = base_fingerprint
        self._placement = placement
        self._state = state
        self._earlier = earlier
        self._fit: Fit | None = None
        self._result: SdpoResult | None = None

    def describe(self) -> EngineReadiness:
        """Properties for the attempt."""
        each = _vectors(self._inputs) * _MASTER_BYTES + self._placement.published_dtype.itemsize
        return EngineReadiness(
            self._state.layout.elements * each,
            self._placement.gpu,
            device=device_name(self._placement.device),
            forward=self._placement.forward.value,
            unusable=self._earlier.unusable,
        )

    @property
    def _tokens(self) -> int:
        return sum(sample.tokens for sample in self._inputs.samples)

    def acquire(self) -> None:
        """Take the device. Raises torch.OutOfMemoryError."""
        self._fit = self._placement.acquire()

    def take(self) -> dict[str, float]:
        """Take the step; returns its metrics."""
        if self._fit is None:
            raise _out_of_turn("a step before it has its device")
        with weights_blamed(self._mapped_folder):
            samples, schedule = self._with_old_logprobs(self._fit.schedule)
            self._result = sdpo_step(
                self._placement.model,
                samples,
                self._inputs.config,
                self._state,
                self._inputs.teacher,
                schedule,
                on_micro_batch=self._before_micro_batch,
            )
        self._metrics = _metrics(self._result, self._fit, self._placement.device)
        return self._metrics

    def _with_old_logprobs(self, schedule: Schedule) -> tuple[tuple[TokenSample, ...], Schedule]:
        adapters = self._earlier.adapters
        if not adapters:
            return self._inputs.samples, schedule
        started = time.monotonic()
        found = with_old_logprobs(
            self._placement.model, self._inputs.samples, adapters, schedule, self._before_old_micro_batch
        )
        log("old-logprobs", versions=",".join(map(str, sorted(adapters))), seconds=seconds_since(started))
        return found

    def _before_old_micro_batch(self, number: int, count: int) -> None:
        self.task.access.rest()
        self.task.tell_progress(f"old log-probabilities, micro-batch {number} of {count}")

    def _before_micro_batch(self, number: int, count: int) -> None:
        # The generic forward can wait only here.
        self.task.access.rest()
        self.task.tell_progress(f"micro-batch {number} of {count}")

    def release(self) -> None:
        """Free the device."""
        self._placement.release()

    def trained(self) -> TrainedVersion:
        """The result of `take`."""
        if self._result is None or self._fit is None:
            raise _out_of_turn("a version before the step was taken")
        record = self._record(self._result, self._fit)
        return TrainedVersion(self._files(self._result), self._metrics, library_versions(), record, OWN_FILES)

    def _files(self, result: SdpoResult) -> dict[str, FileContent]:
        dtype = self._placement.published_dtype
        return {
            ADAPTER_CONFIG_FILE: Bytes(self._adapter_config),
            ADAPTER_WEIGHTS_FILE: Tensors(result.state.masters, {"format": "pt"}, dtype),
            **state_files(result.state),
        }

    def _record(self, result: SdpoResult, fit: Fit) -> LocalProvenance:
        # Without a sleep, memory of others is not a residue and would mislead a later step with one.
        residue = fit.residue_bytes if self.task.access.weights is WeightAccess.COPY else None
        return LocalProvenance(
            parent_digest=self.task.parent.record.digest,
            base_fingerprint=self._base_fingerprint,
            samples_digest=digest(self._inputs.samples),
            answered_by=self._earlier.digests,
            tokens=self._tokens,
            forward=self._placement.forward,
            device=device_name(self._placement.device),
            compute_dtype=str(self._placement.dtype).removeprefix("torch."),
            micro_batch_tokens=result.schedule.micro_batch_tokens,
            tile_rows=result.schedule.tile_rows,
            checkpointed_layers=fit.checkpointed_layers,
            serving_residue_bytes=residue,
        )


def prepare(
    payload: DistillBatchRequestPayload, task: EngineTask, resources: ExitStack, held: HeldModel | None = None
) -> PreparedTraining:
    """Load everything into host memory, but for base weights that this process holds already. `resources` are closed
    after the step. Raises TrainerError and SdpoError."""
    adapter, adapter_config = read_parent(task.parent)
    earlier = EarlierVersions.read(task.earlier, adapter)
    samples = tuple(_as_sample(sample, earlier) for sample in payload.samples)
    inputs = SdpoInput(samples, step_config(payload.training), teacher_of(payload.training))
    device = step_device()
    placement, fingerprint = _place(task, adapter, inputs, device, resources, held)
    on_gpu = device.type == "cuda"
    state = read_state(task.parent, placement.model.layout, inputs, pin=on_gpu)
    state = state or OptimizerState.fresh(adapter.tensors, placement.model.layout, pin=on_gpu)
    if on_gpu:
        reserve_pinned(state.layout.elements, _vectors(inputs) + min(len(earlier.adapters), OLD_VECTORS))
    log("placed", forward=placement.forward.value, device=device_name(device))
    started = time.monotonic()
    with weights_blamed(task.model):
        placement.warm_up(state)
    log("warmed-up", seconds=seconds_since(started))
    mapped = task.model if task.access.weights is WeightAccess.SHARED else None
    return PreparedTraining(task, inputs, adapter_config, fingerprint, placement, state, earlier, mapped)


def _as_sample(sample: TokenisedSample, earlier: EarlierVersions) -> TokenSample:
    return TokenSample(
        sample.student_prompt_ids,
        sample.teacher_prompt_ids,
        sample.response_ids,
        sample.old_logprobs or None,
        # The parent's log-probabilities are those of the step's own first forward.
        sample.version if sample.version in earlier.adapters else None,
    )


def _place(
    task: EngineTask,
    adapter: AdapterWeights,
    inputs: SdpoInput,
    device: torch.device,
    resources: ExitStack,
    held: HeldModel | None,
) -> tuple[Placement, str]:
    """The trainer's own forward if it can compute the model, else the generic one; and the base model's
    fingerprint."""
    folder, parent, shared = task.model, task.parent, task.access.weights is WeightAccess.SHARED
    residue = _residue(task, device)
    shape: ModelShape | None = None
    try:
        shape = read_shape(folder) if held is None else held.shape
        check_decoder(shape, adapter, inputs.longest)
    except UnsupportedModelError as error:
        if shared and device.type == "cuda":
            raise EngineError(
                FailureReason.WEIGHTS_NOT_SHAREABLE,
                f"{error}; the weights that vLLM serves are for the trainer's own forward alone: start vLLM with"
                " --enable-sleep-mode, and choose the hand-over Sleep",
            ) from error
        log("generic-forward", why=str(error))
        fingerprint = base_fingerprint(folder, shape)
        check_base(parent, fingerprint)
        with first_import_of("claas_trainer.engines.local.peft_placement"):
            from claas_trainer.engines.local.peft_placement import PeftPlacement

        return PeftPlacement(folder, adapter, inputs, device, residue, resources), fingerprint
    fingerprint = base_fingerprint(folder, shape) if held is None else held.fingerprint
    check_base(parent, fingerprint)
    if held is None:
        weights = open_weights(task.access, folder, shape, device, fingerprint)
        resources.callback(weights.close)
    else:
        weights = held.weights(device)
    rest = task.access.rest
    if shared and device.type == "cuda":
        rest = ShortQueue(device, rest)
    return DecoderPlacement(weights, adapter, inputs, residue, read_config(folder).dtype, rest), fingerprint


def _residue(task: EngineTask, device: torch.device) -> int | None:
    """GPU memory that serving will hold during the step: as measured during the parent's step, or its current use."""
    if task.access.weights is WeightAccess.SHARED:
        return GpuMemory.of(device).residue if device.type == "cuda" else None
    if task.access.weights is WeightAccess.ALONE:
        return 0
    local = task.parent.record.local
    return local.serving_residue_bytes if local else None


def _vectors(inputs: SdpoInput) -> int:
    """Number of vectors in a state: master weights, two moments, and an average with the teacher `ema`."""
    return 3 if inputs.teacher.average_rate is None else 4


def _metrics(result: SdpoResult, fit: Fit, device: torch.device) -> dict[str, float]:
    metrics = {name: float(value) for name, value in asdict(result.metrics).items() if value is not None}
    metrics["checkpointed_layers"] = float(fit.checkpointed_layers)
    if device.type == "cuda":
        metrics["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated(device))
    return metrics


def _out_of_turn(what: str) -> EngineError:
    return EngineError(FailureReason.INTERNAL, f"engine local: asked for {what}")
