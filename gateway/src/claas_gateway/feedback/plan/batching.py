"""Which waiting items form a batch now, and when to look again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from claas_gateway.feedback.plan.samples import LARGEST_SECRET_BYTES, training_key
from claas_gateway.records import FeedbackItem


@dataclass(frozen=True, slots=True)
class WaitingItem:
    """An item that waits for a batch, and the bytes of its sample."""

    item: FeedbackItem
    size: int


@dataclass(frozen=True, slots=True)
class Gathering:
    """How an adapter's batches are formed."""

    window: timedelta
    """How long the first item of a batch waits for others."""
    most_items: int
    most_bytes: int = LARGEST_SECRET_BYTES


@dataclass(frozen=True, slots=True)
class Batches:
    """What to do now."""

    due: tuple[tuple[FeedbackItem, ...], ...]
    """Batches to form."""
    again: datetime | None
    """When the next one is due, if nothing else happens; None: nothing waits."""


def batches_of(waiting: Sequence[WaitingItem], gathering: Gathering, now: datetime) -> Batches:
    """Batches of items, oldest first. Items with different training settings never share one. A batch is due when its
    first item has waited for the window, or when the next item would not fit. An item that is too large for any batch
    has one of its own."""
    due: list[tuple[FeedbackItem, ...]] = []
    again: list[datetime] = []
    for group in _by_training(waiting):
        for part, full in _cut(group, gathering):
            ripe = part[0].item.created + gathering.window
            if full or ripe <= now:
                due.append(tuple(each.item for each in part))
            else:
                again.append(ripe)
    return Batches(tuple(due), min(again, default=None))


def _by_training(waiting: Sequence[WaitingItem]) -> Sequence[Sequence[WaitingItem]]:
    groups: dict[tuple[tuple[str, str], ...], list[WaitingItem]] = {}
    for each in waiting:
        groups.setdefault(training_key(each.item.training), []).append(each)
    return list(groups.values())


def _cut(group: Sequence[WaitingItem], gathering: Gathering) -> Sequence[tuple[Sequence[WaitingItem], bool]]:
    """The parts of a group, each with whether it is full."""
    parts: list[tuple[Sequence[WaitingItem], bool]] = []
    part: list[WaitingItem] = []
    size = 0
    for each in group:
        if part and size + each.size > gathering.most_bytes:
            parts.append((part, True))
            part, size = [], 0
        part.append(each)
        size += each.size
        if len(part) >= gathering.most_items:
            parts.append((part, True))
            part, size = [], 0
    if part:
        parts.append((part, size >= gathering.most_bytes))
    return parts
