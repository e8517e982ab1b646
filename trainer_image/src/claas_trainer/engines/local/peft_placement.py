"""The generic forward: any model that transformers and PEFT know, its tensors moved to the device as they are."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from claas_trainer.engines.access import GpuNeed
from claas_trainer.engines.local.device import give_back
from claas_trainer.engines.local.gpu_memory import Budget, GpuMemory, gpu_need
from claas_trainer.engines.local.placement import Fit, Placement, SdpoInput
from claas_trainer.forward.peft_model import attached, load_base
from claas_trainer.model.lora import AdapterWeights
from claas_trainer.sdpo.optimizer import OptimizerState
from claas_trainer.sdpo.settings import Schedule
from claas_trainer.sdpo.step import sdpo_step
from claas_trainer.store.record import ForwardKind

SCHEDULE = Schedule(micro_batch_tokens=2048, tile_rows=512)
_ACTIVATION_BYTES = 4 * 1024**3
"""Room for activations and logits beside the weights; a step that needs more is cut smaller until it fits."""


class PeftPlacement(Placement):
    """A transformers model with the adapter attached by PEFT."""

    forward = ForwardKind.PEFT

    def __init__(
        self,
        folder: Path,
        adapter: AdapterWeights,
        inputs: SdpoInput,
        device: torch.device,
        residue_bytes: int | None,
        resources: ExitStack,
    ) -> None:
        """Raises AdapterError, WeightsError, EngineError."""
        base = load_base(folder)
        self._inputs = inputs
        self.device, self.dtype = device, base.dtype
        self.published_dtype = base.dtype
        model = resources.enter_context(attached(base, adapter))
        self.model = model
        self._weights = DeviceWeights(model.peft, device)
        self._needed_bytes = self._weights.resident_bytes + _ACTIVATION_BYTES
        if device.type == "cuda":
            budget = Budget(GpuMemory.of(device).total, residue_bytes)
            budget.check(self._needed_bytes, "use a smaller base model or a larger GPU")

    @property
    def gpu(self) -> GpuNeed | None:
        if self.device.type == "cpu":
            return None
        return gpu_need(self.device, self._needed_bytes, self._needed_bytes)

    def warm_up(self, state: OptimizerState) -> None:
        # On the CPU, where the weights are. What it changes is undone: every step loads its masters first.
        inputs = self._inputs
        sdpo_step(self.model, inputs.first_pair, inputs.warm_up_config, state, inputs.teacher, SCHEDULE)

    def acquire(self) -> Fit:
        if self.device.type == "cpu":
            return Fit(SCHEDULE)
        found = GpuMemory.of(self.device)
        self._weights.acquire()
        torch.cuda.reset_peak_memory_stats(self.device)
        return Fit(SCHEDULE, residue_bytes=found.residue)

    def release(self) -> None:
        self._weights.release()
        give_back(self.device)


class DeviceWeights:
    """Moves a model's tensors to a device and back. The host's copies are kept, pinned for a GPU, so that giving
    the device back copies nothing: what the step changed must have been read before."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._device = device
        self._tensors: list[torch.Tensor] = [*module.parameters(), *module.buffers()]
        if device.type == "cuda":
            for tensor in self._tensors:
                tensor.data = tensor.data.pin_memory()
        self._host = [tensor.data for tensor in self._tensors]

    @property
    def resident_bytes(self) -> int:
        """Device memory that `acquire` takes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._host)

    def acquire(self) -> None:
        """Copy all tensors to the device. Raises torch.OutOfMemoryError."""
        for tensor, host in zip(self._tensors, self._host, strict=True):
            tensor.data = host.to(self._device, non_blocking=True)
        torch.cuda.synchronize(self._device)

    def release(self) -> None:
        """Point at the host's copies again."""
        for tensor, host in zip(self._tensors, self._host, strict=True):
            tensor.data = host
            tensor.grad = None
