"""A load that failed is tried again less and less often, and at once when something has changed."""

from __future__ import annotations

import pytest

from claas_operator.plan.actions import PutInService
from claas_operator.plan.adapter.adapter import AdapterPlan, plan_adapter
from claas_operator.plan.job.obstacles import obstacle
from claas_operator.plan.server.load_failures import LONGEST_RETRY_SECONDS, Load, LoadFailures
from tests.builders.world import NOW, adapter, adapter_world, condition, job_world, metadata, serves, vllm_pod

PODS = frozenset({"uid-of-vllm-0", "uid-of-vllm-1"})
TONE = metadata("tone")
REFUSED = Load("uid-of-vllm-0", 1, "the rank is greater than max_lora_rank")


def plan(load_version: int, retry_in: float, *, serves_number: int | None = 0, latest: int = 1) -> AdapterPlan:
    pod = vllm_pod(server=serves(serves_number), load_error="no", load_version=load_version, retry_in=retry_in)
    return plan_adapter(adapter_world(adapter(versions=(0, latest)), pods=(pod,)))


def loads(found: AdapterPlan) -> bool:
    return any(isinstance(action, PutInService) for action in found.actions)


def test_each_wait_is_twice_as_long_as_the_last_up_to_a_limit() -> None:
    failures, now, waits = LoadFailures(), NOW, []
    for _ in range(10):
        failures.note(TONE, PODS, [REFUSED], now)
        found = failures.of(TONE)["uid-of-vllm-0"]
        waits.append((found.retry_at - now).total_seconds())
        now = found.retry_at
    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, LONGEST_RETRY_SECONDS, LONGEST_RETRY_SECONDS]


def test_another_version_another_spec_another_pod_and_a_success_begin_anew() -> None:
    failures = LoadFailures()
    for load, of in (
        (REFUSED, TONE),
        (Load("uid-of-vllm-0", 2, "no"), TONE),
        (REFUSED, TONE.model_copy(update={"generation": 2})),
    ):
        failures.note(of, PODS, [load], NOW)
        assert failures.of(TONE)["uid-of-vllm-0"].times == 1
    failures.note(TONE, PODS, [Load("uid-of-vllm-0", 1, None)], NOW)
    assert failures.of(TONE) == {}
    failures.note(TONE, PODS, [REFUSED], NOW)
    failures.note(TONE, frozenset({"uid-of-vllm-1"}), [], NOW)
    assert failures.of(TONE) == {}, "nothing is kept of a pod that is gone"
    failures.note(TONE, PODS, [REFUSED], NOW)
    failures.forget(TONE.namespace, TONE.name)
    assert failures.of(TONE) == {}


def test_a_version_that_failed_is_not_tried_before_its_time_and_is_told_meanwhile() -> None:
    waiting = plan(1, 30)
    assert not loads(waiting)
    assert waiting.status.replicas[0].message == "no"
    assert waiting.requeue_seconds is not None
    assert loads(plan(1, -1))


@pytest.mark.parametrize("changed", [plan(0, 30), plan(0, 30, latest=2)], ids=["failed-once", "a-newer-version"])
def test_a_failure_of_another_version_holds_nothing_back(changed: AdapterPlan) -> None:
    assert loads(changed)


def test_a_pod_that_serves_the_version_by_now_has_not_failed() -> None:
    assert plan(1, 30, serves_number=1).status.replicas[0].state == "Serving"


def test_no_step_is_taken_on_an_adapter_whose_newest_version_vllm_does_not_take() -> None:
    refused = condition("Ready", False, "LoadFailed")
    found = obstacle(job_world(on=adapter(conditions=(refused,))))
    assert found is not None
    assert found.reason == "AdapterNotReady"
    assert refused.message in found.message
