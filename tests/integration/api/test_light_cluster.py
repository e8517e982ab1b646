"""Light mode of the test cluster: it comes up in seconds, serves, and leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster import light
from tests.cluster.host import process
from tests.cluster.light import LightCluster, light_cluster
from tests.cluster.paths import REPOSITORY_ROOT, light_root
from tests.cluster.services.binaries import Binary, ensure

pytestmark = pytest.mark.integration

CONFIG_MAP = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "greeting", "namespace": "default"},
    "data": {"word": "hello"},
}


OWNER_PROGRAM = """
from tests.cluster.light import light_cluster
with light_cluster() as cluster:
    print(cluster.root, flush=True)
    input()
"""


def kubectl(cluster: LightCluster, *arguments: str, stdin: str | None = None) -> str:
    binary = ensure([Binary.KUBECTL])[Binary.KUBECTL]
    return process.run([binary, "--kubeconfig", cluster.kubeconfig, *arguments], input_text=stdin)


def test_a_light_cluster_stores_what_is_applied(api_server: LightCluster) -> None:
    kubectl(api_server, "apply", "--server-side", "-f", "-", stdin=json.dumps(CONFIG_MAP))
    stored = kubectl(api_server, "get", "configmap", "greeting", "-o", "jsonpath={.data.word}")
    assert stored == "hello"


def test_a_light_cluster_serves_resource_claims_so_that_they_can_be_schema_tested(
    api_server: LightCluster,
) -> None:
    assert "resource.k8s.io/v1" in kubectl(api_server, "api-versions").split()


def test_a_light_cluster_accepts_pods_without_a_service_account_controller(api_server: LightCluster) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "idle", "namespace": "default"},
        "spec": {"containers": [{"name": "idle", "image": "none"}]},
    }
    assert "idle" in kubectl(api_server, "create", "-f", "-", stdin=json.dumps(pod))


def test_a_second_light_cluster_comes_up_in_seconds_beside_the_first_and_leaves_no_process(
    api_server: LightCluster,
) -> None:
    began = time.monotonic()
    with light_cluster() as second:
        assert time.monotonic() - began < 30
        assert second.url != api_server.url
        started = process.recorded(second.root / "pids")
        assert {each.name for each in started} == {"etcd", "kube-apiserver"}
        assert all(process.is_alive(each) for each in started)
    assert not any(process.is_alive(each) for each in started)
    assert not second.root.exists()


def test_a_light_cluster_whose_owner_was_killed_is_removed_by_the_next() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER_PROGRAM],
        cwd=REPOSITORY_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    root = Path(owner.stdout.readline().strip())
    orphans = process.recorded(root / "pids")
    assert len(orphans) == 2
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    assert all(process.is_alive(each) for each in orphans)
    light.remove_orphans()
    assert not any(process.is_alive(each) for each in orphans)
    assert root.parent == light_root()
    assert not root.exists()
