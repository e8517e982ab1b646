"""Every condition and every reason is documented, and nothing is documented that does not exist."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.conditions import AdapterCondition, AdapterReason, ConditionStatus, JobCondition, JobReason
from tools.crd.condition_docs import (
    ADAPTER_CONDITIONS,
    JOB_CONDITIONS,
    ConditionDoc,
    Reason,
    conditions_page,
    is_documented,
)

ALL = (*ADAPTER_CONDITIONS, *JOB_CONDITIONS)


def reasons_of(docs: tuple[ConditionDoc, ...]) -> set[Reason]:
    return {each.reason for doc in docs for group in doc.statuses for each in group.reasons}


def values(reasons: Iterable[Reason]) -> set[str]:
    """The reasons as they stand in a status; operator and trainer share some."""
    return {reason.value for reason in reasons}


def identity(doc: ConditionDoc) -> str:
    return f"{type(doc.type).__name__}.{doc.type.name}"


def test_every_condition_is_documented_once() -> None:
    assert [doc.type for doc in ADAPTER_CONDITIONS] == list(AdapterCondition)
    assert [doc.type for doc in JOB_CONDITIONS] == list(JobCondition)


@pytest.mark.parametrize("doc", ALL, ids=identity)
def test_each_status_of_a_condition_is_explained(doc: ConditionDoc) -> None:
    assert [group.status for group in doc.statuses] == list(ConditionStatus)
    for text in (doc.meaning, *(group.meaning for group in doc.statuses)):
        assert text.endswith(".")


@pytest.mark.parametrize("doc", ALL, ids=identity)
def test_a_status_has_reasons_or_says_that_it_is_never_set(doc: ConditionDoc) -> None:
    for group in doc.statuses:
        assert group.meaning.startswith("Never set") == (group.reasons == ())


@pytest.mark.parametrize("doc", ALL, ids=identity)
def test_a_reason_stands_once_under_a_status_and_in_whole_sentences(doc: ConditionDoc) -> None:
    for group in doc.statuses:
        reasons = [each.reason.value for each in group.reasons]
        assert len(reasons) == len(set(reasons))
        assert all(each.meaning.endswith(".") for each in group.reasons)


def test_every_adapter_reason_is_documented() -> None:
    assert values(reasons_of(ADAPTER_CONDITIONS)) == values(AdapterReason)


def test_every_job_reason_and_every_reason_of_a_trainer_is_documented() -> None:
    assert values(reasons_of(JOB_CONDITIONS)) == values(JobReason) | values(FailureReason)


def test_every_failure_of_a_trainer_can_fail_a_job() -> None:
    for reason in FailureReason:
        assert is_documented(JobCondition.FAILED, ConditionStatus.TRUE, reason), reason


@pytest.mark.parametrize(
    ("condition", "status", "reason", "documented"),
    [
        (AdapterCondition.READY, ConditionStatus.TRUE, "Serving", True),
        (AdapterCondition.READY, ConditionStatus.TRUE, "LoadFailed", False),
        (AdapterCondition.STALLED, ConditionStatus.TRUE, "Training", False),
        (AdapterCondition.SERVED, ConditionStatus.TRUE, "LoadFailed", True),
        (JobCondition.SERVED, ConditionStatus.TRUE, "LoadFailed", False),
        (JobCondition.SERVED, ConditionStatus.TRUE, "InService", True),
        (JobCondition.COMPLETE, ConditionStatus.FALSE, "Completed", False),
    ],
)
def test_a_combination_can_be_looked_up(
    condition: AdapterCondition | JobCondition, status: ConditionStatus, reason: str, documented: bool
) -> None:
    assert is_documented(condition, status, reason) is documented


def test_the_page_names_every_condition_and_reason() -> None:
    page = conditions_page()
    for doc in ALL:
        assert f"### {doc.type.value}\n" in page
    for reason in reasons_of(ALL):
        assert f"| `{reason.value}` |" in page
