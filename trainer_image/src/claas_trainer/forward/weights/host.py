"""Base weights that stay in host memory and are on the device only between `acquire` and `release`."""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from claas_trainer.forward.weights.files import Checkpoint, StoredTensor, fingerprint, read_into, sample
from claas_trainer.forward.weights.finite import ADVICE, is_finite, read_finite_into
from claas_trainer.forward.weights.layout import (
    EMBEDDING,
    HEAD,
    Key,
    Parts,
    block_parts,
    carve,
    size_of,
    slices,
    stored_tensors,
)
from claas_trainer.forward.weights.source import LayerWeights, WeightSource
from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.errors import WeightsError

_READERS = 8


@dataclass(frozen=True)
class HostMemory:
    """A base model in plain host memory, which no device knows of: what a process may hold across steps, and a
    snapshot of it across processes."""

    shape: ModelShape
    dtype: torch.dtype
    blocks: Tensor
    """All weights, in the layout of `block_parts`."""
    digest: str
    """A fingerprint of the stored tensors, independent of their division into files; see `files.fingerprint`."""

    @classmethod
    def read(cls, folder: Path, shape: ModelShape, dtype: torch.dtype | None = None, *, cuda: bool) -> HostMemory:
        """Read a model folder's safetensors files.

        `dtype`: all weights are converted to it. Default: float32 on the CPU; on CUDA the dtype of the stored
        matrices, or bfloat16 if that is float32.

        Raises:
            WeightsError: files are missing or broken, or have another shape.
        """
        checkpoint = Checkpoint(folder)
        table = checkpoint.embedding(EMBEDDING, HEAD, (shape.vocabulary, shape.hidden), tied=shape.tied)
        if dtype is None and cuda:
            dtype = torch.bfloat16 if table.torch_dtype == torch.float32 else table.torch_dtype
        dtype = dtype or torch.float32
        blocks = block_parts(shape, dtype)
        memory = _host_memory(sum(size_of(parts) for parts in blocks.values()), cuda=cuda)
        targets = dict(stored_tensors(shape, blocks, slices(memory, blocks)))
        stored = [checkpoint.find(name, target.shape) for name, target in targets.items()]
        with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1), "weights") as readers:
            list(readers.map(_read, [shape] * len(targets), targets, stored, targets.values()))
            sampled = zip(stored, readers.map(sample, stored), strict=True)
            digest = fingerprint(dict(zip(targets, sampled, strict=True)))
        return cls(shape, dtype, memory, digest)


class HostWeights(WeightSource):
    """Weights in host memory: page-locked for copies to a GPU, used in place on the CPU.

    On CUDA, `acquire` queues one copy per block on a stream of its own, in the order in which a forward pass needs
    them; a reader's stream waits for its block only. Drop all tensors from `layer`, `head` and `final_norm` before
    `release`, or their memory stays allocated. Tensors may be read on the stream that was current when they were
    returned, and on streams that wait for it.

    An embedding table that is not tied to the head stays on the host if `expect` names the rows needed.
    """

    page_locked = False
    """Whether the memory is page-locked: copies run at bus speed and asynchronously. Without, they are slower."""

    def __init__(
        self, shape: ModelShape, device: torch.device, dtype: torch.dtype, memory: Tensor, digest: str
    ) -> None:
        """`memory` holds the blocks in the layout of `read`."""
        self.shape, self.device, self.dtype = shape, device, dtype
        self._digest = digest
        self._cuda = device.type == "cuda"
        self._parts = block_parts(shape, dtype)
        self._host = slices(memory, self._parts)
        whole = {key: carve(self._host[key], parts) for key, parts in self._parts.items()}
        self._table = whole["embedding"]["table"] if not shape.tied else None
        self._views: dict[Key, dict[str, Tensor]] = {} if self._cuda else whole
        self._events: dict[Key, torch.cuda.Event] = {}
        if self._cuda:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._lock(memory)

    @classmethod
    def read(
        cls, folder: Path, shape: ModelShape, device: torch.device, dtype: torch.dtype | None = None
    ) -> HostWeights:
        """Read a model folder's safetensors files; arguments and errors are those of `HostMemory.read`."""
        return cls.over(HostMemory.read(folder, shape, dtype, cuda=device.type == "cuda"), device)

    @classmethod
    def over(cls, memory: HostMemory, device: torch.device) -> HostWeights:
        """Weights that were read before. Their memory outlives `close`."""
        return cls(memory.shape, device, memory.dtype, memory.blocks, memory.digest)

    @classmethod
    def filled(
        cls, shape: ModelShape, device: torch.device, dtype: torch.dtype, fill: Callable[[str, Tensor], None]
    ) -> HostWeights:
        """Weights written by `fill`, which is called for each tensor with its stored name and its memory."""
        blocks = block_parts(shape, dtype)
        memory = _host_memory(sum(size_of(parts) for parts in blocks.values()), cuda=device.type == "cuda")
        for name, target in stored_tensors(shape, blocks, slices(memory, blocks)):
            fill(name, target)
        return cls(shape, device, dtype, memory, "")

    @property
    def digest(self) -> str:
        """A fingerprint of the stored tensors, independent of their division into files; see `files.fingerprint`."""
        return self._digest

    @property
    def resident_bytes(self) -> int:
        return sum(block.nbytes for block in self._host.values()) if self._cuda else 0

    def expect(self, ids: Tensor) -> None:
        """Name the tokens that `embed` will be called with after the next `acquire`, so that only their rows are
        copied; embeddings of others will be NaN. Does nothing if the head is tied to the embedding.

        Args:
            ids: token ids on the CPU, int64, [N], in any order and number.

        Raises:
            WeightsError: one of these rows is NaN or infinite.
        """
        if self._table is None:
            return
        if self._cuda and self._views:
            raise RuntimeError("expect() comes before acquire()")
        known = torch.unique(ids)
        parts: Parts = {
            "ids": (tuple(known.shape), torch.int64),
            "table": ((known.numel(), self.shape.hidden), self.dtype),
        }
        memory = torch.empty(size_of(parts), dtype=torch.uint8, pin_memory=self._cuda)
        rows = carve(memory, parts)
        rows["ids"].copy_(known)
        torch.index_select(self._table, 0, known, out=rows["table"])
        if not is_finite(rows["table"]):
            raise WeightsError(f"{EMBEDDING} has values that are NaN or infinite for tokens of the samples; {ADVICE}")
        self._parts["embedding"], self._host["embedding"] = parts, memory
        if not self._cuda:
            self._views["embedding"] = rows

    def acquire(self) -> None:
        """Queue the copies. Raises torch.OutOfMemoryError, and allocates nothing then."""
        if not self._cuda or self._views:
            return
        with torch.cuda.device(self.device):
            blocks: dict[Key, Tensor] = {}
            try:
                for key, host in self._host.items():
                    blocks[key] = torch.empty(host.nbytes, dtype=torch.uint8, device=self.device)
            except torch.OutOfMemoryError:
                blocks.clear()  # The error's traceback keeps this frame, and so its tensors, alive.
                torch.cuda.empty_cache()
                raise
            # The allocator may have returned memory that is still in use by work queued on the current stream.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for key, block in blocks.items():
                    block.copy_(self._host[key], non_blocking=True)
                    block.record_stream(self._stream)
                    self._events[key] = self._stream.record_event()
        self._views = {key: carve(block, self._parts[key]) for key, block in blocks.items()}

    def release(self) -> None:
        """Wait for the device and free its memory."""
        if not self._cuda or not self._views:
            return
        torch.cuda.synchronize(self.device)
        self._views, self._events = {}, {}
        with torch.cuda.device(self.device):
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Free the host memory; nothing can be read afterwards."""
        self.release()
        if self.page_locked:
            self._unlock()
            self.page_locked = False
        self._host, self._views, self._table = {}, {}, None

    def layer(self, index: int) -> LayerWeights:
        return LayerWeights(**self._block(index))

    def embed(self, ids: Tensor) -> Tensor:
        if self.shape.tied:
            return self.head.index_select(0, ids)
        block = self._block("embedding")
        if "ids" not in block:
            return block["table"].index_select(0, ids)
        known = block["ids"]
        places = torch.searchsorted(known, ids).clamp_(max=len(known) - 1)
        found = block["table"].index_select(0, places)
        # NaN rather than an exception, which would have to wait for the device; the step refuses NaN.
        return found.masked_fill_((known.index_select(0, places) != ids).unsqueeze(1), math.nan)

    @property
    def final_norm(self) -> Tensor:
        return self._block("final_norm")["weight"]

    @property
    def head(self) -> Tensor:
        return self._block("head")["weight"]

    def _block(self, key: Key) -> dict[str, Tensor]:
        """The tensors of a block, readable on the current stream."""
        if event := self._events.pop(key, None):
            torch.cuda.current_stream(self.device).wait_event(event)
        return self._views[key]

    def _lock(self, memory: Tensor) -> None:
        """Page-lock the memory. PyTorch's own pinned memory is rounded up to a power of two, which is too much for a
        model."""
        cudart, address = torch.cuda.cudart(), memory.data_ptr()  # type: ignore[no-untyped-call]
        with torch.cuda.device(self.device):
            self.page_locked = int(cudart.cudaHostRegister(address, memory.nbytes, 0)) == 0
            if self.page_locked:
                self._unlock = weakref.finalize(self, cudart.cudaHostUnregister, address)
                self._unlock.atexit = False  # The end of the process unlocks the memory by itself, and faster.
            else:
                # Clears the error; otherwise CUDA would report it at the next kernel launch.
                with suppress(RuntimeError):
                    torch.ones(1, device=self.device)


def _read(shape: ModelShape, name: str, stored: StoredTensor, target: Tensor) -> None:
    """Reads the weights. Of an embedding table that is not tied to the head, only the rows in use have to be finite;
    `expect` checks those."""
    (read_into if name == EMBEDDING and not shape.tied else read_finite_into)(stored, target)


def _host_memory(size: int, *, cuda: bool) -> Tensor:
    if not cuda:
        return torch.empty(size, dtype=torch.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError, AttributeError):  # Kernels without huge pages.
        memory.madvise(mmap.MADV_HUGEPAGE)  # Faster to fill and to page-lock.
    return torch.frombuffer(memory, dtype=torch.uint8)
