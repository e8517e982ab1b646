"""Steps beside serving (hand-over Share): nothing is paused, and whoever dies, the other side goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.e2e import processes
from tests.e2e.scene import Scene
from tests.e2e.test_trainer_dies import assert_step_was_taken_once
from tests.stack import rollouts
from tests.stack.resources import wait_for
from tests.stack.traffic import Traffic
from tests.tiny_model.tasks import Preference, feedback, questions

pytestmark = pytest.mark.e2e

LEAVES_SECONDS = 2.0
EXIT_SECONDS = 2.0
"""For the pod's first process to tell its result and end."""


@pytest.fixture(autouse=True)
def shared(scene: Scene, healthy: None) -> Iterator[None]:
    """The adapter's steps are taken beside serving."""
    before = scene.adapter().spec.serving.handover
    scene.patch_adapter({"spec": {"serving": {"handover": "Share"}}})
    wait_for("the adapter to say so", lambda: scene.adapter().status.handover == "Share", 30)
    yield
    scene.patch_adapter({"spec": {"serving": {"handover": before.value}}})


def test_a_job_puts_a_new_version_into_service_while_answers_go_on(scene: Scene) -> None:
    before = scene.served()
    url = scene.url()
    answers = rollouts.sample_rollouts(url, scene.adapter_name, questions(8, seed=4), seed=4)
    said = feedback(Preference.NO_EMOJI, 8, seed=4)
    with scene.held_at("asleep") as fault, Traffic(url, scene.adapter_name, clients=3) as traffic:
        job = scene.apply("beside", [answer.as_sample(text) for answer, text in zip(answers, said, strict=True)])
        fault.reached()
        # In the very step: serving is awake, and goes on.
        assert not scene.is_asleep(url)
        traffic.wait_for_answers(2)
        # Long enough for serving's speed to be told.
        time.sleep(LEAVES_SECONDS)
        fault.go_on()
        job = scene.finished("beside")
        traffic.wait_for_answers(3)
    assert traffic.felt.failures == []
    assert traffic.felt.versions[-1] == f"{scene.adapter_name}@{before + 1}"
    assert_step_was_taken_once(scene, job, before)
    assert job.status.handover == "Share"
    assert (job.status.timings.serving_gap, job.status.timings.sleep) == (0, None)
    assert "serving_slowdown_percent" in job.status.metrics


def test_a_trainer_that_is_killed_beside_serving_disturbs_nobody_and_the_retry_takes_the_step_once(
    scene: Scene,
) -> None:
    before = scene.served()
    url = scene.url()
    with scene.held_at("asleep") as fault, Traffic(url, scene.adapter_name, pause_seconds=0.2) as traffic:
        job = scene.apply("beside-killed")
        fault.reached()
        processes.kill(scene.running_trainer(job))
        traffic.wait_for_answers(2)
        assert not scene.is_asleep(url)
        job = scene.finished("beside-killed")
    assert job.status.attempts == 2
    assert traffic.felt.failures == []
    assert_step_was_taken_once(scene, job, before)


def test_vllm_that_is_killed_in_mid_step_ends_the_step_within_two_seconds_and_the_retry_takes_it_once(
    scene: Scene,
) -> None:
    before = scene.served()
    with scene.held_at("asleep") as fault:
        job = scene.apply("beside-vllm-dies")
        fault.reached()
        trainer = scene.running_trainer(job)
        processes.kill(scene.vllm_pod())
        killed = time.monotonic()
        wait_for("the trainer to leave", lambda: not processes.of_pod(trainer), 30)
        seconds = time.monotonic() - killed
        print(f"the trainer left {seconds:.1f} s after vLLM was killed")
        assert seconds < LEAVES_SECONDS + EXIT_SECONDS
        job = scene.finished("beside-vllm-dies", 240)
    assert job.status.attempts == 2
    told = scene.stack.kubectl("describe", "distilljob", "beside-vllm-dies", "-n", scene.namespace)
    assert "ServingLost" in told
    assert_step_was_taken_once(scene, job, before)
