"""Hidden folders beside the versions, in which new versions are written."""

from __future__ import annotations

import re
import secrets
import shutil
import time
from pathlib import Path

_STAGING = re.compile(r"\.staging-(?P<owner>.+)-(?P<attempt>[0-9]+)-[0-9a-f]+")
_STALE_SECONDS = 3600.0
_FOLDER_MODE = 0o2775


def staging_name(owner: str, attempt: int) -> str:
    """A unique name; `owner` is the job's UID, or the adapter's for an initial version."""
    return f".staging-{owner}-{attempt}-{secrets.token_hex(8)}"


def make_staging(versions: Path, owner: str, attempt: int) -> Path:
    """Make a new folder that servers with another user id can read. Raises OSError."""
    staging = versions / staging_name(owner, attempt)
    staging.mkdir()
    staging.chmod(_FOLDER_MODE)
    return staging


def remove_stale(versions: Path, owner: str, attempt: int) -> None:
    """Remove folders left by earlier attempts of this owner, and old ones of any owner. Raises OSError."""
    for path in list(versions.iterdir()):
        match = _STAGING.fullmatch(path.name)
        if match is None:
            continue
        try:
            age_seconds = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            continue
        earlier = match["owner"] == owner and int(match["attempt"]) < attempt
        if earlier or age_seconds > _STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
