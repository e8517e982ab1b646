"""The GPUs of this pod, from NVIDIA's management library, which needs no CUDA context and so takes no GPU memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_LIBRARY = "libnvidia-ml.so.1"
_UUID_BYTES = 96


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


@dataclass(frozen=True)
class Gpu:
    """One GPU: `uuid` as in `GPU-8a1f...`, and its memory."""

    uuid: str
    total_bytes: int
    free_bytes: int


def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs that this container sees; empty without a driver."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError:
        return ()
    with _session(library) as usable:
        if not usable:
            return ()
        count = ctypes.c_uint()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return ()
        return tuple(gpu for index in range(count.value) if (gpu := _gpu(library, index)) is not None)


def gpu_of(uuid: str) -> Gpu | None:
    """The current state of the GPU with that UUID, or None."""
    return next((gpu for gpu in visible_gpus() if gpu.uuid == uuid), None)


@contextmanager
def _session(library: ctypes.CDLL) -> Iterator[bool]:
    if library.nvmlInit_v2() != 0:
        yield False
        return
    try:
        yield True
    finally:
        library.nvmlShutdown()


def _gpu(library: ctypes.CDLL, index: int) -> Gpu | None:
    handle = ctypes.c_void_p()
    if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
        return None
    uuid = ctypes.create_string_buffer(_UUID_BYTES)
    memory = _Memory()
    if library.nvmlDeviceGetUUID(handle, uuid, _UUID_BYTES) != 0:
        return None
    if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != 0:
        return None
    return Gpu(uuid.value.decode(), memory.total, memory.free)
