"""A trainer whose pod does not come: why, in Kubernetes' own words, and how the queue goes on meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from claas_crds.v1alpha1.conditions import ConditionStatus, condition_of
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.step import JobPhase
from claas_kube.objects.pods import Pod
from claas_kube.objects.resources import JobObject
from claas_kube.objects.workloads import BatchJob, Event
from claas_operator.observe.attempts import describe_attempt, needs_events
from claas_operator.plan.actions import CreateAttempt, DeleteAttempt, WriteLease
from claas_operator.plan.adapter.adapter import plan_adapter
from claas_operator.plan.job.job import plan_job
from claas_operator.plan.job.unstarted import gave_way
from claas_operator.plan.queueing import finished, in_queue
from claas_operator.plan.world import JobWorld, TrainerJob, TrainerStart, TrainerState
from tests.builders.world import NOW, adapter, adapter_world, ago, attempt, grant, job, job_world, lease, trainer_pod

QUOTA = (
    'Error creating: pods "step-1-x" is forbidden: failed quota: team-quota: must specify limits.cpu for: trainer;'
    " limits.memory for: trainer"
)
SCC = (
    'Error creating: pods "step-1-x" is forbidden: unable to validate against any security context constraint:'
    " [provider restricted-v2: .spec.securityContext.fsGroup: Invalid value: []int64{65532}: 65532 is not allowed]"
)
MOUNT = 'MountVolume.SetUp failed for volume "claas-samples" : configmap "feedback" not found'
ATTACH = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) vllm-0'


def batch_job(*, suspend: bool = False, said: str = "", age: float = 20) -> BatchJob:
    conditions: list[JsonValue] = (
        [{"type": "Suspended", "status": "True", "reason": "JobSuspended", "message": said}] if said else []
    )
    return BatchJob.model_validate(
        {
            "metadata": {"name": "step-1", "uid": "uid-of-job", "creationTimestamp": ago(age).isoformat()},
            "spec": {"suspend": suspend},
            "status": {"conditions": conditions},
        }
    )


def pod(*containers: JsonValue, conditions: Sequence[JsonValue] = (), init: Sequence[JsonValue] = ()) -> Pod:
    return Pod.model_validate(
        {
            "metadata": {
                "name": "p",
                "uid": "uid-of-p",
                "ownerReferences": [{"kind": "Job", "name": "step-1", "uid": "uid-of-job"}],
            },
            "status": {
                "phase": "Pending",
                "containerStatuses": list(containers),
                "initContainerStatuses": list(init),
                "conditions": list(conditions),
            },
        }
    )


def waits(name: str, reason: str, message: str = "") -> JsonValue:
    return {"name": name, "state": {"waiting": {"reason": reason, "message": message}}}


CREATING = waits("trainer", "ContainerCreating")
INITIALISING = waits("trainer", "PodInitializing")
UNSCHEDULED: JsonValue = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}
GATED: JsonValue = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "a gate"}


def event(
    reason: str, message: str = "", *, kind: str = "Warning", ago_seconds: float = 5, by: str = "last"
) -> Event:
    at = ago(ago_seconds).isoformat()
    times: dict[str, JsonValue] = {
        "last": {"lastTimestamp": at},
        "event": {"eventTime": at},
        "series": {"eventTime": ago(500).isoformat(), "series": {"lastObservedTime": at}},
    }
    said = {"metadata": {"name": "e"}, "type": kind, "reason": reason, "message": message}
    return Event.model_validate({**said, **dict(times[by])})  # type: ignore[arg-type]


WHY: list[tuple[str, BatchJob, Pod | None, list[Event], str]] = [
    ("a quota", batch_job(), None, [event("FailedCreate", QUOTA)], f"FailedCreate: {QUOTA}"),
    ("an admission", batch_job(), None, [event("FailedCreate", SCC, by="series")], f"FailedCreate: {SCC}"),
    (
        "somebody who suspended the Job",
        batch_job(suspend=True, said="Job suspended"),
        None,
        [],
        "Suspended: batch Job step-1 was suspended, and not by the operator (Job suspended)",
    ),
    (
        "somebody who suspended it just now",
        batch_job(suspend=True),
        None,
        [],
        "Suspended: batch Job step-1 was suspended, and not by the operator",
    ),
    ("the scheduler", batch_job(), pod(conditions=[UNSCHEDULED]), [], "Unschedulable: no GPU"),
    ("a scheduling gate", batch_job(), pod(conditions=[GATED]), [], "SchedulingGated: a gate"),
    ("an image", batch_job(), pod(waits("trainer", "ImagePullBackOff", "b")), [], "ImagePullBackOff: b"),
    (
        "an environment's ConfigMap",
        batch_job(),
        pod(waits("trainer", "CreateContainerConfigError", "no c")),
        [],
        "CreateContainerConfigError: no c",
    ),
    (
        "an init container's image",
        batch_job(),
        pod(INITIALISING, init=[waits("setup", "ErrImagePull", "a")]),
        [],
        "ErrImagePull: a",
    ),
    (
        "a native sidecar that crashes",
        batch_job(),
        pod(INITIALISING, init=[waits("proxy", "CrashLoopBackOff", "c")]),
        [],
        "CrashLoopBackOff: c",
    ),
    ("a volume's content", batch_job(), pod(CREATING), [event("FailedMount", MOUNT)], f"FailedMount: {MOUNT}"),
    (
        "a volume elsewhere",
        batch_job(),
        pod(CREATING),
        [event("FailedAttachVolume", ATTACH), event("Scheduled", kind="Normal", ago_seconds=4)],
        f"FailedAttachVolume: {ATTACH}",
    ),
    (
        "the newest of two",
        batch_job(),
        pod(CREATING),
        [event("FailedMount", "old", ago_seconds=9), event("FailedCreatePodSandBox", "new", by="event")],
        "FailedCreatePodSandBox: new",
    ),
]
NOTHING: list[tuple[str, BatchJob, Pod | None, list[Event]]] = [
    ("a Job made just now", batch_job(), None, []),
    (
        "a quota that has room again",
        batch_job(),
        None,
        [event("FailedCreate", ago_seconds=9), event("SuccessfulCreate", kind="Normal")],
    ),
    (
        "an image on its way",
        batch_job(),
        pod(CREATING),
        [event("FailedMount", ago_seconds=9), event("Pulling", kind="Normal")],
    ),
    ("a node that was found", batch_job(), pod(CREATING), [event("FailedScheduling", "no node")]),
    ("an init container at work", batch_job(), pod(INITIALISING), []),
]


@pytest.mark.parametrize(("made", "found", "events", "words"), [row[1:] for row in WHY], ids=[row[0] for row in WHY])
def test_a_trainer_is_kept_from_starting_by(
    made: BatchJob, found: Pod | None, events: list[Event], words: str
) -> None:
    described = describe_attempt("step-1", made, [found] if found else [], events)
    assert (described.state, described.hindered, described.message) == (TrainerState.RUNNING, True, words)


@pytest.mark.parametrize(("made", "found", "events"), [row[1:] for row in NOTHING], ids=[row[0] for row in NOTHING])
def test_a_trainer_is_on_its_way_with(made: BatchJob, found: Pod | None, events: list[Event]) -> None:
    described = describe_attempt("step-1", made, [found] if found else [], events)
    assert (described.state, described.hindered) == (TrainerState.RUNNING, False)
    assert described.start is not None


def test_a_trainer_that_runs_is_hindered_by_nothing_whatever_its_sidecars_wait_for() -> None:
    running: JsonValue = {"name": "trainer", "state": {"running": {}}}
    described = describe_attempt("step-1", batch_job(), [pod(running, waits("proxy", "CrashLoopBackOff"))])
    assert described.start is None
    assert not needs_events(described, NOW)


def test_words_are_cut_to_a_length_that_a_condition_can_hold() -> None:
    described = describe_attempt("step-1", batch_job(), [], [event("FailedCreate", "x" * 40_000)])
    assert 500 < len(described.message) <= 1000


def test_events_are_read_only_for_a_trainer_that_does_not_run_for_some_seconds_without_a_reason() -> None:
    assert not needs_events(describe_attempt("step-1", batch_job(age=4), []), NOW)
    assert needs_events(describe_attempt("step-1", batch_job(age=6), []), NOW)
    assert needs_events(describe_attempt("step-1", batch_job(age=6), [pod(CREATING)]), NOW)
    assert not needs_events(describe_attempt("step-1", batch_job(age=6), [pod(conditions=[UNSCHEDULED])]), NOW)
    assert not needs_events(attempt(TrainerState.SUCCEEDED), NOW)


STARTED = DistillJobStatus(start_time=ago(20), attempts=1, trainer_job="step-1", phase=JobPhase.PREPARING)
MINE = lease(grant())


def hindered(since_seconds: float, *, has_pod: bool = False, words: str = f"FailedCreate: {QUOTA}") -> TrainerJob:
    return replace(
        attempt(TrainerState.RUNNING),
        alive=has_pod,
        pod=trainer_pod("p") if has_pod else None,
        message=words,
        start=TrainerStart(ago(since_seconds), True, 1),
    )


def test_a_job_says_in_the_servers_words_why_its_trainer_does_not_start() -> None:
    plan = plan_job(job_world(job(status=STARTED), held=MINE, now_at=hindered(10)))
    trained = condition_of(plan.status.conditions, "Trained")
    assert trained is not None
    assert (trained.status, trained.reason) == (ConditionStatus.FALSE, "TrainerNotStarted")
    assert QUOTA in trained.message
    assert plan.status.phase is JobPhase.PREPARING
    assert any(note.reason == "TrainerNotStarted" and note.warning for note in plan.notes)
    assert plan.actions == ()


PATIENCE: list[tuple[str, float, bool, float, bool]] = [
    ("no pod, a moment", 29, False, 29, False),
    ("no pod, for longer", 31, False, 31, True),
    ("a pod, a moment", 59, True, 59, False),
    ("a pod, for longer", 61, True, 61, True),
    ("a later turn, as long as all before it", 90, True, 200, False),
    ("a later turn, for longer", 120, True, 200, True),
    ("any turn, for long", 181, True, 3000, True),
    ("no pod in a later turn", 100, False, 250, False),
]


@pytest.mark.parametrize(
    ("waited", "has_pod", "since_start", "over"), [row[1:] for row in PATIENCE], ids=[row[0] for row in PATIENCE]
)
def test_the_lease_is_given_back_after(waited: float, has_pod: bool, since_start: float, over: bool) -> None:
    status = STARTED.model_copy(update={"start_time": ago(since_start), "failed_attempts": 1, "attempts": 2})
    waiting = hindered(waited, has_pod=has_pod)
    plan = plan_job(job_world(job(status=status), held=lease(grant(attempt=2)), now_at=waiting))
    assert [type(action) for action in plan.actions] == ([DeleteAttempt] if over else [])
    assert gave_way(plan.status) is over
    # It is no failed attempt.
    assert plan.status.failed_attempts == 1
    assert plan.status.attempts == (1 if over else 2)
    assert in_queue(JobObject(metadata=job().metadata, spec=job().spec, status=plan.status)) is not over


def given_back() -> DistillJobStatus:
    return plan_job(job_world(job(status=STARTED), held=MINE, now_at=hindered(31))).status


def test_a_job_that_gave_way_makes_no_trainer_while_the_lease_is_still_its_own() -> None:
    plan = plan_job(job_world(job(status=given_back()), held=MINE))
    assert plan.actions == ()
    assert plan.status.phase is JobPhase.PENDING
    assert plan.requeue_seconds is not None


def test_an_attempt_that_outlived_its_withdrawal_is_ended_after_all() -> None:
    """The operator died, or its deletion was refused, after the status was written: the lease would stay held."""
    plan = plan_job(job_world(job(status=given_back()), held=MINE, now_at=hindered(40)))
    assert [type(action) for action in plan.actions] == [DeleteAttempt]
    assert plan.status.phase is JobPhase.PENDING
    assert plan.status.attempts == 0


def test_an_attempt_that_started_though_it_was_to_be_withdrawn_is_followed() -> None:
    plan = plan_job(job_world(job(status=given_back()), held=MINE, now_at=attempt(TrainerState.RUNNING)))
    assert plan.actions == ()
    assert plan.status.phase is JobPhase.PREPARING
    assert not gave_way(plan.status)


def test_a_job_that_gave_way_rests_and_keeps_its_reason_then_queues_again() -> None:
    status = given_back()
    assert status.retry_time is not None
    world = job_world(job(status=status))
    resting = plan_job(replace(world, now=status.retry_time - timedelta(seconds=3)))
    assert (resting.actions, resting.requeue_seconds) == ((), 3.0)
    admitted = condition_of(resting.status.conditions, "Admitted")
    assert admitted is not None
    assert QUOTA in admitted.message
    again = plan_job(replace(world, now=status.retry_time))
    assert [type(action) for action in again.actions] == [WriteLease]
    assert not gave_way(again.status)


def test_a_job_whose_trainer_never_starts_ends_by_its_deadline() -> None:
    status = given_back().model_copy(update={"start_time": ago(50)})
    plan = plan_job(job_world(job(status=status, deadline_seconds=40)))
    failed = condition_of(plan.status.conditions, "Failed")
    assert failed is not None
    assert failed.reason == "DeadlineExceeded"
    assert failed.message.endswith(f"its trainer could not be started: FailedCreate: {QUOTA}")


def test_a_deadline_that_comes_while_a_pod_is_waited_for_tells_what_it_waited_for() -> None:
    told = plan_job(job_world(job(status=STARTED), held=MINE, now_at=hindered(10))).status
    late = told.model_copy(update={"start_time": ago(50)})
    of = job(status=late, deadline_seconds=40)
    ending = plan_job(job_world(of, held=MINE, now_at=hindered(20)))
    assert [type(action) for action in ending.actions] == [DeleteAttempt]
    ended = plan_job(job_world(of.model_copy(update={"status": ending.status}), held=MINE))
    failed = condition_of(ended.status.conditions, "Failed")
    assert failed is not None
    assert failed.message.endswith(f"its trainer could not be started: FailedCreate: {QUOTA}")


@settings(max_examples=30, deadline=None)
@given(podless=st.booleans(), heals_after=st.none() | st.integers(1, 1500), deadline=st.integers(100, 2500))
def test_a_trainer_that_can_not_start_holds_the_lease_neither_long_nor_most_of_the_time(
    podless: bool, heals_after: int | None, deadline: int
) -> None:
    """The passes over one job, second by second, on a cluster that makes and ends trainers at once."""
    now, held_since = NOW, NOW
    status = DistillJobStatus()
    made_at, mine, held_seconds, longest = None, False, 0, 0
    for second in range(2700):
        now = NOW + timedelta(seconds=second)
        if made_at is None:
            at = attempt()
        elif heals_after is not None and second >= heals_after:
            assert second - heals_after <= 301
            return
        else:
            at = replace(hindered(0, has_pod=not podless), start=TrainerStart(made_at, True, 1))
        of = job(status=status, deadline_seconds=deadline)
        world: JobWorld = replace(job_world(of, held=MINE if mine else None, now_at=at), now=now)
        plan = plan_job(world)
        status = plan.status
        if finished(status.conditions):
            assert second >= deadline
            return
        for action in plan.actions:
            if isinstance(action, WriteLease):
                mine, held_since = True, now
            elif isinstance(action, CreateAttempt):
                made_at = now
            elif isinstance(action, DeleteAttempt):
                made_at = None
        if mine:
            held_seconds += 1
            longest = max(longest, int((now - held_since).total_seconds()))
        if mine and gave_way(status) and made_at is None:
            mine = False
        assert longest <= 185
        assert held_seconds <= second / 2 + 65
    raise AssertionError("the job never ended")


def test_an_adapter_says_why_its_first_version_is_not_made() -> None:
    init = replace(hindered(40), name="tone-init")
    plan = plan_adapter(adapter_world(adapter(versions=()), init=init))
    for kind, holds in (("Ready", ConditionStatus.FALSE), ("Reconciling", ConditionStatus.TRUE)):
        said = condition_of(plan.status.conditions, kind)
        assert said is not None
        assert (said.status, said.reason) == (holds, "TrainerNotStarted")
        assert QUOTA in said.message
    assert not any(isinstance(action, DeleteAttempt) for action in plan.actions)


def test_an_adapter_whose_spec_was_mended_makes_its_first_trainer_anew() -> None:
    init = replace(hindered(40), name="tone-init", start=TrainerStart(ago(40), True, 7))
    plan = plan_adapter(adapter_world(adapter(versions=()), init=init))
    assert [action.name for action in plan.actions if isinstance(action, DeleteAttempt)] == ["tone-init"]
    running = replace(init, start=None)
    assert not any(
        isinstance(action, DeleteAttempt)
        for action in plan_adapter(adapter_world(adapter(versions=()), init=running)).actions
    )
