"""What is checked, and what all parts have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from claas_bounded.waits import Deadline
from claas_modal_client.errors import ModalFault, ModalServiceError

T = TypeVar("T")

CALL_SECONDS = 60.0
SERVED_NAME = "claas-live-check"
"""Of the adapter that the checks make."""


@dataclass(frozen=True)
class Subject:
    """What is checked."""

    environment: str | None
    trainer: str
    server_app: str
    server: str
    volume: str
    weights_volume: str
    model: str
    proxy: Mapping[str, str]
    """The proxy token's headers."""


def soon(seconds: float = CALL_SECONDS) -> Deadline:
    """A deadline from now."""
    return Deadline.after(seconds)


async def fault_of(work: Awaitable[object]) -> ModalFault | None:
    """The fault that it ends by; None when it succeeds."""
    try:
        await work
    except ModalServiceError as error:
        return error.kind
    return None


async def until(look: Callable[[], Awaitable[T]], seconds: float) -> T:
    """The first true answer, or the last one when the time is over."""
    began = time.monotonic()
    while True:
        found = await look()
        if found or time.monotonic() - began > seconds:
            return found
        await asyncio.sleep(1)
