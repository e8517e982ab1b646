"""A step's needs of serving's device, and the access that a hand-over grants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class WeightAccess(StrEnum):
    """How a step gets the base model's weights."""

    COPY = "copy"
    """It reads its own copy, which is on the device during the step."""
    SHARED = "shared"
    """It uses existing weights: on a GPU those in vLLM's memory, on a CPU the mapped files."""
    ALONE = "alone"
    """As COPY, and nobody else is on the device, now or during any step."""


def go_on() -> None:
    """Do not wait."""


@dataclass(frozen=True)
class ServingAccess:
    """The access to serving that a hand-over grants. An engine that needs nothing of serving ignores it."""

    weights: WeightAccess = WeightAccess.COPY
    export: Mapping[str, object] | None = None
    """The export of weights from vLLM's worker extension; None if it was not asked."""
    rest: Callable[[], None] = go_on
    """Called by the computing thread between parts of the step, at most once per layer and micro-batch; may wait, so
    that serving keeps its share of the device."""


@dataclass(frozen=True)
class GpuNeed:
    """The GPU that a step needs, and the bytes that should be free on it. With `least_bytes` free, the step is
    possible in smaller pieces."""

    uuid: str
    free_bytes: int
    least_bytes: int
