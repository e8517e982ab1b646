"""A cluster in mid-work, as an earlier release left it, under this release's CRDs and operator."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from claas_kube.objects.meta import Manifest
from claas_kube.resources import ADAPTERS, BATCH_JOBS, DISTILL_JOBS, PODS, Resource
from tests.cluster.kubectl import kubectl_for
from tests.simulation.cluster_api import field, text
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.scene import Scene, Simulation, VllmPod, holds, reason_of
from tests.simulation.vllm_pod import VllmServer
from tests.upgrade.recording import RELEASES, MovedCluster, Recording, restricted

pytestmark = pytest.mark.integration

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
ENDED = {"inline": "Succeeded", "config-map": "Succeeded", "failed": "Failed", "rejected": "Failed"}


@dataclass(frozen=True)
class Upgraded:
    """The recorded namespace, with an operator of this release that has come upon it."""

    scene: Scene
    cluster: MovedCluster

    def recorded(self, kind: str) -> list[Manifest]:
        """The objects of a kind as they were put there."""
        return [each for each in self.cluster.objects if each["kind"] == kind]

    def pod(self, name: str) -> VllmPod:
        """One of the vLLM pods."""
        return next(pod for pod in self.scene.pods if pod.name == name)

    def let_trainers_end(self) -> None:
        """Have the trainers of the earlier release end, as they did."""
        api, namespace = self.scene.simulation.api, self.scene.namespace
        for folder, versions in self.cluster.volume_after.items():
            self.scene.simulation.volume.restore(namespace, folder, versions)
        self.scene.simulation.run(_awake(self.pod("tone-0").server))
        for each in self.cluster.ended:
            resource, status = (PODS, {}) if each["kind"] == "Pod" else (BATCH_JOBS, {"active": 0})
            told = field(each, "status")
            assert isinstance(told, dict)
            ended: Manifest = {"status": {**status, **told}}
            name = text(each, "metadata", "name")
            self.scene.simulation.run(api.merge(resource, namespace, name, ended, "status"))


@pytest.fixture(scope="module", params=RELEASES)
def upgraded(
    request: pytest.FixtureRequest, simulation: Simulation, operator_process: OperatorProcess
) -> Iterator[Upgraded]:
    """What an earlier release had recorded, with its operator gone and this one in its place."""
    if operator_process.running:
        operator_process.stop()
    namespace = f"upgraded-{uuid.uuid4().hex[:4]}"
    cluster = Recording(request.param).moved(namespace, simulation.port, simulation.next_address)
    upgraded = Upgraded(Scene(simulation, namespace), cluster)
    for folder, versions in cluster.volume.items():
        simulation.volume.restore(namespace, folder, versions)
    with_pods = {text(pod, "metadata", "ownerReferences", 0, "uid") for pod in upgraded.recorded("Pod")}
    for uid in with_pods - {""}:
        simulation.node.leave_alone(uid)
    for pod in upgraded.recorded("Pod"):
        if text(pod, "metadata", "labels", "app"):
            upgraded.scene.pods.append(_vllm_pod(simulation, namespace, pod))
    simulation.run(_asleep(upgraded.pod("tone-0").server))
    cluster.put(simulation.cluster.etcd_url)
    operator_process.start_leading()
    yield upgraded
    upgraded.scene.tear_down()


def _vllm_pod(simulation: Simulation, namespace: str, pod: Manifest) -> VllmPod:
    name = text(pod, "metadata", "name")
    server = VllmServer(
        namespace,
        text(pod, "status", "podIP"),
        simulation.port,
        simulation.volume,
        simulation.folder / namespace / name,
        companion=name != "early-0",
        persists=False,
    )
    simulation.run(server.start())
    return VllmPod(name, text(pod, "metadata", "uid"), server)


async def _asleep(server: VllmServer) -> None:
    server.app.sleep()


async def _awake(server: VllmServer) -> None:
    server.app.wake()


def test_all_that_was_under_way_comes_to_its_right_end(upgraded: Upgraded) -> None:
    scene = upgraded.scene
    scene.wait_for_adapter("gone", lambda adapter: adapter.status.latest_version == 1, 40)
    for name in ("paused", "beside", "preparing"):
        job = scene.wait_for_job(name, lambda job: reason_of(job.status.conditions, "Trained") == "Running")
        assert scene.runs(name) == [], "a trainer was started beside the one that runs"
    assert upgraded.pod("tone-0").server.app.wakes == []
    upgraded.let_trainers_end()
    for name, attempts, number in (("paused", 1, 4), ("beside", 1, 1), ("preparing", 2, 1)):
        job = scene.wait_until(name, "Complete", 60)
        assert (job.status.attempts, job.status.produced_version) == (attempts, number)
        assert scene.runs(name) == []
    for name in ("queued-secret", "queued-file", "swapping"):
        scene.wait_until(name, "Complete", 60)
    tone = scene.wait_for_adapter("tone", lambda adapter: adapter.status.served_version == 6)
    assert [version.parent for version in tone.status.versions] == [None, 0, 1, 2, 2, 4, 5]
    assert scene.job("suspended").status.phase == "Suspended"
    scene.merge(DISTILL_JOBS, "suspended", {"spec": {"suspend": False}})
    scene.wait_until("suspended", "Complete", 40)
    for name, phase in ENDED.items():
        assert scene.job(name).status.phase == phase
        assert scene.runs(name) == []
    assert reason_of(scene.job("waits").status.conditions, "Admitted") == "AdapterNotReady"
    for deployment in ("tone", "pair", "early", "swap", "gone"):
        scene.wait_for_adapter(deployment, lambda adapter: holds(adapter.status.conditions, "Ready"), 40)

        def free(deployment: str = deployment) -> bool:
            lease = scene.lease(deployment)
            return lease is not None and lease.grant is None and not lease.unaccounted

        scene.wait("a free lease", free)


@pytest.mark.parametrize("resource", [ADAPTERS, DISTILL_JOBS], ids=["adapters", "jobs"])
def test_what_users_keep_in_files_can_be_applied_again_and_changes_nothing(
    upgraded: Upgraded, resource: Resource
) -> None:
    scene = upgraded.scene
    kubectl = kubectl_for(scene.simulation.cluster.kubeconfig)
    for recorded in upgraded.recorded("LoraAdapter" if resource is ADAPTERS else "DistillJob"):
        name = text(recorded, "metadata", "name")
        kept: Manifest = {
            "apiVersion": recorded["apiVersion"],
            "kind": recorded["kind"],
            "metadata": {"name": name, "namespace": scene.namespace},
            "spec": recorded["spec"],
        }
        applied = text(recorded, "metadata", "annotations", LAST_APPLIED)
        if applied:
            kubectl("apply", "-f", "-", stdin=applied)
        kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(kept))
        now = scene.get(resource, name)
        if name != "suspended":
            # Fields of later releases are there with their defaults.
            assert restricted(field(now, "spec"), recorded["spec"]) == recorded["spec"]


@pytest.mark.parametrize("server_side", [[], ["--server-side", "--force-conflicts"]], ids=["client", "server"])
def test_an_engine_that_was_a_name_can_be_written_as_a_union_and_back(
    upgraded: Upgraded, server_side: list[str]
) -> None:
    scene = upgraded.scene
    kubectl = kubectl_for(scene.simulation.cluster.kubeconfig)
    (recorded,) = [each for each in upgraded.recorded("LoraAdapter") if field(each, "spec", "engine") == "local"]
    manifest = json.loads(text(recorded, "metadata", "annotations", LAST_APPLIED))
    written: list[Manifest | str] = [{"local": {}}, "local"]
    for engine in written:
        manifest["spec"]["engine"] = engine
        kubectl("apply", *server_side, "-f", "-", stdin=json.dumps(manifest))
        adapter = scene.wait_for_adapter(
            "tone", lambda adapter: adapter.status.observed_generation == adapter.metadata.generation
        )
        assert field(scene.get(ADAPTERS, "tone"), "spec", "engine") == engine
        assert adapter.spec.engine is not None
        assert adapter.spec.engine.name == "local"
