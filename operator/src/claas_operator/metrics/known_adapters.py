"""Properties of LoraAdapters for the gauges, kept up to date by their watch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from claas_crds.v1alpha1.conditions import AdapterCondition, AdapterReason, ConditionStatus, condition_of
from claas_crds.v1alpha1.lora_adapter import LoraAdapterStatus


@dataclass(frozen=True, slots=True)
class KnownAdapter:
    """One LoraAdapter, as its status says."""

    namespace: str
    name: str
    deployment: str
    ready: bool
    latest_version: int | None
    served_version: int | None
    asleep_since: datetime | None
    """Since when it is not ready because vLLM sleeps without a step; None if it is not so."""


class KnownAdapters:
    """All LoraAdapters that the operator watches."""

    def __init__(self) -> None:
        self._adapters: dict[tuple[str, str], KnownAdapter] = {}

    def take(self, namespace: str, name: str, deployment: str, read: LoraAdapterStatus, now: datetime) -> None:
        """Remember an adapter."""
        ready = condition_of(read.conditions, AdapterCondition.READY)
        holds = ready is not None and ready.status is ConditionStatus.TRUE
        asleep = ready is not None and not holds and ready.reason == AdapterReason.ASLEEP
        before = self._adapters.get((namespace, name))
        since = before.asleep_since if before is not None and before.asleep_since is not None else now
        self._adapters[namespace, name] = KnownAdapter(
            namespace=namespace,
            name=name,
            deployment=deployment,
            ready=holds,
            latest_version=read.latest_version,
            served_version=read.served_version,
            asleep_since=since if asleep else None,
        )

    def forget(self, namespace: str, name: str) -> None:
        """An adapter is gone."""
        self._adapters.pop((namespace, name), None)

    def all(self) -> Iterable[KnownAdapter]:
        """All of them."""
        return self._adapters.values()
