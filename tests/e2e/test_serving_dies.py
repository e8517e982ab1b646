"""vLLM may restart, vanish, hang or be busy: the right version comes back, and no request is given up."""

from __future__ import annotations

import signal
import time

import pytest

from claas_operator.core import JobObject
from tests.builders.resources import DEPLOYMENT
from tests.cluster import vllm
from tests.e2e import processes
from tests.e2e.scene import Scene, scale_operator
from tests.stack import resources, serving
from tests.stack.resources import wait_for
from tests.stack.traffic import Traffic

pytestmark = pytest.mark.e2e


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
        with Traffic(url, scene.adapter_name, clients=12, max_tokens=450, ignore_eos=True) as traffic:
            traffic.wait_for_answers(1)
            scene.apply("drained", backoffLimit=0)
            job = scene.finished("drained", 180)
            traffic.wait_for_answers(1)
    finally:
        scene.patch_adapter({"spec": {"serving": {"pause": "Keep", "drainTimeoutSeconds": 30}}})
    assert _failure(job) == "DrainTimedOut"
    assert traffic.felt.failures == []
    assert not scene.is_asleep(url)


def test_a_restarted_vllm_serves_the_right_version_again_without_the_operator(scene: Scene) -> None:
    version = scene.served()
    pod = scene.vllm_pod()
    scale_operator(scene.stack, 0)
    try:
        processes.kill(pod)
        wait_for("vLLM to go", lambda: not resources.vllm_pods(scene.stack, scene.namespace), 60)
        assert scene.answered_by(scene.url()) == f"{scene.adapter_name}@{version}"
    finally:
        scale_operator(scene.stack, 1)


def test_a_deployment_deleted_in_mid_step_fails_nothing_for_good(scene: Scene) -> None:
    before = scene.served()
    with scene.held_at("asleep") as fault:
        job = scene.apply("no-deployment", backoffLimit=6)
        fault.reached()
        scene.stack.kubectl("delete", "deployment", DEPLOYMENT, "-n", scene.namespace, "--wait=true")
        wait_for("vLLM to go", lambda: not resources.vllm_pods(scene.stack, scene.namespace), 60)
        fault.go_on()
        wait_for("the adapter to say so", lambda: _reason(scene) == "DeploymentNotFound", 60)
        scene.stack.kubectl.apply(vllm.manifests(serving.server(scene.stack, scene.namespace)))
        job = scene.finished("no-deployment", 240)
    assert job.status.phase == "Succeeded", job.status.conditions
    assert len(scene.versions_of(job)) == 1
    assert scene.answered_by() == f"{scene.adapter_name}@{before + 1}"


def _reason(scene: Scene) -> str:
    conditions = scene.adapter().status.conditions
    return next(condition.reason for condition in conditions if condition.type == "Ready")


def _failure(job: JobObject) -> str:
    assert job.status.phase == "Failed", job.status.conditions
    return next(condition.reason for condition in job.status.conditions if condition.type == "Failed")
