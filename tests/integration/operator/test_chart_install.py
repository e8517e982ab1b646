"""The chart against the real API server: installed by the real Helm, and its rights used by the real operator."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
import yaml
from pydantic import JsonValue

from tests.cluster.host import process
from tests.cluster.kubeconfig import render_kubeconfig, write_private
from tests.cluster.light import LightCluster, light_cluster
from tests.cluster.paths import REPOSITORY_ROOT
from tests.cluster.services.binaries import Binary, ensure
from tests.integration.api.manifests import ADAPTER, CHART, CRD_FOLDER, JOB, ApiServer, at, changed, documents

pytestmark = pytest.mark.integration

SYSTEM_NAMESPACE = "claas-system"
CHART_NAMESPACE = "chart-system"
NAMESPACED = ("--set", "watchNamespaces={team-a}", "--set", "rbac.userRoles=false")
OPERATOR = f"system:serviceaccount:{SYSTEM_NAMESPACE}:claas-claas-operator"


@pytest.fixture(scope="session")
def helm() -> Path:
    return ensure([Binary.HELM])[Binary.HELM]


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """A cluster of its own: what a release makes is cluster-wide."""
    with light_cluster() as cluster:
        server = ApiServer(cluster, "team-a")
        for namespace in (SYSTEM_NAMESPACE, "team-a", "team-b"):
            server.kubectl("create", "namespace", namespace)
        yield server
        server.close()


@pytest.fixture(scope="module")
def shared(api_server: LightCluster) -> Iterator[ApiServer]:
    """The session's cluster, for what leaves nothing there but namespaces."""
    server = ApiServer(api_server, "chart-team")
    for namespace in (CHART_NAMESPACE, "chart-team"):
        server.kubectl("create", "namespace", namespace)
    yield server
    server.close()


def rendered(helm: Path, *settings: str) -> str:
    return process.run([helm, "template", "claas", CHART, "--namespace", SYSTEM_NAMESPACE, *settings])


@pytest.mark.parametrize(
    "settings",
    [
        ["networkPolicy.trainer.namespaces={chart-team}"],
        ["watchNamespaces={chart-team}", "rbac.userRoles=false"],
        [
            *("gateway.enabled=true", "gateway.keys=required", "gateway.ingress.enabled=true"),
            *("gateway.ingress.hosts={claas.example}", "gateway.adapterTemplate.namespace=chart-team"),
            *("gateway.adapterTemplate.spec.model.name=base", "gateway.sampleVolumes={adapters}"),
        ],
        [
            *("gateway.enabled=true", "gateway.keys=off", "gateway.database.urlSecretName=database"),
            *("gateway.autoscaling.enabled=true", "watchNamespaces={chart-team}"),
        ],
    ],
    ids=["cluster", "namespaced", "gateway with SQLite", "gateway with PostgreSQL"],
)
def test_the_rendered_chart_is_accepted(shared: ApiServer, helm: Path, settings: list[str]) -> None:
    values = ["--set", "networkPolicy.enabled=true", *(part for each in settings for part in ("--set", each))]
    text = process.run([helm, "template", "claas", CHART, "--namespace", CHART_NAMESPACE, *values])
    dry_run = ("--server-side", "--force-conflicts", "--dry-run=server")
    output = shared.kubectl_anywhere("apply", *dry_run, "-f", "-", stdin=text)
    assert output.count("(server dry run)") == len(documents(text))


# What the operator does, by API group and resource.
NEEDED = [
    ("list", "claas.dev", "loraadapters"),
    ("watch", "claas.dev", "distilljobs"),
    ("patch", "claas.dev", "distilljobs/status"),
    ("delete", "claas.dev", "distilljobs"),
    ("create", "batch", "jobs"),
    ("watch", "", "pods"),
    ("delete", "", "pods"),
    ("watch", "apps", "deployments"),
    ("patch", "apps", "deployments"),
    ("create", "", "services"),
    ("get", "", "persistentvolumeclaims"),
    ("patch", "", "configmaps"),
    ("create", "", "secrets"),
    ("watch", "coordination.k8s.io", "leases"),
    ("update", "coordination.k8s.io", "leases"),
    ("list", "", "events"),
    ("create", "", "events"),
]
FORBIDDEN = [
    ("list", "", "secrets"),
    ("create", "", "pods"),
    ("create", "", "pods/exec"),
    ("get", "", "pods/log"),
    ("patch", "claas.dev", "loraadapters"),
    ("patch", "claas.dev", "distilljobs"),
    ("delete", "apps", "deployments"),
    ("delete", "", "services"),
    ("delete", "", "persistentvolumeclaims"),
    ("create", "rbac.authorization.k8s.io", "roles"),
    ("impersonate", "", "users"),
]


GATEWAY = f"system:serviceaccount:{SYSTEM_NAMESPACE}:claas-claas-operator-gateway"
# What the gateway does; the last two only where adapters are made from a template.
GATEWAY_NEEDS = [
    ("watch", "claas.dev", "loraadapters"),
    ("watch", "claas.dev", "distilljobs"),
    ("create", "claas.dev", "distilljobs"),
    ("watch", "apps", "deployments"),
    ("watch", "", "pods"),
    ("watch", "coordination.k8s.io", "leases"),
    ("get", "", "secrets"),
    ("create", "", "secrets"),
    ("patch", "", "secrets"),
    ("delete", "", "secrets"),
]
GATEWAY_MAKES_ADAPTERS = [("create", "claas.dev", "loraadapters"), ("delete", "claas.dev", "loraadapters")]
GATEWAY_FORBIDDEN = [
    *(("list", "", "secrets"), ("create", "", "pods"), ("delete", "", "pods"), ("get", "", "pods/log")),
    *(("create", "", "pods/exec"), ("patch", "claas.dev", "loraadapters"), ("patch", "claas.dev", "distilljobs")),
    *(("update", "coordination.k8s.io", "leases"), ("create", "batch", "jobs"), ("impersonate", "", "users")),
]


@pytest.mark.parametrize("scope", ["cluster", "namespaced"])
def test_rbac_grants_the_gateway_what_it_does_and_adapters_only_where_its_template_makes_them(
    server: ApiServer, helm: Path, scope: str
) -> None:
    def allowed(namespace: str, right: tuple[str, str, str]) -> bool:
        return server.review(GATEWAY, namespace, *right)

    own = NAMESPACED if scope == "namespaced" else ("--set", "rbac.userRoles=false")
    gateway = ("--set", "gateway.enabled=true", "--set", "gateway.keys=required")
    server.kubectl_anywhere("apply", "--server-side", "-f", "-", stdin=rendered(helm, *own, *gateway))
    for right in GATEWAY_NEEDS:
        assert allowed("team-a", right), right
        assert allowed("team-b", right) == (scope == "cluster"), right
    for right in [*GATEWAY_FORBIDDEN, *GATEWAY_MAKES_ADAPTERS]:
        assert not allowed("team-a", right), right
    template = ("gateway.adapterTemplate.namespace=team-a", "gateway.adapterTemplate.spec.model.name=base")
    template_values = [part for each in template for part in ("--set", each)]
    server.kubectl_anywhere(
        "apply", "--server-side", "-f", "-", stdin=rendered(helm, *own, *gateway, *template_values)
    )
    for right in GATEWAY_MAKES_ADAPTERS:
        assert allowed("team-a", right), right
        assert not allowed("team-b", right), right


def test_rbac_grants_a_namespaced_operator_its_namespaces_and_no_others(server: ApiServer, helm: Path) -> None:
    server.kubectl_anywhere("apply", "--server-side", "-f", "-", stdin=rendered(helm, *NAMESPACED))
    for verb, group, resource in NEEDED:
        assert server.review(OPERATOR, "team-a", verb, group, resource), f"{verb} {resource}"
        assert not server.review(OPERATOR, "team-b", verb, group, resource), f"{verb} {resource} elsewhere"
    for verb, group, resource in FORBIDDEN:
        assert not server.review(OPERATOR, "team-a", verb, group, resource), f"{verb} {resource}"


def test_helm_installs_and_upgrades_and_what_users_made_outlives_an_uninstall(server: ApiServer, helm: Path) -> None:
    def call(*arguments: str) -> str:
        settings = ["--kubeconfig", str(server.cluster.kubeconfig), "--namespace", SYSTEM_NAMESPACE]
        return process.run([helm, *settings, *arguments])

    call("install", "claas", str(CHART))
    server.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    for verb, group, resource in NEEDED:
        assert server.review(OPERATOR, "anywhere", verb, group, resource), f"{verb} {resource}"
    for verb, group, resource in FORBIDDEN:
        assert not server.review(OPERATOR, "anywhere", verb, group, resource), f"{verb} {resource}"
    assert server.create(ADAPTER).status == 201
    call("upgrade", "claas", str(CHART), "--set", "networkPolicy.enabled=true", "--set", "logLevel=DEBUG")
    deployment = server.kubectl_anywhere("get", "deployments", "--namespace", SYSTEM_NAMESPACE, "-o", "yaml")
    variables = at(yaml.safe_load(deployment), "items.0.spec.template.spec.containers.0.env")
    assert {"name": "CLAAS_LOG_LEVEL", "value": "DEBUG"} in cast(list[JsonValue], variables)
    assert "NAME" in server.kubectl_anywhere("get", "networkpolicies", "--namespace", SYSTEM_NAMESPACE)
    call("uninstall", "claas", "--cascade=background")
    assert "tone" in server.kubectl("get", "loraadapters")
    own = ("-A", "-l", "app.kubernetes.io/part-of=claas", "-o", "name")
    assert server.kubectl_anywhere("get", "deployments,clusterroles,serviceaccounts", *own) == ""
    call("install", "claas", str(CHART))
    assert "tone" in server.kubectl("get", "loraadapters")


OLD_CHART = """
apiVersion: v2
name: claas-operator
version: 0.0.1
"""


def test_the_upgrade_in_the_docs_keeps_set_values_and_takes_those_that_are_new(
    server: ApiServer, helm: Path, tmp_path: Path
) -> None:
    """Helm's `--reuse-values` would leave out every value that the older chart did not have."""
    page = (REPOSITORY_ROOT / "docs" / "upgrading.md").read_text("utf-8")
    (command,) = re.findall(r"^helm (upgrade .*)$", page, re.MULTILINE)
    (tmp_path / "Chart.yaml").write_text(OLD_CHART, "utf-8")
    (tmp_path / "values.yaml").write_text("logLevel: INFO\nresyncSeconds: 77\n", "utf-8")
    kubeconfig = ["--kubeconfig", str(server.cluster.kubeconfig)]
    own = ["--namespace", SYSTEM_NAMESPACE, "--set", "logLevel=DEBUG"]
    process.run([helm, *kubeconfig, "install", "claas", tmp_path, *own])
    process.run([helm, *kubeconfig, *command.replace("helm/claas-operator", str(CHART)).split()])
    deployment = server.kubectl_anywhere("get", "deployments", "--namespace", SYSTEM_NAMESPACE, "-o", "yaml")
    variables = cast(list[JsonValue], at(yaml.safe_load(deployment), "items.0.spec.template.spec.containers.0.env"))
    for name, value in (("LOG_LEVEL", "DEBUG"), ("RESYNC_SECONDS", "30"), ("METRICS_PORT", "8080")):
        assert {"name": f"CLAAS_{name}", "value": value} in variables


def test_helm_refuses_a_wrong_value_before_it_touches_the_cluster(shared: ApiServer, helm: Path) -> None:
    result = subprocess.run(
        [
            helm,
            "--kubeconfig",
            shared.cluster.kubeconfig,
            "install",
            "wrong",
            CHART,
            "--set",
            "executionMode=quantum",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode != 0
    assert "executionMode" in result.stderr


PACKAGES = ("crds", "contract", "kube", "vllm_client", "operator", "vllm_companion")
HEALTH_PORT = 8081
WORK_TIMEOUT_SECONDS = 60.0
CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: adapters}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
"""


def wait_for(what: str, check: Callable[[], bool], running: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + WORK_TIMEOUT_SECONDS
    while not check():
        assert running is None or running.poll() is None, f"the operator ended before {what}"
        assert time.monotonic() < deadline, f"{what} took longer than {WORK_TIMEOUT_SECONDS:.0f} s"
        time.sleep(0.25)


def health_port_is_free() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", HEALTH_PORT)) != 0


def operator_kubeconfig(server: ApiServer, folder: Path) -> Path:
    """A kubeconfig with the rights of the chart's service account, and no others."""
    cluster: LightCluster = server.cluster
    account = ("--namespace", SYSTEM_NAMESPACE, "create", "token", "claas-claas-operator")
    token = server.kubectl_anywhere(*account).strip()
    return write_private(
        folder / "kubeconfig", render_kubeconfig(cluster.url, authority=cluster.authority, token=token)
    )


def start_operator(kubeconfig: Path, log: Path, watch_namespaces: str) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(REPOSITORY_ROOT / package / "src") for package in PACKAGES),
        "KUBECONFIG": str(kubeconfig),
        "CLAAS_TRAINER_IMAGE": "claas-trainer:test",
        "CLAAS_WATCH_NAMESPACES": watch_namespaces,
        "CLAAS_RESYNC_SECONDS": "2",
        "POD_NAME": "operator-under-test",
        "POD_NAMESPACE": SYSTEM_NAMESPACE,
    }
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "claas_operator"], env=environment, stdout=output, stderr=subprocess.STDOUT
        )


@pytest.mark.parametrize(
    ("settings", "watched"),
    [pytest.param((), "", id="cluster"), pytest.param(NAMESPACED, "team-a", id="namespaced")],
)
def test_the_rights_of_the_chart_are_all_that_the_operator_needs(
    server: ApiServer, helm: Path, tmp_path: Path, settings: tuple[str, ...], watched: str
) -> None:
    server.kubectl_anywhere("apply", "--server-side", "-f", str(CRD_FOLDER))
    chart = rendered(helm, "--set", "crds.enabled=false", *settings)
    server.kubectl_anywhere("apply", "--server-side", "-f", "-", stdin=chart)
    server.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    server.kubectl("apply", "--server-side", "-f", "-", stdin=CLAIM)
    assert server.create(ADAPTER).status == 201
    job = changed(changed(JOB, "spec.ttlSecondsAfterFinished", 0), "spec.activeDeadlineSeconds", 5)
    assert server.create(job).status == 201
    wait_for("the operator's port to be free", health_port_is_free)
    log = tmp_path / "operator.log"
    operator = start_operator(operator_kubeconfig(server, tmp_path), log, watched)
    try:
        # Secret and batch Job of the initial version, the companion; below: status, finalizer, Event, deletions.
        names = "secrets,jobs,configmaps,leases"
        made = ("secret/tone-", "job.batch/tone-", "configmap/claas-vllm-companion")
        wait_for(
            "what the operator makes",
            lambda: all(name in server.kubectl("get", names, "-o", "name") for name in made),
            operator,
        )
        wait_for(
            "status",
            lambda: (
                "DeploymentNotFound" in server.kubectl("get", "lad,dj", "-o", "yaml")
                and "Admitted" in server.kubectl("get", "dj", "-o", "yaml")
            ),
            operator,
        )
        assert not server.kubectl("get", "lad,dj", "-o", "jsonpath={.items[*].metadata.finalizers}").strip()
        assert "LoraAdapter" in server.kubectl("get", "events.events.k8s.io", "-o", "yaml")
        # A job waits for its adapter until its deadline; a failed job with no time to live is deleted.
        server.kubectl("delete", "lad", "tone", "--wait=false")
        wait_for("the adapter to go", lambda: "tone" not in server.kubectl("get", "lad", "-o", "name"), operator)
        wait_for("the job to go", lambda: "step" not in server.kubectl("get", "dj", "-o", "name"), operator)
    finally:
        operator.terminate()
        try:
            operator.wait(20)
        except subprocess.TimeoutExpired:
            operator.kill()
            operator.wait(10)
    refused = [line for line in log.read_text().splitlines() if re.search(r"403|[Ff]orbidden|permission", line)]
    assert refused == []
