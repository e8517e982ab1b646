"""How long the phases of batches took, as bars on one scale. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from claas_crds.v1alpha1.step import Timings
from claas_gateway.dashboard.formats import seconds
from claas_gateway.records import BatchState, FeedbackBatch

PHASES = tuple(name for name in Timings.model_fields if name != "serving_gap")
"""Phases in the order in which they follow one another."""
_LONGEST = 1e9
"""Seconds; more is no measurement."""
_MEANINGS = {
    "gathered": "from the batch until its job exists",
    "queued": "waiting for its turn",
    "retried": "failed attempts and the waits between them",
    "start": "the trainer's pod starts",
    "prepare": "checks, tokenising, loading weights",
    "sleep": "serving is paused",
    "load": "weights go to the device",
    "step": "forward, backward, optimiser",
    "release": "the device is freed",
    "wake": "serving is woken",
    "publish": "the version is written",
    "swap": "the version is put into service",
    "settle": "the rest, until the job was complete",
    "running": "so far",
}


@dataclass(frozen=True, slots=True)
class Segment:
    """One phase in a bar; position and width in percent of the bar's picture."""

    phase: str
    meaning: str
    seconds: float
    left: float
    width: float


@dataclass(frozen=True, slots=True)
class Bar:
    """The phases of one batch."""

    segments: tuple[Segment, ...]
    total: float
    """Seconds."""
    gap: float | None
    """Seconds in which serving was paused."""

    @property
    def text(self) -> str:
        """The same in words."""
        parts = ", ".join(f"{each.phase} {seconds(each.seconds)}" for each in self.segments)
        return f"{seconds(self.total)} in all: {parts}" if parts else "No phase is known yet"


def bars(batches: Sequence[FeedbackBatch], now: datetime) -> list[Bar]:
    """A bar for each batch, all on the same scale: the longest is 100 percent wide."""
    phases = [_phases(batch, now) for batch in batches]
    longest = max((sum(lasted for _, lasted in each) for each in phases), default=0.0)
    return [_bar(each, longest, gap_of(batch)) for each, batch in zip(phases, batches, strict=True)]


def gap_of(batch: FeedbackBatch) -> float | None:
    """Seconds in which clients were not answered because of the batch's step, if it is known."""
    return _known(batch.timings).get("serving_gap")


def _phases(batch: FeedbackBatch, now: datetime) -> list[tuple[str, float]]:
    known = _known(batch.timings)
    found = [(name, known[name]) for name in PHASES if known.get(name, 0.0) > 0]
    if found or batch.state is BatchState.ACCOUNTED:
        return found
    begun = batch.submitted or now
    waited = max((begun - batch.created).total_seconds(), 0.0)
    lasted = max((now - begun).total_seconds(), 0.0)
    return [pair for pair in (("gathered", waited), ("running", lasted)) if pair[1] > 0]


def _known(timings: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in timings.items() if 0 <= value < _LONGEST}


def _bar(phases: Sequence[tuple[str, float]], longest: float, gap: float | None) -> Bar:
    segments = []
    begun = 0.0
    for name, lasted in phases:
        left, width = 100 * (begun / longest), 100 * (lasted / longest)
        segments.append(Segment(name, _MEANINGS[name], lasted, round(left, 3), round(min(width, 100 - left), 3)))
        begun += lasted
    return Bar(tuple(segments), begun, gap)
