"""Everything can be deleted at any time, with the operator there or not, and leaves nothing behind."""

from __future__ import annotations

import time

import httpx
import pytest

from claas_crds.v1alpha1.serving import HandoverKind
from tests.builders.resources import distill_job, lora_adapter
from tests.e2e.conftest import TRAINING
from tests.e2e.stage.handovers import assert_step_was_taken_once, pauses
from tests.e2e.stage.scene import Scene, scale_operator
from tests.stack import resources
from tests.stack.resources import wait_for

pytestmark = pytest.mark.e2e


def _served_names(scene: Scene, url: str) -> list[str]:
    models = httpx.get(f"{url}/v1/models", timeout=10, trust_env=False).raise_for_status().json()
    return [model["id"] for model in models["data"]]


def test_a_job_deleted_in_mid_step_frees_serving_and_one_of_the_same_name_is_a_new_job(
    scene: Scene, handover: HandoverKind
) -> None:
    before = scene.served()
    url = scene.url()
    name = f"twice-{handover.lower()}"
    with scene.held_at("stepping") as fault:
        first = scene.apply(name)
        fault.reached()
        assert scene.is_asleep(url) == pauses(handover)
        scene.stack.kubectl("delete", "distilljob", name, "-n", scene.namespace, "--wait=true")
        scene.answered_by(url, 45)
        wait_for("the lease to be free", lambda: not scene.lease_holder(), 45)
        assert scene.answered_by(url) == f"{scene.adapter_name}@{before}"
    second = scene.apply(name)
    assert second.metadata.uid != first.metadata.uid
    job = scene.finished(name)
    assert_step_was_taken_once(scene, job, before, handover)
    assert scene.versions_of(first) == []


def test_a_version_whose_job_is_deleted_before_its_report_is_adopted(scene: Scene) -> None:
    before = scene.served()
    with scene.held_at("published") as fault:
        first = scene.apply("adopted-version")
        fault.reached()
        scene.stack.kubectl("delete", "distilljob", "adopted-version", "-n", scene.namespace, "--wait=true")
    (version,) = scene.versions_of(first)
    wait_for("the version to be adopted", lambda: scene.adapter().status.latest_version == before + 1, 120)
    assert scene.adapter().status.versions[-1].job == "adopted-version"
    scene.apply("after-adoption")
    job = scene.finished("after-adoption", 180)
    assert job.status.parent_version == version.record.number == before + 1


def test_an_adapter_deleted_in_mid_step_fails_its_job_and_is_taken_out_of_service(scene: Scene) -> None:
    kubectl = scene.stack.kubectl
    name = "shortlived"
    kubectl.apply([lora_adapter(name, scene.namespace, training=TRAINING)])
    resources.wait_served(scene.stack, scene.namespace, name, 0)
    url = scene.url()
    kubectl.apply([distill_job("orphaned", scene.namespace, name)])
    wait_for("a trainer", lambda: scene.job("orphaned").status.attempts == 1, 60)
    kubectl("delete", "loraadapter", name, "-n", scene.namespace, "--wait=true", timeout_seconds=20)
    job = scene.finished("orphaned", 60)
    failed = next(condition for condition in job.status.conditions if condition.type == "Failed")
    assert failed.reason == "AdapterDeleted"
    wait_for("the adapter to go from vLLM", lambda: name not in _served_names(scene, url), 90)
    assert scene.answered_by(url)


def test_everything_is_deletable_while_the_operator_is_absent(scene: Scene) -> None:
    kubectl = scene.stack.kubectl
    name = "abandoned"
    kubectl.apply([lora_adapter(name, scene.namespace, training=TRAINING)])
    resources.wait_served(scene.stack, scene.namespace, name, 0)
    url = scene.url()
    scale_operator(scene.stack, 0)
    try:
        kubectl.apply([distill_job("abandoned", scene.namespace, name)])
        began = time.monotonic()
        kubectl("delete", f"distilljob/{name}", f"loraadapter/{name}", "-n", scene.namespace, "--wait=true")
        assert time.monotonic() - began < 15
        assert name in _served_names(scene, url)
    finally:
        scale_operator(scene.stack, 1)
    wait_for("the adapter to go from vLLM", lambda: name not in _served_names(scene, url), 60)
