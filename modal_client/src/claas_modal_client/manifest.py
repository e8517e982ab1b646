"""`manifest.json` of a folder on a Volume: the digests of its files. A folder without one is not whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, field_validator

from claas_modal_client.addresses import is_digest, is_path

MANIFEST_FILE = "manifest.json"
MOST_MANIFEST_BYTES = 1 << 20


class Manifest(BaseModel):
    """The content of `manifest.json`. A newer release may add fields; older ones ignore them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    files: dict[str, str]
    """SHA-256 of each file, by its path in the folder."""

    @field_validator("files")
    @classmethod
    def _well_formed(cls, files: dict[str, str]) -> dict[str, str]:
        for name, digest in files.items():
            if not is_path(name) or name == MANIFEST_FILE:
                raise ValueError("the name of a file is no plain relative path")
            if not is_digest(digest):
                raise ValueError("a digest is no SHA-256 in lower case")
        return files

    @classmethod
    def of(cls, files: Mapping[str, Path]) -> Manifest:
        """Of local files, by their paths in the folder. Raises OSError, and ValueError for a path that can't be."""
        return cls(files={name: file_digest(path) for name, path in sorted(files.items())})

    def to_bytes(self) -> bytes:
        """The file's content; the same for the same files."""
        ordered = self.model_copy(update={"files": dict(sorted(self.files.items()))})
        return ordered.model_dump_json(indent=1).encode() + b"\n"

    @property
    def digest(self) -> str:
        """SHA-256 of the file's content."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
