"""Selections, pages and watch events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from aiohttp import StreamReader

from claas_kube.objects.meta import Manifest

PAGE_SIZE = 25
"""Objects per page; a DistillJob may have a megabyte."""
PAGE_OF_SMALL = 200
"""The same, of kinds that are small."""


@dataclass(frozen=True)
class Selection:
    """Selection of objects of a kind, and the size of a page."""

    labels: str = ""
    """A label selector; empty: all."""
    fields: str = ""
    """A field selector; empty: all."""
    page_size: int = PAGE_SIZE

    @property
    def query(self) -> dict[str, str]:
        """As parameters of a request."""
        query = {"labelSelector": self.labels, "fieldSelector": self.fields}
        return {key: value for key, value in query.items() if value}


EVERYTHING = Selection()


@dataclass(frozen=True)
class Page:
    """One page of a list."""

    items: Sequence[Manifest]
    version: str
    """The list's resourceVersion, the same on all its pages: a watch from there misses nothing."""


class EventType(StrEnum):
    """Types of watch events (metav1.WatchEvent)."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    """Nothing happened up to this resourceVersion."""
    ERROR = "ERROR"


@dataclass(frozen=True)
class WatchEvent:
    """One event of a watch, never an error."""

    type: EventType
    object: Manifest

    @property
    def version(self) -> str:
        """resourceVersion from which a watch can continue."""
        return str(cast(Manifest, self.object["metadata"])["resourceVersion"])


async def lines(content: StreamReader) -> AsyncGenerator[bytes, None]:
    """The lines of a stream, of any length."""
    begun = bytearray()
    async for data in content.iter_any():
        *whole, rest = data.split(b"\n")
        for part in whole:
            begun += part
            yield bytes(begun)
            begun.clear()
        begun += rest
