"""A version of an adapter in status, and serving's verdict on it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from claas_crds.base import ResourceModel

HISTORY_LIMIT = 20
"""Number of versions that `status.versions` lists; older ones stay on the volume."""


class VersionVerdict(StrEnum):
    """Whether serving accepted a version."""

    UNTRIED = "Untried"
    """It has neither been put into service nor been rejected yet."""
    SERVED = "Served"
    """It was loaded, answered its probe, and went into service."""
    REJECTED = "Rejected"
    """vLLM refused to load it or it failed its probe, or this holds for an ancestor that is no longer listed. It is
    never served or trained from."""


class AdapterVersion(ResourceModel):
    """One version of the adapter on the volume."""

    number: int = Field(ge=0)
    """Its number; the initial version is 0."""
    path: str
    """Its folder, below the volume's root."""
    digest: str
    """sha256 over the sha256 digests of all its files."""
    created: datetime
    """When it was published."""
    job: str | None = None
    """The DistillJob that made it."""
    job_uid: str | None = None
    """That job's UID."""
    parent: int | None = None
    """The version it was trained from."""
    metrics: dict[str, float] = {}
    """Training metrics of its step."""
    weights: str | None = None
    """Address of its weights in the engine's service; unset if they are in its folder alone."""
    verdict: VersionVerdict = VersionVerdict.UNTRIED
    """Whether serving accepted it. A rejected version is never served or trained from."""
