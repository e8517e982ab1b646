"""Payloads above the inline limits, and the 8 MiB blocks that files of Volumes are uploaded in."""

import hashlib
import itertools
from pathlib import Path

from tests.peers.modal.state.apps import not_found

BLOCK_BYTES = 8 * 1024 * 1024


class Blobs:
    """Files of a folder, by id. A blob that was announced and not uploaded is not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        folder.mkdir(parents=True, exist_ok=True)

    def new_id(self) -> str:
        return f"bl-{next(self._numbers):020d}"

    def part(self, blob_id: str, number: int) -> Path:
        return self._folder / f"{blob_id}.{number}"

    def path(self, blob_id: str) -> Path:
        path = self._folder / blob_id
        if not blob_id or path.parent != self._folder or not path.exists():
            raise not_found(f"blob {blob_id} not found")
        return path

    def put(self, name: str, data: bytes) -> None:
        (self._folder / name).write_bytes(data)

    def join(self, blob_id: str, parts: int) -> str:
        """Put a blob together of its uploaded parts, and give its ETag."""
        digests = b""
        with (self._folder / blob_id).open("wb") as whole:
            for number in range(parts):
                data = self.part(blob_id, number).read_bytes()
                digests += hashlib.md5(data).digest()
                whole.write(data)
        return f"{hashlib.md5(digests).hexdigest()}-{parts}"

    def block(self, sha256: bytes) -> Path:
        """Where the block of this digest is, or will be once it is uploaded."""
        return self._folder / f"block-{sha256.hex()}"
