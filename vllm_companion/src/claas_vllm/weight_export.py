"""The worker's side of sharing weights: handles to the weights in GPU memory, or why they can't be mapped."""

import base64
import ctypes
import hashlib
from typing import Any

from claas_vllm.errors import CompanionError


class WeightExport:
    """Mixed into vLLM's worker: exports handles to the served weights to a trainer on the same GPU.

    Called by `POST /collective_rpc {"method": "claas_export_weights"}`, which the lock protects, because a handle
    allows reading and writing the weights.
    """

    vllm_config: Any
    model_runner: Any

    def claas_export_weights(self) -> dict[str, Any]:
        """`tensors`: name (without `.base_layer`), shape, dtype, handle (base64) and offset in bytes of each
        parameter; `fingerprint`: of names, shapes and dtypes. Or `refusal`: why they can't be shared."""
        refusal = sharing_refusal(self.vllm_config)
        if refusal is not None:
            return {"refusal": refusal}
        try:
            tensors = [_exported(name, p) for name, p in self.model_runner.model.named_parameters()]
        except CompanionError as error:
            return {"refusal": str(error)}
        digest = hashlib.sha256()
        for tensor in sorted(tensors, key=lambda found: str(found["name"])):
            digest.update(f"{tensor['name']} {tensor['shape']} {tensor['dtype']}\n".encode())
        return {"refusal": None, "fingerprint": digest.hexdigest(), "tensors": tensors}


def sharing_refusal(config: Any) -> str | None:
    """Why weights can't be shared with this vLLM configuration, or None."""
    if config.model_config.enable_sleep_mode:
        return "its memory belongs to the sleep mode's allocator; start vLLM without --enable-sleep-mode"
    if config.model_config.quantization is not None:
        return f"they are quantised ({config.model_config.quantization})"
    if config.parallel_config.world_size != 1:
        return f"they are spread over {config.parallel_config.world_size} GPUs"
    if config.device_config.device_type != "cuda":
        return f"they are not on a GPU but on {config.device_config.device_type}"
    return None


def _exported(name: str, parameter: Any) -> dict[str, Any]:
    dtype = str(parameter.dtype).removeprefix("torch.")
    if dtype not in ("bfloat16", "float16") or not parameter.is_contiguous():
        raise CompanionError(f"{name} is {dtype}, or repacked for a kernel")
    handle, offset = _ipc_handle(parameter.data_ptr())
    return {
        "name": name.replace(".base_layer", ""), "shape": list(parameter.shape), "dtype": dtype,
        "handle": base64.b64encode(handle).decode(), "offset": offset,
    }  # fmt: skip


def _ipc_handle(address: int) -> tuple[bytes, int]:
    """The handle of the allocation that contains an address, and the address's offset in it."""
    driver = ctypes.CDLL("libcuda.so.1")
    base, size, handle = ctypes.c_uint64(), ctypes.c_size_t(), (ctypes.c_byte * 64)()
    code = driver.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(address))
    code = code or driver.cuIpcGetMemHandle(ctypes.byref(handle), base)
    if code != 0:
        raise CompanionError(
            f"CUDA can't export its memory (error {code}); PyTorch's expandable segments must be off in vLLM"
        )
    return bytes(handle), address - base.value
