"""The chart, rendered by the real Helm: each template, each value that matters, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from pydantic import JsonValue

from claas_contract.engine import ENGINE_NEEDS, ServingNeed
from claas_operator.plan.naming import ENGINE_LABEL
from tests.contract.chart import CHART, Object, at, call, helm_binary, of_kind, one, template
from tools.crd.manifests import custom_resource_definitions

pytestmark = pytest.mark.contract

DIGEST = f"sha256:{'ab' * 32}"


@pytest.fixture(scope="session")
def helm() -> Path:
    return helm_binary()


def rules_of(objects: list[Object]) -> Iterator[dict[str, list[str]]]:
    for each in objects:
        if each["kind"] in ("Role", "ClusterRole"):
            yield from cast(list[dict[str, list[str]]], each["rules"])


def pod_spec(objects: list[Object]) -> Object:
    return cast(Object, at(one(objects, "Deployment"), "spec", "template", "spec"))


def environment(objects: list[Object]) -> dict[str, JsonValue]:
    variables = cast(list[Object], at(pod_spec(objects), "containers", 0, "env"))
    return {cast(str, each["name"]): each.get("value") for each in variables}


def test_the_chart_passes_a_strict_lint(helm: Path) -> None:
    result = call(helm, "lint", "--strict", str(CHART))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 chart(s) failed" in result.stdout


def test_every_value_has_a_comment_above_it() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    groups = (
        *(
            "crds:",
            "image:",
            "trainer:",
            "remote:",
            "podSecurityContext:",
            "serviceAccount:",
            "rbac:",
            "networkPolicy:",
            "modalApps:",
        ),
        *("metrics:", "serviceMonitor:", "prometheusRule:", "dashboard:"),
        *("gateway:", "database:", "persistence:", "autoscaling:", "service:", "ingress:", "httpRoute:"),
    )
    bare = [
        line
        for above, line in zip(["", *lines], lines, strict=False)
        if ":" in line and not line.lstrip().startswith("#") and not above.lstrip().startswith("#")
    ]
    # Below `resources` stand Kubernetes' own fields; a group is explained by what is in it.
    kubernetes_own = ("requests:", "limits:", "cpu:", "memory:")
    assert [line for line in bare if line.strip() not in groups and not line.strip().startswith(kubernetes_own)] == []


def test_the_default_release_has_exactly_these_objects(helm: Path) -> None:
    objects = template(helm)
    assert sorted((cast(str, each["kind"]), cast(str, at(each, "metadata", "name"))) for each in objects) == [
        ("ClusterRole", "claas-claas-operator"),
        ("ClusterRole", "claas-edit"),
        ("ClusterRole", "claas-view"),
        ("ClusterRoleBinding", "claas-claas-operator"),
        ("CustomResourceDefinition", "distilljobs.claas.dev"),
        ("CustomResourceDefinition", "loraadapters.claas.dev"),
        ("Deployment", "claas-claas-operator"),
        ("ServiceAccount", "claas-claas-operator"),
    ]


def test_the_crds_are_those_generated_from_the_models(helm: Path) -> None:
    objects = template(helm)
    for name, definition in custom_resource_definitions().items():
        assert one(objects, "CustomResourceDefinition", name)["spec"] == definition["spec"]


def test_the_crds_outlive_the_release_unless_told_otherwise(helm: Path) -> None:
    keep = {"helm.sh/resource-policy": "keep"}
    assert all(
        at(each, "metadata", "annotations") == keep for each in of_kind(template(helm), "CustomResourceDefinition")
    )
    dropped = of_kind(template(helm, "crds.keep=false"), "CustomResourceDefinition")
    assert dropped
    assert all("annotations" not in cast(Object, each["metadata"]) for each in dropped)


def test_the_crds_can_be_left_to_somebody_else(helm: Path) -> None:
    assert of_kind(template(helm, "crds.enabled=false"), "CustomResourceDefinition") == []


def test_the_operator_pod_meets_the_restricted_pod_security_standard(helm: Path) -> None:
    spec = pod_spec(template(helm))
    security = cast(Object, spec["securityContext"])
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == 65532
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    containers = cast(list[Object], spec["containers"])
    assert [each["securityContext"] for each in containers] == [
        {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    ]
    assert {"name": "tmp", "mountPath": "/tmp"} in cast(list[JsonValue], containers[0]["volumeMounts"])


def test_the_operators_user_and_group_can_be_left_to_the_cluster(helm: Path) -> None:
    spec = pod_spec(template(helm, "podSecurityContext.runAsUser=null", "podSecurityContext.runAsGroup=null"))
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert "securityContext" not in pod_spec(template(helm, "podSecurityContext=null"))


NUMBERS = [
    ("image: {tag: 20261127}", "/image/tag"),
    ("trainer: {image: {tag: 2.10}}", "/trainer/image/tag"),
    ("remote: {image: {tag: 2.10}}", "/remote/image/tag"),
    ("image: {tag: 1e5}", "/image/tag"),
    ("nodeSelector: {gpu: true}", "/nodeSelector/gpu"),
    ("podLabels: {version: 1.20}", "/podLabels/version"),
    ("podAnnotations: {a: 1}", "/podAnnotations/a"),
    ("commonLabels: {team: 7}", "/commonLabels/team"),
    ("serviceAccount: {annotations: {id: 12}}", "/serviceAccount/annotations/id"),
    ("extraEnv: [{name: A, value: 1}]", "/extraEnv/0/value"),
    ("priorityClassName: 5", "/priorityClassName"),
    ("watchNamespaces: [2026]", "/watchNamespaces/0"),
]


@pytest.mark.parametrize(("values", "path"), NUMBERS, ids=[row[0] for row in NUMBERS])
def test_a_number_where_text_belongs_is_refused_with_what_to_do(
    helm: Path, tmp_path: Path, values: str, path: str
) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(values)
    result = call(helm, "template", "claas", str(CHART), "--values", str(file))
    assert result.returncode != 0
    assert (
        f"at '{path}': value must be 'text: write the value in quotes (with --set use --set-string)'" in result.stderr
    )


@pytest.mark.parametrize("tag", ["20261127", "2.10", "1e5"])
def test_a_tag_of_digits_in_quotes_is_taken_as_it_stands(helm: Path, tag: str) -> None:
    result = call(helm, "template", "claas", str(CHART), "--set-string", f"image.tag={tag}")
    assert f'image: "claas-operator:{tag}"' in result.stdout


def test_one_operator_runs_at_a_time(helm: Path) -> None:
    spec = at(one(template(helm), "Deployment"), "spec")
    assert at(spec, "replicas") == 1
    assert at(spec, "strategy", "type") == "Recreate"


def test_the_deployment_selects_its_own_pods_whatever_labels_are_added(helm: Path) -> None:
    added = ["app\\.kubernetes\\.io/name=other", "app\\.kubernetes\\.io/component=trainer", "team=ml"]
    objects = template(helm, *(f"{value}.{label}" for value in ("commonLabels", "podLabels") for label in added))
    spec = at(one(objects, "Deployment"), "spec")
    labels = cast(Object, at(spec, "template", "metadata", "labels"))
    selector = cast(Object, at(spec, "selector", "matchLabels"))
    assert selector["app.kubernetes.io/component"] == "operator"
    assert selector.items() <= labels.items()
    assert labels["team"] == "ml"
    assert all(at(each, "metadata", "labels", "team") == "ml" for each in objects)


@pytest.mark.parametrize(
    ("settings", "variable", "expected"),
    [
        ([], "CLAAS_DISTILL_EXECUTION_MODE", "local"),
        (["executionMode=tinker"], "CLAAS_DISTILL_EXECUTION_MODE", "tinker"),
        ([], "CLAAS_REMOTE_TRAINER_IMAGE", "claas-trainer-remote:0.1.0"),
        (["remote.image.repository=r/s", "remote.image.tag=dev"], "CLAAS_REMOTE_TRAINER_IMAGE", "r/s:dev"),
        (["remote.image.repository=r/s", "remote.image.tag=dev"], "CLAAS_INFERENCE_PROXY_IMAGE", "r/s:dev"),
        ([f"remote.image.digest={DIGEST}"], "CLAAS_INFERENCE_PROXY_IMAGE", f"claas-trainer-remote@{DIGEST}"),
        ([], "CLAAS_MAX_CONCURRENT_STEPS", "20"),
        (["remote.maxConcurrentSteps=3"], "CLAAS_MAX_CONCURRENT_STEPS", "3"),
        (["executionMode=modal"], "CLAAS_DISTILL_EXECUTION_MODE", "modal"),
        (["remote.modalServerUrl=http://modal:8080"], "CLAAS_MODAL_SERVER_URL", "http://modal:8080"),
        ([], "CLAAS_TRAINER_IMAGE", "claas-trainer:0.1.0"),
        (["trainer.image.repository=r/t", "trainer.image.tag=dev"], "CLAAS_TRAINER_IMAGE", "r/t:dev"),
        ([f"trainer.image.digest={DIGEST}"], "CLAAS_TRAINER_IMAGE", f"claas-trainer@{DIGEST}"),
        (["trainer.image.pullPolicy=Never"], "CLAAS_TRAINER_IMAGE_PULL_POLICY", "Never"),
        ([], "CLAAS_TRAINER_IDENTITY", "Fixed"),
        (["trainer.identity=Assigned"], "CLAAS_TRAINER_IDENTITY", "Assigned"),
        ([], "CLAAS_WATCH_NAMESPACES", ""),
        (["watchNamespaces={a,b,a}"], "CLAAS_WATCH_NAMESPACES", "a,b"),
        (["resyncSeconds=5"], "CLAAS_RESYNC_SECONDS", "5"),
        (["defaultTtlSecondsAfterFinished=604800"], "CLAAS_DEFAULT_TTL_SECONDS", "604800"),
        (["defaultTtlSecondsAfterFinished=0"], "CLAAS_DEFAULT_TTL_SECONDS", "0"),
        (["logLevel=DEBUG"], "CLAAS_LOG_LEVEL", "DEBUG"),
        ([], "CLAAS_METRICS_PORT", "8080"),
        (["metrics.port=9090"], "CLAAS_METRICS_PORT", "9090"),
        (["extraEnv[0].name=X", "extraEnv[0].value=y"], "X", "y"),
    ],
)
def test_values_reach_the_operator_as_environment(
    helm: Path, settings: list[str], variable: str, expected: str
) -> None:
    assert environment(template(helm, *settings))[variable] == expected


def test_the_modal_client_chooses_its_address_by_default(helm: Path) -> None:
    assert "CLAAS_MODAL_SERVER_URL" not in environment(template(helm))


def test_finished_jobs_stay_by_default(helm: Path) -> None:
    assert "CLAAS_DEFAULT_TTL_SECONDS" not in environment(template(helm))


def test_the_operator_may_watch_what_its_index_has(helm: Path) -> None:
    watched = {
        resource
        for rule in rules_of(template(helm, "rbac.userRoles=false"))
        for resource in rule["resources"]
        if {"list", "watch"} <= set(rule["verbs"])
    }
    assert watched == {"loraadapters", "distilljobs", "jobs", "pods", "deployments", "leases"}


def test_the_operator_learns_its_own_name_and_namespace(helm: Path) -> None:
    variables = cast(list[Object], at(pod_spec(template(helm)), "containers", 0, "env"))
    fields = {
        each["name"]: at(each, "valueFrom", "fieldRef", "fieldPath") for each in variables if "valueFrom" in each
    }
    assert fields == {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], "claas-operator:0.1.0"),
        (["image.tag=dev"], "claas-operator:dev"),
        (["image.repository=team/op", f"image.digest={DIGEST}", "image.tag=dev"], f"team/op@{DIGEST}"),
    ],
)
def test_the_image_is_named_by_digest_tag_or_app_version(helm: Path, settings: list[str], expected: str) -> None:
    assert at(pod_spec(template(helm, *settings)), "containers", 0, "image") == expected


@pytest.mark.parametrize(
    ("setting", "path", "expected"),
    [
        ("nodeSelector.pool=cpu", ("nodeSelector",), {"pool": "cpu"}),
        ("tolerations[0].key=k", ("tolerations",), [{"key": "k"}]),
        ("affinity.nodeAffinity.x=y", ("affinity",), {"nodeAffinity": {"x": "y"}}),
        ("priorityClassName=high", ("priorityClassName",), "high"),
        ("imagePullSecrets[0].name=s", ("imagePullSecrets",), [{"name": "s"}]),
        ("image.pullPolicy=Always", ("containers", 0, "imagePullPolicy"), "Always"),
        ("resources.limits.memory=1Gi", ("containers", 0, "resources", "limits", "memory"), "1Gi"),
    ],
)
def test_pod_settings_reach_the_pod(
    helm: Path, setting: str, path: tuple[str | int, ...], expected: JsonValue
) -> None:
    assert at(pod_spec(template(helm, setting)), *path) == expected


def test_pod_annotations_reach_the_pod(helm: Path) -> None:
    deployment = one(template(helm, "podAnnotations.a=b"), "Deployment")
    assert at(deployment, "spec", "template", "metadata", "annotations") == {"a": "b"}


def test_the_service_account_can_be_somebody_elses(helm: Path) -> None:
    objects = template(helm, "serviceAccount.create=false", "serviceAccount.name=own")
    assert of_kind(objects, "ServiceAccount") == []
    assert pod_spec(objects)["serviceAccountName"] == "own"
    assert at(one(objects, "ClusterRoleBinding"), "subjects", 0, "name") == "own"


def test_a_service_account_that_is_not_made_must_be_named(helm: Path) -> None:
    result = call(helm, "template", "claas", str(CHART), "--set", "serviceAccount.create=false")
    assert result.returncode != 0
    assert "serviceAccount.name: name the ServiceAccount to use" in result.stderr


MODES = {"cluster": [], "namespaced": ["watchNamespaces={a,b}"]}


@pytest.mark.parametrize("settings", MODES.values(), ids=MODES.keys())
def test_no_rule_has_a_wildcard(helm: Path, settings: list[str]) -> None:
    rules = list(rules_of(template(helm, *settings)))
    assert len(rules) > 5
    for rule in rules:
        assert not {"*"} & {value for values in rule.values() for value in values}, rule
        assert "nonResourceURLs" not in rule


@pytest.mark.parametrize("settings", MODES.values(), ids=MODES.keys())
def test_the_operator_can_neither_list_secrets_nor_enter_pods_nor_change_rights(
    helm: Path, settings: list[str]
) -> None:
    granted = {
        (group, resource, verb)
        for rule in rules_of(template(helm, "rbac.userRoles=false", *settings))
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert {verb for _, resource, verb in granted if resource == "secrets"} == {"get", "create", "patch", "delete"}
    assert not {resource for _, resource, _ in granted} & {"pods/log", "pods/exec", "nodes", "serviceaccounts"}
    assert not {resource for group, resource, _ in granted if group == "rbac.authorization.k8s.io"}
    assert not {verb for _, _, verb in granted} & {"deletecollection", "escalate", "bind", "impersonate"}
    assert {verb for _, resource, verb in granted if resource == "persistentvolumeclaims"} == {"get"}
    proxies = {(resource, verb) for _, resource, verb in granted if resource in ("deployments", "services")}
    watched = {("deployments", verb) for verb in ("get", "list", "watch")}
    made = {("deployments", "create"), ("deployments", "patch")}
    made |= {("services", verb) for verb in ("get", "create", "patch")}
    assert proxies == watched | made
    without = rules_of(template(helm, "rbac.userRoles=false", "rbac.inferenceProxies=false", *settings))
    assert {
        (resource, verb)
        for rule in without
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if resource in ("deployments", "services")
    } == watched


def test_a_namespaced_operator_has_the_same_rights_in_its_namespaces_and_nothing_beyond(helm: Path) -> None:
    objects = template(helm, "watchNamespaces={a,b,a}", "crds.enabled=false", "rbac.userRoles=false")
    assert not [each["kind"] for each in objects if "namespace" not in cast(Object, each["metadata"])]
    roles = {cast(str, at(each, "metadata", "namespace")): each["rules"] for each in of_kind(objects, "Role")}
    assert set(roles) == {"a", "b", "claas-system"}
    everywhere = cast(list[JsonValue], one(template(helm), "ClusterRole", "claas-claas-operator")["rules"])
    assert roles["a"] == roles["b"] == everywhere
    bindings = of_kind(objects, "RoleBinding")
    assert {at(each, "metadata", "namespace") for each in bindings} == set(roles)
    for each in bindings:
        assert at(each, "subjects", 0, "namespace") == "claas-system"
        assert at(each, "roleRef", "name") == at(each, "metadata", "name")


def test_a_namespaced_operator_may_hold_its_own_lease_and_no_other_in_its_own_namespace(helm: Path) -> None:
    role = one(template(helm, "watchNamespaces={a}"), "Role", "claas-claas-operator-leader")
    named = [rule for rule in cast(list[Object], role["rules"]) if rule["verbs"] != ["create"]]
    assert [(rule["resources"], rule["resourceNames"]) for rule in named] == [(["leases"], ["claas-operator"])]


def test_rights_can_be_left_to_somebody_else(helm: Path) -> None:
    for settings in MODES.values():
        assert list(rules_of(template(helm, "rbac.create=false", "rbac.userRoles=false", *settings))) == []


def test_users_rights_are_added_to_the_clusters_own_roles(helm: Path) -> None:
    objects = template(helm)
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    targets = {
        name: {
            label.removeprefix(prefix)
            for label in cast(Object, at(one(objects, "ClusterRole", name), "metadata", "labels"))
            if label.startswith(prefix)
        }
        for name in ("claas-edit", "claas-view")
    }
    assert targets == {"claas-edit": {"admin", "edit"}, "claas-view": {"view"}}


def test_viewers_see_no_samples(helm: Path) -> None:
    view = one(template(helm), "ClusterRole", "claas-view")
    resources = {name for rule in cast(list[dict[str, list[str]]], view["rules"]) for name in rule["resources"]}
    assert resources == {"loraadapters", "loraadapters/status"}


def test_network_policies_are_off_until_asked_for(helm: Path) -> None:
    assert of_kind(template(helm), "NetworkPolicy") == []


def test_the_operators_policy_lets_it_reach_what_it_needs_and_nobody_reach_it(helm: Path) -> None:
    objects = template(helm, "networkPolicy.enabled=true", "networkPolicy.vllmPorts={8000,9000}")
    policy = one(objects, "NetworkPolicy")
    assert at(policy, "spec", "podSelector") == at(one(objects, "Deployment"), "spec", "selector")
    assert at(policy, "spec", "ingress") == []
    ports = [
        sorted({cast(int, port["port"]) for port in cast(list[Object], rule["ports"])})
        for rule in cast(list[Object], at(policy, "spec", "egress"))
    ]
    assert ports == [[443, 6443], [53], [8000, 9000], [8080]]


@pytest.mark.parametrize(
    ("settings", "namespaces"),
    [
        ([], set()),
        (["watchNamespaces={a,b}"], {"a", "b"}),
        (["networkPolicy.trainer.namespaces={c}"], {"c"}),
        (["watchNamespaces={a,b}", "networkPolicy.trainer.namespaces={b}"], {"b"}),
    ],
)
def test_trainers_get_a_policy_in_the_namespaces_that_are_known(
    helm: Path, settings: list[str], namespaces: set[str]
) -> None:
    objects = template(helm, "networkPolicy.enabled=true", *settings)
    for name in ("trainer", "remote"):
        policies = of_kind(objects, "NetworkPolicy", f"claas-claas-operator-{name}")
        assert {at(each, "metadata", "namespace") for each in policies} == namespaces


def test_only_the_operator_may_ask_a_trainer_and_only_for_its_progress(helm: Path) -> None:
    objects = template(
        helm, "networkPolicy.enabled=true", "watchNamespaces={a}", "networkPolicy.trainer.egressPorts={443}"
    )
    spec = at(one(objects, "NetworkPolicy", "claas-claas-operator-trainer"), "spec")
    assert at(spec, "podSelector", "matchLabels") == {"app.kubernetes.io/component": "trainer"}
    assert at(spec, "ingress", 0, "ports") == [{"port": 8080, "protocol": "TCP"}]
    source = at(spec, "ingress", 0, "from", 0)
    assert at(source, "namespaceSelector", "matchLabels") == {"kubernetes.io/metadata.name": "claas-system"}
    assert at(source, "podSelector") == at(one(objects, "Deployment"), "spec", "selector")
    egress = cast(list[Object], at(spec, "egress"))
    assert egress[-1] == {"ports": [{"port": 443, "protocol": "TCP"}]}


def test_only_pods_of_engines_that_compute_elsewhere_may_reach_their_service(helm: Path) -> None:
    objects = template(
        helm, "networkPolicy.enabled=true", "watchNamespaces={a}", "networkPolicy.remote.egressPorts={8443}"
    )
    spec = at(one(objects, "NetworkPolicy", "claas-claas-operator-remote"), "spec")
    elsewhere: list[JsonValue] = [
        name.value for name, needs in ENGINE_NEEDS.items() if needs.serving is ServingNeed.NOTHING
    ]
    assert at(spec, "podSelector", "matchExpressions") == [
        {"key": ENGINE_LABEL, "operator": "In", "values": elsewhere}
    ]
    assert at(spec, "policyTypes") == ["Egress"]
    assert cast(list[Object], at(spec, "egress"))[-1] == {"ports": [{"port": 8443, "protocol": "TCP"}]}
    trainers = at(one(objects, "NetworkPolicy", "claas-claas-operator-trainer"), "spec", "egress")
    assert "8443" not in str(trainers)


def test_operator_and_gateway_may_reach_servers_on_modal_where_there_are_some(helm: Path) -> None:
    release = ("networkPolicy.enabled=true", "gateway.enabled=true", "gateway.keys=off")
    anywhere = {"ports": [{"port": 9443, "protocol": "TCP"}]}
    for name in ("claas-claas-operator", "claas-claas-operator-gateway"):
        for settings, expected in ((["networkPolicy.modalApps.egressPorts={9443}"], True), ([], False)):
            objects = template(helm, *release, *settings)
            egress = cast(list[Object], at(one(objects, "NetworkPolicy", name), "spec", "egress"))
            assert (anywhere in egress) is expected, (name, settings)


def test_names_can_be_set(helm: Path) -> None:
    assert at(one(template(helm, "fullnameOverride=op"), "Deployment"), "metadata", "name") == "op"
    assert at(one(template(helm, "nameOverride=op"), "Deployment"), "metadata", "name") == "claas-op"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("executionMde=local", "additional properties 'executionMde' not allowed"),
        ("image.tga=dev", "at '/image': additional properties 'tga' not allowed"),
        ("executionMode=quantum", "at '/executionMode'"),
        ("remote.modalServerUrl=modal:8080", "at '/remote/modalServerUrl'"),
        ("networkPolicy.modalApps.egressPorts={https}", "at '/networkPolicy/modalApps/egressPorts/0'"),
        ("remote.maxConcurrentSteps=0", "at '/remote/maxConcurrentSteps'"),
        ("remote.image.pullPolicy=Never", "at '/remote/image': additional properties 'pullPolicy' not allowed"),
        ("logLevel=LOUD", "at '/logLevel': value must be one of"),
        ("resyncSeconds=0", "at '/resyncSeconds'"),
        ("defaultTtlSecondsAfterFinished=-1", "at '/defaultTtlSecondsAfterFinished'"),
        ("image.pullPolicy=Sometimes", "at '/image/pullPolicy'"),
        ("image.digest=sha256:12", "at '/image/digest'"),
        ("watchNamespaces={Upper}", "at '/watchNamespaces/0'"),
        ("watchNamespaces=a", "at '/watchNamespaces': got string, want array"),
        ("metrics.port=8081", "at '/metrics/port': 'not' failed"),
        ("metrics.serviceMonitor.interval=often", "at '/metrics/serviceMonitor/interval'"),
        ("metrics.serviceMonitor.enabled=yes", "at '/metrics/serviceMonitor/enabled'"),
        ("crds.keep=maybe", "at '/crds/keep': got string, want boolean"),
        ("networkPolicy.vllmPorts={70000}", "at '/networkPolicy/vllmPorts/0'"),
        ("networkPolicy.apiServerPorts=null", "at '/networkPolicy': missing property 'apiServerPorts'"),
        ("imagePullSecrets[0].nam=x", "at '/imagePullSecrets/0'"),
        ("extraEnv[0].value=x", "missing property 'name'"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(helm: Path, setting: str, message: str) -> None:
    result = call(helm, "template", "claas", str(CHART), "--set", setting)
    assert result.returncode != 0
    assert message in result.stderr


def notes(helm: Path, *settings: str) -> str:
    options = [part for setting in settings for part in ("--set", setting)]
    result = call(helm, "install", "claas", str(CHART), "--dry-run=client", "--namespace", "claas-system", *options)
    assert result.returncode == 0, result.stderr
    return result.stdout.split("NOTES:", 1)[1]


def test_the_notes_say_what_to_do_next(helm: Path) -> None:
    text = notes(helm)
    assert "all namespaces" in text
    assert "rollout status deployment/claas-claas-operator" in text
    assert "kind: LoraAdapter" in text
    assert "kind: DistillJob" in text


def test_the_notes_show_an_adapter_of_the_release_s_execution_mode(helm: Path) -> None:
    """The other one would be refused: a vLLM needs weights, the proxy the service."""
    servers = ("deploymentRef", "tinkerProxy", "modalApp")
    local, tinker, modal = notes(helm), notes(helm, "executionMode=tinker"), notes(helm, "executionMode=modal")
    assert [server in local for server in servers] == [True, False, False]
    assert [server in tinker for server in servers] == [False, True, False]
    assert [server in modal for server in servers] == [False, False, True]
    assert "kubectl create secret generic claas-tinker" in tinker
    assert "kubectl create secret generic claas-modal-proxy" in modal


def test_the_notes_warn_when_the_crds_are_not_part_of_the_release(helm: Path) -> None:
    assert "kubectl get crd loraadapters.claas.dev" in notes(helm, "crds.enabled=false", "watchNamespaces={a}")
