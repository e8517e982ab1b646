"""What a step needs of the device that serving computes on, and what a hand-over lets it have of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class WeightAccess(StrEnum):
    """How a step comes by the base model's weights."""

    COPY = "copy"
    """It reads a copy of its own, which is on the device for the length of the step."""
    SHARED = "shared"
    """It computes with weights that are there already: on a GPU those that vLLM serves, on a CPU its files."""


def go_on() -> None:
    """Wait for nothing."""


@dataclass(frozen=True)
class ServingAccess:
    """What the hand-over lets an engine have of serving. An engine that needs nothing of it does not look."""

    weights: WeightAccess = WeightAccess.COPY
    export: Mapping[str, object] | None = None
    """What vLLM's worker extension answered when it was asked for its weights; None where nobody asked."""
    rest: Callable[[], None] = go_on
    """Called by the thread that computes, between parts of the step, a layer of a micro-batch or less often: it may
    wait, for the sake of what is served beside the step."""


@dataclass(frozen=True)
class GpuNeed:
    """The GPU that a step needs and how many bytes of it should be free. With `least_bytes` it can be taken too, in
    smaller pieces."""

    uuid: str
    free_bytes: int
    least_bytes: int
