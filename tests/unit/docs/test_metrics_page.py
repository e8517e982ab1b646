"""That docs/metrics.md, the alerts and the dashboard know the operator's metrics and each other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import cast

import pytest
import yaml

from claas_operator.metrics.definitions import METRICS
from tools.metrics_page import gateway_table, metrics_table, with_metrics_table

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "helm" / "claas-operator" / "files" / "monitoring"
PAGE = (ROOT / "docs" / "metrics.md").read_text("utf-8")


def rules_of(file: str) -> list[dict[str, str]]:
    groups = yaml.safe_load((MONITORING / file).read_text("utf-8"))["groups"]
    return cast(list[dict[str, str]], groups[0]["rules"])


RULES = rules_of("alerts.yaml")
PANELS = json.loads((MONITORING / "dashboard.json").read_text("utf-8"))["panels"]
QUERIES = [rule["expr"] for rule in RULES] + [
    target["expr"] for panel in PANELS for target in panel.get("targets", [])
]
NAMES = {metric.name: metric for metric in METRICS}
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}
OWN_LABELS = {label for metric in METRICS for label in metric.labels}


def metrics_in(query: str) -> set[str]:
    named = re.findall(r"\b(?:claas|process)_[a-z_]+", query)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}


@pytest.mark.parametrize("query", QUERIES)
def test_alerts_and_dashboard_ask_for_metrics_and_labels_that_there_are(query: str) -> None:
    asked = metrics_in(query)
    assert asked
    assert asked <= set(NAMES) | PROCESS
    known = {label for name in asked & set(NAMES) for label in NAMES[name].labels} | {"le", "instance"}
    grouped = {label.strip() for labels in re.findall(r"(?:by|on) \(([^)]*)\)", query) for label in labels.split(",")}
    filtered = set(re.findall(r"[{,]\s*([a-z_]+)\s*[!=]", query))
    assert grouped | filtered <= known


def test_the_dashboard_shows_every_metric() -> None:
    shown = {name for query in QUERIES[len(RULES) :] for name in metrics_in(query)}
    assert set(NAMES) - shown == set()


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("rule", RULES + rules_of("gateway-alerts.yaml"), ids=lambda rule: rule["alert"])
def test_each_alert_has_a_paragraph_that_says_what_to_do(rule: dict[str, object]) -> None:
    alert = cast(str, rule["alert"])
    assert cast(dict[str, str], rule["annotations"])["runbook"] == f"docs/metrics.md#{alert.lower()}"
    section = PAGE.partition(f"### {alert}\n")[2].partition("\n### ")[0]
    assert "kubectl" in section
    severity = cast(dict[str, str], rule["labels"])["severity"]
    assert section.strip().startswith(f"*{severity.capitalize()}: ")


def test_the_page_has_the_table_of_the_metrics_as_they_are() -> None:
    assert metrics_table() in PAGE
    assert gateway_table() in PAGE
    assert with_metrics_table(PAGE) == PAGE
    with pytest.raises(ValueError, match="not there"):
        with_metrics_table("# Metrics")


def test_no_label_can_grow_without_bound() -> None:
    objects = {"namespace", "adapter", "deployment"}
    enums = {"result", "reason", "phase", "handover", "kind", "verb", "resource", "code"}
    assert objects | enums >= OWN_LABELS
