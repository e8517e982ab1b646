"""One piece of feedback, from apply to a version in service, while clients are answered."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from claas_crds.v1alpha1.serving import HandoverKind
from tests.builders.resources import sample
from tests.e2e.stage.handovers import assert_step_was_taken_once, pauses
from tests.e2e.stage.private_texts import assert_nowhere
from tests.e2e.stage.scene import Scene
from tests.stack import rollouts
from tests.stack.traffic import Traffic
from tests.tiny_model.tasks import Preference, feedback, questions

pytestmark = pytest.mark.e2e

STEP_SECONDS = 2.0


def test_a_job_puts_a_new_version_into_service_and_no_request_fails(scene: Scene, handover: HandoverKind) -> None:
    before = scene.served()
    url = scene.url()
    name = f"step-{handover.lower()}"
    answers = rollouts.sample_rollouts(rollouts.Server(url), scene.adapter_name, questions(8, seed=3), seed=3)
    said = feedback(Preference.NO_EMOJI, 8, seed=3)
    with scene.held_at("stepping") as fault, Traffic(url, scene.adapter_name, pause_seconds=0.2) as traffic:
        scene.apply(name, [answer.as_sample(text) for answer, text in zip(answers, said, strict=True)])
        fault.reached()
        # In the very step: requests wait in a server that sleeps, or are answered.
        assert scene.is_asleep(url) == pauses(handover)
        if not pauses(handover):
            traffic.wait_for_answers(2)
        # Long enough for the trainer to tell serving's speed.
        time.sleep(STEP_SECONDS)
        fault.go_on()
        scene.stack.kubectl(
            "wait", "--for=condition=Complete", f"distilljob/{name}", "-n", scene.namespace, "--timeout=120s",
            timeout_seconds=130,
        )  # fmt: skip
        traffic.wait_for_answers(3)
    assert traffic.felt.failures == []
    assert traffic.felt.versions[-1] == f"{scene.adapter_name}@{before + 1}"
    job = scene.job(name)
    assert_step_was_taken_once(scene, job, before, handover)
    assert job.status.samples.recorded == 8
    assert scene.served() == before + 1
    (version,) = scene.versions_of(job)
    assert version.record.parent == before
    assert ("serving_slowdown_percent" in job.status.metrics) == (handover is HandoverKind.SHARE)


def test_a_finished_job_tells_its_story(scene: Scene) -> None:
    scene.apply("story")
    scene.finished("story")
    kubectl = scene.stack.kubectl
    told = kubectl("describe", "distilljob", "story", "-n", scene.namespace)
    for reason in ("Admitted", "StepTaken", "InService", "Completed"):
        assert reason in told.split("Events:")[0], told
    assert "Completed" in told.split("Events:")[1], told
    listed = kubectl("get", "loraadapters,distilljobs", "-n", scene.namespace, "-o", "wide")
    for heading in ("READY", "REASON", "VERSION", "PHASE", "LOSS", "GAP"):
        assert heading in listed
    assert "made by the trainer" in told or "without recorded tokens" in told


def test_a_sample_written_by_hand_needs_three_texts_which_are_found_nowhere_but_in_the_job(scene: Scene) -> None:
    marks = {"user_prompt": "Quokka8271 asks?", "response": "Wombat5520 says.", "feedback": "Numbat9913 wants"}
    scene.apply("by-hand", [sample(**marks)])
    job = scene.finished("by-hand")
    assert job.status.phase == "Succeeded"
    assert (job.status.samples.total, job.status.samples.reconstructed) == (1, 1)
    assert job.status.metrics["ratio_max"] == pytest.approx(1.0, abs=1e-4)
    kubectl = scene.stack.kubectl
    document = json.loads(kubectl("get", "distilljob", "by-hand", "-n", scene.namespace, "-o", "json"))
    del document["spec"]["samples"]
    assert_nowhere(["Quokka8271", "Wombat5520", "Numbat9913"], scene, job, json.dumps(document))
    assert job.status.trainer_job is not None
    assert job.status.trainer_job not in kubectl("get", "secrets", "-n", scene.namespace, "-o", "name")


def test_a_control_route_is_refused_without_the_token_and_works_with_it(scene: Scene) -> None:
    url = scene.url()
    with httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
        for method, route in (
            ("POST", "/sleep"),
            ("POST", "//sleep"),
            ("POST", "/wake_up/"),
            ("POST", "/collective_rpc"),
            ("POST", "/v1/load_lora_adapter"),
            ("POST", "/v1/unload_lora_adapter"),
            ("PUT", f"/claas/aliases/{scene.adapter_name}"),
            ("GET", "/claas/status"),
        ):
            assert client.request(method, route, json={}).status_code == httpx.codes.FORBIDDEN, route
        assert client.get("/v1/models").status_code == httpx.codes.OK
        token = {"X-Claas-Token": scene.serving.token}
        assert client.get("/is_sleeping", headers=token).json() == {"is_sleeping": False}
        assert client.get("/claas/status", headers=token).status_code == httpx.codes.OK
