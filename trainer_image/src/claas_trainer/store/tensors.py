"""Tensors as a safetensors file of a version."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from claas_trainer.store.content import CHUNK_BYTES, FileContent

_ALIGNMENT_BYTES = 8
_SAFETENSORS_TYPES = {
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.float64": "F64",
}


@dataclass(frozen=True)
class Tensors(FileContent):
    """A safetensors file of CPU tensors, sorted by name so that equal tensors give equal bytes. With `dtype`, each is
    converted while it is written.

    Not written by the safetensors library, because this code keeps the errno of volume errors.
    """

    tensors: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str]
    dtype: torch.dtype | None = None

    def chunks(self) -> Iterator[bytes | memoryview]:
        yield self._header()
        for name in sorted(self.tensors):
            yield from _tensor_chunks(self.tensors[name].to(self._dtype(name)))

    @property
    def size_bytes(self) -> int:
        return sum(tensor.numel() * self._dtype(name).itemsize + 256 for name, tensor in self.tensors.items())

    def _dtype(self, name: str) -> torch.dtype:
        return self.dtype or self.tensors[name].dtype

    def _header(self) -> bytes:
        header: dict[str, object] = {"__metadata__": dict(sorted(self.metadata.items()))}
        offset = 0
        for name in sorted(self.tensors):
            tensor, dtype = self.tensors[name], self._dtype(name)
            end = offset + tensor.numel() * dtype.itemsize
            header[name] = {
                "dtype": _SAFETENSORS_TYPES[str(dtype)],
                "shape": list(tensor.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT_BYTES)
        return len(text).to_bytes(8, "little") + text


def _tensor_chunks(tensor: torch.Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    for start in range(0, flat.numel(), CHUNK_BYTES):
        yield flat[start : start + CHUNK_BYTES].numpy().data
