"""The operator may die at any time: steps go on, and serving is woken when it is back."""

from __future__ import annotations

import time

import pytest

from claas_crds.v1alpha1.serving import HandoverKind
from claas_kube.objects.pods import Pod
from tests.e2e.stage import processes
from tests.e2e.stage.handovers import assert_step_was_taken_once, pauses
from tests.e2e.stage.scene import Scene, operator_pod, scale_operator
from tests.stack.resources import wait_for

pytestmark = pytest.mark.e2e


def test_an_operator_that_comes_back_adopts_the_running_step_and_starts_no_second_trainer(
    scene: Scene, handover: HandoverKind
) -> None:
    before = scene.served()
    name = f"adopted-{handover.lower()}"
    with scene.held_at("stepping") as fault:
        job = scene.apply(name)
        fault.reached()
        pod = operator_pod(scene.stack)
        processes.kill(pod)
        wait_for("the operator to restart", lambda: _restarts(scene) > _restarts_of(pod), 60)
        operator_pod(scene.stack)
        fault.go_on()
        job = scene.finished(name)
    assert job.status.attempts == 1
    assert len(scene.trainers(job)) == 1
    assert_step_was_taken_once(scene, job, before, handover)


def _restarts_of(pod: Pod) -> int:
    return sum(status.restart_count for status in pod.status.container_statuses)


def _restarts(scene: Scene) -> int:
    return _restarts_of(operator_pod(scene.stack))


def test_trainer_and_operator_killed_together_leave_serving_to_the_next_operator(
    scene: Scene, handover: HandoverKind
) -> None:
    before = scene.served()
    url = scene.url()
    name = f"both-killed-{handover.lower()}"
    with scene.held_at("stepping") as fault:
        job = scene.apply(name)
        fault.reached()
        scale_operator(scene.stack, 0)
        processes.kill(scene.running_trainer(job))
        time.sleep(2)
        assert scene.is_asleep(url) == pauses(handover)
        began = time.monotonic()
        scale_operator(scene.stack, 1)
        scene.answered_by(url, 60)
        print(f"serving answered {time.monotonic() - began:.1f} s after the operator was started")
        job = scene.finished(name)
    assert job.status.attempts == 2
    assert_step_was_taken_once(scene, job, before, handover)
