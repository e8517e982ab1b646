"""What a job comes to: what its attempt left is accounted for before anything ends it."""

from __future__ import annotations

import pytest

from claas_contract.outcome import FailureReason
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.conditions import ConditionStatus, condition_of
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.step import JobPhase
from claas_operator.observe.holder import ADOPTION_SECONDS, HolderState, holder_state
from claas_operator.plan.actions import CreateAttempt, CreateRecovery, DeleteAttempt, WriteLease
from claas_operator.plan.job.job import plan_job
from claas_operator.plan.job.published import LEAST_SERVING_SECONDS
from claas_operator.plan.job.recovery import LONGEST_RECOVERY_SECONDS
from claas_operator.plan.job_draft import JobPlan
from claas_operator.plan.serving_lease import ServingLease, Unaccounted
from claas_operator.plan.world import JobWorld, TrainerJob, TrainerState
from tests.builders.world import (
    NOW,
    adapter,
    ago,
    attempt,
    condition,
    grant,
    identity,
    job,
    job_world,
    lease,
    published,
    succeeded,
    version,
    vllm_pod,
)

MINE = lease(grant())
STARTED = DistillJobStatus(start_time=ago(20), attempts=1, trainer_job="step-1", phase=JobPhase.TRAINING)
LOOKING = STARTED.model_copy(update={"recovery_time": ago(5)})
PUBLISHED = STARTED.model_copy(update={"produced_version": 1})
RUNNING = attempt(TrainerState.RUNNING)
KILLED = attempt(TrainerState.FAILED, exit_code=137)
NOTHING = attempt(TrainerState.SUCCEEDED, result=TrainerResult(succeeded=True), exit_code=0)
FOUND = attempt(
    TrainerState.SUCCEEDED,
    result=TrainerResult(succeeded=True, version=published(1, parent=0), already_published=True),
    exit_code=0,
)


def said(plan: JobPlan, kind: str) -> tuple[ConditionStatus, str] | None:
    found = condition_of(plan.status.conditions, kind)
    return None if found is None else (found.status, found.reason)


def kinds(plan: JobPlan) -> list[str]:
    return [type(action).__name__ for action in plan.actions]


ENDED_MEANWHILE: list[tuple[str, JobWorld]] = [
    ("its deadline is over", job_world(job(status=STARTED, deadline_seconds=10), held=MINE, now_at=succeeded())),
    ("it is suspended", job_world(job(status=STARTED, suspend=True), held=MINE, now_at=succeeded())),
    ("its adapter is being deleted", job_world(job(status=STARTED), on=adapter(deleted=True), now_at=succeeded())),
    ("its adapter is gone", job_world(job(status=STARTED), no_adapter=True, now_at=succeeded())),
    ("its samples are gone", job_world(job(status=STARTED), samples_error="no", now_at=succeeded())),
    ("its lease is gone", job_world(job(status=STARTED), now_at=succeeded())),
    ("it was looked for", job_world(job(status=LOOKING, backoff_limit=0), held=MINE, now_at=KILLED, looked=FOUND)),
    ("it was looked for after a deadline", job_world(job(status=LOOKING, deadline_seconds=10), looked=FOUND)),
]


@pytest.mark.parametrize("world", [row[1] for row in ENDED_MEANWHILE], ids=[row[0] for row in ENDED_MEANWHILE])
def test_a_version_that_was_published_counts_though(world: JobWorld) -> None:
    plan = plan_job(world)
    assert plan.status.produced_version == 1
    found = said(plan, "Trained")
    assert found is not None
    assert found[0] is ConditionStatus.TRUE
    assert said(plan, "Failed") is None


ENDS: list[tuple[str, JobWorld]] = [
    ("a deadline", job_world(job(status=STARTED, deadline_seconds=10), held=MINE, now_at=RUNNING)),
    ("a suspension", job_world(job(status=STARTED, suspend=True), held=MINE, now_at=RUNNING)),
]


@pytest.mark.parametrize("world", [row[1] for row in ENDS], ids=[row[0] for row in ENDS])
def test_a_running_trainer_is_ended_first_and_what_it_left_is_looked_for_by(world: JobWorld) -> None:
    stopped = plan_job(world)
    assert kinds(stopped) == ["DeleteAttempt"]
    assert said(stopped, "Trained") == (ConditionStatus.FALSE, "Recovering")
    assert stopped.status.completion_time is None
    after = job(
        status=stopped.status,
        suspend=world.job.spec.suspend,
        deadline_seconds=world.job.spec.active_deadline_seconds,
    )
    assert kinds(plan_job(job_world(after, held=MINE, alive=True))) == ["DeleteAttempt"], "it may still publish"
    looking = plan_job(job_world(after, held=MINE))
    assert kinds(looking) == ["CreateRecovery"]
    over = plan_job(job_world(after, held=MINE, looked=NOTHING))
    assert over.status.recovery_time is None
    assert over.status.phase in (JobPhase.FAILED, JobPhase.SUSPENDED)


LAST: list[tuple[str, TrainerJob]] = [
    ("was killed", KILLED),
    ("is lost", attempt(TrainerState.LOST)),
    ("has no batch Job any more", attempt()),
    ("ran out of memory", attempt(TrainerState.FAILED, exit_code=137, message="OOMKilled")),
    ("ended well and said nothing", attempt(TrainerState.SUCCEEDED, exit_code=0)),
    *[
        (
            f"says {reason}",
            attempt(TrainerState.FAILED, exit_code=75, result=TrainerResult(succeeded=False, reason=reason)),
        )
        for reason in (FailureReason.INTERRUPTED, FailureReason.INTERNAL, FailureReason.STORAGE_FAILED)
    ],
]


@pytest.mark.parametrize("ended", [row[1] for row in LAST], ids=[row[0] for row in LAST])
def test_before_a_job_fails_somebody_looks_on_the_volume_when_its_last_attempt(ended: TrainerJob) -> None:
    plan = plan_job(job_world(job(status=STARTED, backoff_limit=0), held=MINE, now_at=ended))
    (action,) = plan.actions
    assert isinstance(action, CreateRecovery)
    assert (action.job.uid, action.job.attempt) == ("uid-of-step", 1)
    assert said(plan, "Failed") is None
    assert plan.status.failed_attempts == 0, "looking does not count"
    failed = plan_job(job_world(job(status=LOOKING, backoff_limit=0), held=MINE, now_at=ended, looked=NOTHING))
    assert said(failed, "Failed") is not None
    assert failed.status.failed_attempts == 1


def test_nobody_looks_when_another_attempt_follows_or_the_trainers_words_rule_a_version_out() -> None:
    again = plan_job(job_world(job(status=STARTED), held=MINE, now_at=KILLED))
    assert said(again, "Trained") == (ConditionStatus.FALSE, "Retrying")
    result = TrainerResult(succeeded=False, reason=FailureReason.INVALID_SAMPLE, message="samples[0]: empty")
    refused = attempt(TrainerState.FAILED, exit_code=64, result=result)
    assert said(plan_job(job_world(job(status=STARTED), held=MINE, now_at=refused)), "Failed") is not None


def test_a_pod_that_could_not_look_is_made_again_after_a_while_and_not_for_ever() -> None:
    broken = attempt(TrainerState.FAILED, exit_code=75, finished_seconds_ago=60)
    of = job(status=LOOKING, backoff_limit=0)
    (again,) = plan_job(job_world(of, held=MINE, now_at=KILLED, looked=broken)).actions
    assert isinstance(again, DeleteAttempt)
    just_now = attempt(TrainerState.FAILED, exit_code=75, finished_seconds_ago=1)
    assert plan_job(job_world(of, held=MINE, now_at=KILLED, looked=just_now)).actions == ()
    long_ago = STARTED.model_copy(update={"recovery_time": ago(LONGEST_RECOVERY_SECONDS + 1)})
    over = plan_job(job_world(job(status=long_ago, backoff_limit=0), held=MINE, now_at=KILLED, looked=broken))
    assert said(over, "Failed") == (ConditionStatus.TRUE, "TrainerLost")
    assert over.status.recovery_time is not None, "the lease hands it on to the adapter"


def test_a_job_resumed_before_its_attempt_was_accounted_for_goes_on_and_has_not_failed() -> None:
    status = LOOKING.model_copy(update={"conditions": [condition("Suspended", True)]})
    plan = plan_job(job_world(job(status=status), held=MINE, looked=RUNNING))
    assert said(plan, "Suspended") == (ConditionStatus.FALSE, "Resumed")
    assert (plan.status.attempts, plan.status.failed_attempts, plan.status.recovery_time) == (0, 0, None)


def trained(seconds_ago: float, **changes: object) -> DistillJobStatus:
    conditions = [condition("Trained", True, since_seconds=seconds_ago)]
    return PUBLISHED.model_copy(update={"conditions": conditions, "start_time": ago(4000), **changes})


@pytest.mark.parametrize("suspend", [True, False])
def test_a_published_job_ends_after_its_deadline_and_its_version_stays(suspend: bool) -> None:
    of = job(status=trained(LEAST_SERVING_SECONDS + 1), suspend=suspend)
    plan = plan_job(job_world(of, on=adapter(versions=(0, 1), served=0), held=MINE))
    assert said(plan, "Failed") == (ConditionStatus.TRUE, "DeadlineExceeded")
    assert said(plan, "Served") == (ConditionStatus.FALSE, "DeadlineExceeded")
    assert said(plan, "Trained") == (ConditionStatus.TRUE, "Because")
    assert plan.status.produced_version == 1


def test_a_version_that_was_accounted_for_after_the_deadline_has_a_minute_to_come_into_service() -> None:
    of = job(status=trained(1))
    plan = plan_job(job_world(of, on=adapter(versions=(0, 1), served=0)))
    assert plan.status.phase is JobPhase.SWAPPING
    assert plan_job(job_world(of, on=adapter(versions=(0, 1), served=1))).status.phase is JobPhase.SUCCEEDED


def test_a_published_job_without_its_adapter_ends() -> None:
    plan = plan_job(job_world(job(status=trained(1)), no_adapter=True))
    assert said(plan, "Failed") == (ConditionStatus.TRUE, "AdapterDeleted")


def test_the_next_step_starts_from_a_version_that_the_adapters_status_does_not_name_yet() -> None:
    (action,) = plan_job(job_world(on=adapter(versions=(0,)), reports=(published(1, parent=0),), held=MINE)).actions
    assert isinstance(action, CreateAttempt)
    assert action.parent == 1


def test_no_step_starts_while_it_is_not_known_what_a_job_left_that_is_gone() -> None:
    noted = lease_with_unaccounted()
    before = plan_job(job_world(held=noted))
    assert before.actions == ()
    assert said(before, "Admitted") == (ConditionStatus.FALSE, "AdapterNotReady")
    granted = noted.model_copy(update={"grant": grant()})
    assert plan_job(job_world(held=granted)).actions == ()


def lease_with_unaccounted(adapter_uid: str = "uid-of-tone") -> ServingLease:
    gone = Unaccounted(job_name="gone", attempt=1, adapter_name="tone", adapter_uid=adapter_uid)
    return lease().model_copy(update={"unaccounted": {"uid-of-gone": gone}})


def test_a_job_that_waited_gets_a_new_grant_before_it_starts() -> None:
    waited = DistillJobStatus(phase=JobPhase.PENDING, start_time=ago(20))
    (action,) = plan_job(job_world(job(status=waited), held=MINE)).actions
    assert isinstance(action, WriteLease)


GRANT = grant()
LISTED = adapter(versions=(0,)).model_copy(
    update={
        "status": adapter(versions=(0,)).status.model_copy(
            update={"versions": [version(0), version(1, job="step", parent=0)]}
        )
    }
)
TWO = GRANT.model_copy(update={"jobs": [identity(), identity("other")]})
JUST_NOW = trained(1)
A_WHILE_AGO = trained(ADOPTION_SECONDS + 1)

HOLDERS: list[tuple[str, HolderState, HolderState]] = [
    ("goes on", holder_state(GRANT, [job(status=STARTED)], adapter(), NOW), HolderState(True)),
    ("is gone", holder_state(GRANT, [None], adapter(), NOW), HolderState(False, (identity(),))),
    ("is being deleted", holder_state(GRANT, [job(deleted=True)], adapter(), NOW), HolderState(False, (identity(),))),
    ("is gone and the adapter too", holder_state(GRANT, [None], None, NOW), HolderState(False)),
    ("is gone and its version listed", holder_state(GRANT, [None], LISTED, NOW), HolderState(False)),
    (
        "published and listed",
        holder_state(GRANT, [job(status=JUST_NOW)], LISTED, NOW),
        HolderState(False),
    ),
    (
        "published just now",
        holder_state(GRANT, [job(status=JUST_NOW)], adapter(), NOW),
        HolderState(True, (identity(),)),
    ),
    (
        "published a while ago",
        holder_state(GRANT, [job(status=A_WHILE_AGO)], adapter(), NOW),
        HolderState(False, (identity(),)),
    ),
    (
        "has failed",
        holder_state(GRANT, [job(status=DistillJobStatus(conditions=[condition("Failed", True)]))], adapter(), NOW),
        HolderState(False),
    ),
    (
        "has failed and nobody could look",
        holder_state(
            GRANT,
            [job(status=DistillJobStatus(conditions=[condition("Failed", True)], recovery_time=ago(400)))],
            adapter(),
            NOW,
        ),
        HolderState(False, (identity(),)),
    ),
    (
        "is suspended and looked for",
        holder_state(GRANT, [job(status=LOOKING, suspend=True)], adapter(), NOW),
        HolderState(True, (identity(),)),
    ),
    (
        "is two jobs, of which one goes on and one is gone",
        holder_state(TWO, [job(status=STARTED), None], adapter(), NOW),
        HolderState(True, (identity("other"),)),
    ),
    (
        "is two jobs that are gone",
        holder_state(TWO, [None, None], adapter(), NOW),
        HolderState(False, (identity(), identity("other"))),
    ),
    ("is suspended", holder_state(GRANT, [job(suspend=True)], adapter(), NOW), HolderState(False)),
    (
        "waits for something else",
        holder_state(GRANT, [job(status=DistillJobStatus(phase=JobPhase.PENDING))], adapter(), NOW),
        HolderState(False),
    ),
]


@pytest.mark.parametrize(("state", "expected"), [row[1:] for row in HOLDERS], ids=[row[0] for row in HOLDERS])
def test_whether_a_lease_is_still_needed_by_a_holder_that(state: HolderState, expected: HolderState) -> None:
    assert state == expected


def test_a_pod_that_is_not_ready_is_no_service() -> None:
    world = job_world(job(status=trained(1)), on=adapter(versions=(0, 1), served=1), pods=(vllm_pod(ready=False),))
    assert plan_job(world).status.phase is JobPhase.SWAPPING
