"""Copies between host and device that run beside the device's work, on a stream of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

K = TypeVar("K")


class ToDevice(Generic[K]):
    """Tensors on their way to the device, at once on the CPU; the originals stay as they are."""

    def __init__(self, tensors: Mapping[K, Tensor], device: torch.device) -> None:
        self._device = device
        # Taken from the current stream's memory, which all of the step shares.
        self._copies = {key: torch.empty_like(tensor, device=device) for key, tensor in tensors.items()}
        self._stream = _side_stream(device)
        if self._stream is not None:
            # After what was queued before, which may still use that memory.
            self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            for key, tensor in tensors.items():
                self._copies[key].copy_(tensor, non_blocking=True)

    def ready(self) -> dict[K, Tensor]:
        """The copies; the current stream's work waits for them from here on."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return self._copies


class ToHost(Generic[K]):
    """Tensors on their way to the host, into pinned memory; they must not change before `ready`."""

    def __init__(self, tensors: Mapping[K, Tensor], device: torch.device) -> None:
        self._sources = tensors
        self._stream = _side_stream(device)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            self._copies = {key: _host_copy(tensor) for key, tensor in tensors.items()}

    def ready(self) -> dict[K, Tensor]:
        """The copies, after all have arrived."""
        if self._stream is not None:
            self._stream.synchronize()
        return self._copies


def _host_copy(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor, non_blocking=True)


def reserve_pinned(elements: int, count: int) -> None:
    """Have PyTorch pin host memory for so many float32 vectors, which takes long, and keep it for its next use."""
    for vector in [torch.empty(elements, dtype=torch.float32, pin_memory=True) for _ in range(count)]:
        del vector


def reserve_device(size: int, device: torch.device) -> None:
    """Have PyTorch take so many bytes of a GPU's memory in one piece, for what is to come: piece by piece it would
    take as long as half a step."""
    if device.type == "cuda":
        torch.empty(size, dtype=torch.uint8, device=device)


def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
