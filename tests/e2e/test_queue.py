"""Two adapters on one Deployment: one step at a time, first come, first served, none lost, none taken twice."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.builders.resources import distill_job, lora_adapter
from tests.e2e.conftest import TRAINING
from tests.e2e.stage.scene import Scene
from tests.stack import resources

pytestmark = pytest.mark.e2e

OTHER = "second"
JOBS = 4


def test_steps_of_two_adapters_on_one_deployment_never_overlap(scene: Scene) -> None:
    before = scene.served()
    kubectl = scene.stack.kubectl
    kubectl.apply([lora_adapter(OTHER, scene.namespace, training=TRAINING)])
    resources.wait_served(scene.stack, scene.namespace, OTHER, 0)
    names = [f"queue-{index}" for index in range(JOBS)]
    adapters = [scene.adapter_name if index % 2 == 0 else OTHER for index in range(JOBS)]
    manifests = [distill_job(name, scene.namespace, adapter) for name, adapter in zip(names, adapters, strict=True)]
    document = {"apiVersion": "v1", "kind": "List", "items": manifests}
    kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(document))
    jobs = [scene.finished(name, 60 * JOBS) for name in names]
    assert [job.status.phase for job in jobs] == ["Succeeded"] * JOBS
    spans = sorted((job.status.start_time, job.status.completion_time) for job in jobs)
    for (_, ended), (started, _) in itertools.pairwise(spans):
        assert ended is not None
        assert started is not None
        assert started >= ended
    assert [job.status.attempts for job in jobs] == [1] * JOBS
    assert scene.served() == before + JOBS // 2
    assert resources.adapter(scene.stack, scene.namespace, OTHER).status.served_version == JOBS // 2
    kubectl("delete", "loraadapter", OTHER, "-n", scene.namespace, "--wait=true")
