"""The device of a step."""

from __future__ import annotations

import gc

import torch


def step_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Properties of the device that affect a step's bytes: the GPU's name, or the CPU's instruction set and the
    number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def device_uuid(device: torch.device) -> str:
    """A CUDA device's UUID in the form of NVIDIA's tools."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def give_back(device: torch.device) -> None:
    """Make PyTorch free the GPU memory that no tensor uses."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
