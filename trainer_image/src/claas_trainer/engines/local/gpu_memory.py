"""The GPU memory that a step may plan with, given the memory of a sleeping vLLM and of this process."""

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
"""Memory of a sleeping vLLM, as measured: its CUDA context, graphs and communication buffers."""
CONTEXT_BYTES = int(0.6 * GIB)
"""Memory of CUDA in this process: context, kernels, workspaces of libraries. A constant, because it can't be
measured: a difference of free memory includes vLLM's allocations, and the management library counts by process ids
that are meaningless in a container. Its error is part of the recorded residue and so cancels out in the next
budget."""


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of a GPU: total, free by the driver's count, and held by PyTorch, in use or not."""

    total: int
    free: int
    reserved: int = 0
    allocated: int = 0

    @classmethod
    def of(cls, device: torch.device) -> GpuMemory:
        """The current state."""
        free, total = torch.cuda.mem_get_info(device)
        return cls(total, free, torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device))

    @property
    def available(self) -> int:
        """Bytes available to tensors of this process."""
        return self.free + self.reserved - self.allocated

    @property
    def residue(self) -> int:
        """Bytes held by other processes."""
        return max(0, self.total - self.free - self.reserved - CONTEXT_BYTES)


@dataclass(frozen=True)
class Budget:
    """Bytes that a step may plan with while serving still holds its memory. `residue_bytes`: memory of serving during
    the parent's step, None if not measured."""

    total_bytes: int
    residue_bytes: int | None = None

    @property
    def bytes(self) -> int:
        return max(0, self.total_bytes - self._residue - CONTEXT_BYTES)

    @property
    def _residue(self) -> int:
        return USUAL_RESIDUE_BYTES if self.residue_bytes is None else self.residue_bytes

    def check(self, needed_bytes: int, advice: str) -> None:
        """Checks that this much is available.

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
    """Memory that serving must leave free on that GPU. None for a MIG slice, which is not listed under its own
    UUID."""
    uuid = device_uuid(device)
    return GpuNeed(uuid, needed_bytes, least_bytes) if gpu_of(uuid) else None


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
