"""Annotations: small files in a version's folder, written after it was published and not covered by its digest.

Each is replaced atomically: a reader finds the old or the new content. A writer that is killed may leave a hidden
file behind, which is ignored.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from claas_trainer.store.content import Bytes, fsync_folder, write_file
from claas_trainer.store.errors import storage_errors


def read_annotation(version: Path, name: str) -> bytes | None:
    """Content of the file `name` in a version's folder; None if there is none. Raises StoreError."""
    path = version / name
    with storage_errors(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def write_annotation(version: Path, name: str, data: bytes) -> None:
    """Write the file; it is durable on return. Raises StoreError; the previous content stays then."""
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
