"""A version whose job is gone is found on the volume and becomes one of the adapter's; until then all stays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.lora_adapter import LoraAdapterStatus
from claas_kube.objects.resources import AdapterObject
from claas_kube.objects.workloads import Lease
from claas_operator.plan.actions import (
    CreateRecovery,
    DeleteAttempt,
    DeleteLease,
    PutInService,
    WriteLease,
    WriteServedName,
)
from claas_operator.plan.adapter.adapter import AdapterPlan, plan_adapter
from claas_operator.plan.lease import plan_lease
from claas_operator.plan.serving_lease import ServedRecord, ServingLease, Unaccounted, lease_manifest, read_lease
from claas_operator.plan.world import TrainerJob, TrainerState
from tests.builders.world import (
    adapter,
    adapter_world,
    attempt,
    identity,
    lease,
    lease_world,
    published,
    serves,
    version,
    vllm_pod,
)

GONE = Unaccounted(job_name="gone", attempt=2, adapter_name="tone", adapter_uid="uid-of-tone")
RECORD = ServedRecord(adapter_name="tone", adapter_uid="uid-of-tone", port=8000)
NOTED = lease().model_copy(update={"unaccounted": {"uid-of-gone": GONE}, "served": {"tone": RECORD}})
SWAPPED = (vllm_pod(server=serves(1)),)
FOUND = attempt(
    TrainerState.SUCCEEDED,
    result=TrainerResult(succeeded=True, version=published(1, job="gone", parent=0), already_published=True),
)
NOTHING = attempt(TrainerState.SUCCEEDED, result=TrainerResult(succeeded=True))


def plan(looked: TrainerJob | None = None, of: AdapterObject | None = None) -> AdapterPlan:
    return plan_adapter(adapter_world(of, pods=SWAPPED, held=NOTED, looked=looked))


def written(found: AdapterPlan) -> list[ServingLease]:
    return [action.lease for action in found.actions if isinstance(action, WriteLease)]


def test_the_volume_is_looked_at_and_what_clients_have_seen_is_not_taken_back_meanwhile() -> None:
    looking = plan()
    (action,) = looking.actions
    assert isinstance(action, CreateRecovery)
    assert (action.job.name, action.job.uid, action.job.attempt) == ("gone", "uid-of-gone", 2)
    assert looking.requeue_seconds is not None
    under_way = plan(attempt(TrainerState.RUNNING))
    assert under_way.actions == ()


def test_what_was_found_is_adopted_told_and_served_and_then_the_job_is_forgotten() -> None:
    adopted = plan(FOUND)
    assert adopted.status.latest_version == 1
    assert adopted.status.versions[-1].job == "gone"
    assert any(note.reason == "VersionAdopted" for note in adopted.news)
    assert written(adopted) == [], "first it stands in status"
    of = adapter().model_copy(update={"status": adopted.status})
    after = plan(FOUND, of)
    assert [each.unaccounted for each in written(after)] == [{}]
    assert any(isinstance(action, DeleteAttempt) for action in after.actions)
    assert not any(isinstance(action, PutInService) for action in after.actions), "the pods serve it already"


def test_a_job_that_published_nothing_is_forgotten_and_the_old_version_goes_back_into_service() -> None:
    after = plan(NOTHING)
    assert [each.unaccounted for each in written(after)] == [{}]
    assert [action.version for action in after.actions if isinstance(action, PutInService)] == [0]


def test_a_version_that_stands_in_status_already_need_not_be_looked_for() -> None:
    status = LoraAdapterStatus(latest_version=1, versions=[version(0), version(1, job="gone", parent=0)])
    after = plan(None, adapter().model_copy(update={"status": status}))
    assert [each.unaccounted for each in written(after)] == [{}]
    assert not any(isinstance(action, CreateRecovery) for action in after.actions)


@pytest.mark.parametrize("state", [TrainerState.FAILED, TrainerState.LOST])
def test_a_pod_that_could_not_look_is_made_again_after_a_while(state: TrainerState) -> None:
    assert plan(attempt(state, exit_code=75, finished_seconds_ago=1)).actions == ()
    (again,) = plan(attempt(state, exit_code=75, finished_seconds_ago=60)).actions
    assert isinstance(again, DeleteAttempt)


def test_a_lease_is_released_with_a_note_of_the_version_that_may_have_been_left() -> None:
    (action,) = plan_lease(lease_world(active=False, unaccounted=(identity(), identity("other")))).actions
    assert isinstance(action, WriteLease)
    assert action.lease.grant is None
    assert set(action.lease.unaccounted) == {"uid-of-step", "uid-of-other"}
    left = action.lease.unaccounted["uid-of-step"]
    assert (left.job_name, left.attempt, left.adapter_uid) == ("step", 1, "uid-of-tone")


def test_the_note_outlives_the_lease_of_a_deployment_that_is_gone_but_not_its_adapter() -> None:
    world = lease_world(free=True, subject_found=False)
    noted = world.lease.model_copy(update={"unaccounted": {"uid-of-gone": GONE}})
    kept = plan_lease(replace(world, lease=noted))
    assert not any(isinstance(action, DeleteLease) for action in kept.actions)
    lost = plan_lease(replace(world, lease=noted, lost=("uid-of-gone",)))
    assert any(isinstance(action, DeleteLease) for action in lost.actions)


def test_a_lease_carries_the_note() -> None:
    manifest = lease_manifest(NOTED)
    assert read_lease(Lease.model_validate(manifest)).unaccounted == {"uid-of-gone": GONE}


def test_a_record_of_an_earlier_release_is_left_where_it_is_by_the_adapter() -> None:
    plan = plan_adapter(adapter_world(pods=SWAPPED, held=NOTED, looked=NOTHING))
    (write,) = written(plan)
    assert write.served == NOTED.served
    assert not any(isinstance(action, WriteServedName) for action in plan.actions)
