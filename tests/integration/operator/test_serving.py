"""vLLM servers as the operator keeps them: loaded again, told what is wrong with them, used without the companion."""

from __future__ import annotations

import base64

import httpx
import pytest

from claas_crds.v1alpha1.conditions import condition_of
from claas_kube.resources import ADAPTERS, CONFIG_MAPS, SECRETS
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.scene import CONTROL_SECRET, Scene, holds, reason_of
from tests.simulation.vllm_pod import CONTROL_TOKEN

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("companion", [True, False], ids=["with-the-companion", "without-it"])
def test_a_server_that_comes_back_with_nothing_loaded_serves_the_version_again(
    operator: OperatorProcess, scene: Scene, companion: bool
) -> None:
    (pod,) = scene.serve(companion=companion)
    scene.ready_adapter()
    scene.apply_job()
    scene.wait_until("step", "Complete")
    scene.simulation.run(pod.server.stop())
    scene.set_ready(pod, False)
    scene.wait_for_adapter("tone", lambda adapter: reason_of(adapter.status.conditions, "Ready") == "NoReadyPods")
    scene.simulation.run(pod.server.start())
    assert pod.server.app.loads == []
    scene.set_ready(pod, True)
    adapter = scene.wait_for_adapter("tone", lambda adapter: holds(adapter.status.conditions, "Ready"))
    assert adapter.status.served_version == 1
    assert pod.server.app.loads[-1].endswith("/versions/1")


def test_a_server_without_the_companion_is_served_by_vllms_own_routes_and_says_what_is_lost(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve(companion=False)
    adapter = scene.ready_adapter()
    assert reason_of(adapter.status.conditions, "CompanionReady") == "CompanionMissing"
    assert list(pod.server.app.adapters) == ["tone"]
    scene.apply_job()
    scene.wait_until("step", "Complete")
    assert pod.server.app.adapters["tone"].endswith("/versions/1")


def test_a_wrong_control_token_is_told_blocks_jobs_and_heals_when_it_is_put_right(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.merge(SECRETS, CONTROL_SECRET, {"stringData": {"token": "a-wrong-token"}})
    scene.apply_adapter()
    adapter = scene.wait_for_adapter(
        "tone", lambda adapter: reason_of(adapter.status.conditions, "Ready") == "ControlRefused"
    )
    # Not Stalled: the Secret is so young that the pod may have the old token yet.
    assert holds(adapter.status.conditions, "Reconciling")
    assert reason_of(adapter.status.conditions, "CompanionReady") == "ControlRefused"
    scene.apply_job()
    scene.wait_for_job("step", lambda job: reason_of(job.status.conditions, "Admitted") == "AdapterNotReady")
    assert pod.server.app.adapters == {}
    scene.merge(SECRETS, CONTROL_SECRET, {"stringData": {"token": CONTROL_TOKEN}})
    scene.wait_until("step", "Complete", 40)


@pytest.mark.parametrize(
    "token", [b"\x8f\xff\x00", b"Zm9v\nYmFy", "schl\u00fcssel".encode()], ids=["bytes", "two-lines", "not-ascii"]
)
def test_a_secret_that_holds_no_token_is_told_with_its_key_and_heals(
    operator: OperatorProcess, scene: Scene, token: bytes
) -> None:
    scene.serve()
    scene.merge(SECRETS, CONTROL_SECRET, {"data": {"token": base64.b64encode(token).decode()}})
    scene.apply_adapter()
    adapter = scene.wait_for_adapter(
        "tone", lambda adapter: reason_of(adapter.status.conditions, "Ready") == "SecretInvalid"
    )
    assert holds(adapter.status.conditions, "Stalled")
    ready = condition_of(adapter.status.conditions, "Ready")
    assert ready is not None
    assert f"spec.serving.controlTokenSecretRef: key token of Secret {CONTROL_SECRET} has" in ready.message
    scene.merge(SECRETS, CONTROL_SECRET, {"stringData": {"token": CONTROL_TOKEN}})
    scene.wait_for_adapter("tone", lambda adapter: holds(adapter.status.conditions, "Ready"), 40)


@pytest.mark.parametrize("in_vain", [False, True], ids=["loading-again-helps", "it-does-not-at-first"])
def test_a_version_that_a_wake_has_lost_is_loaded_again_and_told_while_that_does_not_help(
    operator: OperatorProcess, scene: Scene, in_vain: bool
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    scene.apply_job()
    scene.wait_until("step", "Complete")
    served = pod.server.app
    served.silent |= set(served.adapters)
    served.loads_in_vain = in_vain
    token = {"X-Claas-Token": CONTROL_TOKEN}
    httpx.post(f"{pod.server.url}/wake_up", headers=token, trust_env=False).raise_for_status()
    scene.merge(ADAPTERS, "tone", {"metadata": {"annotations": {"seen": "by the operator"}}})
    if in_vain:
        scene.wait_for_adapter(
            "tone", lambda adapter: reason_of(adapter.status.conditions, "Ready") == "AdapterNotApplied"
        )
        served.loads_in_vain = False
    scene.wait("the version", lambda: any(name not in served.silent for name in served.adapters))
    adapter = scene.wait_for_adapter("tone", lambda adapter: holds(adapter.status.conditions, "Ready"))
    assert adapter.status.served_version == 1


def test_a_deployment_that_does_not_mount_the_claim_stalls_the_adapter(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve(mounted=False)
    scene.apply_adapter()
    adapter = scene.wait_for_adapter(
        "tone", lambda adapter: reason_of(adapter.status.conditions, "Ready") == "StorageNotMounted"
    )
    assert holds(adapter.status.conditions, "Stalled")


def test_an_adapter_tells_what_it_names_and_is_missing_and_heals_when_it_appears(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.apply_adapter(controlTokenSecretRef={"name": "later"})

    def waits_for(reason: str) -> None:
        scene.wait_for_adapter("tone", lambda adapter: reason_of(adapter.status.conditions, "Ready") == reason, 35)

    waits_for("SecretNotFound")
    scene.make_secret("later", {"token": CONTROL_TOKEN})
    waits_for("DeploymentNotFound")
    scene.serve()
    waits_for("Serving")


def test_every_replica_serves_the_version_and_each_is_told_apart(operator: OperatorProcess, scene: Scene) -> None:
    pods = scene.serve(replicas=2)
    scene.ready_adapter()
    scene.apply_job()
    scene.wait_until("step", "Complete")
    adapter = scene.wait_for_adapter("tone", lambda adapter: adapter.status.ready_replicas == "2/2")
    assert {replica.pod: replica.version for replica in adapter.status.replicas} == {"vllm-0": 1, "vllm-1": 1}
    assert all(len(pod.server.app.sleeps) == 1 and not pod.server.app.asleep for pod in pods)


def test_a_pod_that_joins_later_is_given_the_version(operator: OperatorProcess, scene: Scene) -> None:
    scene.serve()
    scene.ready_adapter()
    scene.apply_job()
    scene.wait_until("step", "Complete")
    joined = scene.add_vllm_pod("vllm-late", "vllm", True, False, True)
    scene.tell_deployment("vllm", 2)
    scene.wait("the version", lambda: any(path.endswith("/versions/1") for path in joined.server.app.loads))


def test_the_companions_source_is_kept_beside_the_adapter_and_restored(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve()
    scene.ready_adapter()
    name = "claas-vllm-companion"
    assert scene.get(CONFIG_MAPS, name) is not None
    scene.delete(CONFIG_MAPS, name)
    # Looked for at each resync (30 s), by an answer that may be 15 s old.
    scene.wait("the ConfigMap", lambda: scene.get(CONFIG_MAPS, name), 60)
