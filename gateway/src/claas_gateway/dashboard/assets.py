"""The files that pages load: one stylesheet, one ES module, one icon."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent / "static"
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Asset:
    """A static file. It holds nothing private."""

    name: str
    content: bytes
    media_type: str
    mark: str
    """Short digest of the content, part of its address: a browser may keep the file for ever."""


def load_assets() -> dict[str, Asset]:
    """All files, by name."""
    found = {}
    for path in sorted(_FOLDER.iterdir()):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            mark = hashlib.sha256(content).hexdigest()[:12]
            found[path.name] = Asset(path.name, content, _TYPES[path.suffix], mark)
    return found
