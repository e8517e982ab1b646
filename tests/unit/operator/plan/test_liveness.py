"""What has to come about in every world: a job ends, and a lease goes on, however its cluster answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.step import JobPhase
from claas_operator.plan.actions import CreateRecovery, DeleteAttempt, WriteLease
from claas_operator.plan.job.job import plan_job
from claas_operator.plan.job.published import LEAST_SERVING_SECONDS
from claas_operator.plan.job.recovery import LONGEST_RECOVERY_SECONDS
from claas_operator.plan.job_draft import STOP_GRACE_SECONDS, JobPlan
from claas_operator.plan.lease import plan_lease
from claas_operator.plan.queueing import finished
from claas_operator.plan.world import JobWorld, LeaseWorld, TrainerJob, TrainerState
from tests.builders.world import ago, attempt, published
from tests.unit.operator.plan.test_properties import job_worlds, lease_worlds

PASS_SECONDS = 20
"""A pass comes much sooner; what has to end must end though the operator is slow."""
LONGEST_END_SECONDS = LONGEST_RECOVERY_SECONDS + LEAST_SERVING_SECONDS + STOP_GRACE_SECONDS + 4 * PASS_SECONDS
NOTHING = TrainerResult(succeeded=True)
FOUND = TrainerResult(succeeded=True, version=published(3, parent=0), already_published=True)


@dataclass(frozen=True)
class Answers:
    """How a cluster answers: whether trainers that are ended go, and what comes of looking at the volume."""

    trainers_go: bool
    look: TrainerState
    """RUNNING: the pod hangs for ever."""
    result: TrainerResult | None


clusters = st.builds(
    Answers,
    st.booleans(),
    st.sampled_from([TrainerState.RUNNING, TrainerState.SUCCEEDED, TrainerState.FAILED, TrainerState.LOST]),
    st.sampled_from([None, NOTHING, FOUND]),
)
ABSENT = TrainerJob(name="", state=TrainerState.ABSENT, alive=False)


def next_world(world: JobWorld, plan: JobPlan, answers: Answers) -> JobWorld:
    """The world after a plan, a while later."""
    now = world.now + timedelta(seconds=PASS_SECONDS)
    changed = replace(world, now=now, job=world.job.model_copy(update={"status": plan.status}))
    for action in plan.actions:
        if isinstance(action, DeleteAttempt) and action.name == world.attempt.name:
            alive = world.attempts_alive and not answers.trainers_go
            changed = replace(changed, attempt=attempt(), attempts_alive=alive)
        elif isinstance(action, DeleteAttempt):
            changed = replace(changed, recovery=ABSENT)
        elif isinstance(action, CreateRecovery):
            result = answers.result if answers.look is TrainerState.SUCCEEDED else None
            looked = attempt(answers.look, result=result, exit_code=None)
            changed = replace(changed, recovery=replace(looked, name=action.name, finished_at=now))
    return changed


@settings(max_examples=100, deadline=None)
@given(world=job_worlds, answers=clusters)
def test_an_unfinished_job_ends_after_its_deadline_in_every_world(world: JobWorld, answers: Answers) -> None:
    status = world.job.status
    assume(not finished(status.conditions))
    assume(status.produced_version is not None or not world.job.spec.suspend)
    # Deadlines are 300 s at most in these worlds.
    started = status.model_copy(update={"start_time": ago(301), "recovery_time": None})
    world = replace(world, job=world.job.model_copy(update={"status": started}), recovery=ABSENT)
    for _ in range(LONGEST_END_SECONDS // PASS_SECONDS):
        plan = plan_job(world)
        if finished(plan.status.conditions):
            return
        assert plan.requeue_seconds is not None
        world = next_world(world, plan, answers)
    raise AssertionError(f"{plan.status.phase} after {LONGEST_END_SECONDS} s: {plan.status.conditions}")


@settings(max_examples=100, deadline=None)
@given(world=job_worlds, answers=clusters)
def test_a_suspended_job_comes_to_rest(world: JobWorld, answers: Answers) -> None:
    status = world.job.status.model_copy(update={"recovery_time": None, "produced_version": None})
    assume(not finished(status.conditions))
    spec = world.job.spec.model_copy(update={"suspend": True})
    world = replace(world, job=world.job.model_copy(update={"status": status, "spec": spec}), recovery=ABSENT)
    for _ in range(LONGEST_END_SECONDS // PASS_SECONDS):
        plan = plan_job(world)
        # One that was published goes on to its end, as the property above says.
        published_after_all = plan.status.produced_version is not None
        if plan.status.phase is JobPhase.SUSPENDED or finished(plan.status.conditions) or published_after_all:
            return
        world = next_world(world, plan, answers)
    raise AssertionError(f"{plan.status.phase} after {LONGEST_END_SECONDS} s")


@settings(max_examples=100, deadline=None)
@given(world=lease_worlds)
def test_a_lease_that_its_holder_needs_no_longer_is_released_once_serving_is_settled(world: LeaseWorld) -> None:
    assume(world.lease.grant is not None)
    done = not (world.job_active or world.alive_pods or world.attempts_open)
    if done and all(pod.settled for pod in world.pods):
        (action,) = plan_lease(world).actions
        assert isinstance(action, WriteLease)
        assert action.lease.grant is None
        assert set(action.lease.unaccounted) == {*world.lease.unaccounted, *(job.uid for job in world.unaccounted)}
