"""An adapter that is trained and served on Modal, on the real cluster: wrong token, killed trainer, lost platform."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from claas_kube.objects.resources import AdapterObject
from tests.e2e.stage import processes
from tests.e2e.stage.scene import Scene
from tests.peers.modal.server import TOKEN_SECRET
from tests.stack import modal, resources, serving
from tests.stack.install import Stack
from tests.stack.resources import wait_for
from tests.stack.traffic import Traffic
from tools.modal_live_check import main

pytestmark = pytest.mark.e2e

NAMESPACE = "e2e-modal"
ADAPTER = "rented"
TRAINING = {"learning_rate": 5e-3, "teacher_top_k": 20, "weight_decay": 0.0}
WRONG_SECRET = "as-some-other-secret"
COLD_SECONDS = 300.0
"""Time for a vLLM on the CPU to start in a container, on a busy machine."""


@pytest.fixture(scope="module")
def rented(stack: Stack) -> Iterator[Scene]:
    """A namespace with the platform, both apps on it, and an adapter, whose Secret holds a wrong token at first."""
    serving.remove(stack, serving.Serving(NAMESPACE, "", serving.volume_folder(NAMESPACE)))
    made = modal.create(stack, NAMESPACE, token_secret=WRONG_SECRET)
    stack.kubectl.apply([modal.modal_adapter(ADAPTER, NAMESPACE, training=TRAINING)])
    yield Scene(stack, made, ADAPTER)
    serving.remove(stack, made)


def answered_by(scene: Scene) -> str:
    """Which version answers on Modal, asked with the proxy token alone."""
    asked = modal.server(scene.adapter())
    return scene.answered_by(asked.url, COLD_SECONDS, asked.headers)


def serves(scene: Scene, version: int) -> None:
    resources.wait_served(scene.stack, NAMESPACE, ADAPTER, version, timeout_seconds=COLD_SECONDS)
    assert answered_by(scene) == f"{ADAPTER}@{version}"


def test_a_wrong_token_is_told_and_the_right_one_brings_version_0_into_service(rented: Scene) -> None:
    def refused() -> AdapterObject | None:
        found = rented.adapter()
        ready = [each for each in found.status.conditions if each.type == "Ready"]
        told = [f"{each.reason}: {each.message}" for each in ready]
        return found if any("CredentialsRefused" in each for each in told) else None

    found = wait_for("the wrong token to be refused", refused, 180)
    assert WRONG_SECRET not in found.model_dump_json()
    rented.stack.kubectl.apply([modal.token(NAMESPACE, TOKEN_SECRET)])
    serves(rented, 0)


def test_a_step_makes_a_version_that_modal_answers_with_and_no_request_fails(rented: Scene) -> None:
    asked = modal.server(rented.adapter())
    clients = Traffic(asked.url, ADAPTER, clients=1, max_tokens=8, pause_seconds=0.5, headers=asked.headers)
    with clients as traffic:
        rented.apply("first")
        job = rented.finished("first", 240)
        traffic.wait_for_answers(2)
    assert job.status.phase == "Succeeded", job.status.conditions
    assert traffic.felt.failures == []
    assert answered_by(rented) == f"{ADAPTER}@1"
    assert job.status.timings.sleep is None
    assert TOKEN_SECRET not in job.model_dump_json()


def test_the_live_check_finds_all_but_https_as_the_engine_assumes(
    rented: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in modal.platform(rented.stack, NAMESPACE).environment.items():
        monkeypatch.setenv(name, value)
    assert main([modal.MODEL, "--yes"]) == 1
    differing = [line for line in capsys.readouterr().out.splitlines() if "DIFFERS" in line]
    assert len(differing) == 1, differing
    assert "the server's address: http://" in differing[0]
    assert answered_by(rented) == f"{ADAPTER}@1"


def test_a_trainer_that_is_killed_during_the_call_leaves_it_to_the_next_attempt(rented: Scene) -> None:
    platform = modal.platform(rented.stack, NAMESPACE)
    before = len(platform.steps())
    platform.order("failures", at=["FunctionPutOutputs"], effect={"kind": "slow", "seconds": 20}, times=1)
    job = rented.apply("killed")
    wait_for("the call to be made", lambda: len(platform.steps()) > before, 120)
    wait_for("the call to be in the journal", lambda: b'"fc-' in journal(rented, job.metadata.uid), 30)
    processes.kill(rented.running_trainer(job))
    assert answered_by(rented) == f"{ADAPTER}@1"
    job = rented.finished("killed", 240)
    assert job.status.phase == "Succeeded", job.status.conditions
    assert job.status.attempts == 2
    (version,) = rented.versions_of(job)
    assert version.record.number == 2
    assert [len(step.runs) for step in platform.steps()[before:]] == [1]
    assert answered_by(rented) == f"{ADAPTER}@2"


def test_a_platform_that_has_lost_its_apps_is_told_and_serves_the_newest_version_once_they_are_deployed_again(
    rented: Scene,
) -> None:
    (pod,) = resources.pods(rented.stack, NAMESPACE, f"app={modal.PEER}")
    processes.kill(pod)
    wait_for("the platform to be gone", lambda: not modal.is_ready(rented.stack, NAMESPACE), 30)
    platform = modal.platform(rented.stack, NAMESPACE)
    job = rented.apply("undeployed", backoffLimit=0)
    job = rented.finished("undeployed", 180)
    assert "AppNotDeployed" in job.status.model_dump_json()
    modal.deploy(rented.serving, platform)
    rented.apply("deployed")
    job = rented.finished("deployed", 400)
    assert job.status.phase == "Succeeded", job.status.conditions
    serves(rented, 3)


def journal(scene: Scene, uid: str) -> bytes:
    """What the attempts at a job wrote down."""
    path = scene.store.root / "journal" / f"{uid}.jsonl"
    return path.read_bytes() if path.exists() else b""
