"""The gateway's Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class GatewayMetrics:
    """All metrics, in a registry of their own. Labels never hold what clients wrote, but adapters' names."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "claas_gateway_requests",
            "Requests answered, by route and HTTP status.",
            ["route", "status"],
            registry=self.registry,
        )
        self.inference_seconds = Histogram(
            "claas_gateway_inference_duration_seconds",
            "Seconds from an inference request until its answer ended.",
            ["route"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
            registry=self.registry,
        )
        self.held = Gauge(
            "claas_gateway_held_requests",
            "Requests that wait for a server that is paused or not ready.",
            registry=self.registry,
        )
        self.rollouts = Counter(
            "claas_gateway_rollouts",
            "Rollouts recorded, by adapter and evidence; `incomplete` for those that are not whole.",
            ["namespace", "adapter", "evidence"],
            registry=self.registry,
        )
        self.lost_rollouts = Counter(
            "claas_gateway_lost_rollouts",
            "Answers whose rollouts the database refused; the clients got their answers.",
            registry=self.registry,
        )
        self.items = Counter(
            "claas_gateway_feedback_items",
            "Items of feedback that have come to an end or been stored, by adapter and state.",
            ["namespace", "adapter", "state"],
            registry=self.registry,
        )
        self.batches = Counter(
            "claas_gateway_batches",
            "Batches accounted for, by adapter and result.",
            ["namespace", "adapter", "result"],
            registry=self.registry,
        )
        self.feedback_seconds = Histogram(
            "claas_gateway_feedback_duration_seconds",
            "Seconds from storing an item until a version that learned from it was in service.",
            ["namespace", "adapter"],
            buckets=(1, 2.5, 5, 10, 20, 30, 60, 120, 300, 900, 3600),
            registry=self.registry,
        )
