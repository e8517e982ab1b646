"""How far an attempt is, and why it failed: tables."""

from __future__ import annotations

from datetime import timedelta

import pytest

from claas_contract.outcome import FailureReason
from claas_contract.result import TrainerResult
from claas_kube.objects.meta import ObjectMeta, OwnerReference
from claas_kube.objects.pods import (
    ContainerState,
    ContainerStatus,
    Pod,
    PodCondition,
    PodStatus,
    Terminated,
    Waiting,
)
from claas_kube.objects.workloads import BatchJob, BatchJobStatus
from claas_operator.observe.attempts import describe_attempt
from claas_operator.plan.attempt_outcome import failure_of
from claas_operator.plan.world import TrainerState
from tests.builders.world import NOW, attempt, grant

JOB = BatchJob(metadata=ObjectMeta(name="a", uid="uid-of-a"))
RESULT = TrainerResult(succeeded=False, reason=FailureReason.STORAGE_FULL, message="no space left")

KILLED_WORKER = TrainerResult(
    succeeded=False, reason=FailureReason.INTERNAL, message="the worker ended with signal SIGKILL"
)


def ended_job(kind: str) -> BatchJob:
    status = BatchJobStatus(conditions=[PodCondition(type=kind, status="True", reason="R", message="why")])
    return JOB.model_copy(update={"status": status})


def pod(
    name: str = "p", phase: str = "Running", *, owner: str = "uid-of-a", age: float = 10, **status: object
) -> Pod:
    return Pod(
        metadata=ObjectMeta(
            name=name,
            creation_timestamp=NOW - timedelta(seconds=age),
            owner_references=[OwnerReference(kind="Job", name="a", uid=owner)],
        ),
        status=PodStatus.model_validate({"phase": phase, **status}),
    )


def ended(exit_code: int, message: str = "", reason: str = "", *, name: str = "p", age: float = 10) -> Pod:
    terminated = Terminated(exit_code=exit_code, message=message, reason=reason, finished_at=NOW)
    state = ContainerStatus(name="trainer", state=ContainerState(terminated=terminated))
    return pod(name, "Failed" if exit_code else "Succeeded", age=age, container_statuses=[state])


STATES: list[tuple[str, BatchJob | None, list[Pod], TrainerState, bool]] = [
    ("nothing", None, [], TrainerState.ABSENT, False),
    ("a pod without its Job", None, [pod()], TrainerState.ABSENT, True),
    (
        "a Job on its way out",
        BatchJob(metadata=ObjectMeta(name="a", uid="uid-of-a", deletion_timestamp=NOW)),
        [pod()],
        TrainerState.ABSENT,
        True,
    ),
    ("a Job whose pod is not made yet", JOB, [], TrainerState.RUNNING, False),
    ("a Job that failed and has no pod", ended_job("Failed"), [], TrainerState.LOST, False),
    ("a Job that completed and has no pod", ended_job("Complete"), [], TrainerState.LOST, False),
    ("a Job with a condition of another kind", ended_job("FailureTarget"), [], TrainerState.RUNNING, False),
    ("a pod that waits", JOB, [pod(phase="Pending")], TrainerState.RUNNING, True),
    ("a pod that runs", JOB, [pod()], TrainerState.RUNNING, True),
    ("a pod on a lost node", JOB, [pod(phase="Unknown")], TrainerState.RUNNING, True),
    ("a pod that ended well", JOB, [ended(0)], TrainerState.SUCCEEDED, False),
    ("a pod that failed", JOB, [ended(75)], TrainerState.FAILED, False),
    ("a pod evicted before it ran", JOB, [pod(phase="Failed", reason="Evicted")], TrainerState.FAILED, False),
    (
        "the failed pod of an earlier Job of that name",
        JOB,
        [pod(phase="Failed", owner="old")],
        TrainerState.RUNNING,
        False,
    ),
    ("the running pod of an earlier Job of that name", JOB, [pod(owner="old")], TrainerState.RUNNING, True),
]


@pytest.mark.parametrize(
    ("batch_job", "pods", "state", "alive"), [row[1:] for row in STATES], ids=[row[0] for row in STATES]
)
def test_an_attempt_is_described_by(
    batch_job: BatchJob | None, pods: list[Pod], state: TrainerState, alive: bool
) -> None:
    described = describe_attempt("a", batch_job, pods)
    assert (described.state, described.alive) == (state, alive)


def test_of_several_pods_the_newest_counts() -> None:
    described = describe_attempt("a", JOB, [ended(0, name="new", age=1), ended(75, name="old", age=9)])
    assert described.pod is not None
    assert (described.pod.name, described.state) == ("new", TrainerState.SUCCEEDED)


def test_a_readable_termination_message_is_the_result_and_another_one_is_dropped() -> None:
    assert describe_attempt("a", JOB, [ended(75, RESULT.to_termination_message())]).result == RESULT
    garbled = describe_attempt("a", JOB, [ended(75, "Traceback: a user's text")])
    assert garbled.result is None
    assert "user's text" not in garbled.message


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            pod(
                conditions=[
                    PodCondition(type="PodScheduled", status="False", reason="Unschedulable", message="no GPU")
                ]
            ),
            "Unschedulable: no GPU",
        ),
        (
            pod(
                container_statuses=[
                    ContainerStatus(
                        name="t", state=ContainerState(waiting=Waiting(reason="ErrImagePull", message="not found"))
                    )
                ]
            ),
            "ErrImagePull: not found",
        ),
        (
            pod(
                container_statuses=[
                    ContainerStatus(name="t", state=ContainerState(waiting=Waiting(reason="ContainerCreating")))
                ]
            ),
            "",
        ),
    ],
    ids=["unschedulable", "image", "starting"],
)
def test_why_a_pod_does_not_run_yet_is_told(found: Pod, message: str) -> None:
    assert describe_attempt("a", JOB, [found]).message == message


STOPPED = grant(stopped_because="MaxPauseExceeded", max_pause_seconds=7)

FAILURES: list[tuple[str, dict[str, object], bool, str, bool, str]] = [
    ("its own words", {"result": RESULT, "exit_code": 75}, False, "StorageFull", False, "no space left"),
    ("its exit code", {"result": RESULT, "exit_code": 64}, False, "StorageFull", True, "no space left"),
    ("the operator's, which ended it", {"result": RESULT, "exit_code": 137}, True, "MaxPauseExceeded", False, "7 s"),
    ("the kernel's", {"exit_code": 137, "message": "OOMKilled"}, False, "OutOfMemory", True, "memory"),
    (
        "the kernel's, of a supervisor that saw only a kill",
        {"result": KILLED_WORKER, "exit_code": 75, "message": "OOMKilled"},
        False,
        "OutOfMemory",
        True,
        "spec.trainer.resources.limits",
    ),
    (
        "its own words though the kernel killed something in its pod",
        {"result": RESULT, "exit_code": 75, "message": "OOMKilled"},
        False,
        "StorageFull",
        False,
        "no space left",
    ),
    (
        "its own, of a worker that somebody else killed",
        {"result": KILLED_WORKER, "exit_code": 75, "message": "Error"},
        False,
        "InternalError",
        False,
        "SIGKILL",
    ),
    ("nobody's", {"message": "Evicted"}, False, "TrainerLost", False, "Evicted"),
    ("a killer's", {"exit_code": 137}, False, "TrainerLost", False, "killed"),
    ("Python's", {"exit_code": 1}, False, "InternalError", False, "exit code 1"),
    ("a permanent exit code without a result", {"exit_code": 64}, False, "InternalError", True, "exit code 64"),
]


@pytest.mark.parametrize(
    ("values", "stopped", "reason", "permanent", "within"),
    [row[1:] for row in FAILURES],
    ids=[row[0] for row in FAILURES],
)
def test_an_attempts_failure_is_told_in(
    values: dict[str, object], stopped: bool, reason: str, permanent: bool, within: str
) -> None:
    result, exit_code = values.get("result"), values.get("exit_code")
    assert result is None or isinstance(result, TrainerResult)
    assert exit_code is None or isinstance(exit_code, int)
    failed = attempt(TrainerState.FAILED, result=result, exit_code=exit_code, message=str(values.get("message", "")))
    failure = failure_of(failed, STOPPED if stopped else grant())
    assert (failure.reason, failure.permanent) == (reason, permanent)
    assert within in failure.message
