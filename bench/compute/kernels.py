"""Where a step's time on the GPU goes, by kind of kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

_KINDS = (
    ("attention", ("flash", "fmha", "cudnn", "attention", "sdpa")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "xmma", "splitk", "gemv")),
    (
        "passes (norms, rotation, SwiGLU, softmax)",
        ("_rms_norm", "_rotate", "_swiglu", "_row_logsumexp", "_others_grad"),
    ),
    ("top-K", ("topk", "radix", "bitonic", "sort", "gatherTopK")),
    ("copies", ("memcpy", "memset", "copy", "cat")),
    ("optimiser and norms of the gradient", ("adam", "norm", "multi_tensor")),
)


def kernel_times(run: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of each kernel, by name, in one run."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    times: dict[str, float] = defaultdict(float)
    for event in found.key_averages():
        times[event.key] += event.self_device_time_total / 1000
    return dict(times)


def print_profile(run: Callable[[], object], longest: int = 24) -> None:
    """Print a table by kind, and the kernels that take longest."""
    times = kernel_times(run)
    kinds: dict[str, float] = defaultdict(float)
    for name, milliseconds in times.items():
        kinds[_kind(name)] += milliseconds
    print("| kind | ms |\n|---|---|")
    for kind, milliseconds in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"| {kind} | {milliseconds:.1f} |")
    print(f"| all | {sum(times.values()):.1f} |")
    for name, milliseconds in sorted(times.items(), key=lambda item: -item[1])[:longest]:
        print(f"  {milliseconds:8.1f} ms  {name[:110]}")


def _kind(name: str) -> str:
    lowered = name.lower()
    return next((kind for kind, words in _KINDS if any(word in lowered for word in words)), "other")
