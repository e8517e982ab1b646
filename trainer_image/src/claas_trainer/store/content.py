"""Contents of a version's files. A file is hashed while it is written, so it is never read back."""

from __future__ import annotations

import ctypes
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 16 * 1024 * 1024
"""Approximate size of a block handed to another thread, in bytes."""
_LIBC = ctypes.CDLL(None)
_SYNC_FILE_RANGE_WRITE = 2


class FileContent(ABC):
    """The bytes of one file."""

    @abstractmethod
    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes, in order."""

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Size in bytes, accurate to a few kilobytes."""


@dataclass(frozen=True)
class Bytes(FileContent):
    """A small file."""

    data: bytes

    def chunks(self) -> Iterator[bytes | memoryview]:
        yield self.data

    @property
    def size_bytes(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class LocalFile(FileContent):
    """A copy of another file."""

    path: Path

    def chunks(self) -> Iterator[bytes | memoryview]:
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    @property
    def size_bytes(self) -> int:
        return self.path.stat().st_size


def write_file(path: Path, content: FileContent) -> str:
    """Write a new file, fsync it, and return the sha256 of its bytes. Raises OSError. Hashing, copying and disk
    writes overlap.
    """
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o664)
    try:
        start = 0
        with ThreadPoolExecutor(1) as hashing:
            for block in _blocks(content.chunks()):
                hashed = hashing.submit(_update, digest, block)
                length = sum(_write(descriptor, chunk) for chunk in block)
                _begin_writing_back(descriptor, start, length)
                start += length
                hashed.result()
        os.fchmod(descriptor, 0o664)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def write_files(folder: Path, files: Mapping[str, FileContent]) -> dict[str, str]:
    """Write new files into a folder concurrently; returns the sha256 of each. Raises OSError."""
    with ThreadPoolExecutor(len(files)) as writers:
        writing = {name: writers.submit(write_file, folder / name, content) for name, content in files.items()}
        return {name: written.result() for name, written in sorted(writing.items())}


def _blocks(chunks: Iterator[bytes | memoryview]) -> Iterator[list[bytes | memoryview]]:
    """Groups chunks into blocks large enough to be handed to another thread cheaply."""
    block: list[bytes | memoryview] = []
    size = 0
    for chunk in chunks:
        block.append(chunk)
        size += len(chunk)
        if size >= CHUNK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _update(digest: hashlib._Hash, block: list[bytes | memoryview]) -> None:
    for chunk in block:
        digest.update(chunk)


def _write(descriptor: int, chunk: bytes | memoryview) -> int:
    """Write all of the block; returns its size in bytes. Raises OSError."""
    left = memoryview(chunk)
    while left:
        left = left[os.write(descriptor, left) :]
    return len(chunk)


def _begin_writing_back(descriptor: int, start: int, length: int) -> None:
    """Ask the kernel to start writing to disk, so that fsync waits less. Only an optimisation."""
    arguments = ctypes.c_int(descriptor), ctypes.c_int64(start), ctypes.c_int64(length)
    _LIBC.sync_file_range(*arguments, ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(files: Mapping[str, str]) -> str:
    """A version's digest: sha256 over the lines `<name> <sha256>`, sorted."""
    lines = "".join(f"{name} {sha256}\n" for name, sha256 in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def fsync_folder(path: Path) -> None:
    """Make the entries of a folder durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
