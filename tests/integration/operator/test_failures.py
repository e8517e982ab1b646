"""What the operator does when trainer, operator or server die in mid-step."""

from __future__ import annotations

import json
import time

import pytest

from claas_contract.outcome import ExitCode, FailureReason
from claas_kube.objects.meta import Manifest
from claas_kube.resources import ADAPTERS, BATCH_JOBS, DEPLOYMENTS, DISTILL_JOBS, PODS
from tests.cluster.services.control_plane import free_ports
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.scene import Scene, Simulation, VllmPod, holds, reason_of
from tests.simulation.trainer import Ending, Moment, Script

pytestmark = pytest.mark.integration

WOKEN_WITHIN_SECONDS = 15.0


def versions_by(scene: Scene, job: str) -> list[int]:
    """Numbers of the versions on the volume that a job published."""
    found = scene.simulation.volume.versions(scene.namespace, f"{scene.namespace}/tone")
    return [version.number for version in found if [each.name for each in version.jobs] == [job]]


def wait_until_awake(scene: Scene, pod: VllmPod, timeout_seconds: float = WOKEN_WITHIN_SECONDS) -> float:
    """Seconds until the pod's server is awake."""
    began = time.monotonic()
    scene.wait("vLLM awake", lambda: not pod.server.app.asleep, timeout_seconds)
    return time.monotonic() - began


def test_an_operator_killed_in_mid_step_adopts_the_running_trainer_when_it_is_back(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    script = scene.script(Script(hold=True))
    scene.apply_job()
    scene.wait_until_reached(script)
    operator.kill()
    operator.start_leading()
    scene.wait_for_job("step", lambda job: reason_of(job.status.conditions, "Trained") == "Running")
    script.hold = False
    job = scene.wait_until("step", "Complete")
    assert len(scene.runs("step")) == 1
    assert (job.status.attempts, job.status.produced_version) == (1, 1)
    assert not pod.server.app.asleep


def test_trainer_and_operator_killed_together_in_the_pause_serving_is_back_when_the_operator_is(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    script = scene.script(Script(Ending.DIE, hold=True))
    scene.apply_job()
    scene.wait_until_reached(script)
    operator.kill()
    script.hold = False
    scene.wait("the trainer's end", lambda: scene.runs("step")[0].ended is not None)
    assert pod.server.app.asleep
    operator.start_leading()
    wait_until_awake(scene, pod)
    scene.wait_until("step", "Complete")
    assert versions_by(scene, "step") == [1]


def test_a_trainer_that_vanishes_in_the_pause_is_made_up_for_serving_woken_and_one_version_made(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    script = scene.script(Script(Ending.VANISH))
    scene.apply_job()
    scene.wait_until_reached(script)
    seconds = wait_until_awake(scene, pod)
    assert seconds < WOKEN_WITHIN_SECONDS
    job = scene.wait_until("step", "Complete")
    assert (job.status.attempts, job.status.failed_attempts) == (2, 1)
    assert versions_by(scene, "step") == [1]
    assert any(reason == "Retrying" and "TrainerLost" in note for _, reason, note in scene.events("step"))


def test_a_trainer_killed_after_publishing_is_not_repeated_its_version_is_served(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    scene.script(Script(Ending.DIE, Moment.PUBLISHED))
    scene.apply_job()
    job = scene.wait_until("step", "Complete")
    assert reason_of(job.status.conditions, "Trained") == "AlreadyPublished"
    assert versions_by(scene, "step") == [1]
    assert len(pod.server.app.sleeps) == 1
    scene.wait_for_adapter("tone", lambda adapter: adapter.status.served_version == 1)


def test_a_trainer_that_hangs_in_the_pause_is_gone_before_serving_is_woken(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter(maxPauseSeconds=2)
    script = scene.script(Script(Ending.HANG))
    scene.apply_job(backoffLimit=0)
    scene.wait_until_reached(script)
    wait_until_awake(scene, pod, 2 + 5 + 10)
    (run,) = scene.runs("step")
    assert run.ended is not None
    assert pod.server.app.wakes[-1] >= run.ended - 0.2
    job = scene.wait_until("step", "Failed")
    assert reason_of(job.status.conditions, "Failed") == "MaxPauseExceeded"
    assert scene.trainer_pods(job.metadata.uid) == []
    scene.wait("a free lease", lambda: (lease := scene.lease()) is not None and lease.grant is None)


def test_a_pod_that_somebody_else_put_to_sleep_is_never_woken_and_its_job_waits(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    pod.server.app.sleep()
    scene.apply_job()
    job = scene.wait_for_job(
        "step", lambda job: reason_of(job.status.conditions, "Admitted") == "AdapterNotReady", 10
    )
    assert job.status.phase == "Pending"
    scene.wait_for_adapter("tone", lambda adapter: reason_of(adapter.status.conditions, "Ready") == "Asleep")
    time.sleep(3)
    assert pod.server.app.asleep
    assert scene.runs("step") == []
    pod.server.app.wake()
    scene.wait_until("step", "Complete")


@pytest.mark.parametrize(
    ("reason", "exit_code", "backoff_limit", "attempts", "failed_as"),
    [
        (FailureReason.INVALID_SAMPLE, None, 3, 1, "InvalidSample"),
        (FailureReason.INTERNAL, ExitCode.PERMANENT, 3, 1, "InternalError"),
        (FailureReason.OUT_OF_MEMORY, None, 3, 1, "OutOfMemory"),
        (FailureReason.CONTROL_REFUSED, None, 1, 2, "ControlRefused"),
    ],
    ids=["a-permanent-reason", "a-permanent-exit-code", "what-would-fail-alike", "what-can-pass-up-to-the-limit"],
)
def test_a_job_is_tried_again_as_its_trainers_exit_code_says(
    operator: OperatorProcess,
    scene: Scene,
    reason: FailureReason,
    exit_code: int | None,
    backoff_limit: int,
    attempts: int,
    failed_as: str,
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    message = "samples[0].response: empty"
    for attempt in range(1, attempts + 1):
        script = Script(Ending.FAIL, Moment.PREPARING, reason=reason, message=message, exit_code=exit_code)
        scene.script(script, attempt=attempt)
    scene.apply_job(backoffLimit=backoff_limit)
    job = scene.wait_until("step", "Failed")
    assert reason_of(job.status.conditions, "Failed") == failed_as
    scene.wait(
        "the Event", lambda: any(message in note for kind, _, note in scene.events("step") if kind == "Warning")
    )
    assert len(scene.runs("step")) == attempts == job.status.failed_attempts
    assert pod.server.app.sleeps == []
    assert scene.adapter().status.latest_version == 0


def test_every_invalid_sample_is_named_and_a_version_records_the_feedback_that_it_learned_from(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve()
    scene.ready_adapter()

    def apply(job: str, blank: tuple[int, ...] = ()) -> None:
        """A job on five samples in a Secret."""
        batch = [
            {"user_prompt": "q", "response": "a", "feedback": " " if n in blank else "f", "id": f"fb-{n}"}
            for n in range(5)
        ]
        scene.make_secret(job, {"samples.json": json.dumps(batch)})
        scene.apply_job(job, samples={"secretRef": {"name": job}})

    apply("malformed", blank=(1, 4))
    seen = scene.wait_until("malformed", "Failed")
    assert scene.runs("malformed") == [], "the operator needs no trainer to see it"
    scene.script(Script(invalid_ids=frozenset({"fb-0", "fb-3"})), job="unfit")
    apply("unfit")
    told = scene.wait_until("unfit", "Failed")
    for job, wrong, field in ((seen, [1, 4], "feedback"), (told, [0, 3], "response")):
        assert reason_of(job.status.conditions, "Failed") == "InvalidSample"
        assert [each.index for each in job.status.invalid_samples] == wrong
        assert all(each.message.startswith(f"{field}: is ") for each in job.status.invalid_samples)
        assert "(2 samples are wrong)" in (job.status.message or "")
    apply("good")
    assert scene.wait_until("good", "Complete").status.produced_version == 1
    folder = f"{scene.namespace}/tone"
    assert scene.simulation.volume.feedback_ids(scene.namespace, folder, 1) == tuple(f"fb-{n}" for n in range(5))


def test_a_trainer_that_ends_well_and_says_nothing_has_failed(operator: OperatorProcess, scene: Scene) -> None:
    scene.serve()
    scene.ready_adapter()
    scene.script(Script(Ending.SILENT, Moment.PREPARING))
    scene.apply_job(backoffLimit=0)
    job = scene.wait_until("step", "Failed")
    assert reason_of(job.status.conditions, "Failed") == "InternalError"


def test_a_job_deleted_in_mid_step_frees_the_lease_after_waking_and_its_name_can_be_used_again(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    script = scene.script(Script(hold=True))
    first = scene.apply_job()
    scene.wait_until_reached(script)
    scene.remove_job()
    wait_until_awake(scene, pod)
    scene.simulation.scripts.pop((scene.namespace, "step", 1))
    second = scene.apply_job()
    assert second.metadata.uid != first.metadata.uid
    job = scene.wait_until("step", "Complete")
    assert job.status.attempts == 1
    runs = scene.runs("step")
    assert [run.document.jobs[0].uid if run.document.jobs else None for run in runs] == [
        first.metadata.uid,
        second.metadata.uid,
    ]
    assert runs[0].ended is not None
    assert runs[0].ended <= runs[1].began


def test_a_job_whose_trainer_dies_after_the_job_was_deleted_leaves_nothing_asleep(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    script = scene.script(Script(Ending.DIE, hold=True))
    job = scene.apply_job()
    scene.wait_until_reached(script)
    scene.delete(DISTILL_JOBS, "step")
    script.hold = False
    scene.simulation.run(scene.simulation.node.collect_garbage(scene.namespace, job.metadata.uid))
    wait_until_awake(scene, pod)
    scene.wait("a free lease", lambda: (lease := scene.lease()) is not None and lease.grant is None)


def test_an_adapter_deleted_in_mid_step_goes_and_its_job_fails_and_serving_is_awake(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    adapter = scene.ready_adapter()
    script = scene.script(Script(hold=True))
    scene.apply_job()
    scene.wait_until_reached(script)
    scene.delete(ADAPTERS, "tone")
    scene.simulation.run(scene.simulation.node.collect_garbage(scene.namespace, adapter.metadata.uid))
    job = scene.wait_until("step", "Failed")
    assert reason_of(job.status.conditions, "Failed") == "AdapterDeleted"
    wait_until_awake(scene, pod)
    scene.wait("the adapter's end", lambda: scene.get(ADAPTERS, "tone") is None)
    scene.wait("the adapter out of service", lambda: pod.server.app.adapters == {}, 30)


def test_an_adapter_whose_server_is_unreachable_can_be_deleted(operator: OperatorProcess, scene: Scene) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    scene.simulation.run(pod.server.stop())
    scene.wait_for_adapter(
        "tone", lambda adapter: reason_of(adapter.status.conditions, "Ready") == "VllmUnreachable", 45
    )
    scene.delete(ADAPTERS, "tone")
    scene.wait("the adapter's end", lambda: scene.get(ADAPTERS, "tone") is None, 75)


def test_everything_can_be_deleted_while_the_operator_is_absent(operator: OperatorProcess, scene: Scene) -> None:
    scene.serve()
    scene.ready_adapter()
    script = scene.script(Script(hold=True))
    job = scene.apply_job()
    scene.apply_job("waiting")
    scene.wait_until_reached(script)
    operator.kill()
    for name in ("step", "waiting"):
        scene.remove_job(name)
        assert scene.get(DISTILL_JOBS, name) is None
    scene.delete(ADAPTERS, "tone")
    assert scene.get(ADAPTERS, "tone") is None
    scene.wait("the trainer's end", lambda: scene.trainer_pods(job.metadata.uid) == [])
    operator.start_leading()
    scene.wait("a free lease", lambda: (lease := scene.lease()) is None or lease.grant is None)


def test_a_deployment_deleted_in_mid_step_lets_the_job_end_with_its_version_published(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    script = scene.script(Script(Ending.FAIL, Moment.PUBLISHED, FailureReason.VLLM_UNREACHABLE, hold=True))
    scene.apply_job()
    scene.wait_until_reached(script)
    scene.delete(DEPLOYMENTS, "vllm")
    scene.simulation.run(scene.simulation.api.delete(PODS, scene.namespace, pod.name, grace_seconds=0))
    scene.simulation.run(pod.server.stop())
    script.hold = False
    scene.wait_for_adapter(
        "tone", lambda adapter: reason_of(adapter.status.conditions, "Ready") == "DeploymentNotFound"
    )
    scene.wait("the trainer's end", lambda: scene.runs("step")[0].ended is not None)
    assert versions_by(scene, "step") == [1]
    again = scene.serve()
    assert again[0].uid != pod.uid
    job = scene.wait_until("step", "Complete", 45)
    assert job.status.produced_version == 1
    assert versions_by(scene, "step") == [1]


def test_of_two_operators_one_leads_and_the_other_takes_over_when_the_first_is_killed(
    operator: OperatorProcess, scene: Scene, simulation: Simulation
) -> None:
    scene.serve()
    scene.ready_adapter()
    script = scene.script(Script(hold=True))
    scene.apply_job()
    scene.wait_until_reached(script)
    second = OperatorProcess(
        simulation.cluster, simulation.folder / "second.log", name="operator-1", health_port=free_ports(1)[0]
    )
    second.start()
    try:
        time.sleep(4)
        assert not second.leads()
        operator.kill()
        second.wait_until_leading(40)
        script.hold = False
        scene.wait_until("step", "Complete")
        assert len(scene.runs("step")) == 1
    finally:
        status = second.stop()
    assert status == 0
    began = time.monotonic()
    operator.start_leading()
    assert time.monotonic() - began < 12, "a lease that was let go need not run out"


def test_a_batch_job_that_somebody_deletes_counts_as_a_lost_attempt(operator: OperatorProcess, scene: Scene) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    script = scene.script(Script(hold=True))
    scene.apply_job(backoffLimit=0)
    scene.wait_until_reached(script)
    scene.wait_for_job("step", lambda job: job.status.attempts == 1)
    (name,) = [name for name in scene.batch_jobs() if name.startswith("step-")]
    scene.delete(BATCH_JOBS, name)
    job = scene.wait_until("step", "Failed")
    assert reason_of(job.status.conditions, "Failed") == "TrainerLost"
    wait_until_awake(scene, pod)
    assert not holds(job.status.conditions, "Trained")


def test_what_the_api_server_refuses_of_spec_trainer_is_told_and_heals(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve()
    scene.ready_adapter()
    scene.ready_adapter("other")
    wrong: Manifest = {
        "volumeMounts": [{"name": "x", "mountPath": "/x"}],
        "nodeSelector": {"pool": "no label's value"},
    }
    scene.merge(ADAPTERS, "tone", {"spec": {"trainer": wrong}})
    scene.apply_job()
    job = scene.wait_for_job("step", lambda job: reason_of(job.status.conditions, "Admitted") == "RequestRefused")
    (admitted,) = [each for each in job.status.conditions if each.type == "Admitted"]
    assert "volumeMounts" in admitted.message
    assert 'Not found: "x"' in admitted.message
    assert 'Invalid value: "no label\'s value"' in admitted.message
    scene.apply_job("beside", "other")
    scene.wait_until("beside", "Complete")
    scene.merge(ADAPTERS, "tone", {"spec": {"trainer": {"nodeSelector": None, "volumeMounts": None}}})
    scene.wait_until("step", "Complete", 45)
