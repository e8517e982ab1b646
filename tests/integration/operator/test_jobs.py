"""A DistillJob's own rules: queue, suspension, deadline, time to live, and samples that are missing or private."""

from __future__ import annotations

import itertools
import json
import time
from datetime import timedelta

import pytest
from pydantic import JsonValue

from claas_kube.objects.meta import Manifest
from claas_kube.resources import (
    ADAPTERS,
    BATCH_JOBS,
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISTILL_JOBS,
    EVENTS,
    LEASES,
    PODS,
    SECRETS,
)
from claas_operator.plan.naming import attempt_name
from tests.simulation.cluster_api import field, text
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.scene import SAMPLE, Scene, Simulation, reason_of
from tests.simulation.trainer import Moment, Script

pytestmark = pytest.mark.integration

QUEUE_SECONDS = 300.0


def test_fifty_jobs_on_two_adapters_of_one_deployment_run_one_at_a_time_in_turns_each_once(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve()
    scene.ready_adapter("first")
    scene.ready_adapter("second")
    names = [f"job-{number:02d}" for number in range(50)]
    for number, name in enumerate(names):
        scene.apply_job(name, "first" if number % 2 else "second")

    def done() -> bool:
        return len(scene.simulation.node.runs) > 0 and all(
            job.status.phase in ("Succeeded", "Failed") for job in scene.jobs()
        )

    scene.wait("50 jobs", done, QUEUE_SECONDS, every_seconds=2)
    jobs = {job.metadata.name: job for job in scene.jobs()}
    assert [name for name in names if jobs[name].status.phase != "Succeeded"] == []
    assert {job.status.attempts for job in jobs.values()} == {1}
    runs = scene.runs()
    order = [str(run.job) for run in runs]
    turns = [jobs[name].spec.adapter_ref.name for name in order]
    assert sorted(order) == names
    for adapter in ("first", "second"):
        assert (mine := [name for name, of in zip(order, turns, strict=True) if of == adapter]) == sorted(mine)
    # The adapters take turns; only the first few jobs may have had nobody to wait for.
    assert sum(earlier == later for earlier, later in itertools.pairwise(turns)) <= 2
    for earlier, later in itertools.pairwise(runs):
        assert earlier.ended is not None
        assert earlier.ended <= later.began, f"{earlier.job} and {later.job} overlap"
    for adapter in ("first", "second"):
        versions = scene.simulation.volume.versions(scene.namespace, f"{scene.namespace}/{adapter}")
        assert [version.number for version in versions] == list(range(26))
        assert [version.parent for version in versions] == [None, *range(25)]
        scene.wait_for_adapter(adapter, lambda adapter: adapter.status.served_version == 25)


def test_a_suspended_job_does_not_start_and_runs_when_it_is_resumed(operator: OperatorProcess, scene: Scene) -> None:
    scene.serve()
    scene.ready_adapter()
    scene.apply_job(suspend=True)
    job = scene.wait_until("step", "Suspended")
    assert job.status.phase == "Suspended"
    scene.apply_job("other")
    scene.wait_until("other", "Complete")
    assert scene.runs("step") == []
    scene.merge(DISTILL_JOBS, "step", {"spec": {"suspend": False}})
    job = scene.wait_until("step", "Complete")
    assert reason_of(job.status.conditions, "Suspended") == "Resumed"


def test_a_job_suspended_in_mid_step_wakes_serving_lets_others_run_and_counts_no_failure(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    script = scene.script(Script(hold=True))
    scene.apply_job(backoffLimit=0)
    scene.wait_until_reached(script)
    scene.apply_job("other")
    scene.merge(DISTILL_JOBS, "step", {"spec": {"suspend": True}})
    scene.wait_until("other", "Complete")
    assert not pod.server.app.asleep
    assert scene.job().status.phase == "Suspended"
    scene.script(Script())
    scene.merge(DISTILL_JOBS, "step", {"spec": {"suspend": False}})
    job = scene.wait_until("step", "Complete")
    assert job.status.failed_attempts == 0
    runs = [scene.runs("step")[0], scene.runs("other")[0], scene.runs("step")[1]]
    for earlier, later in itertools.pairwise(runs):
        assert earlier.ended is not None
        assert earlier.ended <= later.began


def test_a_job_that_outlives_its_deadline_fails_and_serving_is_woken(operator: OperatorProcess, scene: Scene) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    script = scene.script(Script(hold=True))
    scene.apply_job(activeDeadlineSeconds=2)
    scene.wait_until_reached(script)
    job = scene.wait_until("step", "Failed")
    assert reason_of(job.status.conditions, "Failed") == "DeadlineExceeded"
    assert job.status.start_time is not None
    assert job.status.completion_time is not None
    assert timedelta(seconds=2) <= job.status.completion_time - job.status.start_time < timedelta(seconds=8)
    scene.wait("vLLM awake", lambda: not pod.server.app.asleep)
    scene.wait("no trainer", lambda: scene.trainer_pods(job.metadata.uid) == [])


def test_a_finished_job_is_deleted_when_its_time_to_live_is_over_and_its_version_stays(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve()
    scene.ready_adapter()
    scene.apply_job(ttlSecondsAfterFinished=1)
    scene.wait("the job's end", lambda: scene.get(DISTILL_JOBS, "step") is None)
    adapter = scene.wait_for_adapter("tone", lambda adapter: adapter.status.served_version == 1)
    assert [version.job for version in adapter.status.versions] == [None, "step"]


MISSING: list[tuple[str, Manifest, str]] = [
    ("config-map", {"configMapRef": {"name": "gone"}}, "spec.samples.configMapRef.name: there is no ConfigMap gone"),
    ("key", {"configMapRef": {"name": "feedback", "key": "b.json"}}, "ConfigMap feedback has no key b.json"),
    ("secret", {"secretRef": {"name": "gone"}}, "spec.samples.secretRef.name: there is no Secret gone"),
    ("claim", {"file": {"claimName": "gone", "path": "a.json"}}, "there is no PersistentVolumeClaim gone"),
]


def test_what_a_job_names_and_does_not_come_fails_it_with_the_field_and_serving_is_never_paused(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    scene.make_config_map("feedback", {"a.json": "[]"})
    for name, samples, _ in MISSING:
        scene.apply_job(f"no-{name}", samples=samples, activeDeadlineSeconds=3)
    scene.apply_job("no-adapter", "nobody", activeDeadlineSeconds=3)
    for name, _, message in MISSING:
        job = scene.wait_until(f"no-{name}", "Failed", 30)
        (failed,) = [each for each in job.status.conditions if each.type == "Failed"]
        assert failed.reason == "SamplesNotFound"
        assert message in failed.message
    job = scene.wait_until("no-adapter", "Failed")
    assert reason_of(job.status.conditions, "Failed") == "AdapterNotFound"
    assert scene.runs() == []
    assert pod.server.app.sleeps == []


def test_samples_and_adapter_that_come_long_after_the_job_are_waited_for_and_hold_up_no_other_job(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve()
    scene.ready_adapter("other")
    scene.apply_job(samples={"configMapRef": {"name": "feedback"}})
    scene.wait_for_job("step", lambda job: reason_of(job.status.conditions, "Admitted") == "AdapterNotFound")
    scene.apply_adapter()
    scene.wait_for_job("step", lambda job: reason_of(job.status.conditions, "Admitted") == "SamplesNotFound")
    scene.apply_job("later", "other")
    scene.wait_until("later", "Complete")
    time.sleep(6)
    assert scene.job().status.phase == "Pending"
    scene.make_config_map("feedback", {"samples.json": json.dumps([SAMPLE])})
    scene.wait_until("step", "Complete", 30)


def test_samples_deleted_while_the_step_is_taken_do_not_end_it(operator: OperatorProcess, scene: Scene) -> None:
    scene.serve()
    scene.ready_adapter()
    scene.make_config_map("feedback", {"samples.json": json.dumps([SAMPLE])})
    script = scene.script(Script(hold=True))
    scene.apply_job(samples={"configMapRef": {"name": "feedback"}})
    scene.wait_until_reached(script)
    scene.delete(CONFIG_MAPS, "feedback")
    time.sleep(3)
    assert scene.job().status.phase not in ("Pending", "Failed")
    script.hold = False
    scene.wait_until("step", "Complete")


SECRETS_OF_USERS = ("xyzzy-prompt-of-a-user", "xyzzy-answer-of-the-model", "xyzzy-feedback-of-a-user")


def test_no_sample_is_seen_anywhere_but_in_the_job_and_its_input_secret(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve()
    scene.ready_adapter()
    prompt, response, feedback = SECRETS_OF_USERS
    sample: Manifest = {"user_prompt": prompt, "response": response, "feedback": feedback}
    script = scene.script(Script(hold=True))
    created = scene.apply_job(samples={"inline": [sample]})
    scene.wait_until_reached(script)
    name = attempt_name(created.metadata, 1)
    secret = scene.get(SECRETS, name)
    assert secret is not None
    seen = _without_input(scene, name)
    script.hold = False
    scene.wait_until("step", "Complete")
    scene.wait("the input's end", lambda: scene.get(SECRETS, name) is None)
    seen += _without_input(scene, name) + operator.log.read_text(errors="replace")
    assert "xyzzy" not in seen
    assert [run.document.samples_file for run in scene.runs()] == ["/var/run/claas/input/samples.json"]


def _without_input(scene: Scene, input_name: str) -> str:
    """All objects of the namespace as text, without the jobs' specs (and who owns their fields) and the input."""
    everything: list[JsonValue] = []
    for resource in (ADAPTERS, BATCH_JOBS, CONFIG_MAPS, DEPLOYMENTS, EVENTS, LEASES, PODS):
        everything += scene.objects(resource)
    everything += [found for found in scene.objects(SECRETS) if text(found, "metadata", "name") != input_name]
    for job in scene.objects(DISTILL_JOBS):
        everything += [field(job, "metadata"), field(job, "status")]
    return json.dumps(everything)


def test_an_inline_job_of_900_kib_is_applied_server_side_and_run(
    operator: OperatorProcess, scene: Scene, simulation: Simulation
) -> None:
    scene.serve()
    scene.ready_adapter()
    sample: Manifest = {"user_prompt": "p" * 1000, "response": "r" * 1000, "feedback": "f" * 1000}
    samples: list[JsonValue] = [sample] * (900 * 1024 // len(json.dumps(sample)))
    manifest: Manifest = {
        "apiVersion": "claas.dev/v1alpha1",
        "kind": "DistillJob",
        "metadata": {"name": "step"},
        "spec": {"adapterRef": {"name": "tone"}, "samples": {"inline": samples}},
    }
    simulation.run(simulation.api.apply(DISTILL_JOBS, scene.namespace, manifest))
    scene.wait_until("step", "Complete", 30)
    found = scene.get(DISTILL_JOBS, "step")
    assert len(json.dumps(field(found, "metadata", "annotations") or {})) < 1000


def test_an_inline_job_too_large_for_its_input_fails_and_says_where_samples_can_lie(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve()
    scene.ready_adapter()
    # Admission counts characters, of which these have two bytes each.
    sample: Manifest = {"user_prompt": "é" * 1000, "response": "ü" * 1000, "feedback": "ö" * 1000}
    scene.apply_job(samples={"inline": [sample] * 220})
    job = scene.wait_until("step", "Failed", 30)
    (failed,) = [each for each in job.status.conditions if each.type == "Failed"]
    assert failed.reason == "InvalidInput"
    assert "spec.samples.inline" in failed.message
    assert "ééé" not in failed.message
    assert scene.runs() == []


def test_progress_of_the_trainer_is_seen_in_the_jobs_phase_only_while_it_is_told(
    operator: OperatorProcess, scene: Scene
) -> None:
    scene.serve()
    scene.ready_adapter()
    script = scene.script(Script(moment=Moment.PREPARING, hold=True))
    scene.apply_job()
    scene.wait_until_reached(script)
    scene.wait_for_job("step", lambda job: job.status.phase == "Preparing")
    script.hold = False
    scene.wait_until("step", "Complete")
