"""The generated part of docs/metrics.md: a table of every metric."""

from __future__ import annotations

from claas_operator.metrics.definitions import METRICS

BEGIN = "<!-- metrics: generated from operator/src/claas_operator/metrics/definitions.py by `make generate` -->\n"
END = "<!-- end of metrics -->\n"


def metrics_table() -> str:
    """Name, type, labels and meaning of each."""
    rows = [
        f"| `{metric.name}` | {metric.type} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |"
        for metric in METRICS
    ]
    return "\n".join(["| Metric | Type | Labels | Meaning |", "|---|---|---|---|", *rows]) + "\n"


def with_metrics_table(page: str) -> str:
    """The page with the table as it should be. Raises ValueError when its place is not marked."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError("docs/metrics.md: the lines that mark the table of metrics are not there")
    return f"{before}{BEGIN}{metrics_table()}{END}{after}"
