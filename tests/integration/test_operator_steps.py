"""Steps as the operator's own process takes them, against a real API server and a played node."""

from __future__ import annotations

import pytest

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
    told = [reason for _, reason, _ in scene.events("step")]
    assert [reason for reason in told if reason != "PuttingIntoService"][-3:] == [
        "StepTaken",
        "InService",
        "Completed",
    ]
    assert "Admitted" in told
    adapter = scene.wait_for_adapter("tone", lambda adapter: adapter.status.served_version == 1)
    assert [version.number for version in adapter.status.versions] == [0, 1]
    assert holds(adapter.status.conditions, "Ready")
    assert reason_of(adapter.status.conditions, "CompanionReady") == "CompanionFound"
    lease = scene.lease()
    assert lease is not None
    scene.wait("a free lease", lambda: (found := scene.lease()) is not None and found.grant is None)
