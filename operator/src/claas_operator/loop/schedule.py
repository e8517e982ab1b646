"""The schedule of keys, with a lane for each kind; no I/O and no clock.

A lane never waits for another, because passes over Leases wake serving while thousands of DistillJobs may be due.
Within a lane, the key that has been due longest comes first.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field

from claas_operator.keys import Key, Kind

SLOTS: Mapping[Kind, int] = {Kind.LEASE: 64, Kind.ADAPTER: 24, Kind.JOB: 12}
"""Concurrent passes of each kind. Passes over Leases and adapters mostly wait for vLLM; those over jobs compute."""
_SPARE_ENTRIES = 64


@dataclass
class _Lane:
    slots: int
    """Free ones."""
    heap: list[tuple[float, Key]] = field(default_factory=list)
    """A heap by time; entries are skipped if their key is due at another time by now."""


class KeySchedule:
    """Keys by the time at which they are due (seconds of any clock), and keys whose pass is running. A key has at
    most one pass at a time. Waking and starting cost O(log n).
    """

    def __init__(self, slots: Mapping[Kind, int] = SLOTS) -> None:
        self._lanes = {kind: _Lane(slots[kind]) for kind in (Kind.LEASE, Kind.ADAPTER, Kind.JOB)}
        self._due: dict[Key, float] = {}
        self._running: set[Key] = set()
        self._held: frozenset[Kind] = frozenset()

    def hold(self, *kinds: Kind) -> None:
        """Start no key of these kinds for now, and of all others."""
        self._held = frozenset(kinds)

    def wake(self, key: Key, due: float) -> bool:
        """Make the key due no later than this; True if that is sooner than before."""
        if due >= self._due.get(key, float("inf")):
            return False
        self._due[key] = due
        self._push(key, due)
        return True

    def put_off(self, key: Key, due: float) -> None:
        """Make the key due exactly then, even if it was woken for an earlier time."""
        self._due[key] = due
        self._push(key, due)

    def start(self, now: float) -> list[tuple[Key, float]]:
        """Keys whose pass may start now, each with the time at which it was due; each holds a slot until `finish`."""
        started = []
        for lane in self._open():
            while lane.slots and (found := self._first(lane)) is not None and found[0] <= now:
                due, key = heapq.heappop(lane.heap)
                del self._due[key]
                self._running.add(key)
                lane.slots -= 1
                started.append((key, due))
        return started

    def finish(self, key: Key) -> None:
        """The pass over the key has ended; it may run again if it was woken meanwhile."""
        self._running.remove(key)
        self._lanes[key.kind].slots += 1
        if key in self._due:
            self._push(key, self._due[key])

    def next_start(self) -> float | None:
        """When the next pass can start; None: not before a wake or the end of a pass."""
        firsts = (self._first(lane) for lane in self._open() if lane.slots)
        return min((found[0] for found in firsts if found is not None), default=None)

    def waiting(self, kind: Kind, now: float) -> int:
        """How many keys of a kind are due and wait for a slot."""
        return sum(key.kind is kind and due <= now for key, due in self._due.items() if key not in self._running)

    def _open(self) -> list[_Lane]:
        return [lane for kind, lane in self._lanes.items() if kind not in self._held]

    def _push(self, key: Key, due: float) -> None:
        """A key that is looked at now comes into its lane at the end of that."""
        if key in self._running:
            return
        lane = self._lanes[key.kind]
        heapq.heappush(lane.heap, (due, key))
        if len(lane.heap) > 2 * len(self._due) + _SPARE_ENTRIES:
            lane.heap = [entry for entry in set(lane.heap) if self._holds(entry)]
            heapq.heapify(lane.heap)

    def _first(self, lane: _Lane) -> tuple[float, Key] | None:
        while lane.heap and not self._holds(lane.heap[0]):
            heapq.heappop(lane.heap)
        return lane.heap[0] if lane.heap else None

    def _holds(self, entry: tuple[float, Key]) -> bool:
        due, key = entry
        return key not in self._running and self._due.get(key) == due
