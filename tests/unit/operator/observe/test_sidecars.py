"""A trainer's pod may hold containers of others: its own container alone says how far an attempt is."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from pydantic import JsonValue

from claas_contract.outcome import FailureReason
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_kube.objects.pods import Pod
from claas_kube.objects.workloads import BatchJob
from claas_operator.observe.attempts import alive_trainers, describe_attempt, held_open
from claas_operator.plan.actions import CreateAttempt, DeleteAttempt, RetireAttempt
from claas_operator.plan.adapter.adapter import plan_adapter
from claas_operator.plan.attempt_outcome import failure_of
from claas_operator.plan.job.job import plan_job
from claas_operator.plan.world import TrainerJob, TrainerState
from tests.builders.world import (
    NOW,
    adapter,
    adapter_world,
    ago,
    attempt,
    condition,
    grant,
    job,
    job_world,
    lease,
    published,
    succeeded,
    trainer_pod,
)

JOB = BatchJob.model_validate({"metadata": {"name": "a", "uid": "uid-of-a"}})
GOOD = TrainerResult(succeeded=True, version=published(1, parent=0))
BAD = TrainerResult(succeeded=False, reason=FailureReason.INVALID_SAMPLE, message="samples[0]: no response")
RUNS: JsonValue = {"running": {"startedAt": "2026-05-04T11:59:00Z"}}
WAITS: JsonValue = {"waiting": {"reason": "PodInitializing"}}


def ended(code: int, message: str = "", reason: str = "Completed") -> JsonValue:
    return {
        "terminated": {
            "exitCode": code,
            "message": message,
            "reason": reason,
            "finishedAt": (NOW - timedelta(seconds=2)).isoformat(),
        }
    }


def pod(
    *containers: tuple[str, JsonValue],
    phase: str = "Running",
    init: tuple[tuple[str, JsonValue], ...] = (),
    deleted: bool = False,
) -> Pod:
    def statuses(of: tuple[tuple[str, JsonValue], ...]) -> JsonValue:
        return [{"name": name, "state": state} for name, state in of]

    return Pod.model_validate(
        {
            "metadata": {
                "name": "p",
                "ownerReferences": [{"kind": "Job", "name": "a", "uid": "uid-of-a"}],
                **({"deletionTimestamp": NOW.isoformat()} if deleted else {}),
            },
            "status": {
                "phase": phase,
                "containerStatuses": statuses(containers),
                "initContainerStatuses": statuses(init),
            },
        }
    )


OK = ("trainer", ended(0, GOOD.to_termination_message()))
WRONG = ("trainer", ended(64, BAD.to_termination_message(), "Error"))
LOST = ("trainer", ended(137, "", "ContainerStatusUnknown"))

PODS: list[tuple[str, Pod, TrainerState, int | None, bool, bool]] = [
    ("the mesh's proxy goes on", pod(("proxy", RUNS), OK), TrainerState.SUCCEEDED, 0, False, True),
    ("the vault's agent goes on", pod(WRONG, ("agent", RUNS)), TrainerState.FAILED, 64, False, True),
    (
        "the proxy was killed first",
        pod(("proxy", ended(137)), WRONG, phase="Failed"),
        TrainerState.FAILED,
        64,
        False,
        False,
    ),
    (
        "the proxy failed after a good end",
        pod(("proxy", ended(1)), OK, phase="Failed"),
        TrainerState.SUCCEEDED,
        0,
        False,
        False,
    ),
    (
        "the proxy ended well after a bad end",
        pod(("proxy", ended(0)), WRONG, phase="Failed"),
        TrainerState.FAILED,
        64,
        False,
        False,
    ),
    (
        "the proxy ended while the trainer runs",
        pod(("proxy", ended(0)), ("trainer", RUNS)),
        TrainerState.RUNNING,
        None,
        True,
        False,
    ),
    (
        "the proxy failed while the trainer waits",
        pod(("proxy", ended(1)), ("trainer", WAITS)),
        TrainerState.RUNNING,
        None,
        True,
        False,
    ),
    (
        "a native sidecar is being ended",
        pod(OK, init=(("proxy", RUNS),)),
        TrainerState.SUCCEEDED,
        0,
        False,
        False,
    ),
    (
        "an init container failed",
        pod(("trainer", WAITS), phase="Failed", init=(("setup", ended(3)),)),
        TrainerState.FAILED,
        None,
        False,
        False,
    ),
    ("the node lost sight of it", pod(LOST, ("proxy", RUNS)), TrainerState.FAILED, 137, True, True),
    ("the node lost sight of it and ended", pod(LOST, phase="Failed"), TrainerState.FAILED, 137, False, False),
]


@pytest.mark.parametrize(
    ("found", "state", "code", "alive", "open_"), [row[1:] for row in PODS], ids=[row[0] for row in PODS]
)
def test_an_attempt_is_judged_by_the_container_named_trainer_when(
    found: Pod, state: TrainerState, code: int | None, alive: bool, open_: bool
) -> None:
    described = describe_attempt("a", JOB, [found])
    assert (described.state, described.exit_code, described.alive, described.held_open) == (state, code, alive, open_)
    assert bool(alive_trainers([found])) is alive
    assert [each.name for each in held_open([found])] == (["a"] if open_ else [])


def test_the_result_is_the_trainers_beside_any_other_containers_words() -> None:
    talkative = ("proxy", ended(0, BAD.to_termination_message()))
    assert describe_attempt("a", JOB, [pod(talkative, OK)]).result == GOOD


@pytest.mark.parametrize(("code", "reason"), [(137, "OOMKilled"), (137, "Error"), (143, "Error")])
def test_a_trainer_that_was_killed_after_it_had_told_of_its_version_has_succeeded(code: int, reason: str) -> None:
    told = ("trainer", ended(code, GOOD.to_termination_message(), reason))
    described = describe_attempt("a", JOB, [pod(told, phase="Failed")])
    assert (described.state, described.result) == (TrainerState.SUCCEEDED, GOOD)


def test_a_trainer_that_ran_out_of_memory_is_not_tried_again_as_it_is() -> None:
    killed = describe_attempt("a", JOB, [pod(("trainer", ended(137, "", "OOMKilled")), phase="Failed")])
    looking = STARTED.model_copy(update={"recovery_time": ago(5)})
    nothing = attempt(TrainerState.SUCCEEDED, result=TrainerResult(succeeded=True))
    plan = plan_job(job_world(job(status=looking), held=MINE, now_at=killed, looked=nothing))
    failed = next(each for each in plan.status.conditions if each.type == "Failed")
    assert failed.reason == FailureReason.OUT_OF_MEMORY


def test_a_sidecar_that_ran_out_of_memory_is_not_the_trainer() -> None:
    killed = ("proxy", ended(137, "", "OOMKilled"))
    described = describe_attempt("a", JOB, [pod(killed, ("trainer", ended(75, "", "Error")), phase="Failed")])
    assert failure_of(described, None).reason != FailureReason.OUT_OF_MEMORY


def test_an_init_container_that_failed_is_named() -> None:
    found = pod(("trainer", WAITS), phase="Failed", init=(("setup", ended(3)),))
    failure = failure_of(describe_attempt("a", JOB, [found]), None)
    assert failure.reason == "TrainerLost"
    assert "container setup ended with exit code 3" in failure.message


def test_a_pod_on_its_way_out_is_not_ended_again() -> None:
    assert held_open([pod(("proxy", RUNS), OK, deleted=True)]) == ()


MINE = lease(grant())
STARTED = DistillJobStatus(start_time=ago(20), attempts=1, trainer_job="x")
PUBLISHED = STARTED.model_copy(update={"produced_version": 1})


def test_a_pod_is_ended_only_after_what_its_trainer_said_stands_in_status() -> None:
    done = replace(succeeded(), held_open=True)
    world = replace(job_world(job(status=STARTED), held=MINE, now_at=done), held_open=(trainer_pod(done.name),))
    accounted = plan_job(world)
    assert accounted.status.produced_version == 1
    assert [type(action) for action in accounted.actions] == [RetireAttempt]
    after = plan_job(replace(world, job=world.job.model_copy(update={"status": accounted.status})))
    assert [action for action in after.actions if isinstance(action, DeleteAttempt)] == [
        DeleteAttempt(
            done.name, f"uid-of-{done.name}", None, 20, "its trainer has ended, and another container keeps its pod"
        )
    ]


def test_the_pod_of_a_failed_attempt_is_ended_before_the_next_is_made() -> None:
    first = attempt(number=1).name
    status = STARTED.model_copy(update={"failed_attempts": 1, "retry_time": ago(1)})
    world = job_world(job(status=status), held=lease(grant(attempt=2)), now_at=attempt(TrainerState.ABSENT, number=2))
    plan = plan_job(replace(world, held_open=(trainer_pod(first),)))
    assert [type(action) for action in plan.actions] == [DeleteAttempt, CreateAttempt]


@pytest.mark.parametrize("kind", ["Complete", "Failed"])
def test_a_finished_job_leaves_no_pod_open(kind: str) -> None:
    status = PUBLISHED.model_copy(update={"conditions": [condition(kind, True)]})
    world = replace(
        job_world(job(status=status), now_at=replace(succeeded(), retired=True)), held_open=(trainer_pod("a-1"),)
    )
    assert next(each for each in plan_job(world).actions if isinstance(each, DeleteAttempt)).name == "a-1"


INIT = TrainerJob(
    name="tone-init",
    state=TrainerState.SUCCEEDED,
    alive=False,
    pod=trainer_pod("tone-init-x"),
    result=GOOD,
    exit_code=0,
)


def test_the_initial_versions_pod_is_ended_once_its_version_stands_in_status() -> None:
    open_ = replace(INIT, held_open=True)
    before = plan_adapter(adapter_world(adapter(versions=()), init=open_))
    assert before.status.latest_version == 1
    assert not any(isinstance(action, DeleteAttempt | RetireAttempt) for action in before.actions)
    after = plan_adapter(adapter_world(adapter(versions=(1,)), init=open_))
    assert [type(action) for action in after.actions if isinstance(action, DeleteAttempt)] == [DeleteAttempt]


def test_the_initial_versions_input_goes_at_once_and_its_log_an_hour_later() -> None:
    ended_long_ago = replace(INIT, finished_at=ago(7200))
    plan = plan_adapter(adapter_world(adapter(versions=(1,)), init=ended_long_ago))
    assert [action for action in plan.actions if isinstance(action, RetireAttempt)] == [
        RetireAttempt("tone-init", 7200 + 3600)
    ]
    again = plan_adapter(adapter_world(adapter(versions=(1,)), init=replace(ended_long_ago, retired=True)))
    assert not any(isinstance(action, RetireAttempt) for action in again.actions)


def test_a_finished_jobs_trainer_is_let_go_though_the_first_try_was_lost() -> None:
    status = PUBLISHED.model_copy(update={"conditions": [condition("Complete", True)]})
    left = plan_job(job_world(job(status=status), now_at=succeeded()))
    assert [type(action) for action in left.actions] == [RetireAttempt]
    gone = plan_job(job_world(job(status=status), now_at=replace(succeeded(), retired=True)))
    assert gone.actions == ()


def test_a_batch_job_with_a_time_to_live_is_retired() -> None:
    given = BatchJob.model_validate(
        {"metadata": {"name": "a", "uid": "uid-of-a"}, "spec": {"ttlSecondsAfterFinished": 5}}
    )
    assert describe_attempt("a", given, [pod(OK, phase="Succeeded")]).retired
    assert not describe_attempt("a", JOB, [pod(OK, phase="Succeeded")]).retired
