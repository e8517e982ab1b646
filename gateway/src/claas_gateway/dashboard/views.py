"""What each page shows, as plain values, and how it follows from what is stored. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from claas_crds.v1alpha1.version import VersionVerdict
from claas_gateway.dashboard.chart import Marks, Panel, Series, panel
from claas_gateway.dashboard.overview import AdapterLine
from claas_gateway.dashboard.timeline import Bar
from claas_gateway.records import (
    FeedbackBatch,
    FeedbackItem,
    ItemState,
    ProbeScore,
    Rollout,
    ServiceChange,
    VersionSeen,
)
from claas_gateway.store.interface import ItemFilter

_ASKED_WITHIN = timedelta(minutes=5)
"""A version is asked the prompts that it learned from within that time."""


@dataclass(frozen=True, slots=True)
class ItemLine:
    """An item in a list."""

    item: FeedbackItem
    prompt: str | None
    """None: the rollout is not there (any more)."""


@dataclass(frozen=True, slots=True)
class ItemList:
    """One page of items."""

    lines: tuple[ItemLine, ...]
    total: int
    page: int
    per_page: int

    @property
    def pages(self) -> int:
        """How many pages there are; an empty list is a page."""
        return max(1, -(-self.total // self.per_page))


@dataclass(frozen=True, slots=True)
class HomePage:
    """The first page."""

    adapters: tuple[AdapterLine, ...]
    items: ItemList


@dataclass(frozen=True, slots=True)
class VersionLine:
    """A version in a table."""

    seen: VersionSeen
    scores: Mapping[str, float]
    rolled_back_to: int | None
    served: bool

    @property
    def rejected(self) -> bool:
        """Whether it is never served."""
        return self.seen.verdict == VersionVerdict.REJECTED

    @property
    def optimizer_lost(self) -> bool:
        """Whether its step is known to have begun without the optimiser's state of the one before."""
        return self.seen.metrics.get("optimizer_restored") == 0


@dataclass(frozen=True, slots=True)
class BatchLine:
    """A batch with its bar."""

    batch: FeedbackBatch
    bar: Bar


@dataclass(frozen=True, slots=True)
class AdapterPage:
    """The page of one adapter."""

    line: AdapterLine
    panels: tuple[Panel, ...]
    versions: tuple[VersionLine, ...]
    """Newest first."""
    score_names: tuple[str, ...]
    older_versions: int
    """How many versions are left out."""
    batches: tuple[BatchLine, ...]
    items: ItemList
    only: ItemFilter


@dataclass(frozen=True, slots=True)
class VersionPage:
    """The page of one version."""

    line: VersionLine
    older: int | None
    newer: int | None
    batch: BatchLine | None
    changes: tuple[ServiceChange, ...]
    """When it came into service, and when another one took its place."""
    items: tuple[ItemLine, ...]


@dataclass(frozen=True, slots=True)
class BatchPage:
    """The page of one batch."""

    line: BatchLine
    items: tuple[ItemLine, ...]


class StationState(StrEnum):
    """How a station of an item's path is shown."""

    DONE = "done"
    NOW = "now"
    OPEN = "open"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Station:
    """A station of an item's path."""

    name: str
    state: StationState
    at: datetime | None


@dataclass(frozen=True, slots=True)
class FeedbackPage:
    """The page of one item."""

    item: FeedbackItem
    rollout: Rollout | None
    batch: FeedbackBatch | None
    path: tuple[Station, ...]
    expects_answer: bool
    """Whether the new version may be asked the same prompt in a moment."""


def version_lines(
    versions: Sequence[VersionSeen],
    changes: Sequence[ServiceChange],
    scores: Mapping[str, Sequence[ProbeScore]],
    served: int | None,
) -> list[VersionLine]:
    """Versions by number, with what is known of each."""
    left = rolled_back(changes)
    return [
        VersionLine(
            seen=each,
            scores={
                name: score.value
                for name, measured in scores.items()
                for score in measured
                if score.version == each.number
            },
            rolled_back_to=left.get(each.number),
            served=each.number == served,
        )
        for each in versions
    ]


def rolled_back(changes: Sequence[ServiceChange]) -> dict[int, int]:
    """Versions that an older one took the place of, and that older one."""
    return {
        change.previous: change.version for change in changes if change.is_rollback and change.previous is not None
    }


def panels(lines: Sequence[VersionLine], score_names: Sequence[str]) -> tuple[Panel, ...]:
    """The chart: a picture each of loss, distance, scores and serving gap, over the same versions."""
    numbers = [each.seen.number for each in lines]
    marks = Marks(
        rolled_back={each.seen.number: each.rolled_back_to for each in lines if each.rolled_back_to is not None},
        rejected=frozenset(each.seen.number for each in lines if each.rejected),
        served=next((each.seen.number for each in lines if each.served), None),
    )

    def metric(name: str, label: str) -> Series:
        return Series(label, tuple(each.seen.metrics.get(name) for each in lines))

    drawn = [
        panel("loss", "Loss", numbers, [metric("loss", "loss")], marks),
        panel("kl", "KL to parent, nats per token", numbers, [metric("kl_to_parent", "KL to parent")], marks),
        panel(
            "scores",
            "Scores of probes",
            numbers,
            [Series(name, tuple(each.scores.get(name) for each in lines)) for name in score_names],
            marks,
        ),
        panel(
            "gap",
            "Serving gap, seconds",
            numbers,
            [Series("serving gap", tuple(each.seen.serving_gap_seconds for each in lines))],
            marks,
        ),
    ]
    return tuple(drawn)


def path_of(item: FeedbackItem, batch: FeedbackBatch | None) -> tuple[Station, ...]:
    """An item's way: stored, batched, in job, in a version or refused."""
    ended = batch.accounted if batch is not None else None
    if item.state is ItemState.REFUSED:
        stations = [Station("Stored", StationState.DONE, item.created)]
        if batch is not None:
            stations.append(Station("Batched", StationState.DONE, batch.created))
        if batch is not None and batch.submitted is not None:
            stations.append(Station("In job", StationState.DONE, batch.submitted))
        return (*stations, Station(f"Refused: {item.reason}", StationState.REFUSED, ended))
    reached = (ItemState.STORED, ItemState.BATCHED, ItemState.IN_JOB, ItemState.IN_VERSION).index(item.state)
    names = (
        "Stored",
        "Batched",
        "In job",
        f"In version {item.version}" if item.version is not None else "In a version",
    )
    times = (item.created, batch.created if batch else None, batch.submitted if batch else None, ended)
    return tuple(
        Station(name, _progress(place, reached), at if place <= reached else None)
        for place, (name, at) in enumerate(zip(names, times, strict=True))
    )


def expects_answer(item: FeedbackItem, batch: FeedbackBatch | None, now: datetime) -> bool:
    """Whether the version that learned from an item may be asked its prompt yet."""
    if item.state is not ItemState.IN_VERSION or item.answer_after is not None or batch is None:
        return False
    return batch.accounted is not None and now - batch.accounted < _ASKED_WITHIN


def _progress(place: int, reached: int) -> StationState:
    if place < reached or reached == 3:
        return StationState.DONE
    return StationState.NOW if place == reached else StationState.OPEN
