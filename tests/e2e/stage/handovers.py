"""The hand-overs that failures are tested by, and what a step promises under each of them."""

from __future__ import annotations

import pytest

from claas_crds.v1alpha1.serving import HandoverKind
from claas_kube.objects.resources import JobObject
from tests.e2e.stage.scene import Scene

HANDOVERS = (HandoverKind.SLEEP, HandoverKind.SHARE)
SERVING_BACK_SECONDS = {HandoverKind.SLEEP: 15.0, HandoverKind.SHARE: 5.0}
"""How soon a request is answered after the trainer died. By Share nothing was paused: only a busy machine makes it
wait."""
BESIDE_SERVING = pytest.mark.parametrize("handover", [HandoverKind.SHARE], indirect=True, ids=str)
"""For what can only happen while serving goes on."""


def pauses(handover: HandoverKind) -> bool:
    """Whether serving stands still during the step."""
    return handover is HandoverKind.SLEEP


def assert_step_was_taken_once(scene: Scene, job: JobObject, before: int, handover: HandoverKind) -> None:
    """One version of the job, whole, in service, nothing half-written beside it; and serving paused only by Sleep."""
    assert job.status.phase == "Succeeded", job.status.conditions
    (version,) = scene.versions_of(job)
    scene.store.verify(version)
    assert version.record.number == job.status.produced_version == before + 1
    assert scene.store.numbers()[-1] == before + 1
    assert scene.answered_by() == f"{scene.adapter_name}@{before + 1}"
    folder = scene.serving.volume / scene.namespace / scene.adapter_name / "versions"
    listed = [path.name for path in folder.iterdir()]
    assert all(name.isdigit() for name in listed), listed
    assert job.status.handover is handover
    timings = job.status.timings
    if pauses(handover):
        assert timings.sleep is not None
        assert timings.serving_gap
    else:
        assert (timings.sleep, timings.serving_gap) == (None, 0)
