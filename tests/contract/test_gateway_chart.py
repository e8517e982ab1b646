"""The chart's gateway, rendered by the real Helm."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import yaml
from pydantic import JsonValue

from claas_gateway.settings import Settings
from tests.contract.chart import CHART, Object, at, call, helm_binary, of_kind, one, template

pytestmark = pytest.mark.contract

NAME = "claas-claas-operator-gateway"
ON = ["gateway.enabled=true", "gateway.keys=required"]
POSTGRESQL = [*ON, "gateway.database.urlSecretName=database"]
TEMPLATE = ["gateway.adapterTemplate.namespace=team-a", "gateway.adapterTemplate.spec.model.name=base"]


@pytest.fixture(scope="session")
def helm() -> Path:
    return helm_binary()


def own(objects: list[Object]) -> list[Object]:
    """Those of the gateway."""
    return [
        each
        for each in objects
        if cast(Object, at(each, "metadata", "labels")).get("app.kubernetes.io/component") == "gateway"
    ]


def deployment(helm: Path, *settings: str) -> Object:
    return one(template(helm, *settings), "Deployment", NAME)


def container(found: Object) -> Object:
    return cast(Object, at(found, "spec", "template", "spec", "containers", 0))


def environment(found: Object) -> dict[str, str]:
    """The values that the container's variables have; those that the cluster fills in are set by their source."""
    return {
        cast(str, each["name"]): cast(str, each.get("value", "from the cluster"))
        for each in cast(list[Object], container(found)["env"])
    }


def refusal(helm: Path, *settings: str) -> str:
    options = [part for each in settings for part in ("--set", each)]
    result = call(helm, "template", "claas", str(CHART), "--namespace", "claas-system", *options)
    assert result.returncode != 0
    return result.stderr


def test_the_gateway_is_off_until_asked_for(helm: Path) -> None:
    assert own(template(helm)) == []


def test_with_sqlite_it_is_one_replica_with_a_volume_of_its_own(helm: Path) -> None:
    objects = template(helm, *ON)
    assert sorted((cast(str, each["kind"]), cast(str, at(each, "metadata", "name"))) for each in own(objects)) == [
        ("ClusterRole", NAME),
        ("ClusterRoleBinding", NAME),
        ("Deployment", NAME),
        ("PersistentVolumeClaim", NAME),
        ("Service", NAME),
        ("ServiceAccount", NAME),
    ]
    spec = at(one(objects, "Deployment", NAME), "spec")
    assert at(spec, "replicas") == 1
    assert at(spec, "strategy") == {"type": "Recreate"}
    claim = one(objects, "PersistentVolumeClaim")
    assert at(claim, "spec", "accessModes") == ["ReadWriteOnce"]
    assert at(claim, "metadata", "annotations") == {"helm.sh/resource-policy": "keep"}
    settings = Settings.from_environment(environment(one(objects, "Deployment", NAME)))
    folder = Path(settings.database_url.removeprefix("sqlite+aiosqlite:///")).parent
    assert {"name": "data", "mountPath": str(folder)} in cast(
        list[JsonValue], container(one(objects, "Deployment", NAME))["volumeMounts"]
    )


def test_with_postgresql_it_has_replicas_a_disruption_budget_and_no_volume(helm: Path) -> None:
    objects = template(helm, *POSTGRESQL, "gateway.replicas=3")
    assert {each["kind"] for each in own(objects)} == {
        *("ClusterRole", "ClusterRoleBinding", "Deployment", "Service", "ServiceAccount", "PodDisruptionBudget"),
    }
    found = one(objects, "Deployment", NAME)
    assert at(found, "spec", "replicas") == 3
    assert at(found, "spec", "strategy", "type") == "RollingUpdate"
    (url,) = (
        each for each in cast(list[Object], container(found)["env"]) if each["name"] == "CLAAS_GATEWAY_DATABASE_URL"
    )
    assert url["valueFrom"] == {"secretKeyRef": {"name": "database", "key": "url"}}
    assert at(one(objects, "PodDisruptionBudget"), "spec", "selector") == at(found, "spec", "selector")


def test_an_autoscaler_sets_the_replicas_in_place_of_the_chart(helm: Path) -> None:
    objects = template(helm, *POSTGRESQL, "gateway.autoscaling.enabled=true")
    assert "replicas" not in cast(Object, at(one(objects, "Deployment", NAME), "spec"))
    target = at(one(objects, "HorizontalPodAutoscaler"), "spec", "scaleTargetRef")
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME}


IMPOSSIBLE = {
    "no choice about keys": (["gateway.enabled=true"], "gateway.keys: choose whether clients need an API key"),
    "SQLite, several replicas": (
        [*ON, "gateway.replicas=2"],
        "SQLite serves one replica. Give a PostgreSQL database",
    ),
    "SQLite, autoscaling": ([*ON, "gateway.autoscaling.enabled=true"], "SQLite serves one replica"),
    "fewest above most": (
        [*POSTGRESQL, "gateway.autoscaling.enabled=true", "gateway.autoscaling.minReplicas=9"],
        "gateway.autoscaling.minReplicas is above",
    ),
    "autoscaling, no request": (
        [*POSTGRESQL, "gateway.autoscaling.enabled=true", "gateway.resources.requests.cpu=null"],
        "gateway.resources.requests.cpu, which is not set",
    ),
    "Ingress without a host": ([*ON, "gateway.ingress.enabled=true"], "gateway.ingress.hosts: name the hosts"),
    "HTTPRoute without a Gateway": ([*ON, "gateway.httpRoute.enabled=true"], "gateway.httpRoute.parentRefs: name"),
    "template without a spec": ([*ON, TEMPLATE[0]], "gateway.adapterTemplate: it needs `namespace`"),
    "template in a namespace that nobody watches": (
        [*ON, *TEMPLATE, "watchNamespaces={b}"],
        "gateway.adapterTemplate.namespace is team-a, which watchNamespaces does not list",
    ),
    "somebody else's ServiceAccount without a name": (
        [*ON, "gateway.serviceAccount.create=false"],
        "gateway.serviceAccount.name: name the ServiceAccount",
    ),
    "another word about keys": (["gateway.enabled=true", "gateway.keys=optional"], "at '/gateway/keys'"),
    "a misspelt value": ([*ON, "gateway.retention=3"], "additional properties 'retention' not allowed"),
}


@pytest.mark.parametrize(("settings", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_what_cannot_work_is_refused_with_what_to_do(helm: Path, settings: list[str], message: str) -> None:
    assert message in refusal(helm, *settings)


@pytest.mark.parametrize(
    ("setting", "field", "expected"),
    [
        ("gateway.keys=off", "keys_required", False),
        ("gateway.keys=required", "keys_required", True),
        ("gateway.keysSecret=my-keys", "keys_secret", "my-keys"),
        ("gateway.requestsPerMinute=600", "requests_per_minute", 600),
        ("gateway.largestBodyBytes=33554432", "largest_body_bytes", 33554432),
        ("gateway.holdSeconds=30", "hold_seconds", 30.0),
        ("gateway.coldStartSeconds=300", "cold_start_seconds", 300.0),
        ("gateway.feedbackWaitSeconds=20", "feedback_wait_seconds", 20.0),
        ("gateway.retentionDays=0", "retention_days", 0),
        ("gateway.replaysPerBatch=0", "replays_per_batch", 0),
        ("gateway.hideThinking=false", "hide_thinking", False),
        ("watchNamespaces={a,b,a}", "watch_namespaces", ("a", "b")),
        ("logLevel=DEBUG", "log_level", "DEBUG"),
        ("gateway.sampleVolumes={adapters}", "sample_volumes", Path("/samples")),
    ],
)
def test_values_reach_the_gateways_settings(helm: Path, setting: str, field: str, expected: object) -> None:
    settings = Settings.from_environment(environment(deployment(helm, *ON, setting)))
    assert getattr(settings, field) == expected


def test_the_charts_defaults_are_the_gateways_own(helm: Path) -> None:
    bare = {"CLAAS_GATEWAY_KEYS": "required", "CLAAS_GATEWAY_DATABASE_URL": "sqlite+aiosqlite:////data/gateway.db"}
    ours = {**environment(deployment(helm, *ON))}
    del ours["POD_NAME"], ours["POD_NAMESPACE"]
    assert Settings.from_environment(ours) == Settings.from_environment(bare)


def test_a_bare_off_in_a_values_file_turns_keys_off(helm: Path, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text("gateway: {enabled: true, keys: off}")
    result = call(helm, "template", "claas", str(CHART), "--values", str(file))
    assert result.returncode == 0, result.stderr
    objects = [cast(Object, each) for each in yaml.safe_load_all(result.stdout) if each]
    assert environment(one(objects, "Deployment", NAME))["CLAAS_GATEWAY_KEYS"] == "off"


def test_the_pod_meets_the_restricted_pod_security_standard(helm: Path) -> None:
    found = deployment(helm, *ON)
    security = cast(Object, at(found, "spec", "template", "spec", "securityContext"))
    assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 65532)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(found)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_template_is_mounted_where_the_gateway_reads_it_and_a_change_of_it_restarts_the_pod(helm: Path) -> None:
    objects = template(helm, *ON, *TEMPLATE)
    found = one(objects, "Deployment", NAME)
    path = Settings.from_environment(environment(found)).adapter_template
    assert path is not None
    data = cast(dict[str, str], one(objects, "ConfigMap")["data"])
    assert yaml.safe_load(data[path.name]) == {"namespace": "team-a", "spec": {"model": {"name": "base"}}}
    mounts = cast(list[Object], container(found)["volumeMounts"])
    assert str(path.parent) in [each["mountPath"] for each in mounts]
    changed = deployment(helm, *ON, *TEMPLATE, "gateway.adapterTemplate.spec.model.name=other")
    annotations = ("spec", "template", "metadata", "annotations")
    assert at(found, *annotations) != at(changed, *annotations)


def test_only_a_gateway_with_a_template_may_make_adapters_and_only_in_its_namespace(helm: Path) -> None:
    def makers(*settings: str) -> list[JsonValue]:
        return [
            at(each, "metadata", "namespace")
            for each in own(template(helm, *ON, *settings))
            if each["kind"] in ("Role", "ClusterRole")
            for rule in cast(list[dict[str, list[str]]], each["rules"])
            if "loraadapters" in rule["resources"] and "create" in rule["verbs"]
        ]

    assert makers() == []
    assert makers(*TEMPLATE) == ["team-a"]


def test_operator_and_gateway_have_accounts_and_rights_of_their_own(helm: Path) -> None:
    objects = template(helm, *ON, "watchNamespaces={a,b}")
    for each in of_kind(objects, "RoleBinding"):
        subject = cast(str, at(each, "subjects", 0, "name"))
        assert (subject == NAME) == (at(each, "roleRef", "name") == NAME)
    assert [at(each, "metadata", "namespace") for each in of_kind(objects, "Role", NAME)] == ["a", "b"]
    without = template(helm, "watchNamespaces={a,b}")
    assert [each for each in objects if each not in own(objects)] == without


def test_the_gateways_policy_admits_clients_and_reaches_what_it_needs(helm: Path) -> None:
    policies = ["networkPolicy.enabled=true", "networkPolicy.vllmPorts={8000,9000}"]

    def policy(*settings: str) -> Object:
        return cast(Object, one(template(helm, *policies, *settings), "NetworkPolicy", NAME)["spec"])

    def ports(rules: JsonValue) -> list[list[JsonValue]]:
        return [[port["port"] for port in cast(list[Object], rule["ports"])] for rule in cast(list[Object], rules)]

    plain = policy(*ON)
    assert plain["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    assert ports(plain["egress"]) == [[443, 6443], [53, 53], [8000, 9000]]
    assert ports(policy(*POSTGRESQL)["egress"])[-1] == [5432]
    closed = policy(*ON, "networkPolicy.gateway.clientNamespaces={ingress}", "networkPolicy.metricsNamespaces={m}")
    assert ports(closed["ingress"]) == [["http"], ["metrics"]]
    values = ("from", 0, "namespaceSelector", "matchExpressions", 0, "values")
    assert [at(rule, *values) for rule in cast(list[Object], closed["ingress"])] == [["ingress"], ["m"]]


def test_ingress_and_http_route_lead_to_its_service(helm: Path) -> None:
    objects = template(
        helm, *ON,
        "gateway.ingress.enabled=true", "gateway.ingress.hosts={a.example,b.example}",
        "gateway.httpRoute.enabled=true", "gateway.httpRoute.parentRefs[0].name=public",
        "gateway.httpRoute.timeouts.request=300s",
    )  # fmt: skip
    rules = cast(list[Object], at(one(objects, "Ingress"), "spec", "rules"))
    assert [each["host"] for each in rules] == ["a.example", "b.example"]
    assert at(rules[0], "http", "paths", 0, "backend", "service") == {"name": NAME, "port": {"name": "http"}}
    route = at(one(objects, "HTTPRoute"), "spec")
    assert at(route, "rules", 0, "backendRefs") == [{"name": NAME, "port": 80}]
    assert at(route, "rules", 0, "timeouts") == {"request": "300s"}
    assert at(route, "parentRefs") == [{"name": "public"}]


def test_the_pods_labels_and_names_stay_its_own(helm: Path) -> None:
    found = deployment(
        helm, *ON, "commonLabels.team=ml", "gateway.podLabels.app\\.kubernetes\\.io/component=operator"
    )
    labels = cast(Object, at(found, "spec", "template", "metadata", "labels"))
    selector = cast(Object, at(found, "spec", "selector", "matchLabels"))
    assert selector["app.kubernetes.io/component"] == "gateway"
    assert selector.items() <= labels.items()
    assert labels["team"] == "ml"


def test_the_notes_say_how_to_make_a_key_or_what_it_means_that_there_are_none(helm: Path) -> None:
    def notes(keys: str) -> str:
        settings = ["--set", "gateway.enabled=true", "--set", f"gateway.keys={keys}"]
        result = call(helm, "install", "claas", str(CHART), "--dry-run=client", *settings)
        assert result.returncode == 0, result.stderr
        return result.stdout.split("NOTES:", 1)[1]

    assert "kubectl create secret generic claas-gateway-keys" in notes("required")
    assert "Everybody who reaches it sees and changes everything" in notes("off")
    assert "create secret" not in notes("off")
