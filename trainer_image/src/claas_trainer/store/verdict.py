"""`verdict.json`: whether serving accepted a version. Without the file, there is no verdict yet."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from claas_crds.v1alpha1.version import VersionVerdict
from claas_trainer.errors import StoreError
from claas_trainer.logs import log
from claas_trainer.store.annotations import read_annotation, write_annotation

VERDICT_FILE = "verdict.json"
NOT_KEPT = (
    f"; that could not be recorded on the volume ({VERDICT_FILE}): remove the version's folder before you create"
    " an adapter on its path again"
)
_WHY_CHARACTERS = 1024


class Verdict(BaseModel):
    """The content of `verdict.json`. A newer trainer may add fields; older ones ignore them."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    verdict: VersionVerdict
    why: str = ""
    """One sentence for people."""
    at: datetime | None = None
    """Time of the verdict."""


UNTRIED = Verdict(verdict=VersionVerdict.UNTRIED)


def read_verdict(version: Path) -> Verdict:
    """The verdict on the version in this folder. Raises StoreError if the volume fails. An unreadable file counts as
    no verdict; serving will probe the version again.
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
    """Record a verdict; returns whether that worked. A failing volume does not change the result of the attempt,
    because the verdict holds anyway."""
    try:
        write_verdict(version, verdict, why)
    except StoreError as error:
        log("verdict-not-kept", path=str(version), verdict=verdict.value, why=error.message)
        return False
    return True


def write_verdict(version: Path, verdict: VersionVerdict, why: str = "") -> None:
    """Record a verdict in the version's folder. Raises StoreError."""
    given = Verdict(verdict=verdict, why=why[:_WHY_CHARACTERS], at=datetime.now(UTC))
    write_annotation(version, VERDICT_FILE, given.model_dump_json(indent=1).encode())
