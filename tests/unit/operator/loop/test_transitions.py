"""The operator's log has a line for each change of state, and none for a pass that changes nothing."""

from __future__ import annotations

import logging

import pytest

from claas_crds.v1alpha1.conditions import Condition
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.lora_adapter import LoraAdapterStatus
from claas_crds.v1alpha1.step import JobPhase
from claas_kube.resources import ADAPTERS, DEPLOYMENTS, DISTILL_JOBS
from claas_operator.keys import Key, Kind
from claas_operator.loop.transitions import adapter_transition, job_transition, lease_transitions
from claas_operator.plan.actions import Action, WriteLease
from claas_operator.plan.serving_lease import ServingLease
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.reconciler import reconciler_of
from tests.builders.world import NAMESPACE, adapter, condition, grant, job, lease


def waits(reason: str, message: str = "said") -> DistillJobStatus:
    return DistillJobStatus(phase=JobPhase.QUEUED, reason=reason, message=message)


JOBS: list[tuple[DistillJobStatus, DistillJobStatus, str | None]] = [
    (DistillJobStatus(), waits("Queued"), "new -> Queued: Queued: said"),
    (waits("Queued"), waits("Queued", "3 jobs come first"), None),
    (waits("Queued"), waits("NoHandover", "add\na flag"), "Queued -> Queued: NoHandover: add a flag"),
]


@pytest.mark.parametrize(("before", "after", "line"), JOBS)
def test_a_jobs_change_of_phase_or_reason_is_a_line(
    before: DistillJobStatus, after: DistillJobStatus, line: str | None
) -> None:
    assert job_transition(before, after) == line


def test_a_long_reason_is_cut() -> None:
    line = job_transition(DistillJobStatus(), waits("Queued", "x" * 1000))
    assert line is not None
    assert len(line) < 350


def ready(holds: bool, reason: str, version: int | None) -> LoraAdapterStatus:
    said: Condition = condition("Ready", holds, reason)
    return LoraAdapterStatus(conditions=[said], served_version=version)


def test_an_adapters_change_of_readiness_or_version_is_a_line() -> None:
    serving = ready(True, "Serving", 3)
    line = adapter_transition(ready(False, "Loading", 2), serving)
    assert line == "not ready (Loading, version 2) -> ready (Serving, version 3): Serving: said before"
    assert adapter_transition(serving, serving) is None
    line = adapter_transition(LoraAdapterStatus(), serving)
    assert line is not None
    assert line.startswith("new -> ready")


LEASES: list[tuple[ServingLease | None, Action, list[str]]] = [
    (None, WriteLease(lease(grant())), ["free -> held by step for attempt 1 (Sleep)"]),
    (lease(grant()), WriteLease(lease()), ["held by step for attempt 1 (Sleep) -> free"]),
    (lease(grant()), WriteLease(lease(grant())), []),
    (
        lease(grant()),
        WriteLease(lease(grant(stopped_because="MaxPauseExceeded"))),
        ["held by step for attempt 1 (Sleep) -> held by step for attempt 1 (Sleep), to be ended: MaxPauseExceeded"],
    ),
]


@pytest.mark.parametrize(("before", "action", "lines"), LEASES)
def test_what_becomes_of_a_lease_is_a_line(before: ServingLease | None, action: Action, lines: list[str]) -> None:
    assert lease_transitions(before, (action,)) == lines


async def test_passes_log_what_changed_once_and_no_sample(caplog: pytest.LogCaptureFixture) -> None:
    small = SmallApi()
    for resource, found in ((ADAPTERS, adapter(serving={"handover": "None"})), (DISTILL_JOBS, job())):
        small.put(resource, NAMESPACE, found.model_dump(mode="json", by_alias=True, exclude_none=True))
    selector = {"matchLabels": {"app": "vllm"}}
    small.put(DEPLOYMENTS, NAMESPACE, {"metadata": {"name": "vllm"}, "spec": {"selector": selector}})  # type: ignore[dict-item]
    async with serving_api(small) as api:
        reconciler = reconciler_of(api)
        with caplog.at_level(logging.INFO, logger="claas_operator"):
            for _ in range(3):
                await reconciler.reconcile(Key(Kind.ADAPTER, NAMESPACE, "tone"))
        lines = [record.getMessage() for record in caplog.records if "->" in record.getMessage()]
        assert [line.split(": ")[0] for line in lines] == ["LoraAdapter team/tone"]
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="claas_operator"):
            for _ in range(3):
                await reconciler.reconcile(Key(Kind.JOB, NAMESPACE, "step"))
        lines = [record.getMessage() for record in caplog.records if "->" in record.getMessage()]
        assert lines
        assert len(lines) == len(set(lines))
        assert "a feedback" not in caplog.text
