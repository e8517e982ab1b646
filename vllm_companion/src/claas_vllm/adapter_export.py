"""Sends the version in service as a zip that PEFT and vLLM load: the adapter, without the optimiser's state and the
records of training. Where a service keeps the weights, the zip says where they are."""

import asyncio
import io
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from claas_vllm.aliases import Alias
from claas_vllm.asgi import Receive, Send
from claas_vllm.errors import ControlError

_FILES = ("adapter_config.json", "adapter_model.safetensors")
_REFERENCE = "tinker.json"
"""In the folder of a version whose weights a service keeps: where they are."""
_PIECE_BYTES = 1 << 20


async def send_adapter(alias: Alias, receive: Receive, send: Send) -> None:
    """Answer with the zip of an alias's version. Raises ControlError (404) before the answer begins if its files
    can't be read."""
    with ExitStack() as opened:
        try:
            files = await asyncio.to_thread(_open, Path(alias.path), opened)
        except OSError as error:
            raise ControlError(
                404, "NotFoundError", f"{alias.target} can't be read from {alias.path}: {error.strerror}"
            ) from None
        name = re.sub(r"[^A-Za-z0-9._-]", "-", f"{alias.name}-{alias.version}")
        headers = [
            (b"content-type", b"application/zip"),
            (b"content-disposition", f'attachment; filename="{name}.zip"'.encode()),
            (b"x-claas-version", alias.target.encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            pieces = zipped(files)
            # Read in a thread, and only when the client has taken the piece before.
            while not gone.done() and (piece := await asyncio.to_thread(next, pieces, b"")):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        finally:
            gone.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def zipped(files: list[IO[bytes]]) -> Iterator[bytes]:
    """A zip of open files by their own names, uncompressed, in pieces of about a MiB."""
    written = _Pieces()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            large = os.fstat(file.fileno()).st_size > zipfile.ZIP64_LIMIT
            with archive.open(zipfile.ZipInfo(Path(file.name).name), "w", force_zip64=large) as entry:
                while piece := file.read(_PIECE_BYTES):
                    entry.write(piece)
                    yield written.take()
    yield written.take()


def _open(folder: Path, opened: ExitStack) -> list[IO[bytes]]:
    # Open files are read to their end also if their version is deleted meanwhile.
    present = [name for name in (*_FILES, _REFERENCE) if (folder / name).exists()]
    names = present if _REFERENCE in present else _FILES
    return [opened.enter_context((folder / name).open("rb")) for name in names]


class _Pieces(io.RawIOBase):
    """Where a zip is written to and taken from. It can't seek, so sizes and checksums follow each file."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._waiting += data
        return len(data)

    def take(self) -> bytes:
        """What was written since the last call."""
        taken = bytes(self._waiting)
        self._waiting.clear()
        return taken


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
