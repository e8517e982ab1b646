"""What the device can do: its matmul rate, how fast weights come to it, and what of its memory is taken."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    """Wait for everything that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, run: Callable[[], object]) -> float:
    """How long one run takes, everything that it queued included."""
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of one large product of random matrices: the median of single products."""
    size = 8192 if device.type == "cuda" else 1024
    left = torch.randn(size, size, device=device, dtype=torch.float32).to(dtype)
    right = torch.randn(size, size, device=device, dtype=torch.float32).to(dtype)
    for _ in range(3):
        left @ right
    runs = 20 if device.type == "cuda" else 5
    # Many at a time, as in a step: the clocks of a device that rests between two products tell nothing.
    found = [seconds(device, lambda: [left @ right for _ in range(10)]) / 10 for _ in range(runs // 5)]
    return 2.0 * size**3 / statistics.median(found)


def sustained_rate(device: torch.device, dtype: torch.dtype, duration: float) -> float:
    """Operations a second of the same product in the last half of `duration` seconds without a rest: what is left of
    `matmul_rate` when the device's power limit lowers its clocks, as it does in the middle of a step."""
    size = 8192
    left = torch.randn(size, size, device=device, dtype=torch.float32).to(dtype)
    right = torch.randn(size, size, device=device, dtype=torch.float32).to(dtype)
    started, found = time.perf_counter(), []
    while (elapsed := time.perf_counter() - started) < duration:
        took = seconds(device, lambda: [left @ right for _ in range(100)]) / 100
        if elapsed > duration / 2:
            found.append(took)
    return 2.0 * size**3 / statistics.median(found)


def host_rate(device: torch.device) -> float | None:
    """Bytes a second from pinned host memory; None on the CPU."""
    if device.type != "cuda":
        return None
    host = torch.empty(2**30, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(host, device=device)
    target.copy_(host)
    return host.numel() / statistics.median(seconds(device, lambda: target.copy_(host)) for _ in range(3))


def taken_bytes(device: torch.device) -> int:
    """Memory of the device that is in use, as its driver counts it: all processes', contexts included."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def describe(device: torch.device) -> str:
    """The device's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
