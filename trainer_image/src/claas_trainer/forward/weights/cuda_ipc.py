"""CUDA inter-process handles through the driver library: a handle is all that is needed from the other process.

Handles cross PID, IPC, mount and network namespaces, as long as both processes see the same GPU. PyTorch's own way of
sharing tensors also needs a common /dev/shm, which two pods do not have.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from claas_trainer.sdpo.errors import MappingError

HANDLE_BYTES = 64
_LIBRARY = "libcuda.so.1"
_LAZY_PEER_ACCESS = 1


class _Handle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_byte * HANDLE_BYTES)]


class MappedAllocation:
    """An allocation of another process, mapped into this one until `close`.

    Raises:
        MappingError: the driver refuses; usually the other process has ended, or the GPU is another one.
    """

    def __init__(self, handle: bytes, device: torch.device) -> None:
        self._device = device
        self._pointer = ctypes.c_uint64()
        copy = _Handle.from_buffer_copy(handle)
        with torch.cuda.device(device):
            # The runtime makes the device's context current in this thread, which the driver's calls need.
            torch.cuda.current_stream(device).synchronize()
            _check(_driver().cuIpcOpenMemHandle_v2(ctypes.byref(self._pointer), copy, _LAZY_PEER_ACCESS), "map")

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor at `offset` bytes from the allocation's start; it must not be used after `close`."""
        view = _Region(self._pointer.value + offset, torch.Size(shape).numel() * dtype.itemsize)
        return torch.as_tensor(view, device=self._device).view(dtype).view(shape)

    def close(self) -> None:
        """Waits for the device, then unmaps. Does nothing the second time."""
        if self._pointer.value:
            with torch.cuda.device(self._device):
                torch.cuda.synchronize(self._device)
                _check(_driver().cuIpcCloseMemHandle(self._pointer), "unmap")
            self._pointer = ctypes.c_uint64()


class _Region:
    """Device memory in the form that PyTorch accepts from other libraries (`__cuda_array_interface__`, version 3)."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,), "typestr": "|u1", "data": (address, False), "strides": None, "version": 3
        }  # fmt: skip


@cache
def _driver() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise MappingError(f"{_LIBRARY} can't be loaded ({error}); sharing weights needs NVIDIA's driver") from error
    library.cuIpcOpenMemHandle_v2.argtypes = [ctypes.POINTER(ctypes.c_uint64), _Handle, ctypes.c_uint]
    library.cuIpcCloseMemHandle.argtypes = [ctypes.c_uint64]
    return library


def _check(code: int, what: str) -> None:
    if code != 0:
        raise MappingError(
            f"CUDA can't {what} vLLM's memory (error {code}); are both pods on one GPU, and is vLLM still up?"
        )
