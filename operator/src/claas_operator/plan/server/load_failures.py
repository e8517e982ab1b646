"""Failed loads, with their back-off. Kept in memory only; after a restart they are retried at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from claas_kube.objects.meta import ObjectMeta

FIRST_RETRY_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 300.0


@dataclass(frozen=True)
class Load:
    """One try to put a version into service in a pod; `error` says why it failed, None means success."""

    pod_uid: str
    version: int
    error: str | None = None
    not_applied: bool = False
    """Whether it failed because the pod answers as the base model does."""


@dataclass(frozen=True)
class LoadFailure:
    """A failed load of a version in a pod."""

    version: int
    generation: int
    """Generation of the adapter's spec at that time; after a change the load is retried at once."""
    error: str
    times: int
    """Number of failed tries in a row."""
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
        """Number of pods in which the last load for the adapter with that name failed."""
        return len(self._failures.get((namespace, name), {}))

    def note(self, adapter: ObjectMeta, pods: frozenset[str], loads: Iterable[Load], now: datetime) -> None:
        """Record the results of an adapter's loads. Failures of other `pods` are kept, those of deleted pods are
        dropped."""
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
