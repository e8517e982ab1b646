"""Adapters whose steps are computed elsewhere: many steps at once behind one vLLM, and inference proxies."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pydantic import JsonValue

from claas_kube.objects.meta import Manifest
from claas_kube.resources import (
    ADAPTERS,
    BATCH_JOBS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISTILL_JOBS,
    EVENTS,
    LEASES,
    PODS,
    SECRETS,
    SERVICES,
)
from tests.cluster.services.control_plane import free_ports
from tests.simulation.cluster_api import field as at
from tests.simulation.cluster_api import text
from tests.simulation.node import Run
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.scene import CONTROL_SECRET, Scene, Simulation, holds, reason_of
from tests.simulation.trainer import Script

pytestmark = pytest.mark.integration

MOST = 6
MANY = 20
KEY = "tml-the-key-of-a-user"
EXPORTED: JsonValue = {"tinker": {"export": True}}
PROXY = "tone-tinker-proxy"


@pytest.fixture
def few_places(
    simulation: Simulation, operator_process: OperatorProcess, tmp_path: Path
) -> Iterator[OperatorProcess]:
    """An operator in place of the session's, which takes few steps at once."""
    if operator_process.running:
        operator_process.stop()
    settings = {"CLAAS_MAX_CONCURRENT_STEPS": str(MOST)}
    process = OperatorProcess(
        simulation.cluster, tmp_path / "operator.log", health_port=free_ports(1)[0], settings=settings
    )
    process.start_leading()
    yield process
    if process.running:
        process.stop()
    print(process.tail())


def most_at_once(runs: Sequence[Run]) -> int:
    """How many of them ran at the same moment."""
    now = time.monotonic()
    return max(sum(run.began <= at.began < (run.ended or now) for run in runs) for at in runs)


def by_tinker(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.document.engine.tinker is not None]


def everything(scene: Scene) -> str:
    """All that lies in the namespace but the Secret with the key."""
    kinds = (ADAPTERS, DISTILL_JOBS, DEPLOYMENTS, SERVICES, LEASES, BATCH_JOBS, PODS, SECRETS, CONFIG_MAPS, EVENTS)
    found = [each for kind in kinds for each in scene.objects(kind)]
    return json.dumps([each for each in found if text(each, "metadata", "name") != "claas-tinker"])


def test_steps_of_twenty_adapters_overlap_none_is_taken_twice_and_one_of_the_local_engine_pauses_vllm_meanwhile(
    few_places: OperatorProcess, scene: Scene
) -> None:
    scene.make_secret("claas-tinker", {"api-key": KEY})
    (pod,) = scene.serve()
    scene.simulation.usual[scene.namespace] = lambda: Script(step_seconds=1.5)
    names = [f"a{number:02}" for number in range(MANY)]
    for name in names:
        scene.apply_adapter(name, engine=EXPORTED)
    scene.ready_adapter("local")
    for name in names:
        scene.wait_for_adapter(name, lambda found: holds(found.status.conditions, "Ready"), timeout_seconds=60)
    for name in names:
        scene.apply_job(f"job-{name}", name)
    scene.apply_job("job-local", "local")
    waiting = scene.wait(
        "a job that says why it waits",
        lambda: [each for each in scene.jobs() if "CLAAS_MAX_CONCURRENT_STEPS" in (each.status.message or "")],
    )
    assert reason_of(waiting[0].status.conditions, "Admitted") == "Queued"
    for name in [*names, "local"]:
        scene.wait_until(f"job-{name}", "Complete", timeout_seconds=90)
    runs = by_tinker(scene.runs())
    assert sorted(run.job or "" for run in runs) == [f"job-{name}" for name in names]
    assert MOST // 2 < most_at_once(runs) <= MOST
    # No step of Tinker waited for the pause, and none made one.
    (local,) = scene.runs("job-local")
    assert any(run.began < (local.ended or 0) and local.began < (run.ended or 0) for run in runs)
    assert len(pod.server.app.sleeps) == len(pod.server.app.wakes) == 1
    for name in names:
        assert scene.adapter(name).status.served_version == 1
    said = everything(scene) + few_places.log.read_text()
    assert KEY not in said
    assert base64.b64encode(KEY.encode()).decode() not in said


def test_an_operator_that_is_replaced_in_mid_step_goes_on_with_each_step_and_keeps_the_limit(
    few_places: OperatorProcess, scene: Scene
) -> None:
    scene.make_secret("claas-tinker", {"api-key": KEY})
    scene.serve()
    names = [f"a{number}" for number in range(MOST + 2)]
    scripts = [scene.script(Script(hold=True), f"job-{name}") for name in names]
    for name in names:
        scene.apply_adapter(name, engine=EXPORTED)
    for name in names:
        scene.wait_for_adapter(name, lambda found: holds(found.status.conditions, "Ready"), timeout_seconds=60)
    for name in names:
        scene.apply_job(f"job-{name}", name)
    scene.wait("steps in every place", lambda: sum(script.reached for script in scripts) == MOST)
    few_places.kill()
    few_places.start_leading()
    time.sleep(3)
    assert len(scene.runs()) == MOST
    for script in scripts:
        script.hold = False
    for name in names:
        scene.wait_until(f"job-{name}", "Complete", timeout_seconds=60)
    assert sorted(run.job or "" for run in scene.runs()) == [f"job-{name}" for name in names]
    assert most_at_once(scene.runs()) <= MOST


def test_an_inference_proxy_is_made_mended_and_used_like_a_vllm(operator: OperatorProcess, scene: Scene) -> None:
    scene.make_secret("claas-tinker", {"api-key": KEY})
    scene.apply_adapter(
        deployment=None,
        engine={"tinker": {}},
        tinkerProxy={"replicas": 1},
        handover="Auto",
        controlTokenSecretRef={"name": CONTROL_SECRET},
    )
    made = scene.wait("the proxy's Deployment", lambda: scene.get(DEPLOYMENTS, PROXY), timeout_seconds=40)
    assert scene.wait("its Service", lambda: scene.get(SERVICES, PROXY))
    # A token of the user's own is used.
    assert scene.get(SECRETS, PROXY) is None
    labels = at(made, "spec", "template", "metadata", "labels")
    assert isinstance(labels, dict)
    scene.add_vllm_pod("proxy-0", PROXY, companion=True, persists=False, mounted=True, labels=labels)
    scene.tell_deployment(PROXY, 1)
    scene.wait_for_adapter("tone", lambda found: holds(found.status.conditions, "Ready"), timeout_seconds=40)
    scene.apply_job()
    scene.wait_until("step", "Complete", timeout_seconds=40)
    assert scene.adapter().status.served_version == 1
    (run,) = scene.runs()
    assert run.served_by == {"proxy-0"}
    changes: Manifest = {"spec": {"replicas": 3}}
    scene.merge(DEPLOYMENTS, PROXY, changes)
    scene.wait("the number of pods in the spec", lambda: at(scene.get(DEPLOYMENTS, PROXY), "spec", "replicas") == 1)
    scene.delete(SERVICES, PROXY)
    scene.delete(DEPLOYMENTS, PROXY)
    scene.wait("the Deployment again", lambda: scene.get(DEPLOYMENTS, PROXY), timeout_seconds=40)
    scene.wait("the Service again", lambda: scene.get(SERVICES, PROXY), timeout_seconds=40)


def test_a_proxy_has_a_token_of_its_own_that_no_later_pass_changes(operator: OperatorProcess, scene: Scene) -> None:
    scene.make_secret("claas-tinker", {"api-key": KEY})
    scene.apply_adapter(
        deployment=None,
        engine={"tinker": {}},
        tinkerProxy={},
        handover="Auto",
        controlTokenSecretRef=None,
    )
    first = scene.wait("the token", lambda: scene.get(SECRETS, PROXY))
    made = scene.wait("the proxy's Deployment", lambda: scene.get(DEPLOYMENTS, PROXY), timeout_seconds=40)
    owner = scene.adapter().metadata.uid
    assert text(made, "metadata", "ownerReferences", 0, "uid") == owner
    assert text(first, "metadata", "ownerReferences", 0, "uid") == owner
    assert len(base64.b64decode(text(first, "data", "token"))) >= 32
    scene.delete(DEPLOYMENTS, PROXY)
    scene.wait("the Deployment again", lambda: scene.get(DEPLOYMENTS, PROXY), timeout_seconds=40)
    again = scene.get(SECRETS, PROXY)
    assert again is not None
    assert at(again, "data") == at(first, "data")
    said = everything(scene) + operator.log.read_text()
    assert KEY not in said


def test_settings_that_the_service_cannot_follow_are_told_before_anything_is_made(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve()
    scene.apply_adapter(engine={"tinker": {}})
    found = scene.wait_for_adapter("tone", lambda each: holds(each.status.conditions, "Stalled"))
    assert reason_of(found.status.conditions, "Stalled") == "EngineRefused"
    assert scene.batch_jobs() == []
    scene.merge(ADAPTERS, "tone", {"spec": {"engine": {"tinker": {"export": True}}}})
    scene.make_secret("claas-tinker", {"api-key": KEY})
    scene.wait_for_adapter("tone", lambda each: holds(each.status.conditions, "Ready"), timeout_seconds=40)
    scene.apply_job(training={"teacher": "ema"})
    scene.wait_until("step", "Failed")
    failed = scene.job()
    assert reason_of(failed.status.conditions, "Failed") == "InvalidInput"
    assert "training.teacher" in (failed.status.message or "")
    # The engine of an adapter with a version stays.
    scene.merge(ADAPTERS, "tone", {"spec": {"engine": {"tinker": None, "local": {}}}})
    found = scene.wait_for_adapter("tone", lambda each: holds(each.status.conditions, "Stalled"))
    assert reason_of(found.status.conditions, "Stalled") == "EngineRefused"
