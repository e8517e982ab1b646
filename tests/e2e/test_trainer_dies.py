"""Whatever ends the trainer, serving comes back, versions are whole, and the step is taken once."""

from __future__ import annotations

import signal
import time

import httpx
import pytest

from claas_crds.v1alpha1.serving import HandoverKind
from tests.e2e.stage import processes
from tests.e2e.stage.handovers import BESIDE_SERVING, SERVING_BACK_SECONDS, assert_step_was_taken_once, pauses
from tests.e2e.stage.scene import Scene
from tests.stack.resources import wait_for
from tests.stack.traffic import Traffic

pytestmark = pytest.mark.e2e

MAX_PAUSE_SECONDS = 3
OPERATOR_MARGIN_SECONDS = 5
SUPERVISOR_AND_WORKER = 2


@pytest.mark.parametrize("point", ["prepared", "stepping", "publishing", "published"])
def test_a_trainer_that_is_killed_leaves_serving_whole_and_the_retry_takes_the_step_once(
    scene: Scene, handover: HandoverKind, point: str
) -> None:
    before = scene.served()
    url = scene.url()
    name = f"killed-{handover.lower()}-{point}"
    with scene.held_at(point) as fault, Traffic(url, scene.adapter_name, clients=1, pause_seconds=0.5) as traffic:
        job = scene.apply(name)
        fault.reached()
        assert scene.is_asleep(url) == (point == "stepping" and pauses(handover))
        processes.kill(scene.running_trainer(job))
        seconds = scene.seconds_until_answer(url, SERVING_BACK_SECONDS[handover])
        print(f"{handover}, {point}: serving answered {seconds:.1f} s after the kill")
        assert scene.answered_by(url) in (f"{scene.adapter_name}@{before}", f"{scene.adapter_name}@{before + 1}")
        job = scene.finished(name)
        traffic.wait_for_answers(2)
    assert job.status.attempts == 2
    assert_step_was_taken_once(scene, job, before, handover)
    assert traffic.felt.failures == []
    found = any(condition.reason == "AlreadyPublished" for condition in job.status.conditions)
    assert found == (point == "published")


def test_a_last_attempt_that_is_killed_between_publishing_and_its_report_has_not_failed(scene: Scene) -> None:
    before = scene.served()
    with scene.held_at("published") as fault:
        job = scene.apply("killed-last", backoffLimit=0)
        fault.reached()
        processes.kill(scene.running_trainer(job))
        job = scene.finished("killed-last")
    assert job.status.attempts == 1
    assert any(condition.reason == "AlreadyPublished" for condition in job.status.conditions)
    assert_step_was_taken_once(scene, job, before, HandoverKind.SLEEP)


def test_a_worker_that_hangs_in_the_pause_is_ended_by_its_supervisor_after_max_pause_and_pauses_serving_once(
    scene: Scene,
) -> None:
    before = scene.served()
    url = scene.url()
    with scene.held_at("stepping", max_pause_seconds=MAX_PAUSE_SECONDS) as fault:
        job = scene.apply("worker-hangs")
        fault.reached()
        processes.send(scene.running_trainer(job), signal.SIGSTOP, youngest_only=True)
        scene.seconds_until_answer(url, MAX_PAUSE_SECONDS + SERVING_BACK_SECONDS[HandoverKind.SLEEP])
        job = scene.finished("worker-hangs")
    failed = next(condition for condition in job.status.conditions if condition.type == "Failed")
    assert failed.reason == "MaxPauseExceeded"
    assert job.status.attempts == 1
    assert scene.versions_of(job) == []
    assert scene.answered_by(url) == f"{scene.adapter_name}@{before}"


def test_a_trainer_that_is_stopped_as_a_whole_is_ended_by_the_operator_after_max_pause(scene: Scene) -> None:
    before = scene.served()
    url = scene.url()
    limit = MAX_PAUSE_SECONDS + OPERATOR_MARGIN_SECONDS + SERVING_BACK_SECONDS[HandoverKind.SLEEP]
    with scene.held_at("stepping", max_pause_seconds=MAX_PAUSE_SECONDS) as fault:
        job = scene.apply("pod-hangs")
        fault.reached()
        processes.send(scene.running_trainer(job), signal.SIGSTOP)
        assert scene.is_asleep(url)
        seconds = scene.seconds_until_answer(url, limit)
        print(f"serving answered {seconds:.1f} s after the stop, maxPauseSeconds {MAX_PAUSE_SECONDS}")
        job = scene.finished("pod-hangs")
    assert job.status.attempts == 2
    assert_step_was_taken_once(scene, job, before, HandoverKind.SLEEP)


@BESIDE_SERVING
def test_a_trainer_that_hangs_beside_serving_disturbs_nobody_and_only_the_jobs_deadline_ends_it(
    scene: Scene, handover: HandoverKind
) -> None:
    before = scene.served()
    url = scene.url()
    with (
        scene.held_at("stepping", max_pause_seconds=MAX_PAUSE_SECONDS) as fault,
        Traffic(url, scene.adapter_name, clients=1, pause_seconds=0.5) as traffic,
    ):
        job = scene.apply("hangs-beside", backoffLimit=0)
        fault.reached()
        trainer = scene.running_trainer(job)
        # The worker alone, longer than its supervisor allows a pause; then both, longer than the operator does.
        processes.send(trainer, signal.SIGSTOP, youngest_only=True)
        time.sleep(MAX_PAUSE_SECONDS + 1)
        assert len(processes.of_pod(trainer)) == SUPERVISOR_AND_WORKER
        processes.send(trainer, signal.SIGSTOP)
        time.sleep(OPERATOR_MARGIN_SECONDS)
        assert scene.running_trainer(job).metadata.uid == trainer.metadata.uid
        assert not scene.is_asleep(url)
        scene.patch_job("hangs-beside", {"spec": {"activeDeadlineSeconds": 1}})
        # The trainer is gone, and the volume was looked at, before the job fails.
        job = scene.finished("hangs-beside", 120)
        wait_for("the trainer to be gone", lambda: not processes.of_pod(trainer), 40)
        traffic.wait_for_answers(2)
    failed = next(condition for condition in job.status.conditions if condition.type == "Failed")
    assert failed.reason == "DeadlineExceeded"
    assert job.status.handover is handover
    assert traffic.felt.failures == []
    assert scene.answered_by(url) == f"{scene.adapter_name}@{before}"
    assert scene.versions_of(job) == []


def test_a_job_that_is_out_of_attempts_fails_with_the_reason_and_the_old_version_answers(scene: Scene) -> None:
    before = scene.served()
    url = scene.url()
    with scene.held_at("stepping") as fault:
        job = scene.apply("no-retries", backoffLimit=0)
        fault.reached()
        processes.kill(scene.running_trainer(job))
        job = scene.finished("no-retries")
    assert job.status.phase == "Failed"
    failed = next(condition for condition in job.status.conditions if condition.type == "Failed")
    assert failed.reason == "TrainerLost"
    assert scene.answered_by(url) == f"{scene.adapter_name}@{before}"
    with pytest.raises(httpx.HTTPStatusError):
        httpx.get(f"{url}/is_sleeping", timeout=5, trust_env=False).raise_for_status()
