"""What the operator does about a serving lease: tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from claas_crds.v1alpha1.lora_adapter import HandoverKind
from claas_operator.plan.actions import (
    Action,
    DeleteLease,
    KillTrainer,
    TakeOutOfService,
    WakePods,
    WriteLease,
)
from claas_operator.plan.lease import MAX_PAUSE_MARGIN_SECONDS, plan_lease
from claas_operator.plan.serving_lease import ServedRecord
from claas_operator.plan.world import LeaseWorld, Orphan
from tests.builders.world import (
    ASLEEP,
    NOW,
    REFUSED,
    UNREACHABLE,
    ago,
    grant,
    lease_world,
    recorded,
    serves,
    target,
    trainer_pod,
    vllm_pod,
)

LONG_AGO = ago(2 + MAX_PAUSE_MARGIN_SECONDS + 1)
RECORD = ServedRecord(adapter_name="tone", adapter_uid="uid-of-tone", port=8000)


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


def test_the_start_of_a_pause_is_written_down_and_so_is_its_end() -> None:
    (begin,) = plan_lease(lease_world(alive=(trainer_pod("t"),), pods=(recorded("vllm-0", ASLEEP),))).actions
    assert isinstance(begin, WriteLease)
    assert begin.lease.grant is not None
    assert begin.lease.grant.asleep_since == NOW
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
    assert kinds(plan_lease(lease_world(free=True, deployment_found=False)).actions) == [DeleteLease.__name__]
    assert plan_lease(lease_world(deployment_found=False)).actions == ()


def test_what_lost_its_adapter_is_taken_out_of_service_and_forgotten_when_no_pod_serves_it() -> None:
    serving = Orphan("tone", RECORD, (vllm_pod(server=serves(3)), vllm_pod("vllm-1", server=serves(None))))
    plan = plan_lease(lease_world(free=True, served={"tone": RECORD}, orphans=(serving,)))
    assert plan.actions == (TakeOutOfService("http://vllm-0:8000", "tone", RECORD),)
    gone = Orphan("tone", RECORD, (vllm_pod(server=serves(None)),))
    (write,) = plan_lease(lease_world(free=True, served={"tone": RECORD}, orphans=(gone,))).actions
    assert isinstance(write, WriteLease)
    assert write.lease.served == {}


def test_what_was_loaded_and_never_served_is_taken_out_as_well() -> None:
    orphan = Orphan("tone", RECORD, (vllm_pod(server=replace(serves(None), remnants=True)),))
    plan = plan_lease(lease_world(free=True, served={"tone": RECORD}, orphans=(orphan,)))
    assert plan.actions == (TakeOutOfService("http://vllm-0:8000", "tone", RECORD),)


def test_what_lost_its_adapter_is_remembered_while_a_pod_of_it_can_not_be_asked() -> None:
    orphan = Orphan("tone", RECORD, (vllm_pod(server=UNREACHABLE),))
    plan = plan_lease(lease_world(free=True, served={"tone": RECORD}, orphans=(orphan,)))
    assert plan.actions == ()
    assert plan.requeue_seconds is not None


def test_nothing_is_taken_out_of_service_while_a_step_holds_the_lease() -> None:
    orphan = Orphan("other", RECORD, (vllm_pod(server=serves(3)),))
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
