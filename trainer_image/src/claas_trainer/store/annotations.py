"""What is learnt of a version after it was published: small files in its folder that its digest does not cover.

Each is replaced whole: a reader finds the old one or the new one, whatever ends the writer. A writer that is killed
may leave a hidden file behind, which nobody reads.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from claas_trainer.store.content import Bytes, fsync_folder, write_file
from claas_trainer.store.errors import storage_errors


def read_annotation(version: Path, name: str) -> bytes | None:
    """The content of the file `name` in a version's folder, or None without one. Raises StoreError."""
    path = version / name
    with storage_errors(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def write_annotation(version: Path, name: str, data: bytes) -> None:
    """Write it, durably when this returns. Raises StoreError; what was there stays then."""
    path = version / name
    beside = version / f".{name}-{secrets.token_hex(8)}"
    with storage_errors(path):
        try:
            write_file(beside, Bytes(data))
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        fsync_folder(version)
