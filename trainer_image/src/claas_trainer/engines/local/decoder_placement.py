"""The trainer's own forward over a source of weights, with a step planned to fit the GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from claas_trainer.engines.access import GpuNeed
from claas_trainer.engines.local.device import give_back
from claas_trainer.engines.local.gpu_memory import Budget, GpuMemory, gpu_need
from claas_trainer.engines.local.placement import Fit, Placement, SdpoInput
from claas_trainer.forward.transformer.model import DecoderModel
from claas_trainer.forward.transformer.plan import Footprint, MemoryPlan, plan_memory
from claas_trainer.forward.transformer.warm_up import WarmUp
from claas_trainer.forward.weights.source import WeightSource
from claas_trainer.logs import log
from claas_trainer.model.lora import AdapterWeights
from claas_trainer.sdpo.losses.support import Support
from claas_trainer.sdpo.optimizer import OptimizerState
from claas_trainer.sdpo.settings import Schedule
from claas_trainer.sdpo.step import sdpo_step
from claas_trainer.sdpo.transfers import reserve_device
from claas_trainer.store.record import ForwardKind

CPU_SCHEDULE = Schedule(micro_batch_tokens=2048, tile_rows=512)
_LEFT_TO_SERVING = 256 * 1024**2
"""Bytes of free memory that a warm-up leaves to vLLM, which serves meanwhile."""


class DecoderPlacement(Placement):
    """`DecoderModel` over a source of weights."""

    forward = ForwardKind.DECODER

    def __init__(
        self,
        weights: WeightSource,
        adapter: AdapterWeights,
        inputs: SdpoInput,
        residue_bytes: int | None,
        published_dtype: torch.dtype | None,
        before_layer: Callable[[], None],
    ) -> None:
        """For models that `base_model.check_decoder` accepts. Raises EngineError."""
        self._inputs = inputs
        self._adapter = adapter
        self._weights = weights
        self._weights.expect(inputs.token_ids())
        self._tensors = {name: tensor.shape for name, tensor in adapter.tensors.items()}
        self.model = self._decoder = DecoderModel(
            self._weights, self._tensors, adapter.shape.rank, adapter.shape.alpha, before_layer
        )
        device = weights.device
        self.device, self.dtype = device, weights.dtype
        self.published_dtype = published_dtype or self.dtype
        self._footprint = footprint_of(self._weights, self._decoder, adapter.shape.rank, inputs)
        self._plan: MemoryPlan | None = None
        if device.type == "cuda":
            budget = Budget(GpuMemory.of(device).total, residue_bytes)
            self._plan = planned(self._footprint, inputs, budget)

    @property
    def gpu(self) -> GpuNeed | None:
        if self._plan is None:
            return None
        least = plan_memory(self._footprint, self._inputs.samples, 0)
        return gpu_need(self.device, self._plan.peak_bytes, least.peak_bytes)

    def warm_up(self, state: OptimizerState) -> None:
        inputs, config = self._inputs, self._inputs.warm_up_config
        if self._plan is None:
            # The weights are in place, and the state stays unchanged.
            sdpo_step(self._decoder, inputs.first_pair, config, state, inputs.teacher, CPU_SCHEDULE)
            return
        ready = WarmUp(
            self._weights.shape,
            self.dtype,
            self.device,
            self._tensors,
            self._adapter.shape.rank,
            config,
            inputs.teacher,
            self._plan.schedule,
            inputs.samples,
        )
        free = GpuMemory.of(self.device).available - _LEFT_TO_SERVING
        try:
            ready.run(free)
        except torch.OutOfMemoryError:
            # vLLM has taken the memory meanwhile. The step is only slower then.
            log("not-warmed-up", free_bytes=free)
        give_back(self.device)
        if self._beside_serving:
            self._reserve()

    def _reserve(self) -> None:
        """Allocate the memory that is free now before the step, because allocation takes long."""
        assert self._plan is not None, "there is a plan for every GPU"
        free = GpuMemory.of(self.device).available
        if self._plan.peak_bytes <= free:
            reserve_device(self._plan.peak_bytes, self.device)

    def acquire(self) -> Fit:
        if self._plan is None:
            self._weights.acquire()
            return Fit(CPU_SCHEDULE)
        found = GpuMemory.of(self.device)
        plan = self._plan
        if plan.peak_bytes > found.available:
            plan = plan_memory(self._footprint, self._inputs.samples, found.available)
        log("fitted", available_bytes=found.available, peak_bytes=plan.peak_bytes, residue_bytes=found.residue)
        self._decoder.checkpointed_layers = plan.checkpointed_layers
        self._weights.acquire()
        reserve_device(plan.peak_bytes - self._weights.resident_bytes, self.device)
        # The reserved memory must not count as the step's peak.
        torch.cuda.reset_peak_memory_stats(self.device)
        return Fit(plan.schedule, plan.checkpointed_layers, found.residue)

    def release(self) -> None:
        self._weights.release()
        if not self._beside_serving:
            give_back(self.device)

    @property
    def _beside_serving(self) -> bool:
        """Whether serving goes on during the step, so that its memory can be freed by the end of the process."""
        return self._weights.resident_bytes == 0


def footprint_of(weights: WeightSource, model: DecoderModel, rank: int, inputs: SdpoInput) -> Footprint:
    """Input of the memory planner. The base model's forward for the KL term counts as one more network."""
    return Footprint(
        weights.shape,
        weights.dtype.itemsize,
        weights.resident_bytes,
        model.layout.elements,
        rank,
        networks=len(inputs.teacher.networks) + (inputs.config.kl_reg_weight > 0),
        averaged=inputs.teacher.average_rate is not None,
        full=inputs.config.support is Support.FULL,
    )


def planned(footprint: Footprint, inputs: SdpoInput, budget: Budget) -> MemoryPlan:
    """The fastest plan within the budget. Raises EngineError (OUT_OF_MEMORY) if there is none."""
    plan = plan_memory(footprint, inputs.samples, budget.bytes)
    budget.check(
        plan.peak_bytes,
        f"shorten the longest sample ({inputs.longest} tokens), lower spec.lora.rank, or use a larger GPU",
    )
    return plan
