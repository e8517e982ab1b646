"""Trainer pods as a cluster may make them: refused by a quota, or kept open by a container of somebody else."""

from __future__ import annotations

import pytest

from claas_crds.v1alpha1.conditions import condition_of
from claas_kube.resources import BATCH_JOBS, SECRETS
from tests.simulation.cluster_api import field
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.scene import Scene, reason_of
from tests.simulation.trainer import Script

pytestmark = pytest.mark.integration

QUOTA = 'pods "step-1" is forbidden: failed quota: team-quota: must specify limits.cpu for: trainer'


def test_a_pod_that_a_quota_refuses_is_told_in_its_words_and_the_queue_goes_on(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve()
    scene.ready_adapter()
    scene.script(Script(refused=QUOTA), "refused")
    scene.apply_job("refused")
    waiting = scene.wait_for_job(
        "refused", lambda job: reason_of(job.status.conditions, "Trained") == "TrainerNotStarted"
    )
    trained = condition_of(waiting.status.conditions, "Trained")
    assert trained is not None
    assert QUOTA in trained.message
    scene.apply_job("behind")
    scene.wait_until("behind", "Complete", timeout_seconds=60)
    resting = scene.job("refused")
    assert (resting.status.phase, resting.status.failed_attempts, resting.status.attempts) == ("Pending", 0, 0)
    assert scene.runs("refused") == []


def test_a_pod_that_a_sidecar_keeps_open_is_accounted_for_and_ended(operator: OperatorProcess, scene: Scene) -> None:
    scene.simulation.scripts[scene.namespace, "", 0] = Script(sidecar=True)
    scene.serve()
    scene.ready_adapter()
    scene.wait("the initial version's pod to be ended", lambda: not scene.objects(BATCH_JOBS))
    scene.script(Script(sidecar=True))
    scene.apply_job()
    job = scene.wait_until("step", "Complete")
    assert job.status.attempts == 1
    scene.wait("the step's pod to be ended", lambda: not scene.trainer_pods(job.metadata.uid))
    assert scene.batch_jobs() == []


def test_what_is_accounted_for_leaves_no_input_and_a_job_with_a_time_to_live(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve()
    scene.ready_adapter()
    scene.apply_job()
    scene.wait_until("step", "Complete")
    ours = "app.kubernetes.io/managed-by=claas-operator"
    scene.wait("the inputs to be deleted", lambda: not scene.objects(SECRETS, ours))

    def all_retired() -> bool:
        jobs = scene.objects(BATCH_JOBS, ours)
        return len(jobs) == 2 and all(field(job, "spec", "ttlSecondsAfterFinished") for job in jobs)

    scene.wait("a time to live of both Jobs", all_retired)
