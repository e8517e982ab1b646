"""An adapter that is trained and served through Tinker, on the real cluster: from a wrong key to a killed trainer."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from claas_kube.objects.resources import AdapterObject
from tests.e2e.stage import processes
from tests.e2e.stage.scene import Scene
from tests.stack import resources, serving, tinker
from tests.stack.install import Stack
from tests.stack.resources import wait_for
from tests.stack.traffic import Traffic

pytestmark = pytest.mark.e2e

NAMESPACE = "e2e-tinker"
ADAPTER = "remote"
TRAINING = {"learning_rate": 5e-3, "weight_decay": 0.0}
WRONG_KEY = "tml-some-other-key"


@pytest.fixture(scope="module")
def remote(stack: Stack) -> Iterator[Scene]:
    """A namespace with a Tinker service and an adapter, whose Secret holds a wrong key at first."""
    serving.remove(stack, serving.Serving(NAMESPACE, "", serving.volume_folder(NAMESPACE)))
    made = tinker.create(stack, NAMESPACE, key=WRONG_KEY)
    url = tinker.base_url(stack, NAMESPACE)
    stack.kubectl.apply([tinker.tinker_adapter(ADAPTER, NAMESPACE, url, training=TRAINING)])
    yield Scene(stack, made, ADAPTER)
    serving.remove(stack, made)


def proxy(scene: Scene) -> str:
    return tinker.proxy_url(scene.stack, scene.adapter())


def saves(service: str) -> int:
    """How many times the service was asked to save a training state."""
    calls = httpx.get(f"{service}/peer/calls", trust_env=False).raise_for_status().json()
    return sum(call["operation"] == "save_state" for call in calls)


def test_a_wrong_key_is_told_and_the_right_one_brings_version_0_into_service(remote: Scene) -> None:
    def refused() -> AdapterObject | None:
        found = remote.adapter()
        ready = [each for each in found.status.conditions if each.type == "Ready"]
        return found if any("CredentialsRefused" in (each.message or "") for each in ready) else None

    found = wait_for("the wrong key to be refused", refused, 90)
    assert WRONG_KEY not in found.model_dump_json()
    remote.stack.kubectl.apply([tinker.key_secret(NAMESPACE, tinker.API_KEY)])
    resources.wait_served(remote.stack, NAMESPACE, ADAPTER, 0, timeout_seconds=180)
    assert remote.answered_by(proxy(remote)) == f"{ADAPTER}@0"


def test_a_step_makes_a_version_that_the_proxy_answers_with_and_no_request_fails(remote: Scene) -> None:
    with Traffic(proxy(remote), ADAPTER, clients=1, max_tokens=8, pause_seconds=0.5) as traffic:
        remote.apply("first")
        job = remote.finished("first", 180)
        traffic.wait_for_answers(2)
    assert job.status.phase == "Succeeded", job.status.conditions
    assert traffic.felt.failures == []
    assert remote.answered_by(proxy(remote)) == f"{ADAPTER}@1"
    assert job.status.timings.sleep is None
    assert tinker.API_KEY not in job.model_dump_json()


def test_a_trainer_that_is_killed_in_mid_step_leaves_one_version_and_the_old_one_answers_meanwhile(
    remote: Scene,
) -> None:
    service = tinker.base_url(remote.stack, NAMESPACE)
    slow = {"at": ["save_state"], "effect": {"kind": "slow", "seconds": 5}, "first": 1, "times": 1}
    httpx.post(f"{service}/peer/failures", json=slow, trust_env=False).raise_for_status()
    before = saves(service)
    job = remote.apply("killed")
    wait_for("the step to be taken", lambda: saves(service) > before, 120)
    processes.kill(remote.running_trainer(job))
    assert remote.answered_by(proxy(remote)) == f"{ADAPTER}@1"
    job = remote.finished("killed", 180)
    assert job.status.phase == "Succeeded", job.status.conditions
    assert job.status.attempts == 2
    (version,) = remote.versions_of(job)
    assert version.record.number == 2
    assert remote.answered_by(proxy(remote)) == f"{ADAPTER}@2"
