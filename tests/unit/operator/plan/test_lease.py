"""What the operator does about a serving lease: tables."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import cast
from uuid import uuid4

import pytest

from claas_crds.v1alpha1.serving import HandoverKind
from claas_kube.objects.meta import Manifest
from claas_operator.plan.actions import (
    Action,
    DeleteLease,
    ForgetServedName,
    KillTrainer,
    TakeOutOfService,
    WakePods,
    WriteLease,
    WriteServedName,
)
from claas_operator.plan.lease import MAX_PAUSE_MARGIN_SECONDS, plan_lease
from claas_operator.plan.serving_lease import (
    MOST_UNACCOUNTED,
    ServedName,
    ServedRecord,
    Unaccounted,
    lease_manifest,
    served_name_manifest,
)
from claas_operator.plan.world import LeaseWorld, Orphan
from tests.builders.world import (
    ASLEEP,
    NAMESPACE,
    REFUSED,
    UNREACHABLE,
    ago,
    grant,
    identity,
    lease,
    lease_world,
    recorded,
    serves,
    target,
    trainer_pod,
    vllm_pod,
)

LONG_AGO = ago(2 + MAX_PAUSE_MARGIN_SECONDS + 1)
RECORD = ServedRecord(adapter_name="tone", adapter_uid="uid-of-tone", port=8000)


def served_name(name: str, deployment: str = "vllm") -> ServedName:
    return ServedName(
        namespace=NAMESPACE, deployment=deployment, served_name=name, record=RECORD, uid=f"uid-of-{name}"
    )


def kinds(actions: tuple[Action, ...]) -> list[str]:
    return [type(action).__name__ for action in actions]


NOTHING: list[tuple[str, LeaseWorld]] = [
    ("while the holder goes on", lease_world()),
    ("while a trainer lives and the pods are awake", lease_world(alive=(trainer_pod("t"),))),
    (
        "while a pause is not too long",
        lease_world(grant(asleep_since=ago(60)), alive=(trainer_pod("t"),), pods=(recorded("vllm-0", ASLEEP),)),
    ),
    ("while a pod can't be asked", lease_world(active=False, pods=(recorded("vllm-0", UNREACHABLE),))),
    ("while a pod refuses to answer", lease_world(active=False, pods=(recorded("vllm-0", REFUSED),))),
    ("while a batch Job of the holder may yet make a pod", lease_world(active=False, attempts_open=True)),
    ("when it is free", lease_world(free=True)),
]


@pytest.mark.parametrize("world", [world for _, world in NOTHING], ids=[name for name, _ in NOTHING])
def test_a_lease_is_left_as_it_is(world: LeaseWorld) -> None:
    plan = plan_lease(world)
    assert plan.actions == ()
    assert (plan.requeue_seconds is None) == (world.lease.grant is None)


def test_a_lease_whose_holder_has_ended_is_released() -> None:
    (action,) = plan_lease(lease_world(active=False)).actions
    assert isinstance(action, WriteLease)
    assert action.lease.grant is None


def test_a_lease_is_released_when_its_pods_are_gone() -> None:
    (action,) = plan_lease(lease_world(active=False, pods=(recorded(exists=False),))).actions
    assert isinstance(action, WriteLease)
    assert action.lease.grant is None


@pytest.mark.parametrize("active", [True, False])
def test_pods_that_a_dead_trainer_left_asleep_are_woken_and_no_others(active: bool) -> None:
    pods = (recorded("vllm-0", ASLEEP), recorded("vllm-1"), recorded("vllm-2", exists=False))
    plan = plan_lease(lease_world(grant(pods=("vllm-0", "vllm-1", "vllm-2")), active=active, pods=pods))
    (action,) = plan.actions
    assert isinstance(action, WakePods)
    assert action.pods == (target("vllm-0"),)


@pytest.mark.parametrize(("seconds", "written"), [(None, False), (9, False), (10, True), (60, True)])
def test_since_when_the_pods_sleep_is_written_down_when_it_is_no_short_pause(
    seconds: int | None, written: bool
) -> None:
    since = None if seconds is None else ago(seconds)
    world = lease_world(alive=(trainer_pod("t"),), pods=(recorded("vllm-0", ASLEEP),))
    actions = plan_lease(replace(world, asleep_since=since)).actions
    assert kinds(actions) == (["WriteLease"] if written else [])
    for action in actions:
        assert isinstance(action, WriteLease)
        assert action.lease.grant is not None
        assert action.lease.grant.asleep_since == since


def test_a_pause_that_is_too_long_is_ended_also_when_its_start_was_not_written_down() -> None:
    world = lease_world(grant(max_pause_seconds=2), alive=(trainer_pod("t"),), pods=(recorded("vllm-0", ASLEEP),))
    assert plan_lease(replace(world, asleep_since=ago(6))).actions == ()
    (stop,) = plan_lease(replace(world, asleep_since=ago(8))).actions
    assert isinstance(stop, WriteLease)
    assert stop.lease.grant is not None
    assert stop.lease.grant.stopped_because == "MaxPauseExceeded"


def test_the_end_of_a_pause_that_was_written_down_is_written_down_too() -> None:
    (end,) = plan_lease(lease_world(grant(asleep_since=ago(9)), alive=(trainer_pod("t"),))).actions
    assert isinstance(end, WriteLease)
    assert end.lease.grant is not None
    assert end.lease.grant.asleep_since is None


def test_a_pause_that_is_too_long_is_written_down_first_then_the_trainer_is_ended_then_the_pods_are_woken() -> None:
    held = grant(max_pause_seconds=2, asleep_since=LONG_AGO)
    asleep = (recorded("vllm-0", ASLEEP),)
    (stop,) = plan_lease(lease_world(held, alive=(trainer_pod("t"),), pods=asleep)).actions
    assert isinstance(stop, WriteLease)
    assert stop.lease.grant is not None
    assert stop.lease.grant.stopped_because == "MaxPauseExceeded"
    stopped = stop.lease.grant
    assert plan_lease(lease_world(stopped, alive=(trainer_pod("t"),), pods=asleep)).actions == (
        KillTrainer(trainer_pod("t")),
    )
    assert kinds(plan_lease(lease_world(stopped, pods=asleep)).actions) == ["WakePods"]


def test_the_lease_of_a_deployment_that_is_gone_is_deleted_once_it_is_free() -> None:
    assert kinds(plan_lease(lease_world(free=True, subject_found=False)).actions) == [DeleteLease.__name__]
    assert plan_lease(lease_world(subject_found=False)).actions == ()


def test_the_lease_of_a_deployment_that_is_gone_goes_after_the_records_of_what_it_served() -> None:
    gone = Orphan(served_name("tone"), ())
    some = plan_lease(lease_world(free=True, subject_found=False, orphans=(gone,), more_orphans=True))
    assert kinds(some.actions) == ["ForgetServedName"]
    assert some.requeue_seconds is not None
    last = plan_lease(lease_world(free=True, subject_found=False, orphans=(gone,)))
    assert kinds(last.actions) == ["ForgetServedName", "DeleteLease"]


def test_what_lost_its_adapter_is_taken_out_of_service_and_forgotten_when_no_pod_serves_it() -> None:
    tone = served_name("tone")
    serving = Orphan(tone, (vllm_pod(server=serves(3)), vllm_pod("vllm-1", server=serves(None))))
    plan = plan_lease(lease_world(free=True, orphans=(serving,)))
    assert plan.actions == (TakeOutOfService("http://vllm-0:8000", "tone", RECORD),)
    assert plan.requeue_seconds is not None
    plan = plan_lease(lease_world(free=True, orphans=(Orphan(tone, (vllm_pod(server=serves(None)),)),)))
    assert plan.actions == (ForgetServedName(tone),)
    assert plan.requeue_seconds is None


def test_what_was_loaded_and_never_served_is_taken_out_as_well() -> None:
    orphan = Orphan(served_name("tone"), (vllm_pod(server=replace(serves(None), remnants=True)),))
    plan = plan_lease(lease_world(free=True, orphans=(orphan,)))
    assert plan.actions == (TakeOutOfService("http://vllm-0:8000", "tone", RECORD),)


def test_what_lost_its_adapter_is_remembered_while_a_pod_of_it_can_not_be_asked() -> None:
    orphan = Orphan(served_name("tone"), (vllm_pod(server=UNREACHABLE),))
    plan = plan_lease(lease_world(free=True, orphans=(orphan,)))
    assert plan.actions == ()
    assert plan.requeue_seconds is not None


def test_records_of_an_earlier_release_are_moved_once_each_and_nothing_is_lost_on_the_way() -> None:
    """As often as it takes, each time with what the last time left."""
    served = {f"name-{number}": RECORD for number in range(900)}
    moved: set[str] = {"name-7"}  # Its adapter has written it anew meanwhile.
    written: list[str] = []
    left = lease_world(free=True, served=served).lease
    while left.served:
        plan = plan_lease(replace(lease_world(free=True), lease=left, moved=frozenset(moved)))
        assert plan.requeue_seconds == 0.0
        *records, last = plan.actions
        assert isinstance(last, WriteLease)
        written += [record.served.served_name for record in records if isinstance(record, WriteServedName)]
        assert set(written) | moved | set(last.lease.served) == set(served)
        left = last.lease
    assert sorted(written) == sorted(set(served) - {"name-7"})
    assert kinds(plan_lease(lease_world(served=served, alive=(trainer_pod("t"),))).actions) == []


def test_three_thousand_served_names_make_no_object_large() -> None:
    names = [served_name(f"{number:04}" + "n" * 100, deployment="vllm") for number in range(3000)]
    assert len({served.name for served in names}) == 3000
    for served in names[:3]:
        annotations = cast(Manifest, served_name_manifest(served)["metadata"])["annotations"]
        assert len(json.dumps(annotations)) < 1000


def test_a_lease_with_as_much_unaccounted_as_it_can_hold_waits_for_its_adapters_to_look() -> None:
    noted = Unaccounted(job_name="n" * 253, attempt=1, adapter_name="a" * 253, adapter_uid=str(uuid4()))
    full = lease(grant()).model_copy(update={"unaccounted": {str(uuid4()): noted for _ in range(MOST_UNACCOUNTED)}})
    world = replace(lease_world(active=False, unaccounted=(identity(),)), lease=full)
    assert len(json.dumps(lease_manifest(full))) < 256 * 1024
    assert plan_lease(world).actions == ()
    assert plan_lease(world).requeue_seconds is not None
    assert kinds(plan_lease(replace(world, unaccounted=())).actions) == ["WriteLease"]


def test_nothing_is_taken_out_of_service_while_a_step_holds_the_lease() -> None:
    orphan = Orphan(served_name("other"), (vllm_pod(server=serves(3)),))
    assert plan_lease(lease_world(alive=(trainer_pod("t"),), orphans=(orphan,))).actions == ()


@pytest.mark.parametrize("handover", [HandoverKind.SHARE, HandoverKind.NONE])
def test_the_holder_that_pauses_nothing_names_no_pod_that_could_be_woken(handover: HandoverKind) -> None:
    assert grant(handover=handover).may_pause == ()
    assert grant().may_pause == (target("vllm-0"),)


@pytest.mark.parametrize("handover", [HandoverKind.SHARE, HandoverKind.NONE])
def test_a_lease_under_which_nothing_was_paused_waits_for_its_trainer_and_for_nothing_else(
    handover: HandoverKind,
) -> None:
    held = grant(handover=handover)
    assert plan_lease(lease_world(held, active=False, alive=(trainer_pod("t"),), pods=())).actions == ()
    (action,) = plan_lease(lease_world(held, active=False, pods=())).actions
    assert isinstance(action, WriteLease)
    assert action.lease.grant is None
