"""A version that serving refused is told in status, and neither served nor trained from."""

from __future__ import annotations

from datetime import timedelta

import pytest

from claas_contract.outcome import ExitCode, FailureReason
from claas_contract.result import PublishedVersion, TrainerResult
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.step import JobPhase
from claas_crds.v1alpha1.version import VersionVerdict
from claas_operator.clients.job_view import known_job
from claas_operator.plan.actions import PutInService
from claas_operator.plan.adapter.adapter import plan_adapter
from claas_operator.plan.job.job import plan_job
from claas_operator.plan.lineage.history import reported_rejections
from claas_operator.plan.lineage.lineage import lineage_for_jobs
from claas_operator.plan.world import TrainerState
from tests.builders.world import (
    NOW,
    adapter,
    adapter_world,
    ago,
    attempt,
    grant,
    job,
    job_world,
    lease,
    published,
    serves,
    version,
    vllm_pod,
)

REJECTED, SERVED, UNTRIED = VersionVerdict.REJECTED, VersionVerdict.SERVED, VersionVerdict.UNTRIED


def refused(number: int) -> PublishedVersion:
    return published(number).model_copy(update={"verdict": REJECTED})


@pytest.mark.parametrize(
    ("known", "rejected", "latest", "verdicts"),
    [
        ((0, 1), (), 1, {0: SERVED, 1: UNTRIED}),
        # Refused by its own trainer: status hears of it for the first time.
        ((0, 1), (2,), 1, {0: SERVED, 1: UNTRIED, 2: REJECTED}),
        # It was in status already, such as a parent whose verdict was found on the volume.
        ((0, 1, 2), (2,), 1, {0: SERVED, 1: UNTRIED, 2: REJECTED}),
        ((0, 1, 2), (2, 1), 0, {0: SERVED, 1: REJECTED, 2: REJECTED}),
        # What was trained from it is as bad, though nobody refused it.
        ((0, 1, 2), (1,), 0, {0: SERVED, 1: REJECTED, 2: UNTRIED}),
    ],
)
def test_the_head_is_served_and_each_verdict_told(
    known: tuple[int, ...], rejected: tuple[int, ...], latest: int, verdicts: dict[int, VersionVerdict]
) -> None:
    world = adapter_world(
        adapter(versions=known),
        pods=(vllm_pod(server=serves(None)),),
        rejected=tuple(map(version, rejected)),
    )
    plan = plan_adapter(world)
    assert plan.status.latest_version == latest
    assert {each.number: each.verdict for each in plan.status.versions} == verdicts
    assert [action.version for action in plan.actions if isinstance(action, PutInService)] == [latest]


def test_a_pod_that_took_a_version_which_another_refused_is_given_the_one_before_it() -> None:
    took, refused_it = vllm_pod("took", server=serves(2)), vllm_pod("refused", server=serves(1))
    plan = plan_adapter(
        adapter_world(adapter(versions=(0, 1), served=1), pods=(took, refused_it), rejected=(version(2),))
    )
    put = [(action.pod.name, action.version) for action in plan.actions if isinstance(action, PutInService)]
    assert put == [("took", 1)]


def test_the_verdict_of_the_first_version_found_is_taken_over() -> None:
    found = published(4, job=None).model_copy(update={"verdict": SERVED})
    init = attempt(TrainerState.SUCCEEDED, result=TrainerResult(succeeded=True, version=found), exit_code=0)
    plan = plan_adapter(adapter_world(adapter(versions=(), served=None), init=init))
    assert [each.verdict for each in plan.status.versions] == [SERVED]


@pytest.mark.parametrize("number", [1, 2], ids=["the job's own", "its parent"])
def test_a_job_tells_which_version_serving_refused(number: int) -> None:
    own = number == 2
    reason = FailureReason.VERSION_REJECTED if own else FailureReason.PARENT_REJECTED
    result = TrainerResult(succeeded=False, reason=reason, message="rank is too large", version=refused(number))
    code = ExitCode.PERMANENT if own else ExitCode.RETRYABLE
    ended = attempt(TrainerState.FAILED, result=result, exit_code=code)
    status = DistillJobStatus(start_time=ago(20), attempts=1, trainer_job="step-1")
    plan = plan_job(job_world(job(status=status), held=lease(grant()), now_at=ended))
    told = plan.status.rejected_version
    assert told is not None
    assert (told.number, told.verdict, told.path) == (number, REJECTED, refused(number).path)
    assert plan.status.produced_version is None
    assert plan.status.phase is (JobPhase.FAILED if own else JobPhase.QUEUED)
    # What other passes know of the job: it has published nothing that could be served.
    known = known_job(job(status=plan.status))
    assert known.published is None
    assert known.rejected == told


@pytest.mark.parametrize(
    ("listed", "produced", "rejected", "newest_of_all"),
    [
        ((0, 1), None, 2, 1),
        ((0, 1, 2), None, 2, 1),
        # Status does not know of it yet, and another job has published meanwhile.
        ((0, 1), 3, 2, 3),
        # The job that made it reports it as its version, and a later one that it was refused.
        ((0, 1), 2, 2, 1),
    ],
)
def test_no_step_starts_from_a_refused_version_even_before_the_adapter_s_status_knows(
    listed: tuple[int, ...], produced: int | None, rejected: int, newest_of_all: int
) -> None:
    made = known_job(job(status=DistillJobStatus(produced_version=produced, published_time=NOW), age_seconds=50))
    reports = known_job(job("other", status=DistillJobStatus(rejected_version=version(rejected)), age_seconds=40))
    head = lineage_for_jobs(adapter(versions=listed), [made, reports]).head
    assert head is not None
    assert head.number == newest_of_all


def test_a_refusal_that_a_job_of_an_earlier_adapter_reports_is_not_this_one_s() -> None:
    status = DistillJobStatus(rejected_version=version(5).model_copy(update={"created": NOW - timedelta(days=3)}))
    earlier = known_job(job(status=status, age_seconds=timedelta(days=4).total_seconds()))
    here = known_job(job(status=status, age_seconds=1))
    assert reported_rejections([earlier], adapter()) == ()
    assert [each.number for each in reported_rejections([earlier, here], adapter())] == [5]
