"""What a job comes to when its trainer, its operator or its Deployment goes at the wrong moment."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from claas_crds.v1alpha1.conditions import condition_of
from claas_kube.resources import DISTILL_JOBS
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.scene import Scene, reason_of
from tests.simulation.trainer import Ending, Moment, Script

pytestmark = pytest.mark.integration


def parents(scene: Scene) -> list[tuple[str | None, int | None]]:
    """Who published each version on the volume, and from which one."""
    found = scene.simulation.volume.versions(scene.namespace, f"{scene.namespace}/tone")
    return [(version.jobs[0].name if version.jobs else None, version.parent) for version in found]


def test_a_last_attempt_that_dies_after_publishing_ends_well(operator: OperatorProcess, scene: Scene) -> None:
    scene.serve()
    scene.ready_adapter()
    scene.script(Script(Ending.DIE, Moment.PUBLISHED))
    scene.apply_job(backoffLimit=0)
    job = scene.wait_until("step", "Complete")
    assert reason_of(job.status.conditions, "Trained") == "AlreadyPublished"
    assert (job.status.attempts, job.status.failed_attempts, job.status.recovery_time) == (1, 0, None)
    assert parents(scene) == [(None, None), ("step", 0)]
    assert len(scene.runs("step")) == 1


def test_a_version_whose_job_is_deleted_before_it_is_told_of_is_adopted_and_the_next_step_starts_from_it(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve()
    scene.ready_adapter()
    script = scene.script(Script(Ending.DIE, Moment.PUBLISHED, hold=True))
    scene.apply_job()
    scene.wait_until_reached(script)
    scene.apply_job("next")
    scene.remove_job()
    script.hold = False
    scene.wait_until("next", "Complete", 40)
    assert parents(scene) == [(None, None), ("step", 0), ("next", 1)]
    adapter = scene.wait_for_adapter("tone", lambda adapter: adapter.status.served_version == 2)
    assert [version.job for version in adapter.status.versions] == [None, "step", "next"]
    assert any(reason == "VersionAdopted" for _, reason, _ in scene.events("tone"))
    scene.wait("a lease without notes", lambda: (lease := scene.lease()) is not None and not lease.unaccounted)


def test_a_step_that_ended_while_the_operator_was_away_longer_than_its_deadline_has_not_failed(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve()
    scene.ready_adapter()
    script = scene.script(Script(hold=True))
    scene.apply_job(activeDeadlineSeconds=2)
    scene.wait_until_reached(script)
    scene.wait_for_job("step", lambda job: job.status.attempts == 1)
    operator.kill()
    script.hold = False
    scene.wait("the trainer's end", lambda: scene.runs("step")[0].ended is not None)
    time.sleep(2.5)
    operator.start_leading()
    job = scene.wait_until("step", "Complete")
    assert job.status.produced_version == 1


def test_a_deployment_that_is_scaled_to_zero_holds_up_all_jobs_but_those_that_need_no_serving(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve(replicas=0)
    scene.apply_adapter()
    scene.wait_for_adapter("tone", lambda adapter: adapter.status.latest_version == 0)
    scene.apply_job("waits")
    scene.wait_for_job("waits", lambda job: reason_of(job.status.conditions, "Admitted") == "AdapterNotReady")
    scene.apply_job("trains", completeWhen="Published")
    job = scene.wait_until("trains", "Complete")
    assert reason_of(job.status.conditions, "Served") == "PuttingIntoService"
    assert scene.runs("waits") == []
    scene.merge(DISTILL_JOBS, "waits", {"spec": {"completeWhen": "Published"}})
    scene.wait_until("waits", "Complete")
    assert parents(scene) == [(None, None), ("trains", 0), ("waits", 1)]


def test_a_version_that_vllm_refuses_holds_up_its_own_adapter_alone_and_is_tried_less_and_less_often(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    scene.ready_adapter("other")
    pod.server.app.refuses = "tone/versions/1"
    scene.script(Script(Ending.DIE, Moment.PUBLISHED))
    scene.apply_job(backoffLimit=0)
    scene.wait_for_adapter("tone", lambda adapter: reason_of(adapter.status.conditions, "Ready") == "LoadFailed")
    scene.apply_job("waits")
    scene.apply_job("goes-on", "other")
    scene.wait_until("goes-on", "Complete")
    waits = scene.wait_for_job("waits", lambda job: reason_of(job.status.conditions, "Admitted") == "AdapterNotReady")
    admitted = condition_of(waits.status.conditions, "Admitted")
    assert admitted is not None
    assert "max_lora_rank" in admitted.message
    time.sleep(6)
    gaps = [later - earlier for earlier, later in pairwise(pod.server.app.refusals)]
    assert gaps
    # No sooner than 2, 4, 8, ... seconds after the refusal before; later on a busy machine.
    assert all(gap >= 2.0 ** (number + 1) for number, gap in enumerate(gaps))
    assert len(gaps) <= 4
    assert scene.runs("waits") == []
