"""How much of a GPU a step may count on: what serving keeps while it sleeps, what this process takes by itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from claas_contract.outcome import FailureReason
from claas_trainer.engines.access import GpuNeed
from claas_trainer.engines.local.device import device_uuid
from claas_trainer.errors import EngineError
from claas_trainer.gpu import gpu_of

GIB = 1024**3
USUAL_RESIDUE_BYTES = int(2.4 * GIB)
"""What a sleeping vLLM was seen to keep: its CUDA context, graphs and communication buffers."""
CONTEXT_BYTES = int(0.6 * GIB)
"""What CUDA takes for this process: context, kernels, workspaces of libraries. A constant, because nobody tells it: a
difference of free memory has what vLLM took meanwhile in it, and the management library counts by process ids that
mean nothing in a container. What it is off by is in the recorded residue, and so cancels out in the next budget."""


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of a GPU: in all, free as its driver counts, and those that PyTorch holds, in use or not."""

    total: int
    free: int
    reserved: int = 0
    allocated: int = 0

    @classmethod
    def of(cls, device: torch.device) -> GpuMemory:
        """As it is now."""
        free, total = torch.cuda.mem_get_info(device)
        return cls(total, free, torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device))

    @property
    def available(self) -> int:
        """What tensors of this process can have."""
        return self.free + self.reserved - self.allocated

    @property
    def residue(self) -> int:
        """What others hold."""
        return max(0, self.total - self.free - self.reserved - CONTEXT_BYTES)


@dataclass(frozen=True)
class Budget:
    """What a step may plan with while serving still has its memory. `residue_bytes`: what serving kept during the
    parent's step, None where nobody looked."""

    total_bytes: int
    residue_bytes: int | None = None

    @property
    def bytes(self) -> int:
        return max(0, self.total_bytes - self._residue - CONTEXT_BYTES)

    @property
    def _residue(self) -> int:
        return USUAL_RESIDUE_BYTES if self.residue_bytes is None else self.residue_bytes

    def check(self, needed_bytes: int, advice: str) -> None:
        """That so much can be had.

        Raises:
            EngineError: OUT_OF_MEMORY, with the figures and the advice.
        """
        if needed_bytes > self.bytes:
            raise EngineError(
                FailureReason.OUT_OF_MEMORY,
                f"the step needs {_gib(needed_bytes)} of GPU memory at the least and can have {_gib(self.bytes)}: of"
                f" {_gib(self.total_bytes)} in all, {_gib(self._residue)} stay with vLLM meanwhile and"
                f" {_gib(CONTEXT_BYTES)} go to CUDA itself; {advice}",
            )


def gpu_need(device: torch.device, needed_bytes: int, least_bytes: int) -> GpuNeed | None:
    """What serving must leave free on that GPU. None for a slice, which is not listed under its own UUID: nothing can
    be said about it."""
    uuid = device_uuid(device)
    return GpuNeed(uuid, needed_bytes, least_bytes) if gpu_of(uuid) else None


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
