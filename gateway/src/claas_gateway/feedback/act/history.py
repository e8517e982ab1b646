"""Writes down the versions of adapters and which of them was served when, as status shows them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from claas_gateway.directory.interface import Directory
from claas_gateway.directory.models import Adapter
from claas_gateway.feedback.plan.manifests import BATCH_LABEL
from claas_gateway.records import ServiceChange, VersionSeen
from claas_gateway.store.interface import HistoryStore


class History:
    """Writes what has changed since it last looked."""

    def __init__(self, directory: Directory, store: HistoryStore, clock: Callable[[], datetime]) -> None:
        self._directory = directory
        self._store = store
        self._clock = clock
        self._versions: dict[tuple[str, str], dict[int, VersionSeen]] = {}
        self._served: dict[tuple[str, str], int] = {}

    async def note(self, adapter: Adapter) -> None:
        """Write down what is new about an adapter."""
        place = (adapter.namespace, adapter.name)
        known = self._versions.get(place, {})
        shown = {seen.number: seen for seen in self._shown(adapter)}
        new = [seen for number, seen in shown.items() if known.get(number) != seen]
        if new:
            await self._store.saw_versions(new)
            self._versions[place] = shown
        served = adapter.found.status.served_version
        if served is not None and self._served.get(place) != served:
            previous = self._served.get(place)
            if previous is None:
                changes = await self._store.changes(*place)
                previous = changes[-1].version if changes else None
            if previous != served:
                await self._store.saw_served(ServiceChange(*place, self._clock(), served, previous))
            self._served[place] = served

    def _shown(self, adapter: Adapter) -> list[VersionSeen]:
        return [
            VersionSeen(
                namespace=adapter.namespace,
                adapter=adapter.name,
                number=version.number,
                digest=version.digest,
                created=version.created,
                parent=version.parent,
                job=version.job,
                job_uid=version.job_uid,
                metrics=dict(version.metrics),
                verdict=version.verdict.value,
                serving_gap_seconds=self._gap(adapter, version.job),
                weights=version.weights,
            )
            for version in self._directory.versions(adapter)
        ]

    def _gap(self, adapter: Adapter, job: str | None) -> float | None:
        found = self._directory.job(adapter.namespace, job) if job is not None else None
        return found.status.timings.serving_gap if found and BATCH_LABEL in found.metadata.labels else None
