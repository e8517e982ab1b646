"""`/metrics` over HTTP."""

from __future__ import annotations

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from claas_operator.keys import Kind
from claas_operator.metrics.counts import Metrics
from claas_operator.metrics.definitions import METRICS
from claas_operator.metrics.endpoint import metrics_endpoint
from claas_operator.metrics.known_adapters import KnownAdapters
from claas_operator.metrics.state import ClusterView, Sleepers, StateCollector
from tests.cluster.services.control_plane import free_ports


async def scrape(port: int) -> str:
    url = f"http://127.0.0.1:{port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/plain"
        return await answer.text()


async def test_a_standby_answers_and_the_leader_tells_of_the_cluster_too() -> None:
    metrics, port = Metrics(), free_ports(1)[0]
    async with metrics_endpoint(metrics.registry, port):
        standby = await scrape(port)
        view = ClusterView(list, KnownAdapters().all, lambda namespace, name: 0)
        metrics.lead(StateCollector(view, Sleepers()))
        leader = await scrape(port)
    assert "claas_leading 0.0" in standby
    assert "process_resident_memory_bytes" in standby
    assert "claas_adapter_ready" not in standby
    assert "claas_leading 1.0" in leader
    told = {family.name for family in text_string_to_metric_families(leader)}
    assert {metric.name.removesuffix("_total") for metric in METRICS} <= told


async def test_an_operator_whose_port_is_taken_goes_on_without(caplog: pytest.LogCaptureFixture) -> None:
    port = free_ports(1)[0]
    async with metrics_endpoint(Metrics().registry, port), metrics_endpoint(Metrics().registry, port):
        assert "claas_leading" in await scrape(port)
    assert "metrics are not served" in caplog.text


def test_the_depth_of_the_queue_is_asked_for_at_each_scrape() -> None:
    metrics, depths = Metrics(), [7.0, 2.0]
    metrics.watch_queue(Kind.LEASE, lambda: depths.pop(0))
    told = [metrics.registry.get_sample_value("claas_work_queue_depth", {"kind": "Lease"}) for _ in range(2)]
    assert told == [7.0, 2.0]
