"""Admits requests: by API key, and by rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from claas_gateway.access.callers import EVERYTHING, Caller


class Guard(Protocol):
    """Admits requests."""

    async def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """What the caller may do, by the header `Authorization: Bearer` or `X-API-Key`. Raises Unauthenticated,
        NotPermitted and TooMany."""
        ...


class OpenGuard:
    """Admits everybody: keys are off."""

    async def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> Caller:
        """Everything."""
        return EVERYTHING
