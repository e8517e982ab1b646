"""Gauges computed at each scrape from the leader's view of the cluster, without requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from claas_crds.v1alpha1.step import JobPhase
from claas_operator.keys import Key
from claas_operator.metrics import definitions
from claas_operator.metrics.definitions import Metric
from claas_operator.metrics.known_adapters import KnownAdapter

WAITING = frozenset({None, JobPhase.PENDING, JobPhase.QUEUED})
"""Phases of a job that is not admitted."""

Place = tuple[str, str]
"""A namespace, and the name of a Deployment or an adapter in it."""


class JobFacts(Protocol):
    """Properties of a DistillJob for the gauges."""

    @property
    def namespace(self) -> str: ...
    @property
    def adapter(self) -> str: ...
    @property
    def phase(self) -> JobPhase | None: ...
    @property
    def created(self) -> datetime | None: ...


@dataclass(frozen=True)
class ClusterView:
    """The operator's view of the cluster, without requests."""

    jobs: Callable[[], Iterable[JobFacts]]
    """All DistillJobs."""
    adapters: Callable[[], Iterable[KnownAdapter]]
    """All LoraAdapters."""
    failing_loads: Callable[[str, str], int]
    """In how many pods the last try to load the version of an adapter failed, by its namespace and name."""


class Sleepers:
    """Since when pods of a Deployment sleep without a step, as the passes over its Lease find it."""

    def __init__(self) -> None:
        self._since: dict[Key, tuple[Place, datetime]] = {}

    def note(self, lease: Key, deployment: str, asleep: bool | None, now: datetime) -> None:
        """A pass has found whether a pod of the Deployment sleeps while no trainer lives; None: unknown."""
        if asleep:
            self._since.setdefault(lease, ((lease.namespace, deployment), now))
        elif asleep is not None:
            self.forget(lease)

    def forget(self, lease: Key) -> None:
        """No pod sleeps, or the Lease is gone."""
        self._since.pop(lease, None)

    def all(self) -> Iterable[tuple[Place, datetime]]:
        """The Deployments with a sleeping pod."""
        return self._since.values()


class StateCollector(Collector):
    """Makes the gauges of jobs, adapters and Deployments at each scrape."""

    def __init__(
        self, view: ClusterView, sleepers: Sleepers, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._view = view
        self._sleepers = sleepers
        self._clock = clock

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All gauges."""
        now = self._clock()
        adapters = list(self._view.adapters())
        deployments = {(adapter.namespace, adapter.name): adapter.deployment for adapter in adapters}
        yield from self._of_jobs(deployments, now)
        yield from self._of_adapters(adapters)
        yield self._asleep(adapters, now)

    def _of_jobs(self, deployments: dict[Place, str], now: datetime) -> Iterator[GaugeMetricFamily]:
        phases: Counter[Place] = Counter()
        places = {(namespace, deployment) for (namespace, _), deployment in deployments.items()}
        waiting, oldest = dict.fromkeys(places, 0), dict.fromkeys(places, 0.0)
        for job in self._view.jobs():
            phases[job.namespace, job.phase or JobPhase.PENDING] += 1
            deployment = deployments.get((job.namespace, job.adapter))
            if job.phase in WAITING and deployment is not None:
                place = (job.namespace, deployment)
                waiting[place] += 1
                oldest[place] = max(oldest[place], _seconds(job.created, now))
        yield _family(definitions.JOBS, phases)
        yield _family(definitions.JOBS_WAITING, waiting)
        yield _family(definitions.OLDEST_WAIT, oldest)

    def _of_adapters(self, adapters: list[KnownAdapter]) -> Iterator[GaugeMetricFamily]:
        named = [((adapter.namespace, adapter.name), adapter) for adapter in adapters]
        yield _family(definitions.ADAPTER_READY, {place: int(adapter.ready) for place, adapter in named})
        for metric, versions in (
            (definitions.ADAPTER_LATEST_VERSION, {place: adapter.latest_version for place, adapter in named}),
            (definitions.ADAPTER_SERVED_VERSION, {place: adapter.served_version for place, adapter in named}),
        ):
            known = {place: version for place, version in versions.items() if version is not None}
            yield _family(metric, known)
        failing = {place: self._view.failing_loads(*place) for place, _ in named}
        yield _family(definitions.ADAPTER_FAILING_LOADS, failing)

    def _asleep(self, adapters: list[KnownAdapter], now: datetime) -> GaugeMetricFamily:
        seconds = {(adapter.namespace, adapter.deployment): 0.0 for adapter in adapters}
        since = [((adapter.namespace, adapter.deployment), adapter.asleep_since) for adapter in adapters]
        for place, began in (*since, *self._sleepers.all()):
            seconds[place] = max(seconds.get(place, 0.0), _seconds(began, now))
        return _family(definitions.ASLEEP_WITHOUT_STEP, seconds)


def _seconds(since: datetime | None, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds()) if since is not None else 0.0


def _family(metric: Metric, values: dict[Place, int] | dict[Place, float] | Counter[Place]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for place, value in sorted(values.items()):
        family.add_metric(list(place), value)
    return family
