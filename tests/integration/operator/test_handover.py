"""Steps that are taken beside serving, and the choice of a hand-over, by the operator's own process."""

from __future__ import annotations

import pytest

from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.serving import HandoverKind
from claas_kube.objects.meta import Manifest
from claas_kube.resources import DEPLOYMENTS
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.scene import DEPLOYMENT, Scene, holds, reason_of
from tests.simulation.trainer import Ending, Script

pytestmark = pytest.mark.integration

ON_GPU: Manifest = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}


@pytest.mark.parametrize("kind", ["Share", "None"])
def test_a_step_beside_serving_pauses_nothing_and_ends_as_any_other(
    operator: OperatorProcess, scene: Scene, kind: str
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter(handover=kind, maxSlowdown=25)
    script = scene.script(Script(hold=True))
    scene.apply_job()
    scene.wait_until_reached(script)
    lease = scene.lease()
    assert lease is not None
    assert lease.grant is not None
    assert lease.grant.handover == kind
    assert lease.grant.may_pause == ()
    script.hold = False
    job = scene.wait_until("step", "Complete")
    assert job.status.handover == kind
    assert (job.status.attempts, job.status.produced_version) == (1, 1)
    serving = scene.runs("step")[0].document.serving
    assert serving is not None
    assert (serving.handover, serving.max_slowdown_percent) == (kind, 25)
    assert pod.server.app.sleeps == []
    scene.wait("a free lease", lambda: (found := scene.lease()) is not None and found.grant is None)


@pytest.mark.parametrize("ending", [Ending.DIE, Ending.VANISH, Ending.FAIL])
def test_a_step_beside_serving_that_ends_badly_is_tried_again_and_nothing_is_woken(
    operator: OperatorProcess, scene: Scene, ending: Ending
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter(handover="Share")
    scene.script(Script(ending, reason=FailureReason.SERVING_LOST))
    scene.apply_job()
    job = scene.wait_until("step", "Complete", 40)
    assert (job.status.attempts, job.status.failed_attempts, job.status.produced_version) == (2, 1, 1)
    assert (pod.server.app.sleeps, pod.server.app.wakes) == ([], [])
    if ending is Ending.FAIL:
        assert any(reason == "Retrying" and "ServingLost" in note for _, reason, note in scene.events("step"))


def test_a_pod_that_somebody_paused_stays_so_through_a_step_beside_it(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter(handover="Share")
    pod.server.app.sleep()
    script = scene.script(Script(Ending.FAIL, reason=FailureReason.INVALID_SAMPLE, exit_code=64))
    scene.apply_job(backoffLimit=0)
    scene.wait_until_reached(script)
    scene.wait_until("step", "Failed")
    scene.wait("a free lease", lambda: (found := scene.lease()) is not None and found.grant is None)
    assert pod.server.app.asleep
    assert pod.server.app.wakes == []


@pytest.mark.parametrize(
    ("container", "kind"),
    [
        ({"image": "vllm-cpu"}, HandoverKind.SHARE),
        ({**ON_GPU, "args": ["--enable-sleep-mode"]}, HandoverKind.SLEEP),
        ({**ON_GPU, "args": ["--worker-extension-cls=claas_vllm.WeightExport"]}, HandoverKind.SHARE),
    ],
    ids=["cpu", "sleep-mode", "export"],
)
def test_auto_goes_by_the_deployments_flags_and_says_so(
    operator: OperatorProcess, scene: Scene, container: Manifest, kind: HandoverKind
) -> None:
    (pod,) = scene.serve(container=container)
    adapter = scene.ready_adapter(handover="Auto")
    assert adapter.status.handover is kind
    assert adapter.status.handover_message
    scene.apply_job()
    job = scene.wait_until("step", "Complete")
    assert job.status.handover is kind
    assert bool(pod.server.app.sleeps) == (kind is HandoverKind.SLEEP)


def test_a_job_waits_while_no_hand_over_would_do_and_goes_on_once_a_flag_is_there(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve(container=ON_GPU)
    adapter = scene.ready_adapter(handover="Auto")
    assert adapter.status.handover is None
    assert "--enable-sleep-mode" in (adapter.status.handover_message or "")
    scene.apply_job()
    job = scene.wait_for_job("step", lambda job: reason_of(job.status.conditions, "Admitted") == "NoHandover")
    assert job.status.phase == "Pending"
    assert scene.runs("step") == []
    assert holds(scene.adapter().status.conditions, "Ready")
    template: Manifest = {
        "spec": {"containers": [{"name": "vllm", "image": "none", "args": ["--enable-sleep-mode"]}]}
    }
    scene.merge(DEPLOYMENTS, DEPLOYMENT, {"spec": {"template": template}})
    scene.wait_until("step", "Complete")
    assert len(pod.server.app.sleeps) == 1
    scene.wait_for_adapter("tone", lambda adapter: adapter.status.handover is HandoverKind.SLEEP)
