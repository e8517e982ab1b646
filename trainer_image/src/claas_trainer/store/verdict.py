"""`verdict.json`: what serving said of a version. Without the file, nothing yet."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from claas_crds.v1alpha1.lora_adapter import VersionVerdict
from claas_trainer.errors import StoreError
from claas_trainer.logs import log
from claas_trainer.store.annotations import read_annotation, write_annotation

VERDICT_FILE = "verdict.json"
NOT_KEPT = (
    f"; that could not be noted on the volume ({VERDICT_FILE}): remove the version's folder before an adapter is made"
    " anew on its path"
)
_WHY_CHARACTERS = 1024


class Verdict(BaseModel):
    """The content of `verdict.json`. A newer trainer may add fields; older ones ignore them."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    verdict: VersionVerdict
    why: str = ""
    """One sentence for people."""
    at: datetime | None = None
    """When it was given."""


UNTRIED = Verdict(verdict=VersionVerdict.UNTRIED)


def read_verdict(version: Path) -> Verdict:
    """The verdict on the version in this folder. Raises StoreError when the volume fails.

    A file that makes no sense counts for nothing: the version's own files are whole, and serving probes it anew.
    """
    data = read_annotation(version, VERDICT_FILE)
    if data is None:
        return UNTRIED
    try:
        return Verdict.model_validate_json(data)
    except ValidationError:
        log("verdict-not-readable", path=str(version / VERDICT_FILE))
        return UNTRIED


def keep_verdict(version: Path, verdict: VersionVerdict, why: str = "") -> bool:
    """Keep it with the version; whether that was done. What serving said is true all the same, so a volume that
    takes nothing at the moment is no reason to end otherwise."""
    try:
        write_verdict(version, verdict, why)
    except StoreError as error:
        log("verdict-not-kept", path=str(version), verdict=verdict.value, why=error.message)
        return False
    return True


def write_verdict(version: Path, verdict: VersionVerdict, why: str = "") -> None:
    """Keep a verdict with the version in this folder. Raises StoreError."""
    given = Verdict(verdict=verdict, why=why[:_WHY_CHARACTERS], at=datetime.now(UTC))
    write_annotation(version, VERDICT_FILE, given.model_dump_json(indent=1).encode())
