"""Whatever ends the trainer, serving comes back, versions are whole, and the step is taken once."""

from __future__ import annotations

import signal

import httpx
import pytest

from claas_operator.core import JobObject
from tests.e2e import processes
from tests.e2e.scene import Scene
from tests.stack.traffic import Traffic

pytestmark = pytest.mark.e2e

SERVING_BACK_SECONDS = 15.0


def assert_step_was_taken_once(scene: Scene, job: JobObject, before: int) -> None:
    """One version of the job, whole, in service, and nothing half-written beside it."""
    assert job.status.phase == "Succeeded", job.status.conditions
    (version,) = scene.versions_of(job)
    scene.store.verify(version)
    assert version.record.number == job.status.produced_version == before + 1
    assert scene.store.numbers()[-1] == before + 1
    assert scene.answered_by() == f"{scene.adapter_name}@{before + 1}"
    listed = [
        path.name for path in (scene.serving.volume / scene.namespace / scene.adapter_name / "versions").iterdir()
    ]
    assert all(name.isdigit() for name in listed), listed


@pytest.mark.parametrize("point", ["prepared", "asleep", "publishing", "published"])
def test_a_trainer_that_is_killed_leaves_serving_whole_and_the_retry_takes_the_step_once(
    scene: Scene, point: str
) -> None:
    before = scene.served()
    url = scene.url()
    name = f"killed-{point}"
    with scene.held_at(point) as fault, Traffic(url, scene.adapter_name, pause_seconds=0.2) as traffic:
        job = scene.apply(name)
        fault.reached()
        if point == "asleep":
            assert scene.is_asleep(url)
        processes.kill(scene.running_trainer(job))
        seconds = scene.seconds_until_answer(url, SERVING_BACK_SECONDS)
        print(f"{point}: serving answered {seconds:.1f} s after the kill")
        assert scene.answered_by(url) in (f"{scene.adapter_name}@{before}", f"{scene.adapter_name}@{before + 1}")
        job = scene.finished(name)
        traffic.wait_for_answers(2)
    assert job.status.attempts == 2
    assert_step_was_taken_once(scene, job, before)
    assert traffic.felt.failures == []
    if point == "published":
        assert any(condition.reason == "AlreadyPublished" for condition in job.status.conditions)


def test_a_worker_that_hangs_in_the_pause_is_ended_by_its_supervisor_after_max_pause(scene: Scene) -> None:
    before = scene.served()
    url = scene.url()
    with scene.held_at("asleep", max_pause_seconds=3) as fault:
        job = scene.apply("worker-hangs")
        fault.reached()
        processes.send(scene.running_trainer(job), signal.SIGSTOP, youngest_only=True)
        assert scene.seconds_until_answer(url, 3 + SERVING_BACK_SECONDS) >= 0
        job = scene.finished("worker-hangs")
    assert job.status.attempts == 2
    assert_step_was_taken_once(scene, job, before)


def test_a_trainer_that_is_stopped_as_a_whole_is_ended_by_the_operator_after_max_pause(scene: Scene) -> None:
    before = scene.served()
    url = scene.url()
    with scene.held_at("asleep", max_pause_seconds=3) as fault:
        job = scene.apply("pod-hangs")
        fault.reached()
        processes.send(scene.running_trainer(job), signal.SIGSTOP)
        assert scene.is_asleep(url)
        seconds = scene.seconds_until_answer(url, 3 + 5 + SERVING_BACK_SECONDS)
        print(f"serving answered {seconds:.1f} s after the stop, maxPauseSeconds 3")
        job = scene.finished("pod-hangs")
    assert job.status.attempts == 2
    assert_step_was_taken_once(scene, job, before)


def test_a_job_that_is_out_of_attempts_fails_with_the_reason_and_the_old_version_answers(scene: Scene) -> None:
    before = scene.served()
    url = scene.url()
    with scene.held_at("asleep") as fault:
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
