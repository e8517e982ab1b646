"""Copies between host and device that overlap with the device's work, on a stream of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

K = TypeVar("K")


class ToDevice(Generic[K]):
    """A copy of tensors to the device, asynchronous on a GPU and immediate on a CPU. The originals stay unchanged."""

    def __init__(self, tensors: Mapping[K, Tensor], device: torch.device) -> None:
        self._device = device
        # Allocated on the current stream, from the memory pool that the whole step shares.
        self._copies = {key: torch.empty_like(tensor, device=device) for key, tensor in tensors.items()}
        self._stream = _side_stream(device)
        if self._stream is not None:
            # The copy waits for work queued earlier, which may still use that memory.
            self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            for key, tensor in tensors.items():
                self._copies[key].copy_(tensor, non_blocking=True)

    def ready(self) -> dict[K, Tensor]:
        """The copies; later work on the current stream waits for them."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return self._copies


class ToHost(Generic[K]):
    """A copy of tensors to pinned host memory; the tensors must not change before `ready`."""

    def __init__(self, tensors: Mapping[K, Tensor], device: torch.device) -> None:
        self._sources = tensors
        self._stream = _side_stream(device)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            self._copies = {key: _host_copy(tensor) for key, tensor in tensors.items()}

    def ready(self) -> dict[K, Tensor]:
        """Waits for the copies and returns them."""
        if self._stream is not None:
            self._stream.synchronize()
        return self._copies


def _host_copy(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return host.copy_(tensor, non_blocking=True)


def reserve_pinned(elements: int, count: int) -> None:
    """Make PyTorch pin host memory for this many float32 vectors, which takes long, and keep it for its next use."""
    for vector in [torch.empty(elements, dtype=torch.float32, pin_memory=True) for _ in range(count)]:
        del vector


def reserve_device(size: int, device: torch.device) -> None:
    """Make PyTorch allocate this many bytes of GPU memory in one piece, for later use. Allocating them piece by piece
    would take half as long as a step."""
    if device.type == "cuda":
        torch.empty(size, dtype=torch.uint8, device=device)


def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
