"""Base weights in memory-mapped files: mapped read-only and converted when they are used."""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from claas_trainer.forward.weights.files import Checkpoint, StoredTensor
from claas_trainer.forward.weights.layout import EMBEDDING, FINAL_NORM, HEAD, layer_parts
from claas_trainer.forward.weights.source import WeightSource
from claas_trainer.model.shape import ModelShape
from claas_trainer.sdpo.errors import WeightsError


class MappedWeights(WeightSource):
    """Weights on the CPU; nothing is copied at start and nothing is kept.

    The files are mapped without write permission: a write into the mapping would end the process and change nothing.
    Each access returns a new float32 tensor of one matrix, fused if the layout requires it. The process thus holds
    one matrix at a time, and the kernel's page cache holds the files for all processes that read them. The values
    equal those of `HostWeights` bit for bit. Truncating a file while it is mapped ends the process too, so model
    folders must not be written in place.
    """

    def __init__(self, folder: Path, shape: ModelShape) -> None:
        """Reads the headers only. Raises WeightsError like `HostWeights.read`."""
        checkpoint = Checkpoint(folder)
        self.shape, self.device, self.dtype = shape, torch.device("cpu"), torch.float32
        self._files = _MappedFiles()
        parts = layer_parts(shape)
        self._layers = [
            {
                field: [self._stored(checkpoint, f"model.layers.{index}.{name}", size) for name, size in pieces]
                for field, pieces in parts.items()
            }
            for index in range(shape.layers)
        ]
        matrix = (shape.vocabulary, shape.hidden)
        self._table = self._files.tensor(checkpoint.embedding(EMBEDDING, HEAD, matrix, tied=shape.tied))
        self._head = self._table if shape.tied else self._stored(checkpoint, HEAD, matrix)
        self._norm = self._stored(checkpoint, FINAL_NORM, (shape.hidden,))

    @property
    def resident_bytes(self) -> int:
        """0: no memory is kept."""
        return 0

    def acquire(self) -> None:
        """Nothing to do: the files are mapped already."""

    def release(self) -> None:
        """Nothing to do: `acquire` takes no memory."""

    def close(self) -> None:
        """Unmap the files; nothing can be read afterwards."""
        self._layers, self._table, self._head, self._norm = [], _NOTHING, _NOTHING, _NOTHING
        self._files.close()

    def layer(self, index: int) -> MappedLayer:
        return MappedLayer(self._layers[index])

    def embed(self, ids: Tensor) -> Tensor:
        return self._table.index_select(0, ids).to(self.dtype)

    @property
    def final_norm(self) -> Tensor:
        return _converted([self._norm])

    @property
    def head(self) -> Tensor:
        return _converted([self._head])

    def _stored(self, checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._files.tensor(checkpoint.find(name, shape))


@dataclass(frozen=True)
class MappedLayer:
    """A decoder layer's weights, under the names of `LayerWeights`; each is created on access."""

    stored: dict[str, list[Tensor]]
    """The mapped tensors of each field; private to this module."""

    @property
    def input_norm(self) -> Tensor:
        return _converted(self.stored["input_norm"])

    @property
    def qkv(self) -> Tensor:
        return _converted(self.stored["qkv"])

    @property
    def o(self) -> Tensor:
        return _converted(self.stored["o"])

    @property
    def post_norm(self) -> Tensor:
        return _converted(self.stored["post_norm"])

    @property
    def gate_up(self) -> Tensor:
        return _converted(self.stored["gate_up"])

    @property
    def down(self) -> Tensor:
        return _converted(self.stored["down"])

    @property
    def qkv_bias(self) -> Tensor | None:
        return self._optional("qkv_bias")

    @property
    def q_norm(self) -> Tensor | None:
        return self._optional("q_norm")

    @property
    def k_norm(self) -> Tensor | None:
        return self._optional("k_norm")

    def _optional(self, field: str) -> Tensor | None:
        stored = self.stored.get(field)
        return _converted(stored) if stored is not None else None


_NOTHING = torch.empty(0)


def _converted(stored: Sequence[Tensor]) -> Tensor:
    """The tensors stacked in a new float32 tensor."""
    rows = sum(len(tensor) for tensor in stored)
    made = torch.empty((rows, *stored[0].shape[1:]), dtype=torch.float32)
    for piece, tensor in zip(torch.split(made, [len(tensor) for tensor in stored]), stored, strict=True):
        piece.copy_(tensor)
    return made


class _MappedFiles:
    """Files mapped read-only, each once."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}

    def tensor(self, stored: StoredTensor) -> Tensor:
        """A tensor in the mapping. Raises WeightsError."""
        count = stored.length // stored.torch_dtype.itemsize
        with warnings.catch_warnings():
            # The memory is read-only on purpose.
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            flat = torch.frombuffer(
                self._map(stored.file), dtype=stored.torch_dtype, count=count, offset=stored.start
            )
        return flat.view(stored.shape)

    def close(self) -> None:
        """Drop the mappings; a file is unmapped together with its last tensor."""
        self._maps = {}

    def _map(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            try:
                with file.open("rb") as opened:
                    self._maps[file] = mmap.mmap(opened.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
            except OSError as error:
                raise WeightsError(f"{file}: {error.strerror}; look after its volume") from error
        return self._maps[file]
