"""What the operator does about a DistillJob: tables."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from pydantic import JsonValue

from claas_contract.outcome import FailureReason
from claas_contract.progress import Progress
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.conditions import ConditionStatus, condition_of
from claas_crds.v1alpha1.distill_job import CompletionPoint, DistillJobStatus
from claas_crds.v1alpha1.serving import HandoverKind
from claas_crds.v1alpha1.step import InvalidSample, JobPhase, SampleCounts
from claas_operator.plan.actions import CreateAttempt, DeleteAttempt, DeleteJob, RetireAttempt, WriteLease
from claas_operator.plan.job.job import plan_job
from claas_operator.plan.job_draft import TELL_SECONDS, JobPlan
from claas_operator.plan.queueing import in_queue
from claas_operator.plan.samples import SamplesFault
from claas_operator.plan.server.handover_choice import HandoverChoice
from claas_operator.plan.world import JobWorld, ServerPod, TrainerJob, TrainerState
from tests.builders.world import (
    ASLEEP,
    NOW,
    REFUSED,
    adapter,
    ago,
    attempt,
    condition,
    grant,
    job,
    job_world,
    lease,
    published,
    recorded,
    succeeded,
    trainer_pod,
    vllm_pod,
)

MINE = lease(grant())
OTHERS = lease(grant("other"))
FREE = lease()
NO_HANDOVER = HandoverChoice(None, "start vLLM with --enable-sleep-mode")
STARTED = DistillJobStatus(start_time=ago(20), attempts=1, trainer_job="step-1")
RUNNING = attempt(TrainerState.RUNNING)
LOOKING = STARTED.model_copy(update={"recovery_time": ago(9)})
NOTHING_FOUND = attempt(TrainerState.SUCCEEDED, result=TrainerResult(succeeded=True), exit_code=0)
"""A pod looked for what an attempt left, and the job had published nothing."""


def failed(reason: FailureReason, exit_code: int = 75, *, number: int = 1) -> TrainerJob:
    result = TrainerResult(succeeded=False, reason=reason, message="what was wrong")
    return attempt(TrainerState.FAILED, number=number, result=result, exit_code=exit_code)


def test_invalid_samples_are_named_in_status_whether_the_operator_or_the_trainer_found_them() -> None:
    named = (InvalidSample(index=1, message="feedback: is empty"), InvalidSample(index=4, message="no"))
    seen = plan_job(job_world(held=OTHERS, sample_fault=SamplesFault("samples[1].feedback: is empty", named)))
    assert seen.status.invalid_samples == list(named)
    result = TrainerResult(
        succeeded=False, reason=FailureReason.INVALID_SAMPLE, message="samples[1]: no", invalid_samples=list(named)
    )
    ended = attempt(TrainerState.FAILED, result=result, exit_code=64)
    told = plan_job(job_world(job(status=STARTED), held=MINE, now_at=ended))
    assert told.status.invalid_samples == list(named)
    assert (told.status.reason, told.status.message) == ("InvalidSample", "samples[1]: no")
    other = plan_job(job_world(job(status=STARTED), held=MINE, now_at=failed(FailureReason.INTERNAL, 64)))
    assert other.status.invalid_samples == []


def said(plan: JobPlan, kind: str) -> tuple[ConditionStatus, str]:
    found = condition_of(plan.status.conditions, kind)
    assert found is not None, f"no condition {kind}"
    return found.status, found.reason


def message_of(plan: JobPlan, kind: str) -> str:
    found = condition_of(plan.status.conditions, kind)
    assert found is not None, f"no condition {kind}"
    return found.message


def kinds(plan: JobPlan) -> list[str]:
    return [type(action).__name__ for action in plan.actions]


WAITS: list[tuple[str, JobWorld, JobPhase, str]] = [
    (
        "for an adapter applied minutes later",
        job_world(job(age_seconds=900), no_adapter=True),
        JobPhase.PENDING,
        "AdapterNotFound",
    ),
    (
        "for samples applied minutes later",
        job_world(job(age_seconds=900), samples_error="no"),
        JobPhase.PENDING,
        "SamplesNotFound",
    ),
    ("for the initial version", job_world(on=adapter(versions=())), JobPhase.PENDING, "AdapterNotReady"),
    (
        "for a stalled adapter",
        job_world(on=adapter(conditions=(condition("Stalled", True),))),
        JobPhase.PENDING,
        "AdapterNotReady",
    ),
    ("for a pod to take the token", job_world(pods=(vllm_pod(server=REFUSED),)), JobPhase.PENDING, "AdapterNotReady"),
    ("for a ready pod", job_world(pods=(vllm_pod(ready=False),)), JobPhase.PENDING, "AdapterNotReady"),
    (
        "for a pod that somebody put to sleep",
        job_world(pods=(vllm_pod(server=ASLEEP),)),
        JobPhase.PENDING,
        "AdapterNotReady",
    ),
    ("for a way to make room for the step", job_world(handover=NO_HANDOVER), JobPhase.PENDING, "NoHandover"),
    ("for the holder of the lease", job_world(held=OTHERS), JobPhase.QUEUED, "Queued"),
    ("for jobs that came earlier", job_world(held=FREE, jobs_ahead=3), JobPhase.QUEUED, "Queued"),
]


@pytest.mark.parametrize(("world", "phase", "reason"), [row[1:] for row in WAITS], ids=[row[0] for row in WAITS])
def test_a_job_waits(world: JobWorld, phase: JobPhase, reason: str) -> None:
    plan = plan_job(world)
    assert plan.actions == ()
    assert plan.status.phase is phase
    assert said(plan, "Admitted") == (ConditionStatus.FALSE, reason)
    assert plan.requeue_seconds is not None
    assert plan.status.completion_time is None


def test_a_waiting_job_is_told_its_place_once_and_not_again_when_others_move_on() -> None:
    first = plan_job(job_world(held=OTHERS, jobs_ahead=7))
    assert message_of(first, "Admitted").startswith(
        "Waits for its turn; 8 other jobs for the same Deployment came first"
    )
    later = plan_job(replace(job_world(job(status=first.status), held=OTHERS, jobs_ahead=2), now=ago(-60)))
    assert later.status == first.status
    assert later.notes == ()


def test_a_job_whose_turn_has_come_takes_the_lease_before_anything_is_told() -> None:
    queued = plan_job(job_world(held=OTHERS, jobs_ahead=7)).status
    for status in (DistillJobStatus(), queued):
        plan = plan_job(job_world(job(status=status), held=FREE))
        assert (kinds(plan), plan.status, plan.notes) == (["WriteLease"], status, ())
        (grants,) = plan.actions
        assert isinstance(grants, WriteLease)
        assert grants.lease.last_turn == "tone"


def test_a_job_that_was_taken_for_one_that_waits_says_that_it_needs_the_lease() -> None:
    waited = plan_job(job_world(on=adapter(versions=()))).status
    assert waited.phase is JobPhase.PENDING
    plan = plan_job(job_world(job(status=waited), held=FREE))
    assert (kinds(plan), plan.status.phase) == (["WriteLease"], JobPhase.QUEUED)


@pytest.mark.parametrize("held", [None, FREE], ids=["no-lease-yet", "a-free-lease"])
def test_the_first_in_line_takes_a_lease_that_nobody_holds(held: object) -> None:
    world = job_world(held=FREE if held is FREE else None, pods=(vllm_pod(), vllm_pod("vllm-1", ready=False)))
    (action,) = plan_job(world).actions
    assert isinstance(action, WriteLease)
    assert action.lease.resource_version == ("7" if held is FREE else None)
    assert action.lease.grant is not None
    assert action.lease.grant.first.uid == "uid-of-step"
    assert action.lease.grant.attempt_of("uid-of-step") == 1
    assert [pod.name for pod in action.lease.grant.pods] == ["vllm-0"]


@pytest.mark.parametrize(
    ("complete_when", "taken"), [(CompletionPoint.IN_SERVICE, False), (CompletionPoint.PUBLISHED, True)]
)
def test_a_deployment_that_is_scaled_to_zero_holds_up_all_steps_but_those_that_need_no_serving(
    complete_when: CompletionPoint, taken: bool
) -> None:
    plan = plan_job(job_world(job(complete_when=complete_when), pods=()))
    assert kinds(plan) == (["WriteLease"] if taken else [])
    if not taken:
        assert said(plan, "Admitted") == (ConditionStatus.FALSE, "AdapterNotReady")
        assert "completeWhen" in message_of(plan, "Admitted")


def test_the_holder_starts_its_attempt_from_the_newest_version() -> None:
    plan = plan_job(job_world(on=adapter(versions=(0, 1, 2)), held=MINE))
    (action,) = plan.actions
    assert isinstance(action, CreateAttempt)
    assert (action.grant.first.attempt, action.parent) == (1, 2)
    assert plan.status.parent_version == 2
    assert plan.status.start_time == NOW
    assert plan.status.timings.queued == 60.0
    assert said(plan, "Admitted") == (ConditionStatus.TRUE, "Admitted")


@pytest.mark.parametrize("kind", [HandoverKind.SLEEP, HandoverKind.SHARE, HandoverKind.NONE])
def test_the_grant_says_what_becomes_of_serving_and_so_does_the_jobs_status(kind: HandoverKind) -> None:
    (action,) = plan_job(job_world(handover=HandoverChoice(kind, "why"))).actions
    assert isinstance(action, WriteLease)
    assert action.lease.grant is not None
    assert action.lease.grant.handover is kind
    assert [pod.name for pod in action.lease.grant.pods] == ["vllm-0"]
    # What was granted counts, even if another choice would be made by now.
    started = plan_job(job_world(held=lease(action.lease.grant), handover=NO_HANDOVER))
    assert started.status.handover is kind


@pytest.mark.parametrize("kind", [HandoverKind.SHARE, HandoverKind.NONE])
def test_a_step_that_pauses_nothing_does_not_mind_a_pod_that_somebody_put_to_sleep(kind: HandoverKind) -> None:
    plan = plan_job(job_world(pods=(vllm_pod(server=ASLEEP),), handover=HandoverChoice(kind, "why")))
    assert kinds(plan) == ["WriteLease"]


def test_the_next_attempt_waits_too_while_nothing_could_make_room_for_it() -> None:
    status = STARTED.model_copy(update={"failed_attempts": 1, "retry_time": ago(1)})
    plan = plan_job(job_world(job(status=status), held=MINE, now_at=attempt(number=2), handover=NO_HANDOVER))
    assert plan.actions == ()
    assert said(plan, "Trained") == (ConditionStatus.FALSE, "NoHandover")


def test_a_server_that_was_lost_is_an_attempt_and_the_step_is_tried_again() -> None:
    plan = plan_job(job_world(job(status=STARTED), held=MINE, now_at=failed(FailureReason.SERVING_LOST)))
    assert (plan.status.attempts, plan.status.failed_attempts) == (1, 1)
    assert said(plan, "Trained") == (ConditionStatus.FALSE, "Retrying")
    assert plan.status.retry_time is not None


def test_an_attempt_whose_making_was_not_written_down_is_followed_with_the_handover_of_its_grant() -> None:
    plan = plan_job(job_world(job(), held=lease(grant()), now_at=attempt(TrainerState.RUNNING)))
    assert plan.actions == ()
    assert (plan.status.attempts, plan.status.handover) == (1, HandoverKind.SLEEP)


def test_no_attempt_starts_while_a_trainer_of_an_earlier_one_may_run() -> None:
    assert plan_job(job_world(held=MINE, alive=True)).actions == ()


def test_a_running_attempt_is_followed_and_its_progress_told() -> None:
    running = TrainerJob(
        name="step-1",
        state=TrainerState.RUNNING,
        alive=True,
        pod=trainer_pod("p"),
        progress=Progress(phase=JobPhase.TRAINING, detail="micro-batch 3 of 8"),
    )
    plan = plan_job(job_world(job(status=STARTED), held=MINE, now_at=running))
    assert plan.actions == ()
    assert plan.status.phase is JobPhase.TRAINING
    assert plan.status.attempts == 1
    found = condition_of(plan.status.conditions, "Trained")
    assert found is not None
    assert "micro-batch 3 of 8" in found.message


def test_a_phase_that_is_known_stays_while_the_trainer_does_not_answer() -> None:
    status = STARTED.model_copy(update={"phase": JobPhase.TRAINING})
    plan = plan_job(job_world(job(status=status), held=MINE, now_at=RUNNING))
    assert plan.status.phase is JobPhase.TRAINING


def test_samples_that_vanish_while_the_trainer_runs_do_not_end_it() -> None:
    plan = plan_job(job_world(job(status=STARTED), held=MINE, now_at=RUNNING, samples_error="gone"))
    assert plan.actions == ()
    assert said(plan, "Trained") == (ConditionStatus.FALSE, "Running")


def test_a_published_version_is_written_to_status_and_the_input_deleted() -> None:
    plan = plan_job(job_world(job(status=STARTED), held=MINE, now_at=succeeded(1)))
    assert kinds(plan) == [RetireAttempt.__name__]
    status = plan.status
    assert (status.produced_version, status.parent_version, status.loss) == (1, 0, "0.25")
    assert (status.serving_gap, status.timings.step) == ("2.00s", 1.0)
    assert said(plan, "Trained") == (ConditionStatus.TRUE, "StepTaken")
    assert status.completion_time is None


def test_a_step_says_of_how_many_recorded_prompts_the_teacher_saw_less() -> None:
    result = TrainerResult(
        succeeded=True, version=published(1, parent=0), samples=SampleCounts(total=3, rebuilt_conversations=2)
    )
    ended = attempt(TrainerState.SUCCEEDED, result=result, exit_code=0)
    plan = plan_job(job_world(job(status=STARTED), held=MINE, now_at=ended))
    trained = condition_of(plan.status.conditions, "Trained")
    assert trained is not None
    assert "in 2 recorded prompts user_prompt is not the last message" in trained.message
    assert plan.status.samples.rebuilt_conversations == 2


def test_samples_whose_version_can_t_be_used_are_told() -> None:
    counts = SampleCounts(total=5, computed=2, reconstructed=3, lost_versions=2)
    result = TrainerResult(succeeded=True, version=published(1, parent=0), samples=counts)
    ended = attempt(TrainerState.SUCCEEDED, result=result, exit_code=0)
    plan = plan_job(job_world(job(status=STARTED), held=MINE, now_at=ended))
    trained = condition_of(plan.status.conditions, "Trained")
    assert trained is not None
    assert "3 of 5 samples without recorded" in trained.message
    assert "(2 of them name a version that can't be used)" in trained.message
    assert plan.status.samples == counts


def test_a_version_that_an_earlier_attempt_published_is_said_to_be_such() -> None:
    plan = plan_job(job_world(job(status=STARTED), held=MINE, now_at=succeeded(1, already_published=True)))
    assert said(plan, "Trained") == (ConditionStatus.TRUE, "AlreadyPublished")


PUBLISHED = STARTED.model_copy(update={"produced_version": 1})


def test_a_job_completes_when_its_version_is_in_service() -> None:
    plan = plan_job(job_world(job(status=PUBLISHED), on=adapter(versions=(0, 1), served=1), held=MINE))
    assert plan.status.phase is JobPhase.SUCCEEDED
    assert said(plan, "Complete") == (ConditionStatus.TRUE, "Completed")
    assert plan.status.completion_time == NOW


def test_a_job_completes_when_a_later_version_is_in_service() -> None:
    plan = plan_job(job_world(job(status=PUBLISHED), on=adapter(versions=(0, 1, 2), served=2)))
    assert plan.status.phase is JobPhase.SUCCEEDED


def test_without_pods_a_published_version_waits_and_says_so() -> None:
    plan = plan_job(job_world(job(status=PUBLISHED), on=adapter(versions=(0, 1), served=1), pods=()))
    assert plan.status.phase is JobPhase.SWAPPING
    assert said(plan, "Served") == (ConditionStatus.FALSE, "PuttingIntoService")
    assert "no pod" in message_of(plan, "Served")


@pytest.mark.parametrize(("served", "pods"), [(0, ()), (None, ()), (0, (vllm_pod(),))])
def test_a_job_that_needs_no_serving_completes_when_its_version_is_published(
    served: int | None, pods: tuple[ServerPod, ...]
) -> None:
    of = job(status=PUBLISHED, complete_when=CompletionPoint.PUBLISHED)
    plan = plan_job(job_world(of, on=adapter(versions=(0, 1), served=served), pods=pods))
    assert said(plan, "Complete") == (ConditionStatus.TRUE, "Completed")
    assert said(plan, "Served") == (ConditionStatus.FALSE, "PuttingIntoService")
    before = plan_job(job_world(of, on=adapter(versions=(0,), served=served), pods=pods))
    assert before.status.phase is JobPhase.SWAPPING


@pytest.mark.parametrize(("versions", "served"), [((0, 1), 0), ((0,), 0), ((0, 1), None)])
def test_a_published_version_waits_until_it_is_in_service(versions: tuple[int, ...], served: int | None) -> None:
    plan = plan_job(job_world(job(status=PUBLISHED), on=adapter(versions=versions, served=served)))
    assert plan.status.phase is JobPhase.SWAPPING
    assert plan.status.completion_time is None


def test_a_published_job_is_not_undone_by_suspending_it() -> None:
    plan = plan_job(job_world(job(status=PUBLISHED, suspend=True), on=adapter(versions=(0, 1), served=1)))
    assert plan.status.phase is JobPhase.SUCCEEDED


FINAL: list[tuple[str, JobWorld, str, list[str]]] = [
    ("an adapter that does not come", job_world(job(age_seconds=3601), no_adapter=True), "AdapterNotFound", []),
    (
        "samples that do not come",
        job_world(job(age_seconds=61, deadline_seconds=60), samples_error="spec.samples: no"),
        "SamplesNotFound",
        [],
    ),
    (
        "a wrong sample, whoever's turn it is",
        job_world(held=OTHERS, jobs_ahead=7, sample_fault=SamplesFault("samples[0].feedback: is empty")),
        "InvalidSample",
        [],
    ),
    ("samples too large for the input", job_world(input_error="spec.samples.inline: too large"), "InvalidInput", []),
    ("an adapter that is being deleted", job_world(on=adapter(deleted=True)), "AdapterDeleted", []),
    (
        "an adapter deleted while the trainer runs",
        job_world(job(status=STARTED), no_adapter=True, now_at=RUNNING),
        "AdapterDeleted",
        ["DeleteAttempt"],
    ),
    (
        "a deadline that is over",
        job_world(job(status=LOOKING, deadline_seconds=10), held=MINE, looked=NOTHING_FOUND),
        "DeadlineExceeded",
        ["DeleteAttempt"],
    ),
    (
        "a permanent reason",
        job_world(job(status=STARTED), held=MINE, now_at=failed(FailureReason.INVALID_SAMPLE, 64)),
        "InvalidSample",
        ["RetireAttempt"],
    ),
    (
        "a permanent exit code",
        job_world(job(status=LOOKING), held=MINE, now_at=failed(FailureReason.INTERNAL, 64), looked=NOTHING_FOUND),
        "InternalError",
        ["DeleteAttempt", "RetireAttempt"],
    ),
    (
        "more failures than the limit",
        job_world(job(status=STARTED, backoff_limit=0), held=MINE, now_at=failed(FailureReason.HUB_UNREACHABLE)),
        "HubUnreachable",
        ["RetireAttempt"],
    ),
    (
        "a trainer lost for the last time",
        job_world(
            job(status=LOOKING, backoff_limit=0),
            held=MINE,
            now_at=attempt(TrainerState.LOST),
            looked=NOTHING_FOUND,
        ),
        "TrainerLost",
        ["DeleteAttempt", "RetireAttempt"],
    ),
    (
        "a step that takes too long a pause",
        job_world(job(status=STARTED), held=MINE, now_at=failed(FailureReason.MAX_PAUSE_EXCEEDED, 64)),
        "MaxPauseExceeded",
        ["RetireAttempt"],
    ),
    (
        "a pause that the operator ended for the last time",
        job_world(
            job(status=LOOKING, backoff_limit=0),
            held=lease(grant(stopped_because="MaxPauseExceeded")),
            now_at=attempt(TrainerState.FAILED, exit_code=137),
            looked=NOTHING_FOUND,
        ),
        "MaxPauseExceeded",
        ["DeleteAttempt", "RetireAttempt"],
    ),
    (
        "an attempt whose batch Job somebody deleted for the last time",
        job_world(job(status=LOOKING, backoff_limit=0), held=MINE, looked=NOTHING_FOUND),
        "TrainerLost",
        ["DeleteAttempt", "RetireAttempt"],
    ),
]


def test_a_job_that_fails_after_a_look_at_the_volume_says_what_its_attempt_had_done() -> None:
    words = "the job has published no version that is whole; attempt 1 took its step and published nothing"
    told = TrainerResult(succeeded=True, message=words)
    looked = attempt(TrainerState.SUCCEEDED, result=told, exit_code=0)
    lost = job_world(
        job(status=LOOKING, backoff_limit=0), held=MINE, now_at=attempt(TrainerState.LOST), looked=looked
    )
    failed_condition = condition_of(plan_job(lost).status.conditions, "Failed")
    assert failed_condition is not None
    assert failed_condition.message.endswith(f"; {words}")


@pytest.mark.parametrize(("world", "reason", "actions"), [row[1:] for row in FINAL], ids=[row[0] for row in FINAL])
def test_a_job_fails_for_good_on(world: JobWorld, reason: str, actions: list[str]) -> None:
    plan = plan_job(world)
    assert said(plan, "Failed") == (ConditionStatus.TRUE, reason)
    assert plan.status.phase is JobPhase.FAILED
    assert plan.status.completion_time == NOW
    assert kinds(plan) == actions
    assert any(note.warning and note.reason == reason for note in plan.notes)


def test_a_retryable_failure_is_tried_again_later_and_later() -> None:
    delays = []
    for failures in range(8):
        status = STARTED.model_copy(update={"failed_attempts": failures})
        world = job_world(
            job(status=status, backoff_limit=20), held=MINE, now_at=failed(FailureReason.VLLM_UNREACHABLE)
        )
        plan = plan_job(world)
        assert said(plan, "Trained") == (ConditionStatus.FALSE, "Retrying")
        assert (plan.status.attempts, plan.status.failed_attempts) == (failures + 1, failures + 1)
        assert plan.status.retry_time is not None
        delays.append((plan.status.retry_time - NOW).total_seconds())
    assert delays == [5, 10, 20, 40, 80, 160, 300, 300]


def second_attempt(**changes: object) -> DistillJobStatus:
    return STARTED.model_copy(update={"failed_attempts": 1, "retry_time": ago(1), **changes})


def test_the_next_attempt_waits_for_its_time() -> None:
    status = second_attempt(retry_time=NOW + timedelta(seconds=3))
    plan = plan_job(job_world(job(status=status), held=MINE, now_at=attempt(number=2), pods_recorded=(recorded(),)))
    assert plan.actions == ()
    assert plan.requeue_seconds == 3


@pytest.mark.parametrize("server", [ASLEEP, None], ids=["asleep", "unknown"])
def test_the_next_attempt_waits_until_the_pods_of_the_last_one_are_awake(server: object) -> None:
    pods = (recorded("vllm-0", ASLEEP if server is ASLEEP else None),)
    plan = plan_job(job_world(job(status=second_attempt()), held=MINE, now_at=attempt(number=2), pods_recorded=pods))
    assert plan.actions == ()


def test_the_next_attempt_is_granted_anew_with_the_pods_of_now_and_then_started() -> None:
    world = job_world(
        job(status=second_attempt()),
        held=MINE,
        now_at=attempt(number=2),
        pods=(vllm_pod("vllm-new"),),
        pods_recorded=(recorded(exists=False),),
    )
    (action,) = plan_job(world).actions
    assert isinstance(action, WriteLease)
    assert action.lease.grant is not None
    assert action.lease.grant.first.attempt == 2
    assert [pod.name for pod in action.lease.grant.pods] == ["vllm-new"]
    (started,) = plan_job(
        job_world(job(status=second_attempt()), held=lease(action.lease.grant), now_at=attempt(number=2))
    ).actions
    assert isinstance(started, CreateAttempt)
    assert started.grant.first.attempt == 2


def test_a_trainer_that_ends_with_0_and_no_result_has_failed() -> None:
    silent = attempt(TrainerState.SUCCEEDED, exit_code=0)
    plan = plan_job(job_world(job(status=STARTED), held=MINE, now_at=silent))
    assert said(plan, "Trained") == (ConditionStatus.FALSE, "Retrying")


def test_a_suspended_job_ends_its_attempt_with_time_to_wake_serving_and_counts_no_failure() -> None:
    plan = plan_job(job_world(job(status=STARTED, suspend=True), held=MINE, now_at=RUNNING))
    (action,) = plan.actions
    assert isinstance(action, DeleteAttempt)
    assert action.grace_seconds >= 10
    assert said(plan, "Suspended") == (ConditionStatus.TRUE, "Suspended")
    ended = job(status=plan.status.model_copy(update={"recovery_time": ago(9)}), suspend=True)
    after = plan_job(job_world(ended, held=MINE, looked=NOTHING_FOUND)).status
    assert (after.attempts, after.failed_attempts, after.start_time) == (0, 0, None)


def test_a_resumed_job_says_so_and_queues() -> None:
    status = DistillJobStatus(conditions=[condition("Suspended", True)])
    plan = plan_job(job_world(job(status=status), held=OTHERS))
    assert said(plan, "Suspended") == (ConditionStatus.FALSE, "Resumed")
    assert plan.status.phase is JobPhase.QUEUED


def finished(kind: str = "Complete", seconds: float = 30) -> DistillJobStatus:
    return STARTED.model_copy(
        update={"conditions": [condition(kind, True)], "completion_time": ago(seconds), "phase": JobPhase.SUCCEEDED}
    )


@pytest.mark.parametrize("kind", ["Complete", "Failed"])
def test_a_finished_job_is_left_alone(kind: str) -> None:
    plan = plan_job(job_world(job(status=finished(kind), suspend=True), no_adapter=True))
    assert plan.actions == ()
    assert plan.notes == ()
    assert plan.requeue_seconds is None


@pytest.mark.parametrize("alive", [True, False], ids=["with-a-pod", "whose-pod-is-not-made-yet"])
def test_an_attempt_that_a_finished_job_left_running_is_ended(alive: bool) -> None:
    left = TrainerJob(name="step-1", state=TrainerState.RUNNING, alive=alive, pod=trainer_pod("p") if alive else None)
    assert kinds(plan_job(job_world(job(status=finished("Failed")), now_at=left))) == ["DeleteAttempt"]


def test_a_finished_job_is_deleted_when_its_time_is_over_and_not_before() -> None:
    waiting = plan_job(job_world(job(status=finished(seconds=30), ttl_seconds=40)))
    assert (waiting.actions, waiting.requeue_seconds) == ((), 10)
    assert plan_job(job_world(job(status=finished(seconds=30), ttl_seconds=30))).actions == (DeleteJob(),)
    assert plan_job(job_world(job(status=finished(seconds=30), ttl_seconds=0))).actions == (DeleteJob(),)


def test_a_job_that_waits_for_what_it_names_says_for_what_and_until_when() -> None:
    plan = plan_job(job_world(job(age_seconds=900), samples_error="spec.samples.configMapRef.name: no"))
    found = condition_of(plan.status.conditions, "Admitted")
    assert found is not None
    assert found.message == "spec.samples.configMapRef.name: no; the job waits for it until 2026-05-04 12:45:00 UTC"
    assert plan.requeue_seconds == 5.0


def test_a_job_of_an_adapter_that_nobody_has_looked_at_says_so() -> None:
    message = plan_job(job_world(on=adapter(versions=()))).status.message
    assert message == "LoraAdapter tone has no version yet: it has not been looked at yet"


def test_a_job_that_waits_for_what_it_names_is_not_in_the_queue() -> None:
    plan = plan_job(job_world(job(age_seconds=900), no_adapter=True))
    assert not in_queue(job(status=plan.status))


def test_a_suspended_job_waits_for_its_adapter_without_end_and_as_long_as_any_once_it_is_resumed() -> None:
    plan = plan_job(job_world(job(age_seconds=90_000, suspend=True), no_adapter=True))
    assert plan.status.phase is JobPhase.SUSPENDED
    resumed = DistillJobStatus(conditions=[condition("Suspended", False, "Resumed", since_seconds=100)])
    plan = plan_job(job_world(job(age_seconds=90_000, status=resumed), no_adapter=True))
    assert plan.status.phase is JobPhase.PENDING


def test_a_job_whose_samples_vanish_when_its_turn_has_come_does_not_keep_the_lease_for_them() -> None:
    held = grant().model_copy(update={"granted_at": ago(20)})
    assert plan_job(job_world(held=lease(held), samples_error="no")).status.phase is JobPhase.PENDING
    held = grant().model_copy(update={"granted_at": ago(31)})
    assert said(plan_job(job_world(held=lease(held), samples_error="no")), "Failed")[1] == "SamplesNotFound"


def test_a_grant_keeps_how_its_servers_are_verified_so_that_they_can_be_woken_without_the_adapter() -> None:
    tls: dict[str, JsonValue] = {"caSecretRef": {"name": "ca"}, "serverName": "vllm.team.svc"}
    of = adapter(serving={"scheme": "https", "tls": tls})
    (action,) = plan_job(job_world(on=of)).actions
    assert isinstance(action, WriteLease)
    assert action.lease.grant is not None
    assert action.lease.grant.tls == of.spec.serving.tls


def test_an_attempt_is_told_once_it_is_made_and_only_with_what_it_was_made_from() -> None:
    plan = plan_job(job_world(held=MINE))
    assert plan.creations == plan.actions
    assert plan.remaining == ()
    assert (plan.status.attempts, plan.status.trainer_job) == (1, plan.creations[0].name)
    assert said(plan, "Trained") == (ConditionStatus.FALSE, "Running")


@pytest.mark.parametrize(
    ("told_seconds_ago", "phase", "detail"),
    [
        (TELL_SECONDS - 1, JobPhase.PREPARING, "Preparing"),
        (TELL_SECONDS + 1, JobPhase.TRAINING, "micro-batch 3 of 8"),
        (None, JobPhase.TRAINING, "micro-batch 3 of 8"),
    ],
    ids=["lately", "a-while-ago", "not-by-this-operator"],
)
def test_how_far_a_trainer_is_stands_in_status_every_few_seconds(
    told_seconds_ago: int | None, phase: JobPhase, detail: str
) -> None:
    preparing = replace(RUNNING, progress=Progress(phase=JobPhase.PREPARING, detail="Preparing"))
    status = plan_job(job_world(job(status=STARTED), held=MINE, now_at=preparing)).status
    training = replace(RUNNING, progress=Progress(phase=JobPhase.TRAINING, detail="micro-batch 3 of 8"))
    status = status.model_copy(update={"trainer_job": RUNNING.name})
    told = None if told_seconds_ago is None else ago(told_seconds_ago)
    plan = plan_job(replace(job_world(job(status=status), held=MINE, now_at=training), told=told))
    assert plan.status.phase is phase
    assert message_of(plan, "Trained") == f"Attempt 1: {detail}"
    assert plan.requeue_seconds == 1.0


@pytest.mark.parametrize("told", [None, ago(1)], ids=["long-ago", "just-now"])
def test_what_decides_is_told_at_once(told: datetime | None) -> None:
    for now_at in (failed(FailureReason.SERVING_LOST), succeeded(1), attempt(TrainerState.LOST)):
        world = job_world(
            job(status=STARTED.model_copy(update={"phase": JobPhase.TRAINING})), held=MINE, now_at=now_at
        )
        assert plan_job(replace(world, told=told)).status != world.job.status


def test_a_step_and_its_version_are_told_in_three_writes_and_one_event() -> None:
    """Admitted with its attempt, published, complete; what lies between is over too soon to be told."""
    notes = []
    made = plan_job(job_world(held=MINE))
    published_ = plan_job(job_world(job(status=made.status), held=MINE, now_at=succeeded(1)))
    loading = job_world(job(status=published_.status), on=adapter(versions=(0, 1)), held=MINE)
    waits = plan_job(replace(loading, told=ago(2)))
    assert waits.status == published_.status
    served = adapter(versions=(0, 1), served=1)
    complete = plan_job(replace(loading, adapter=served, told=ago(2)))
    assert said(complete, "Complete") == (ConditionStatus.TRUE, "Completed")
    for plan in (made, published_, waits, complete):
        notes += [note.reason for note in plan.notes]
    assert notes == ["Completed"]


TOLD: list[tuple[str, JobWorld, str]] = [
    ("waits for its turn", job_world(held=OTHERS), "Queued"),
    ("waits for its adapter", job_world(on=adapter(versions=())), "AdapterNotReady"),
    ("waits for samples", job_world(samples_error="no"), "SamplesNotFound"),
    ("is suspended", job_world(job(suspend=True)), "Suspended"),
    ("runs", job_world(job(status=STARTED), held=MINE, now_at=RUNNING), "Running"),
    (
        "is tried again",
        job_world(job(status=STARTED), held=MINE, now_at=failed(FailureReason.SERVING_LOST)),
        "Retrying",
    ),
    ("has published", job_world(job(status=STARTED), held=MINE, now_at=succeeded(1)), "PuttingIntoService"),
    (
        "failed",
        job_world(job(status=STARTED), held=MINE, now_at=failed(FailureReason.INVALID_SAMPLE, 64)),
        "InvalidSample",
    ),
]


@pytest.mark.parametrize(("world", "reason"), [row[1:] for row in TOLD], ids=[row[0] for row in TOLD])
def test_a_job_says_in_one_place_why_it_is_where_it_is(world: JobWorld, reason: str) -> None:
    status = plan_job(world).status
    assert status.reason == reason
    told = [each.message for each in status.conditions if each.reason == reason]
    assert status.message in told


@pytest.mark.parametrize(
    ("metrics", "warned"), [({}, False), ({"optimizer_restored": 1.0}, False), ({"optimizer_restored": 0.0}, True)]
)
def test_a_version_made_without_its_parents_optimiser_is_warned_of(metrics: dict[str, float], warned: bool) -> None:
    ended = succeeded(1)
    assert ended.result is not None
    assert ended.result.version is not None
    made = ended.result.version.model_copy(update={"metrics": metrics})
    ended = replace(ended, result=ended.result.model_copy(update={"version": made}))
    plan = plan_job(job_world(held=lease(grant()), now_at=ended))
    trained = condition_of(plan.status.conditions, "Trained")
    assert trained is not None
    assert ("momentum" in trained.message) is warned
    assert [note.warning for note in plan.notes if note.reason == "OptimizerNotRestored"] == [True] * warned
