"""All adapters in short, from the directory and from the store. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from claas_crds.v1alpha1.conditions import AdapterCondition, ConditionStatus, condition_of
from claas_gateway.access.callers import Caller
from claas_gateway.directory.models import Adapter
from claas_gateway.records import FeedbackBatch, ItemState, VersionSeen
from claas_gateway.store.interface import AdapterHistory

AdapterKey = tuple[str, str]
"""Namespace and name."""


class Tone(StrEnum):
    """How a state is coloured; the state is always written beside it."""

    GOOD = "good"
    BUSY = "busy"
    BAD = "bad"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class AdapterLine:
    """One adapter in short."""

    namespace: str
    name: str
    lora_id: str | None
    served_name: str | None
    base_model: str | None
    engine: str | None
    """Where steps are computed, if the adapter says so."""
    state: str
    tone: Tone
    message: str
    served: int | None
    head: int | None
    items: Mapping[ItemState, int]
    newest: VersionSeen | None
    batch: FeedbackBatch | None
    """The newest."""

    @property
    def waiting(self) -> int:
        """Items that no version has learned from yet."""
        return sum(self.items.get(state, 0) for state in (ItemState.STORED, ItemState.BATCHED, ItemState.IN_JOB))


@dataclass(frozen=True, slots=True)
class Overview:
    """All adapters, those of which the store alone knows too."""

    lines: Mapping[AdapterKey, AdapterLine]

    def seen_by(self, caller: Caller) -> list[AdapterLine]:
        """Those that the caller may see, by namespace and name."""
        return [line for key, line in sorted(self.lines.items()) if caller.sees(*key)]

    def changed_since(self, earlier: Overview) -> set[AdapterKey]:
        """Adapters of which something differs."""
        keys = self.lines.keys() | earlier.lines.keys()
        return {key for key in keys if self.lines.get(key) != earlier.lines.get(key)}


def overview(
    adapters: Sequence[Adapter],
    histories: Sequence[AdapterHistory],
    counts: Mapping[AdapterKey, Mapping[ItemState, int]],
    batches: Sequence[FeedbackBatch],
    *,
    listed: bool,
) -> Overview:
    """Put together what is known of each adapter. `listed`: one that is not among `adapters` does not exist."""
    living = {(each.namespace, each.name): each for each in adapters}
    past = {(each.namespace, each.adapter): each for each in histories}
    newest = {(each.namespace, each.adapter): each for each in batches}
    keys = living.keys() | past.keys() | counts.keys() | newest.keys()
    return Overview(
        {
            key: _line(key, living.get(key), past.get(key), counts.get(key, {}), newest.get(key), listed)
            for key in keys
        }
    )


def _line(
    key: AdapterKey,
    adapter: Adapter | None,
    history: AdapterHistory | None,
    items: Mapping[ItemState, int],
    batch: FeedbackBatch | None,
    listed: bool,
) -> AdapterLine:
    namespace, name = key
    state, tone, message = _state(adapter, listed)
    served = history.served if history is not None else None
    newest = history.newest if history is not None else None
    head = newest.number if newest is not None else None
    if adapter is not None:
        served = adapter.found.status.served_version if adapter.found.status.served_version is not None else served
        head = adapter.found.status.latest_version if adapter.found.status.latest_version is not None else head
    return AdapterLine(
        namespace=namespace,
        name=name,
        lora_id=adapter.lora_id if adapter else None,
        served_name=adapter.served_name if adapter else None,
        base_model=adapter.base_model if adapter else None,
        engine=adapter.engine.value if adapter and adapter.engine else None,
        state=state,
        tone=tone,
        message=message,
        served=served,
        head=head,
        items=items,
        newest=newest,
        batch=batch,
    )


def _state(adapter: Adapter | None, listed: bool) -> tuple[str, Tone, str]:
    if adapter is None and not listed:
        return "Unknown", Tone.BUSY, "The gateway has just started and does not know the cluster's adapters yet."
    if adapter is None:
        return "Deleted", Tone.GONE, "The adapter does not exist any more; its history is kept."
    conditions = adapter.found.status.conditions
    ready = condition_of(conditions, AdapterCondition.READY)
    if ready is None:
        return "Pending", Tone.BUSY, "The operator has not looked at it yet."
    if ready.status is ConditionStatus.TRUE:
        return ready.reason, Tone.GOOD, ready.message
    stalled = condition_of(conditions, AdapterCondition.STALLED)
    is_stalled = stalled is not None and stalled.status is ConditionStatus.TRUE
    return ready.reason, Tone.BAD if is_stalled else Tone.BUSY, ready.message
