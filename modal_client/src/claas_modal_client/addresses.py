"""Addresses of folders on Volumes: `modal://<volume>/<folder>#<sha256 of its manifest.json>`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

_SCHEME = "modal://"
SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,199}"
"""A part of a path."""
_PATH = re.compile(rf"{SEGMENT}(?:/{SEGMENT}){{0,15}}")
_VOLUME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_path(text: str) -> bool:
    """Whether a text is a relative path that stays below its root: no `..`, nothing hidden, nothing to be escaped."""
    return _PATH.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Whether a text is a SHA-256, in lower case."""
    return _DIGEST.fullmatch(text) is not None


@dataclass(frozen=True)
class VolumeAddress:
    """A folder on a Volume, with what must be in it. Raises ValueError if a part is not well-formed."""

    volume: str
    folder: str
    digest: str
    """SHA-256 of its manifest.json."""

    def __post_init__(self) -> None:
        if not _VOLUME.fullmatch(self.volume):
            raise ValueError("the Volume's name is not one of Modal's")
        if not is_path(self.folder):
            raise ValueError("the folder is no plain relative path")
        if not is_digest(self.digest):
            raise ValueError("the digest is no SHA-256 in lower case")

    def __str__(self) -> str:
        return f"{_SCHEME}{self.volume}/{self.folder}#{self.digest}"

    @classmethod
    def parse(cls, text: str) -> VolumeAddress:
        """From its text. Raises ValueError."""
        if not text.startswith(_SCHEME):
            raise ValueError(f"an address of a Volume's folder begins with {_SCHEME}")
        place, _, digest = text.removeprefix(_SCHEME).partition("#")
        volume, _, folder = place.partition("/")
        return cls(volume, folder, digest)


def _validated(value: object) -> object:
    return VolumeAddress.parse(value) if isinstance(value, str) else value


AddressField = Annotated[VolumeAddress, BeforeValidator(_validated), PlainSerializer(str, return_type=str)]
"""An address as a field of a document: a text."""
