"""Metrics that Prometheus, operator and trainer can read."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from claas_inference_proxy.metrics import ProxyMetrics
from claas_vllm_client.wire import ServerLoad, parse_metrics


def test_operator_and_trainer_read_the_load() -> None:
    metrics = ProxyMetrics("base")
    metrics.answered(prompt_tokens=5, generation_tokens=3, finish="stop")
    with metrics.running():
        assert parse_metrics(metrics.text({})) == ServerLoad(1, 0, None, generated_tokens=3)
    assert parse_metrics(metrics.text({})).running == 0


def test_prometheus_reads_them_whatever_the_names() -> None:
    metrics = ProxyMetrics('a "model"\n\\')
    metrics.answered(prompt_tokens=5, generation_tokens=3, finish="length")
    metrics.responded("/v1/score", 429)
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.text({"team/tone": 7}))
        for sample in family.samples
    }
    model = ("model_name", 'a "model"\n\\')
    assert found["vllm:prompt_tokens_total", model] == 5
    assert found["vllm:request_success_total", ("finished_reason", "length"), model] == 1
    assert found["claas_proxy_responses_total", ("route", "/v1/score"), ("status", "429")] == 1
    assert found["claas_proxy_served_version", ("served_name", "team/tone")] == 7
