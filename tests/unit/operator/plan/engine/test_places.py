"""Places for steps that are computed elsewhere: never more than there are, never one left empty, and turns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_crds.v1alpha1.conditions import JobCondition, condition_of
from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_crds.v1alpha1.serving import HandoverKind
from claas_crds.v1alpha1.step import JobPhase
from claas_operator.plan.actions import WriteLease
from claas_operator.plan.engine.leases import StepLeases
from claas_operator.plan.engine.places import Places, WaitingAdapter, places_for
from claas_operator.plan.job.job import plan_job
from claas_operator.plan.server.handover_choice import HandoverChoice
from claas_operator.plan.serving_lease import new_adapter_lease
from tests.builders.world import NAMESPACE, NOW, adapter, ago, grant, job_world

ELSEWHERE = HandoverChoice(HandoverKind.NONE, "the engine computes elsewhere")
LEASE = new_adapter_lease(NAMESPACE, "tone").model_copy(update={"resource_version": "3"})


def waiting(name: str, granted: float | None, created: float = 60) -> WaitingAdapter:
    return WaitingAdapter(NAMESPACE, name, None if granted is None else ago(granted), ago(created))


@pytest.mark.parametrize(
    ("mine", "others", "ahead"),
    [
        (waiting("b", 10), [waiting("a", 20)], 1),
        (waiting("b", 30), [waiting("a", 20)], 0),
        (waiting("b", 30), [waiting("a", None)], 1),
        (waiting("b", None, created=90), [waiting("a", None, created=60)], 0),
        (waiting("b", None), [waiting("a", None), waiting("c", None)], 1),
    ],
)
def test_the_adapter_whose_last_step_began_longest_ago_comes_first(
    mine: WaitingAdapter, others: list[WaitingAdapter], ahead: int
) -> None:
    assert places_for(mine, others, taken=0, most=1) == Places(1, 0, ahead)


@given(
    most=st.integers(1, 4),
    jobs=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    ends=st.lists(st.integers(0, 7), max_size=60),
)
def test_places_are_full_while_anybody_waits_and_everybody_has_a_turn(
    most: int, jobs: list[int], ends: list[int]
) -> None:
    left = {f"a{number}": count for number, count in enumerate(jobs)}
    granted: dict[str, int] = {}
    running: list[str] = []
    turns: list[tuple[str, frozenset[str]]] = []
    clock = 0
    for end in [*ends, *range(sum(jobs))]:
        while True:
            queue = {
                name: waiting(name, None if name not in granted else 1000 - granted[name], 100 - number)
                for number, (name, count) in enumerate(left.items())
                if count and name not in running
            }
            may = [
                name
                for name, mine in queue.items()
                if places_for(mine, [each for each in queue.values() if each != mine], len(running), most).free
            ]
            # None is empty while somebody waits, and no more may begin than there are.
            assert len(may) == min(len(queue), most - len(running))
            if not may:
                break
            chosen = may[end % len(may)]
            clock += 1
            granted[chosen] = clock
            left[chosen] -= 1
            running.append(chosen)
            turns.append((chosen, frozenset(queue) - {chosen}))
            assert len(running) <= most
        if running:
            running.pop(end % len(running))
    # Whoever waited when another had a turn has one before that other has two more.
    for at, (name, waited) in enumerate(turns):
        again = [later for later in range(at + 1, len(turns)) if turns[later][0] == name]
        if len(again) >= 2:
            assert waited <= {other for other, _ in turns[at + 1 : again[1]]}


@pytest.mark.parametrize(
    ("places", "ahead", "holder", "granted"),
    [
        (Places(3, 2, 0), 0, False, True),
        (Places(3, 1, 1), 0, False, True),
        (Places(3, 3, 0), 0, False, False),
        (Places(3, 2, 1), 0, False, False),
        (Places(3, 0, 0), 1, False, False),
        (Places(3, 0, 0), 0, True, False),
    ],
)
def test_a_step_takes_its_adapters_lease_where_there_is_a_place(
    places: Places, ahead: int, holder: bool, granted: bool
) -> None:
    held = LEASE.model_copy(update={"grant": grant("other")}) if holder else LEASE
    plan = plan_job(replace(job_world(held=held, jobs_ahead=ahead, handover=ELSEWHERE), places=places))
    writes = [action.lease for action in plan.actions if isinstance(action, WriteLease)]
    assert bool(writes) is granted
    if granted:
        assert (writes[0].name, writes[0].adapter, writes[0].last_granted) == ("claas-steps-tone", "tone", NOW)
        return
    admitted = condition_of(plan.status.conditions, JobCondition.ADMITTED)
    assert admitted is not None
    assert (plan.status.phase, admitted.reason) == (JobPhase.QUEUED, "Queued")
    assert ("CLAAS_MAX_CONCURRENT_STEPS" in admitted.message) is not places.free


def test_a_lease_that_does_not_exist_yet_is_the_adapters() -> None:
    plan = plan_job(replace(job_world(handover=ELSEWHERE), places=Places(1, 0, 0)))
    (action,) = plan.actions
    assert isinstance(action, WriteLease)
    assert (action.lease.name, action.lease.deployment) == ("claas-steps-tone", "")


def test_a_retry_keeps_its_place() -> None:
    held = LEASE.model_copy(update={"grant": grant(attempt=1, handover=HandoverKind.NONE), "last_granted": ago(50)})
    world = replace(job_world(held=held, handover=ELSEWHERE), places=Places(1, 5, 0))
    status = world.job.status.model_copy(update={"attempts": 1, "failed_attempts": 1, "phase": JobPhase.QUEUED})
    plan = plan_job(replace(world, job=world.job.model_copy(update={"status": status})))
    (action,) = plan.actions
    assert isinstance(action, WriteLease)
    assert action.lease.grant is not None
    assert action.lease.grant.attempt_of("uid-of-step") == 2


@pytest.mark.parametrize("default", EngineName)
@pytest.mark.parametrize("named", [None, *EngineName])
def test_only_steps_that_need_serving_share_their_deployments_lease(
    named: EngineName | None, default: EngineName
) -> None:
    found = adapter(engine=None if named is None else EngineSpec.of(named))
    leases = StepLeases(default)
    own = (named or default) is not EngineName.LOCAL
    assert leases.own(found) is own
    assert leases.name(found) == ("claas-steps-tone" if own else "claas-serving-vllm")
    new = leases.new(found)
    assert (new.name, new.resource_version) == (leases.name(found), None)
