"""Every metric of the operator: its name, type, labels and meaning. docs/metrics.md is made from this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class MetricType(StrEnum):
    """Prometheus' types, as far as they are used."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class JobResult(StrEnum):
    """How a DistillJob ended."""

    COMPLETE = "complete"
    FAILED = "failed"


class PassResult(StrEnum):
    """Result of a pass over an object."""

    DONE = "done"
    CONFLICT = "conflict"
    """An object had changed meanwhile; the pass is repeated at once."""
    FAILED = "failed"


class LoadResult(StrEnum):
    """Result of a try to put a version into service in one vLLM pod."""

    LOADED = "loaded"
    REFUSED = "refused"
    """vLLM refused the version, did not answer, or the probe failed."""
    NOT_APPLIED = "not_applied"
    """vLLM answered as the base model."""


class WakeResult(StrEnum):
    """Result of waking a vLLM pod that a step had left asleep."""

    WOKEN = "woken"
    FAILED = "failed"


NO_ANSWER = "none"
"""The `code` of a request that got no answer."""


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    type: MetricType
    labels: tuple[str, ...]
    help: str
    buckets: Sequence[float] = ()
    """Upper bounds of a histogram's buckets, in seconds."""


_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STEP_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
_GAP_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 60, 120)
_JOB_BUCKETS = (5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)

JOBS_FINISHED = Metric(
    "claas_jobs_finished_total",
    MetricType.COUNTER,
    ("namespace", "result", "reason"),
    "DistillJobs that ended, by result (complete, failed) and the reason of that condition.",
)
JOB_DURATION = Metric(
    "claas_job_duration_seconds",
    MetricType.HISTOGRAM,
    ("result",),
    "Time from a DistillJob's creation to its end.",
    _JOB_BUCKETS,
)
JOB_PHASE_DURATION = Metric(
    "claas_job_phase_duration_seconds",
    MetricType.HISTOGRAM,
    ("phase",),
    "Time that each phase of an ended DistillJob took, as in its status.timings.",
    _STEP_BUCKETS,
)
SERVING_GAP = Metric(
    "claas_serving_gap_seconds",
    MetricType.HISTOGRAM,
    ("handover",),
    "Pause of serving by a step as clients see it, from the pause call to serving awake, by hand-over.",
    _GAP_BUCKETS,
)
VERSIONS_PUBLISHED = Metric(
    "claas_versions_published_total",
    MetricType.COUNTER,
    ("namespace",),
    "Versions that DistillJobs published on the volume.",
)
VERSION_LOADS = Metric(
    "claas_version_loads_total",
    MetricType.COUNTER,
    ("result",),
    "Tries of the operator to put a version into service in one vLLM pod, by result (loaded, refused, not_applied),"
    " and versions that have answered, or are refused, on Modal.",
)
VLLM_WAKES = Metric(
    "claas_vllm_wakes_total",
    MetricType.COUNTER,
    ("result",),
    "vLLM pods that the operator woke because a step had left them asleep, by result (woken, failed).",
)

JOBS = Metric(
    "claas_jobs",
    MetricType.GAUGE,
    ("namespace", "phase"),
    "DistillJobs that exist, by the phase in their status.",
)
JOBS_WAITING = Metric(
    "claas_jobs_waiting",
    MetricType.GAUGE,
    ("namespace", "deployment"),
    "DistillJobs that wait to be admitted: for their turn on a vLLM Deployment, or for it to be ready.",
)
OLDEST_WAIT = Metric(
    "claas_jobs_oldest_wait_seconds",
    MetricType.GAUGE,
    ("namespace", "deployment"),
    "Age of the oldest DistillJob that waits to be admitted on a vLLM Deployment; 0 when none waits.",
)
ADAPTER_READY = Metric(
    "claas_adapter_ready",
    MetricType.GAUGE,
    ("namespace", "adapter"),
    "Whether a LoraAdapter is Ready: 1 or 0.",
)
ADAPTER_LATEST_VERSION = Metric(
    "claas_adapter_latest_version",
    MetricType.GAUGE,
    ("namespace", "adapter"),
    "Number of a LoraAdapter's newest version.",
)
ADAPTER_SERVED_VERSION = Metric(
    "claas_adapter_served_version",
    MetricType.GAUGE,
    ("namespace", "adapter"),
    "Number of the version that every ready vLLM pod serves; absent while there is none.",
)
ADAPTER_FAILING_LOADS = Metric(
    "claas_adapter_failing_loads",
    MetricType.GAUGE,
    ("namespace", "adapter"),
    "vLLM pods in which the last try to load the LoraAdapter's version failed; on Modal 1 while it is refused.",
)
ASLEEP_WITHOUT_STEP = Metric(
    "claas_vllm_asleep_without_step_seconds",
    MetricType.GAUGE,
    ("namespace", "deployment"),
    "How long a pod of a vLLM Deployment has been asleep (or has refused the control token after a pause) while no"
    " trainer takes a step there; 0 when none is.",
)

LEADING = Metric(
    "claas_leading",
    MetricType.GAUGE,
    (),
    "Whether this operator is the leader: 1 or 0. Only the leader tells of jobs, adapters and vLLM Deployments.",
)
QUEUE_DEPTH = Metric(
    "claas_work_queue_depth",
    MetricType.GAUGE,
    ("kind",),
    "Objects that are due for a pass and wait for it.",
)
QUEUE_WAIT = Metric(
    "claas_work_queue_wait_seconds",
    MetricType.HISTOGRAM,
    ("kind",),
    "Time from when an object was due for a pass until the pass began.",
    _REQUEST_BUCKETS,
)
PASS_DURATION = Metric(
    "claas_pass_duration_seconds",
    MetricType.HISTOGRAM,
    ("kind", "result"),
    "Time that a pass over an object took, by the object's kind and the result (done, conflict, failed).",
    _REQUEST_BUCKETS,
)
API_REQUESTS = Metric(
    "claas_api_requests_total",
    MetricType.COUNTER,
    ("verb", "resource", "code"),
    "Requests to the API server by HTTP status code (none: no answer), but for renewals of the leader's Lease.",
)
API_REQUEST_DURATION = Metric(
    "claas_api_request_duration_seconds",
    MetricType.HISTOGRAM,
    ("verb",),
    "Time until the API server had answered a request; of a watch until it began.",
    _REQUEST_BUCKETS,
)

METRICS: tuple[Metric, ...] = (
    JOBS_FINISHED,
    JOB_DURATION,
    JOB_PHASE_DURATION,
    SERVING_GAP,
    VERSIONS_PUBLISHED,
    VERSION_LOADS,
    VLLM_WAKES,
    JOBS,
    JOBS_WAITING,
    OLDEST_WAIT,
    ADAPTER_READY,
    ADAPTER_LATEST_VERSION,
    ADAPTER_SERVED_VERSION,
    ADAPTER_FAILING_LOADS,
    ASLEEP_WITHOUT_STEP,
    LEADING,
    QUEUE_DEPTH,
    QUEUE_WAIT,
    PASS_DURATION,
    API_REQUESTS,
    API_REQUEST_DURATION,
)
"""All of them, as docs/metrics.md lists them."""
