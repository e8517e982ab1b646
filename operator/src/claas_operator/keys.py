"""Keys: the objects of passes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """The kind of object that a key names."""

    ADAPTER = "LoraAdapter"
    JOB = "DistillJob"
    LEASE = "Lease"


@dataclass(frozen=True, order=True)
class Key:
    """One object to reconcile."""

    kind: Kind
    namespace: str
    name: str
