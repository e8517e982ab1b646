"""Steps as the operator's own process takes them, against a real API server and a played node."""

from __future__ import annotations

import pytest

from tests.cluster.kubectl import kubectl_for
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.scene import Scene, holds, reason_of

pytestmark = pytest.mark.integration


def test_a_job_goes_from_apply_to_complete_and_tells_its_story(operator: OperatorProcess, scene: Scene) -> None:
    scene.serve()
    adapter = scene.ready_adapter()
    assert adapter.status.served_version == 0
    scene.apply_job()
    job = scene.wait_until("step", "Complete")
    assert job.status.phase == "Succeeded"
    assert (job.status.produced_version, job.status.parent_version) == (1, 0)
    assert (job.status.attempts, job.status.failed_attempts) == (1, 0)
    assert job.status.loss == "0.5"
    assert {each.type: each.status.value for each in job.status.conditions} == {
        "Admitted": "True",
        "Trained": "True",
        "Served": "True",
        "Complete": "True",
    }
    assert job.status.start_time is not None
    assert job.status.completion_time is not None
    assert job.status.timings.start is not None
    wall = (job.status.completion_time - job.status.start_time).total_seconds()
    assert job.status.timings.seconds == pytest.approx(wall, abs=0.2)
    scene.wait("the last Event", lambda: "Completed" in [reason for _, reason, _ in scene.events("step")])
    # Each is a write: what stands in the conditions until then is not told twice.
    assert [reason for _, reason, _ in scene.events("step")] == ["Completed"]
    adapter = scene.wait_for_adapter("tone", lambda adapter: adapter.status.served_version == 1)
    assert [version.number for version in adapter.status.versions] == [0, 1]
    assert holds(adapter.status.conditions, "Ready")
    assert reason_of(adapter.status.conditions, "CompanionReady") == "CompanionFound"
    kubectl = kubectl_for(scene.simulation.cluster.kubeconfig)
    jobs = kubectl("get", "distilljobs", "-o", "wide", "-n", scene.namespace).splitlines()
    assert {"ADAPTER", "PHASE", "VERSION"} <= set(jobs[0].split())
    assert {"step", "tone", "Succeeded", "1"} <= set(jobs[1].split())
    adapters = kubectl("get", "loraadapters", "-n", scene.namespace).splitlines()
    assert {"READY", "REASON", "VERSION"} <= set(adapters[0].split())
    assert {"tone", "True", "Serving", "1"} <= set(adapters[1].split())
    scene.wait("a free lease", lambda: (found := scene.lease()) is not None and found.grant is None)
