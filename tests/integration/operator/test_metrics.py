"""What the operator's process tells at /metrics once it has run a job, checked by the real promtool."""

from __future__ import annotations

import subprocess
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from claas_operator.metrics.definitions import METRICS
from tests.cluster.services.binaries import Binary, ensure
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.scene import SAMPLE, Scene, reason_of
from tests.simulation.trainer import Ending, Script
from tests.simulation.vllm_pod import CONTROL_TOKEN

pytestmark = pytest.mark.integration

PRIVATE = "xyzzy-of-a-user"


def scrape(operator: OperatorProcess) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{operator.metrics_port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


class Scrape:
    """One scrape, by name and labels."""

    def __init__(self, text: str) -> None:
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum over the series that have these labels; 0 when there is none."""
        return sum(
            sample.value for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items()
        )


def test_a_job_that_ran_is_told_by_metrics_that_promtool_accepts(operator: OperatorProcess, scene: Scene) -> None:
    scene.serve()
    scene.ready_adapter()
    before = Scrape(scrape(operator))
    scene.apply_job(PRIVATE, samples={"inline": [{**SAMPLE, "feedback": PRIVATE}]})
    job = scene.wait_until(PRIVATE, "Complete")
    scene.wait_for_adapter("tone", lambda adapter: adapter.status.served_version == 1)
    here = {"namespace": scene.namespace}

    def told() -> Scrape | None:
        found = Scrape(scrape(operator))
        return found if found.value("claas_adapter_served_version", adapter="tone", **here) == 1 else None

    after = scene.wait("the version in the metrics", told)
    assert after.value("claas_leading") == 1
    assert after.value("claas_jobs_finished_total", result="complete", reason="Completed", **here) == 1
    assert after.value("claas_versions_published_total", **here) == 1
    assert after.value("claas_jobs", phase="Succeeded", **here) == 1
    assert after.value("claas_adapter_ready", adapter="tone", **here) == 1
    assert after.value("claas_jobs_waiting", deployment="vllm", **here) == 0
    assert after.value("claas_vllm_asleep_without_step_seconds", deployment="vllm", **here) == 0
    for name, took in (
        ("claas_job_phase_duration_seconds_sum", job.status.timings.step),
        ("claas_serving_gap_seconds_sum", job.status.timings.serving_gap),
    ):
        labels = {"phase": "step"} if "phase" in name else {"handover": "Sleep"}
        assert took is not None
        assert after.value(name, **labels) - before.value(name, **labels) == pytest.approx(took)
    for name, labels in (
        ("claas_pass_duration_seconds_count", {"kind": "DistillJob", "result": "done"}),
        ("claas_work_queue_wait_seconds_count", {"kind": "DistillJob"}),
        ("claas_api_requests_total", {"verb": "patch", "resource": "distilljobs/status", "code": "200"}),
        ("claas_api_request_duration_seconds_count", {"verb": "get"}),
    ):
        assert after.value(name, **labels) > before.value(name, **labels), name
    assert after.value("claas_version_loads_total", result="loaded") >= 1, (
        "the first version is loaded by the operator"
    )
    assert after.value("process_resident_memory_bytes") > 0

    text = scrape(operator)
    assert PRIVATE not in text, "neither a job's name nor a user's words"
    names = {label for sample in after.samples if sample.name.startswith("claas_") for label in sample.labels}
    assert names <= {label for metric in METRICS for label in metric.labels} | {"le"}
    promtool = ensure([Binary.PROMTOOL])[Binary.PROMTOOL]
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_vllm_that_a_dead_step_left_asleep_and_a_refused_version_are_told(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    before, here = Scrape(scrape(operator)), {"namespace": scene.namespace}
    scene.script(Script(Ending.DIE))
    scene.apply_job(backoffLimit=0)
    job = scene.wait_until("step", "Failed")
    scene.wait("vLLM awake", lambda: not pod.server.app.asleep)
    pod.server.app.refuses = "versions/0"
    scene.apply_adapter("style")
    scene.wait_for_adapter("style", lambda adapter: reason_of(adapter.status.conditions, "Ready") == "LoadFailed")
    after = Scrape(scrape(operator))

    def more(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    reason = reason_of(job.status.conditions, "Failed")
    assert more("claas_jobs_finished_total", result="failed", reason=reason, **here) == 1
    assert more("claas_vllm_wakes_total", result="woken") == 1
    assert more("claas_version_loads_total", result="refused") >= 1
    assert after.value("claas_adapter_failing_loads", adapter="style", **here) == 1
    assert after.value("claas_adapter_ready", adapter="style", **here) == 0


def test_a_vllm_that_the_operator_can_not_wake_is_told_until_it_is_awake(
    operator: OperatorProcess, scene: Scene
) -> None:
    (pod,) = scene.serve()
    scene.ready_adapter()
    script = scene.script(Script(Ending.DIE, hold=True))
    scene.apply_job(backoffLimit=0)
    scene.wait_until_reached(script)
    place = {"namespace": scene.namespace, "deployment": "vllm"}

    def asleep_for() -> float:
        return Scrape(scrape(operator)).value("claas_vllm_asleep_without_step_seconds", **place)

    assert asleep_for() == 0, "its trainer is at work"
    pod.server.want_token("of-tomorrow")
    script.hold = False
    scene.wait("the sleeping vLLM in the metrics", lambda: asleep_for() > 1)
    assert pod.server.app.asleep
    pod.server.want_token(CONTROL_TOKEN)
    scene.wait("vLLM awake", lambda: not pod.server.app.asleep)
    scene.wait("no sleeping vLLM in the metrics", lambda: asleep_for() == 0)
