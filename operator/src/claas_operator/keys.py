"""Keys: what a pass is about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a key names."""

    ADAPTER = "LoraAdapter"
    JOB = "DistillJob"
    LEASE = "Lease"


@dataclass(frozen=True, order=True)
class Key:
    """One object to reconcile."""

    kind: Kind
    namespace: str
    name: str
