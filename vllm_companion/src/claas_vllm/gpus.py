"""The GPUs of this process, so that a trainer can check that it has the same one."""

import re
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from claas_vllm.log import logger


def visible_gpu_uuids(environment: Mapping[str, str]) -> list[str]:
    """UUIDs of the GPUs (or MIG slices) that this process may use, from NVML, which needs no CUDA context. [] without
    an NVIDIA driver. CUDA_VISIBLE_DEVICES narrows them, by index in PCI order or by UUID.
    """
    nvml = _import_nvml()
    if nvml is None:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        uuids = [uuid for index in range(nvml.nvmlDeviceGetCount()) for uuid in _device_uuids(nvml, index)]
    except nvml.NVMLError as error:
        logger.warning("NVML can't list the GPUs: %s", error)
        return []
    finally:
        nvml.nvmlShutdown()
    return narrow_to_visible(uuids, environment.get("CUDA_VISIBLE_DEVICES"))


def narrow_to_visible(uuids: list[str], visible: str | None) -> list[str]:
    """The `uuids` that CUDA_VISIBLE_DEVICES names, in its order, up to the first bad entry, as CUDA does."""
    if visible is None:
        return uuids
    chosen: list[str] = []
    for entry in (entry.strip() for entry in visible.split(",")):
        if re.fullmatch(r"[0-9]+", entry):
            found = uuids[int(entry) : int(entry) + 1]
        else:
            found = [uuid for uuid in uuids if entry and uuid.startswith(entry)]
        if len(found) != 1:
            break
        chosen += found
    return chosen


def _device_uuids(nvml: Any, index: int) -> list[str]:
    device = nvml.nvmlDeviceGetHandleByIndex(index)
    slices = []
    try:
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(device) if nvml.nvmlDeviceGetMigMode(device)[0] else 0
    except nvml.NVMLError:
        count = 0  # This GPU has no MIG.
    for number in range(count):
        try:
            slices.append(_text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(device, number))))
        except nvml.NVMLError:
            continue  # No slice with this number, or not one of this process.
    return slices or [_text(nvml.nvmlDeviceGetUUID(device))]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _import_nvml() -> Any:
    # vLLM contains a copy. Used only inside vLLM: elsewhere the import would load all of vLLM, which takes many
    # seconds.
    for name in ("pynvml", "vllm.third_party.pynvml"):
        if name.startswith("vllm.") and "vllm" not in sys.modules:
            continue
        try:
            return import_module(name)
        except ImportError:
            continue
    return None
