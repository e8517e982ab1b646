"""What a batch's job means for its items."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from claas_crds.v1alpha1.conditions import Condition, ConditionStatus
from claas_crds.v1alpha1.distill_job import AdapterReference, DistillJobSpec, DistillJobStatus, SamplesSource
from claas_crds.v1alpha1.step import InvalidSample, JobPhase, Timings
from claas_crds.v1alpha1.version import AdapterVersion
from claas_gateway.feedback.plan.following import (
    DELETION_SECONDS,
    Decision,
    End,
    Follow,
    Made,
    Submit,
    Wait,
    decide,
)
from claas_gateway.records import BatchState, FeedbackBatch, FeedbackItem, ItemState
from claas_kube.objects.meta import ObjectMeta
from claas_kube.objects.resources import JobObject

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
FORMED = FeedbackBatch("bt-1", "team", "tone", "uid-of-tone", NOW, BatchState.FORMED)
SUBMITTED = replace(FORMED, state=BatchState.SUBMITTED, job_uid="uid-of-bt-1")
MEMBERS = [
    FeedbackItem(f"fb-{place}", "fr-1", place, "team", "tone", NOW, "Shorter.", ItemState.IN_JOB)
    for place in range(3)
]


def condition(kind: str, reason: str = "Completed", message: str = "told") -> Condition:
    return Condition(type=kind, status=ConditionStatus.TRUE, reason=reason, message=message, last_transition_time=NOW)


def job(status: DistillJobStatus) -> JobObject:
    return JobObject(
        metadata=ObjectMeta(name="bt-1", namespace="team", uid="uid-of-bt-1"),
        spec=DistillJobSpec(adapter_ref=AdapterReference(name="tone"), samples=SamplesSource()),
        status=status,
    )


def version(number: int) -> AdapterVersion:
    return AdapterVersion(number=number, path=f"versions/{number}", digest="sha256:0", created=NOW)


COMPLETE = DistillJobStatus(phase=JobPhase.SUCCEEDED, conditions=[condition("Complete")], produced_version=7)
FAILED = DistillJobStatus(phase=JobPhase.FAILED, conditions=[condition("Failed", "PolicyMoved", "moved too far")])
LATE = DistillJobStatus(
    phase=JobPhase.FAILED, conditions=[condition("Failed", "DeadlineExceeded")], produced_version=7
)
REJECTED = DistillJobStatus(
    phase=JobPhase.FAILED,
    conditions=[condition("Failed", "VersionRejected", "it failed its probe")],
    produced_version=7,
    rejected_version=version(7),
)
NO_PARENT = DistillJobStatus(
    phase=JobPhase.FAILED,
    conditions=[condition("Failed", "ParentRejected", "the parent was rejected")],
    rejected_version=version(6),
)
INVALID = DistillJobStatus(
    phase=JobPhase.FAILED,
    conditions=[condition("Failed", "InvalidSample", "1 of 3 is wrong")],
    invalid_samples=[InvalidSample(index=1, message="response: too long")],
)
INVALID_BEYOND = INVALID.model_copy(update={"invalid_samples": [InvalidSample(index=9, message="nobody")]})
TRAINING = DistillJobStatus(phase=JobPhase.TRAINING)

IN_7 = [("in-version", 7, None, None)] * 3
DELETED = "The DistillJob was deleted before it had made a version"


def refused(reason: str, message: str) -> list[tuple[str, int | None, str | None, str | None]]:
    return [("refused", None, reason, message)] * 3


ENDS = {
    "complete": (job(COMPLETE), None, IN_7),
    "failed for good": (job(FAILED), None, refused("PolicyMoved", "moved too far")),
    "published, but too late to be served": (job(LATE), None, IN_7),
    "its version rejected": (job(REJECTED), None, refused("VersionRejected", "it failed its probe")),
    "its parent rejected": (job(NO_PARENT), None, refused("ParentRejected", "the parent was rejected")),
    "invalid samples that nobody has": (job(INVALID_BEYOND), None, refused("InvalidSample", "1 of 3 is wrong")),
    "complete without a version": (
        job(COMPLETE.model_copy(update={"produced_version": None})),
        None,
        refused("NoVersion", "The DistillJob is complete and names no version"),
    ),
    "gone, with a version": (None, Made(7, rejected=False), IN_7),
    "gone, with a rejected version": (
        None,
        Made(7, rejected=True),
        refused("VersionRejected", "Serving rejected the version that learned from it"),
    ),
}


@pytest.mark.parametrize("state", [FORMED, SUBMITTED], ids=["formed", "submitted"])
@pytest.mark.parametrize(("found", "made", "outcomes"), ENDS.values(), ids=ENDS.keys())
def test_each_item_has_its_end_when_the_job_has(
    state: FeedbackBatch,
    found: JobObject | None,
    made: Made | None,
    outcomes: list[tuple[str, int | None, str | None, str | None]],
) -> None:
    end = decide(state, found, made, None, NOW)
    assert isinstance(end, End)
    told = [(each.state.value, each.version, each.reason, each.message) for each in end.outcomes(MEMBERS)]
    assert told == outcomes


GOES_ON: dict[str, tuple[FeedbackBatch, JobObject | None, datetime | None, Decision]] = {
    "no job yet": (FORMED, None, None, Submit()),
    "a job that its maker did not live to note": (FORMED, job(TRAINING), None, Follow("uid-of-bt-1", "Training")),
    "a job nobody has seen": (SUBMITTED, job(DistillJobStatus()), None, Follow("uid-of-bt-1", "Pending")),
    "a job that went just now": (SUBMITTED, None, NOW - timedelta(seconds=20), Wait(DELETION_SECONDS - 20)),
    "a job that went": (
        SUBMITTED,
        None,
        NOW - timedelta(seconds=DELETION_SECONDS),
        End(reason="JobDeleted", message=DELETED),
    ),
}


@pytest.mark.parametrize(("batch", "found", "gone", "decision"), GOES_ON.values(), ids=GOES_ON.keys())
def test_a_job_is_made_followed_and_missed(
    batch: FeedbackBatch, found: JobObject | None, gone: datetime | None, decision: Decision
) -> None:
    assert decide(batch, found, None, gone, NOW) == decision


def test_invalid_samples_are_refused_alone_and_the_rest_has_no_outcome_yet() -> None:
    end = decide(SUBMITTED, job(INVALID), None, None, NOW)
    assert isinstance(end, End)
    (only,) = end.outcomes(MEMBERS)
    assert (only.item_id, only.reason, only.message) == ("fb-1", "InvalidSample", "response: too long")


def test_the_end_keeps_what_the_job_measured() -> None:
    status = COMPLETE.model_copy(update={"metrics": {"loss": 0.25}, "timings": Timings(step=1.5, serving_gap=2.0)})
    end = decide(SUBMITTED, job(status), None, None, NOW)
    assert isinstance(end, End)
    assert (end.metrics, end.timings) == ({"loss": 0.25}, {"step": 1.5, "serving_gap": 2.0})
    assert (end.job_uid, end.phase) == ("uid-of-bt-1", "Succeeded")
    assert (end.weights, end.served) == (None, False)
    served = status.model_copy(
        update={"produced_weights": "tinker://run/7", "conditions": [*status.conditions, condition("Served")]}
    )
    end = decide(SUBMITTED, job(served), None, None, NOW)
    assert isinstance(end, End)
    assert (end.weights, end.served) == ("tinker://run/7", True)
