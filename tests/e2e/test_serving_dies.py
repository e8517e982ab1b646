"""vLLM may restart, vanish, hang or be busy: the right version comes back, and no request is given up."""

from __future__ import annotations

import signal
import time

import pytest

from claas_crds.v1alpha1.serving import HandoverKind
from claas_kube.objects.resources import JobObject
from tests.builders.resources import DEPLOYMENT
from tests.cluster import vllm
from tests.e2e.stage import processes
from tests.e2e.stage.handovers import BESIDE_SERVING, assert_step_was_taken_once, pauses
from tests.e2e.stage.scene import Scene, scale_operator
from tests.stack import resources, serving
from tests.stack.resources import wait_for
from tests.stack.traffic import Traffic

pytestmark = pytest.mark.e2e

LEAVES_SECONDS = 2.0
EXIT_SECONDS = 2.0
"""For the pod's first process to tell its result and end."""


def test_vllm_that_does_not_answer_fails_the_job_with_a_reason(scene: Scene) -> None:
    url = scene.url()
    pod = scene.vllm_pod()
    scene.apply("unreachable", backoffLimit=0)
    wait_for("a trainer", lambda: scene.job("unreachable").status.attempts == 1, 60)
    processes.send(pod, signal.SIGSTOP)
    try:
        job = scene.finished("unreachable", 90)
    finally:
        processes.send(pod, signal.SIGCONT)
    assert _failure(job) == "VllmUnreachable"
    assert job.status.timings.sleep is None
    assert scene.answered_by(url)


def test_vllm_that_hangs_at_the_pause_fails_the_job_within_max_pause_and_is_awake_afterwards(scene: Scene) -> None:
    url = scene.url()
    pod = scene.vllm_pod()
    with scene.held_at("prepared", max_pause_seconds=5) as fault:
        scene.apply("hangs-at-pause", backoffLimit=0)
        fault.reached()
        processes.send(pod, signal.SIGSTOP)
        fault.go_on()
        try:
            time.sleep(8)
        finally:
            processes.send(pod, signal.SIGCONT)
        job = scene.finished("hangs-at-pause", 120)
    assert _failure(job) in ("MaxPauseExceeded", "VllmUnreachable", "PauseFailed", "ResumeFailed")
    wait_for("vLLM to be awake", lambda: not scene.is_asleep(url), 60)
    assert scene.answered_by(url)


def test_a_drain_that_times_out_fails_the_job_and_ends_no_request(scene: Scene) -> None:
    url = scene.url()
    scene.patch_adapter({"spec": {"serving": {"pause": "Wait", "drainTimeoutSeconds": 1}}})
    try:
        with scene.held_at("prepared") as fault:
            job = scene.apply("drained", backoffLimit=0)
            fault.reached()
            # Only now: beside so much work a trainer starts slowly. All answers are at their beginning.
            with Traffic(url, scene.adapter_name, clients=6, max_tokens=450, ignore_eos=True) as traffic:
                wait_for("answers under way", lambda: traffic.felt.tokens, 30)
                fault.go_on()
                job = scene.finished("drained", 180)
                traffic.wait_for_answers(1)
    finally:
        scene.patch_adapter({"spec": {"serving": {"pause": "Keep", "drainTimeoutSeconds": 30}}})
    assert _failure(job) == "DrainTimedOut"
    assert traffic.felt.failures == []
    assert not scene.is_asleep(url)


def test_vllm_killed_in_mid_step_serves_the_right_version_again_without_the_operator_and_the_step_is_taken_once(
    scene: Scene, handover: HandoverKind
) -> None:
    before = scene.served()
    name = f"vllm-killed-{handover.lower()}"
    with scene.held_at("stepping", max_pause_seconds=180) as fault:
        job = scene.apply(name)
        fault.reached()
        trainer = scene.running_trainer(job)
        scale_operator(scene.stack, 0)
        try:
            killed = time.monotonic()
            processes.kill(scene.vllm_pod())
            if handover is HandoverKind.SHARE:
                # It computes with memory of that server; by Sleep it has all that it needs.
                wait_for("the trainer to leave", lambda: not processes.of_pod(trainer), 30)
                seconds = time.monotonic() - killed
                print(f"the trainer left {seconds:.1f} s after vLLM was killed")
                assert seconds < LEAVES_SECONDS + EXIT_SECONDS
            wait_for("vLLM to go", lambda: not resources.vllm_pods(scene.stack, scene.namespace), 60)
            assert scene.answered_by(scene.url()) == f"{scene.adapter_name}@{before}"
        finally:
            scale_operator(scene.stack, 1)
        fault.go_on()
        job = scene.finished(name, 240)
    assert job.status.attempts == (2 if handover is HandoverKind.SHARE else 1)
    assert_step_was_taken_once(scene, job, before, handover)
    if handover is HandoverKind.SHARE:
        assert "ServingLost" in scene.stack.kubectl("describe", "distilljob", name, "-n", scene.namespace)


@BESIDE_SERVING
def test_vllm_that_hangs_in_mid_step_is_not_taken_for_dead_and_the_step_goes_on(
    scene: Scene, handover: HandoverKind
) -> None:
    before = scene.served()
    pod = scene.vllm_pod()
    with scene.held_at("stepping") as fault:
        job = scene.apply("vllm-hangs-beside")
        fault.reached()
        processes.send(pod, signal.SIGSTOP)
        try:
            # Longer than a server that is gone stays unnoticed.
            time.sleep(2 * LEAVES_SECONDS)
            assert processes.of_pod(scene.running_trainer(job))
        finally:
            processes.send(pod, signal.SIGCONT)
        fault.go_on()
        job = scene.finished("vllm-hangs-beside")
    assert job.status.attempts == 1
    assert_step_was_taken_once(scene, job, before, handover)


def test_a_deployment_deleted_in_mid_step_fails_nothing_for_good(scene: Scene, handover: HandoverKind) -> None:
    before = scene.served()
    name = f"no-deployment-{handover.lower()}"
    with scene.held_at("stepping") as fault:
        job = scene.apply(name, backoffLimit=6)
        fault.reached()
        scene.stack.kubectl("delete", "deployment", DEPLOYMENT, "-n", scene.namespace, "--wait=true")
        wait_for("vLLM to go", lambda: not resources.vllm_pods(scene.stack, scene.namespace), 60)
        fault.go_on()
        wait_for("the adapter to say so", lambda: _reason(scene) == "DeploymentNotFound", 60)
        scene.stack.kubectl.apply(vllm.manifests(serving.server(scene.stack, scene.namespace)))
        job = scene.finished(name, 240)
    if pauses(handover):
        # The step needed the server for nothing more.
        assert job.status.attempts == 1
    assert_step_was_taken_once(scene, job, before, handover)


def _reason(scene: Scene) -> str:
    conditions = scene.adapter().status.conditions
    return next(condition.reason for condition in conditions if condition.type == "Ready")


def _failure(job: JobObject) -> str:
    assert job.status.phase == "Failed", job.status.conditions
    return next(condition.reason for condition in job.status.conditions if condition.type == "Failed")
