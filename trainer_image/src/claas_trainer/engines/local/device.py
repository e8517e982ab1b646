"""The device that a step is taken on."""

from __future__ import annotations

import gc

import torch


def step_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """What a step's bytes depend on: the GPU's name, or the CPU's instruction set and how many threads there are."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def device_uuid(device: torch.device) -> str:
    """A CUDA device's UUID as NVIDIA's tools write it."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def give_back(device: torch.device) -> None:
    """Have PyTorch return the GPU memory that no tensor needs."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
