"""Reads safetensors checkpoints directly into existing memory, so that no weight is held twice.

The format: eight bytes, the header's length N in little-endian; N bytes of JSON, {name: {dtype, shape,
data_offsets}}; then the tensors' bytes, row-major and without gaps.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from claas_trainer.sdpo.errors import WeightsError

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_HEADER_LIMIT = 100_000_000
"""Bytes; the format's own limit."""
_CHUNK_ELEMENTS = 1 << 20
"""Buffer size for conversions, in bytes."""
_SAMPLE_BYTES = 64
_AGAIN = "download or copy the model again"
_MISFIT = "config.json and the weights belong to different models, or the model has another architecture"


@dataclass(frozen=True)
class StoredTensor:
    """Place of a tensor in a file. `dtype` is the format's name for it; `start` counts from the file's first byte."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """dtype of a tensor that `Checkpoint.find` returned."""
        return _DTYPES[self.dtype]


class Checkpoint:
    """The tensors of a model folder: those in `model.safetensors`, or else in the shards that
    `model.safetensors.index.json` names, or else in all its safetensors files."""

    def __init__(self, folder: Path) -> None:
        """Reads the headers only.

        Raises:
            WeightsError: a file is missing, truncated, or not a safetensors file.
        """
        self._folder = folder
        self._tensors: dict[str, StoredTensor] = {}
        single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        if single.is_file():
            self._tensors = read_header(single)
        elif index.is_file():
            self._read_shards(index)
        else:
            self._read_all()

    def __contains__(self, name: str) -> bool:
        return self._stored(name) is not None

    def readable(self) -> list[StoredTensor]:
        """All tensors with a readable dtype, in the order of the files."""
        found = [stored for stored in self._tensors.values() if stored.dtype in _DTYPES]
        return sorted(found, key=lambda stored: (stored.file, stored.start))

    def find(self, name: str, shape: Iterable[int]) -> StoredTensor:
        """A tensor by its name in transformers; files that omit the prefix `model.` are understood too.

        Raises:
            WeightsError: it is missing, has another shape, or its dtype is not bf16, fp16 or fp32.
        """
        stored, wanted = self._stored(name), tuple(shape)
        if stored is None:
            raise WeightsError(f"{self._folder}: tensor {name} is missing; {_MISFIT}")
        if stored.shape != wanted:
            _refuse(stored.file, f"tensor {name} is {list(stored.shape)}, not {list(wanted)}; {_MISFIT}")
        if stored.dtype not in _DTYPES:
            _refuse(stored.file, f"tensor {name} is of dtype {stored.dtype}; store it as one of {', '.join(_DTYPES)}")
        return stored

    def embedding(self, name: str, head: str, shape: Iterable[int], *, tied: bool) -> StoredTensor:
        """The embedding table, given its name and that of the head.

        Raises:
            WeightsError: as `find`; or the table is tied to the head, but the files have a different head.
        """
        table = self.find(name, shape)
        if tied and head in self and sample(self.find(head, table.shape)) != sample(table):
            raise WeightsError(
                f"{self._folder}: {head} differs from {name}, though config.json ties them; set tie_word_embeddings "
                "to false there, or leave that tensor out"
            )
        return table

    def _stored(self, name: str) -> StoredTensor | None:
        return self._tensors.get(name) or self._tensors.get(name.removeprefix("model."))

    def _read_shards(self, index: Path) -> None:
        try:
            places = json.loads(index.read_bytes())["weight_map"]
            shards = sorted(set(places.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(f"{index} has no readable weight_map; {_AGAIN}") from error
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard:
                _refuse(index, f"shard {shard!r} is no file name; {_AGAIN}")
            found = read_header(self._folder / shard)
            for name in (name for name, place in places.items() if place == shard):
                if name not in found:
                    _refuse(self._folder / shard, f"tensor {name}, which {index.name} names, is missing; {_AGAIN}")
                self._tensors[name] = found[name]

    def _read_all(self) -> None:
        files = sorted(self._folder.glob("*.safetensors"))
        if not files:
            _refuse(self._folder, "no safetensors files; other formats have to be converted")
        for file in files:
            found = read_header(file)
            if twice := found.keys() & self._tensors.keys():
                _refuse(file, f"tensor {min(twice)} is in another file too; keep one copy, or add an index")
            self._tensors |= found


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, by name.

    Raises:
        WeightsError: the file is missing, cut short, or no safetensors file.
    """
    with _opened(file) as descriptor:
        size = os.fstat(descriptor).st_size
        length = int.from_bytes(_pread(descriptor, file, 8, 0), "little")
        if length > _HEADER_LIMIT:
            _refuse(file, f"no safetensors file (a Git LFS pointer?), or a header of {length} bytes; {_AGAIN}")
        text = _pread(descriptor, file, length, 8)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: the header is no JSON; {_AGAIN}") from error
    if not isinstance(header, dict):
        _refuse(file, f"the header is no mapping; {_AGAIN}")
    header.pop("__metadata__", None)
    found = [_entry(file, name, entry, 8 + length) for name, entry in header.items()]
    end = 8 + length
    for stored in sorted(found, key=lambda stored: (stored.start, stored.length)):
        if stored.start != end:
            _refuse(file, f"tensor {stored.name} does not begin where the one before it ends; {_AGAIN}")
        end += stored.length
    if size != end:
        _refuse(file, f"{size} bytes long, not {end} as its header says: cut short or overwritten; {_AGAIN}")
    return {stored.name: stored for stored in found}


def _entry(file: Path, name: str, entry: object, data: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
            0 <= begin <= end and all(isinstance(width, int) and width >= 0 for width in shape)
        ):
            stored = StoredTensor(file, name, dtype, tuple(shape), data + begin, end - begin)
        case _:
            _refuse(file, f"tensor {name} has a broken entry in the header; {_AGAIN}")
    if dtype in _DTYPES and stored.length != math.prod(shape) * _DTYPES[dtype].itemsize:
        _refuse(file, f"tensor {name} has {stored.length} bytes, which is not {dtype} {shape}; {_AGAIN}")
    return stored


def read_into(stored: StoredTensor, destination: Tensor) -> None:
    """Fill a CPU tensor of the same shape, converting if its dtype differs. Releases the GIL while reading.

    Raises:
        WeightsError: the file was removed or truncated after its header was read.
    """
    if destination.shape != stored.shape:
        raise ValueError(f"a destination of {list(destination.shape)} for {list(stored.shape)}")
    with _opened(stored.file) as descriptor:
        os.posix_fadvise(descriptor, stored.start, stored.length, os.POSIX_FADV_SEQUENTIAL)
        if destination.dtype == stored.torch_dtype and destination.is_contiguous():
            _fill(descriptor, stored.file, destination, stored.start)
            return
        rows = destination if destination.dim() else destination.unsqueeze(0)
        row = math.prod(rows.shape[1:])
        step = max(1, _CHUNK_ELEMENTS // max(1, row))
        buffer = torch.empty((min(step, len(rows)), *rows.shape[1:]), dtype=stored.torch_dtype)
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            read = buffer[: len(part)]
            _fill(descriptor, stored.file, read, stored.start + first * row * read.element_size())
            part.copy_(read)


def sample(stored: StoredTensor) -> bytes:
    """64 bytes each from the start, middle and end of the tensor."""
    last = max(0, stored.length - _SAMPLE_BYTES)
    length = min(_SAMPLE_BYTES, stored.length)
    with _opened(stored.file) as descriptor:
        places = (stored.start + offset for offset in (0, last // 2, last))
        return b"".join(_pread(descriptor, stored.file, length, place) for place in places)


def fingerprint(tensors: Mapping[str, tuple[StoredTensor, bytes]]) -> str:
    """SHA-256 over names, shapes, dtypes and samples, in the order of the names. Distinguishes models from different
    trainings, whose tensors all differ; it does not check every byte."""
    digest = hashlib.sha256()
    for name, (stored, sampled) in sorted(tensors.items()):
        digest.update(f"{name} {stored.dtype} {list(stored.shape)}\n".encode() + sampled)
    return digest.hexdigest()


def _fill(descriptor: int, file: Path, destination: Tensor, offset: int) -> None:
    address, length, done = destination.data_ptr(), destination.nbytes, 0
    while done < length:
        # The kernel reads at most 2 GiB in one call.
        rest = (ctypes.c_char * (length - done)).from_address(address + done)
        read = os.preadv(descriptor, [rest], offset + done)
        if read == 0:
            _refuse(file, f"cut short; {_AGAIN}")
        done += read


def _pread(descriptor: int, file: Path, length: int, offset: int) -> bytes:
    read = os.pread(descriptor, length, offset)
    if len(read) != length:
        _refuse(file, f"cut short; {_AGAIN}")
    return read


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise WeightsError(f"{file}: {error.strerror}; {_AGAIN}, or look after its volume") from error


def _refuse(file: Path, reason: str) -> NoReturn:
    raise WeightsError(f"{file}: {reason}")
