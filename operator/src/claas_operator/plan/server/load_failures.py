"""Loads that failed: why, and when each is tried again. It is kept in memory and may be lost: then one is tried at
once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from claas_kube.objects.meta import ObjectMeta

FIRST_RETRY_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 300.0


@dataclass(frozen=True)
class Load:
    """One try to put a version into service in a pod; `error` says why it failed, None that it did not."""

    pod_uid: str
    version: int
    error: str | None = None
    not_applied: bool = False
    """Whether it failed because the base answers in the version's place."""


@dataclass(frozen=True)
class LoadFailure:
    """A version that a pod did not take."""

    version: int
    generation: int
    """Of the adapter's spec then: after a change it is tried at once."""
    error: str
    times: int
    """How often it was tried in a row."""
    retry_at: datetime
    not_applied: bool = False


class LoadFailures:
    """The failures of every adapter, by the UID of the pod."""

    def __init__(self) -> None:
        self._failures: dict[tuple[str, str], dict[str, LoadFailure]] = {}

    def of(self, adapter: ObjectMeta) -> dict[str, LoadFailure]:
        """The failures of an adapter, by the UID of the pod."""
        return dict(self._failures.get((adapter.namespace, adapter.name), {}))

    def count(self, namespace: str, name: str) -> int:
        """How many pods do not take the version of an adapter of that name."""
        return len(self._failures.get((namespace, name), {}))

    def note(self, adapter: ObjectMeta, pods: frozenset[str], loads: Iterable[Load], now: datetime) -> None:
        """Note what came of an adapter's loads. What is known of other `pods` stays; of pods that are gone nothing is
        kept."""
        key, generation = (adapter.namespace, adapter.name), adapter.generation
        kept = {uid: failure for uid, failure in self._failures.pop(key, {}).items() if uid in pods}
        for load in loads:
            before = kept.pop(load.pod_uid, None)
            if load.error is None:
                continue
            alike = before is not None and (before.version, before.generation) == (load.version, generation)
            times = before.times + 1 if before is not None and alike else 1
            delay = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** (times - 1))
            retry_at = now + timedelta(seconds=delay)
            kept[load.pod_uid] = LoadFailure(load.version, generation, load.error, times, retry_at, load.not_applied)
        if kept:
            self._failures[key] = kept

    def forget(self, namespace: str, name: str) -> None:
        """The adapter is gone."""
        self._failures.pop((namespace, name), None)
