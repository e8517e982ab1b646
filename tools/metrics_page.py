"""The generated parts of docs/metrics.md: tables of every metric, of the operator and of the gateway."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.metrics import MetricWrapperBase

from claas_gateway.metrics import GatewayMetrics
from claas_operator.metrics.definitions import METRICS

BEGIN = "<!-- metrics: generated from operator/src/claas_operator/metrics/definitions.py by `make generate` -->\n"
GATEWAY_BEGIN = "<!-- metrics: generated from gateway/src/claas_gateway/metrics.py by `make generate` -->\n"
END = "<!-- end of metrics -->\n"


def metrics_table() -> str:
    """Name, type, labels and meaning of each of the operator's."""
    return _table((metric.name, metric.type, metric.labels, metric.help) for metric in METRICS)


def gateway_table() -> str:
    """The same of the gateway's."""
    found = [each for each in vars(GatewayMetrics()).values() if isinstance(each, MetricWrapperBase)]
    described = [(*each.describe(), each._labelnames) for each in found]
    return _table(
        (family.name + "_total" * (family.type == "counter"), family.type, labels, family.documentation)
        for family, labels in described
    )


def _table(metrics: Iterable[tuple[str, str, Iterable[str], str]]) -> str:
    rows = [
        f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |"
        for name, kind, labels, meaning in metrics
    ]
    return "\n".join(["| Metric | Type | Labels | Meaning |", "|---|---|---|---|", *rows]) + "\n"


def with_metrics_table(page: str) -> str:
    """The page with the tables as they should be. Raises ValueError when the place of one is not marked."""
    return _replaced(_replaced(page, BEGIN, metrics_table()), GATEWAY_BEGIN, gateway_table())


def _replaced(page: str, begin: str, table: str) -> str:
    before, _, rest = page.partition(begin)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError("docs/metrics.md: the lines that mark the tables of metrics are not there")
    return f"{before}{begin}{table}{END}{after}"
