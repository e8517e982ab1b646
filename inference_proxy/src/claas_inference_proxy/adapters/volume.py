"""The adapter's versions on the volume, as far as serving needs them; the trainer writes them."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from claas_crds.v1alpha1.version import VersionVerdict
from claas_tinker_client.version_file import VERSION_FILE

_RECORD_FILE = "version.json"
_VERDICT_FILE = "verdict.json"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


class _Record(BaseModel):
    """What matters of `version.json`."""

    model_config = ConfigDict(extra="ignore")

    number: int


class _Verdict(BaseModel):
    """What matters of `verdict.json`."""

    model_config = ConfigDict(extra="ignore")

    verdict: VersionVerdict


def servable_versions(adapter: Path) -> list[int]:
    """The versions below the adapter's folder that the service made and serving did not reject, the newest first.
    Raises OSError if the volume fails."""
    versions = adapter / "versions"
    try:
        names = [each.name for each in versions.iterdir()]
    except FileNotFoundError:
        return []
    numbers = sorted((int(name) for name in names if _NUMBER.fullmatch(name)), reverse=True)
    return [number for number in numbers if _is_servable(versions / str(number), number)]


def _is_servable(folder: Path, number: int) -> bool:
    try:
        record = _Record.model_validate_json((folder / _RECORD_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return False
    return record.number == number and (folder / VERSION_FILE).is_file() and not _is_rejected(folder)


def _is_rejected(folder: Path) -> bool:
    try:
        found = _Verdict.model_validate_json((folder / _VERDICT_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        # As the trainer reads it: an unreadable verdict is none.
        return False
    return found.verdict is VersionVerdict.REJECTED
