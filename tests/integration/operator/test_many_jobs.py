"""Many jobs at once, at a size for every run; bench/operator.py has the large one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.scale.load import Load, Size
from bench.scale.rest import about_a_job
from tests.cluster.audit import AuditLog, Calls
from tests.cluster.services.control_plane import free_ports
from tests.simulation.operator_process import OperatorProcess
from tests.simulation.scene import Scene, Simulation
from tests.simulation.trainer import Script

pytestmark = pytest.mark.integration

RESYNC_SECONDS = 10
SIZE = Size(jobs=60, adapters=6, deployments=2, kilobytes=10, sleepers=1)


@pytest.fixture
def often_looking(
    simulation: Simulation, operator_process: OperatorProcess, tmp_path: Path
) -> Iterator[OperatorProcess]:
    """An operator in place of the session's, which looks at everything more often."""
    if operator_process.running:
        operator_process.stop()
    settings = {"CLAAS_RESYNC_SECONDS": str(RESYNC_SECONDS), "CLAAS_LOG_LEVEL": "INFO"}
    process = OperatorProcess(
        simulation.cluster, tmp_path / "operator.log", health_port=free_ports(1)[0], settings=settings
    )
    process.start_leading()
    yield process
    process.stop()
    print(process.tail())


@pytest.fixture
def sleeping(simulation: Simulation) -> Iterator[Scene]:
    """A namespace beside the test's own."""
    scene = Scene(simulation, f"sleeping-{uuid.uuid4().hex[:4]}")
    scene.set_up()
    yield scene
    scene.tear_down()


def test_each_of_many_jobs_costs_few_requests_a_finished_one_none_and_a_sleeping_vllm_is_woken_meanwhile(
    often_looking: OperatorProcess, scene: Scene, sleeping: Scene
) -> None:
    audit = AuditLog(scene.simulation.cluster.audit_log)
    load = Load.prepare(SIZE, scene, sleeping, often_looking, audit, seconds=60)
    outcome = load.run(240, print)
    print(outcome.calls.kinds.most_common())
    bars = {"jobs completed", "API calls a job", "of them writes", "asleep until woken, longest of 1"}
    assert [each for each in outcome.figures() if each.name in bars and not each.met] == []
    list(audit.new())
    time.sleep(RESYNC_SECONDS * 1.3)
    assert [each for each in audit.new() if each.namespace == scene.namespace and about_a_job(each)] == []


def test_a_job_whose_step_takes_twenty_seconds_costs_few_requests(operator: OperatorProcess, scene: Scene) -> None:
    scene.serve()
    scene.ready_adapter()
    time.sleep(2)  # The passes over the new adapter end.
    audit = AuditLog(scene.simulation.cluster.audit_log)
    scene.script(Script(prepare_seconds=17, step_seconds=3))
    scene.apply_job()
    scene.wait_until("step", "Complete", timeout_seconds=60)
    scene.wait("a free lease", lambda: (lease := scene.lease()) is not None and lease.grant is None)
    time.sleep(2)
    calls = Calls.of(each for each in audit.new() if each.namespace == scene.namespace)
    assert calls.writes <= 12, calls.kinds.most_common()
    assert calls.total <= 25, calls.kinds.most_common()
