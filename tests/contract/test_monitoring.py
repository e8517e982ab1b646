"""Metrics, alerts and dashboard of the chart, checked by the real promtool."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
import yaml
from prometheus_client import generate_latest

from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.serving import HandoverKind
from claas_crds.v1alpha1.step import JobPhase, Timings
from claas_gateway.metrics import GatewayMetrics
from claas_operator.clients.job_view import known_job
from claas_operator.metrics.counts import Metrics
from claas_operator.metrics.definitions import METRICS
from claas_operator.metrics.known_adapters import KnownAdapters
from claas_operator.metrics.state import ClusterView, Sleepers, StateCollector
from tests.builders.world import NAMESPACE, NOW, adapter, condition, job
from tests.cluster.services.binaries import Binary, ensure
from tests.contract.chart import CHART, Object, at, helm_binary, of_kind, one, template

pytestmark = pytest.mark.contract

ALERT_TESTS = Path(__file__).with_name("alert_tests.yaml")
GATEWAY_ALERT_TESTS = ALERT_TESTS.with_name("gateway_alert_tests.yaml")
GATEWAY = "claas-claas-operator-gateway"
EVERYTHING = [f"metrics.{each}.enabled=true" for each in ("serviceMonitor", "prometheusRule", "dashboard")]


@pytest.fixture(scope="session")
def promtool() -> Path:
    return ensure([Binary.PROMTOOL])[Binary.PROMTOOL]


@pytest.fixture(scope="session")
def objects() -> list[Object]:
    """The chart with all that has to do with metrics."""
    return template(helm_binary(), *EVERYTHING)


def check(promtool: Path, *arguments: str | Path, text: str | None = None) -> str:
    result = subprocess.run(
        [promtool, *arguments], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@dataclass(frozen=True)
class Rules:
    """A PrometheusRule of the chart, and the file with its cases, which names the rules' file."""

    rule: Object
    cases: Path

    def write(self, folder: Path) -> Path:
        """What the Prometheus Operator makes of the PrometheusRule."""
        (name,) = yaml.safe_load(self.cases.read_text())["rule_files"]
        path = folder / cast(str, name)
        path.write_text(yaml.safe_dump(self.rule["spec"]))
        return path

    def alerts(self) -> list[Object]:
        return cast(list[Object], at(self.rule, "spec", "groups", 0, "rules"))


@pytest.fixture(scope="session", params=["operator", "gateway"])
def rules(request: pytest.FixtureRequest, objects: list[Object]) -> Rules:
    if request.param == "operator":
        return Rules(one(objects, "PrometheusRule"), ALERT_TESTS)
    made = template(helm_binary(), *EVERYTHING, "gateway.enabled=true", "gateway.keys=required")
    return Rules(one(made, "PrometheusRule", GATEWAY), GATEWAY_ALERT_TESTS)


def test_the_names_of_the_metrics_keep_to_prometheus_conventions(promtool: Path) -> None:
    metrics, adapters = Metrics(), KnownAdapters()
    found, tone = job(status=DistillJobStatus(phase=JobPhase.QUEUED)), adapter()
    adapters.take(NAMESPACE, "tone", "vllm", tone.status, NOW)
    view = ClusterView(lambda: [known_job(found)], adapters.all, lambda namespace, name: 1)
    metrics.lead(StateCollector(view, Sleepers(), lambda: NOW + timedelta(seconds=5)))
    done = DistillJobStatus(
        conditions=[condition("Complete", True)],
        completion_time=NOW,
        handover=HandoverKind.SLEEP,
        produced_version=1,
        timings=Timings(step=1.0, serving_gap=1.0),
    )
    metrics.job_written(NAMESPACE, NOW, DistillJobStatus(), done)
    metrics.api_called("get", "pods", 200, 0.1)
    metrics.waited("Lease", 0.1)
    metrics.watch_queue("Lease", lambda: 1)
    with metrics.one_pass("Lease"):
        pass
    told = {sample.name.removesuffix("_bucket") for each in metrics.registry.collect() for sample in each.samples}
    assert [metric.name for metric in METRICS if metric.name not in told] == []
    check(promtool, "check", "metrics", text=generate_latest(metrics.registry).decode())


def test_a_metric_against_the_conventions_is_found(promtool: Path) -> None:
    with pytest.raises(AssertionError, match='counter metrics should have "_total" suffix'):
        check(promtool, "check", "metrics", text="# HELP claas_jobs x\n# TYPE claas_jobs counter\nclaas_jobs 1\n")


def test_the_alerts_are_valid_rules(promtool: Path, rules: Rules, tmp_path: Path) -> None:
    said = check(promtool, "check", "rules", "--lint=all", "--lint-fatal", rules.write(tmp_path))
    assert f"{len(rules.alerts())} rules found" in said


def test_the_alerts_are_raised_when_they_should_be_and_not_otherwise(
    promtool: Path, rules: Rules, tmp_path: Path
) -> None:
    rules.write(tmp_path)
    tests = tmp_path / rules.cases.name
    tests.write_text(rules.cases.read_text())
    check(promtool, "test", "rules", tests)
    alerts = {cast(str, rule["alert"]) for rule in rules.alerts()}
    cases = yaml.safe_load(rules.cases.read_text())["tests"]
    raised = {each["alertname"]: bool(each.get("exp_alerts")) for case in cases for each in case["alert_rule_test"]}
    assert alerts == set(raised)
    for alert in alerts:
        said = [
            bool(each.get("exp_alerts"))
            for case in cases
            for each in case["alert_rule_test"]
            if each["alertname"] == alert
        ]
        assert set(said) == {True, False}, f"{alert}: a case in which it is raised, and one in which it is not"


def test_the_gateways_metrics_keep_to_prometheus_conventions_and_its_alerts_ask_for_those(promtool: Path) -> None:
    metrics = GatewayMetrics()
    check(promtool, "check", "metrics", text=generate_latest(metrics.registry).decode())
    told = {name for each in metrics.registry.collect() for name in (each.name, f"{each.name}_total")}
    rules_file = CHART / "files" / "monitoring" / "gateway-alerts.yaml"
    asked = set(re.findall(r"claas_gateway_[a-z_]+", rules_file.read_text()))
    assert asked
    assert asked <= told


def test_every_expression_of_the_dashboard_is_promql(promtool: Path, objects: list[Object], tmp_path: Path) -> None:
    name = "claas-claas-operator-dashboard"
    text = cast(str, at(one(objects, "ConfigMap", name), "data", "claas-operator.json"))
    panels = json.loads(text)["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert len(asked) > 20
    # As recording rules all of them are parsed by one call.
    rules = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "5m").replace("$namespace", ".*")}
        for number, query in enumerate(asked)
    ]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(asked)} rules found" in check(promtool, "check", "rules", path)


def test_nothing_for_prometheus_or_grafana_is_made_until_asked_for() -> None:
    kinds = {each["kind"] for each in template(helm_binary())}
    assert not kinds & {"Service", "ServiceMonitor", "PrometheusRule", "ConfigMap"}


def test_the_monitor_finds_the_service_and_the_service_the_pod(objects: list[Object]) -> None:
    service, monitor = one(objects, "Service"), one(objects, "ServiceMonitor")
    pod = at(one(objects, "Deployment"), "spec", "template")
    labels = cast(Object, at(service, "metadata", "labels"))
    assert cast(Object, at(monitor, "spec", "selector", "matchLabels")).items() <= labels.items()
    assert (
        cast(Object, at(service, "spec", "selector")).items() <= cast(Object, at(pod, "metadata", "labels")).items()
    )
    ports = {
        each["name"]: each["containerPort"] for each in cast(list[Object], at(pod, "spec", "containers", 0, "ports"))
    }
    assert ports == {"health": 8081, "metrics": 8080}
    assert at(service, "spec", "ports", 0, "targetPort") == "metrics"
    assert at(monitor, "spec", "endpoints", 0, "port") == at(service, "spec", "ports", 0, "name")
    assert at(monitor, "spec", "endpoints", 0, "honorLabels") is True


@pytest.mark.parametrize(
    ("kind", "value"),
    [("ServiceMonitor", "serviceMonitor"), ("PrometheusRule", "prometheusRule"), ("ConfigMap", "dashboard")],
)
def test_labels_by_which_they_are_found_are_added(kind: str, value: str) -> None:
    made = template(helm_binary(), *EVERYTHING, f"metrics.{value}.labels.release=monitoring")
    labels = cast(Object, at(one(made, kind), "metadata", "labels"))
    assert labels["release"] == "monitoring"
    assert labels["app.kubernetes.io/component"] == "operator"


def test_grafanas_sidecar_finds_the_dashboard_by_its_usual_label(objects: list[Object]) -> None:
    labels = cast(Object, at(one(objects, "ConfigMap"), "metadata", "labels"))
    assert labels["grafana_dashboard"] == "1"


def test_with_policies_only_the_named_namespaces_may_scrape() -> None:
    made = template(helm_binary(), "networkPolicy.enabled=true", "networkPolicy.metricsNamespaces={monitoring}")
    (rule,) = cast(list[Object], at(of_kind(made, "NetworkPolicy")[0], "spec", "ingress"))
    assert rule["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    assert at(rule, "from", 0, "namespaceSelector", "matchExpressions", 0, "values") == ["monitoring"]
