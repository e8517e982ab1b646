"""The step's device: a model's tensors go there for the step and come back by pointing at their host copies again."""

from __future__ import annotations

import gc

import torch
from torch import nn

_ACTIVATION_BYTES = 4 * 1024**3
"""Room for activations and logits beside the weights; a step that needs more says OutOfMemory."""


def step_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def device_uuid(device: torch.device) -> str:
    """A CUDA device's UUID as NVIDIA's tools write it."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


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
    def needed_bytes(self) -> int:
        """Device memory that should be free before `acquire`."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._host) + _ACTIVATION_BYTES

    def acquire(self) -> None:
        """Copy all tensors to the device. Raises torch.OutOfMemoryError."""
        if self._device.type == "cpu":
            return
        for tensor, host in zip(self._tensors, self._host, strict=True):
            tensor.data = host.to(self._device, non_blocking=True)
        torch.cuda.synchronize(self._device)

    def release(self) -> None:
        """Free the device's memory."""
        for tensor, host in zip(self._tensors, self._host, strict=True):
            tensor.data = host
            tensor.grad = None
        if self._device.type == "cuda":
            gc.collect()
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
