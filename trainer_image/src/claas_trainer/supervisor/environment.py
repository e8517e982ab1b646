"""The worker's environment. Caches go to the scratch folder, because the root file system is read-only and the user
may have neither a home nor a name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from claas_trainer.compute_environment import compute_environment
from claas_trainer.paths import Paths

_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def worker_environment(inherited: Mapping[str, str], paths: Paths, *, offline: bool) -> dict[str, str]:
    """Environment variables of the worker process. `offline`: the model is a folder, so the hub is never asked."""
    scratch = paths.scratch
    ours = {
        "HOME": str(scratch),
        "USER": "claas",
        "HF_HOME": str(scratch / "huggingface"),
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "TRITON_CACHE_DIR": str(scratch / "triton"),
        "CUDA_CACHE_PATH": str(scratch / "cuda"),
        "TMPDIR": str(scratch),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # The Tinker SDK would send exceptions and request headers, and log requests.
        "TINKER_TELEMETRY": "0",
        "TINKER_LOG": "",
    }
    if offline:
        ours["HF_HUB_OFFLINE"] = "1"
    threads = cpu_limit_threads(_CPU_LIMIT)
    if threads is not None and "OMP_NUM_THREADS" not in inherited:
        ours["OMP_NUM_THREADS"] = str(threads)
    return {**inherited, **ours, **compute_environment(inherited)}


def cpu_limit_threads(limit_file: Path) -> int | None:
    """Number of threads for the container's CPU limit, None without a limit. PyTorch would count the node's cores."""
    try:
        quota, period = limit_file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    if quota == "max":
        return None
    return max(1, math.ceil(int(quota) / int(period)))
