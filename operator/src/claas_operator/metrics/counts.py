"""Counters and histograms, with a method for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.registry import Collector

from claas_crds.v1alpha1.conditions import JobCondition, condition_of, is_true
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_operator.metrics import definitions
from claas_operator.metrics.definitions import JobResult, LoadResult, Metric, PassResult, WakeResult

_NOT_A_PHASE = {"serving_gap"}
_RESULTS = {JobCondition.COMPLETE: JobResult.COMPLETE, JobCondition.FAILED: JobResult.FAILED}


@dataclass
class Pass:
    """Result of a pass."""

    result: PassResult = PassResult.DONE


class Metrics:
    """The metrics of one process, in a registry of its own."""

    def __init__(self) -> None:
        # Each series' creation time would double the number of series, and no query here uses it.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._jobs_finished = self._counter(definitions.JOBS_FINISHED)
        self._job_duration = self._histogram(definitions.JOB_DURATION)
        self._phase_duration = self._histogram(definitions.JOB_PHASE_DURATION)
        self._serving_gap = self._histogram(definitions.SERVING_GAP)
        self._versions_published = self._counter(definitions.VERSIONS_PUBLISHED)
        self._loads = self._counter(definitions.VERSION_LOADS)
        self._wakes = self._counter(definitions.VLLM_WAKES)
        self._leading = self._gauge(definitions.LEADING)
        self._queue_depth = self._gauge(definitions.QUEUE_DEPTH)
        self._queue_wait = self._histogram(definitions.QUEUE_WAIT)
        self._pass_duration = self._histogram(definitions.PASS_DURATION)
        self._api_requests = self._counter(definitions.API_REQUESTS)
        self._api_request_duration = self._histogram(definitions.API_REQUEST_DURATION)
        # A rate needs a first value, so series with known labels exist from the start.
        for load in LoadResult:
            self._loads.labels(load.value)
        for wake in WakeResult:
            self._wakes.labels(wake.value)

    def job_written(
        self, namespace: str, created: datetime | None, before: DistillJobStatus, after: DistillJobStatus
    ) -> None:
        """A job's status was written. Counts the changes since `before`."""
        if before.produced_version is None and after.produced_version is not None:
            self._versions_published.labels(namespace).inc()
        for condition, result in _RESULTS.items():
            if is_true(after.conditions, condition) and not is_true(before.conditions, condition):
                self._job_ended(namespace, created, condition, result, after)

    def _job_ended(
        self,
        namespace: str,
        created: datetime | None,
        condition: JobCondition,
        result: JobResult,
        status: DistillJobStatus,
    ) -> None:
        telling = condition_of(status.conditions, condition)
        assert telling is not None
        self._jobs_finished.labels(namespace, result.value, telling.reason).inc()
        if created is not None and status.completion_time is not None:
            seconds = max(0.0, (status.completion_time - created).total_seconds())
            self._job_duration.labels(result.value).observe(seconds)
        for phase, took in status.timings.model_dump(exclude_none=True, exclude=_NOT_A_PHASE).items():
            self._phase_duration.labels(phase).observe(took)
        if status.timings.serving_gap is not None and status.handover is not None:
            self._serving_gap.labels(status.handover.value).observe(status.timings.serving_gap)

    @contextmanager
    def one_pass(self, kind: str) -> Iterator[Pass]:
        """Time a pass over an object of that kind; one that raises has failed."""
        ending, began = Pass(), time.monotonic()
        try:
            yield ending
        except Exception:
            ending.result = PassResult.FAILED
            raise
        finally:
            self._pass_duration.labels(kind, ending.result.value).observe(time.monotonic() - began)

    def waited(self, kind: str, seconds: float) -> None:
        """A pass begins, that many seconds after it was due."""
        self._queue_wait.labels(kind).observe(seconds)

    def watch_queue(self, kind: str, depth: Callable[[], float]) -> None:
        """Ask for the number of waiting objects of that kind at each scrape."""
        self._queue_depth.labels(kind).set_function(depth)

    def api_called(self, verb: str, resource: str, code: int | None, seconds: float) -> None:
        """The API server has answered a request, or (None) has not."""
        said = definitions.NO_ANSWER if code is None else str(code)
        self._api_requests.labels(verb, resource, said).inc()
        self._api_request_duration.labels(verb).observe(seconds)

    def loaded(self, result: LoadResult) -> None:
        """A pod was to serve a version."""
        self._loads.labels(result.value).inc()

    def woke(self, result: WakeResult) -> None:
        """A pod that slept without a step was to be woken."""
        self._wakes.labels(result.value).inc()

    def lead(self, state: Collector) -> None:
        """This process is the leader from now on: it tells of the cluster's state too."""
        self.registry.register(state)
        self._leading.set(1)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)

    def _gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self.registry)

    def _histogram(self, metric: Metric) -> Histogram:
        return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self.registry)
