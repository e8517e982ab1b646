"""The parts of a job's time follow each other: together they are its time from admission to completion."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.distill_job import DistillJobStatus
from claas_crds.v1alpha1.step import Timings
from claas_operator.plan.timing import settled, timings_of
from tests.builders.world import NOW, ago, published

MEASURED = Timings(
    prepare=8.0, sleep=0.5, load=1.0, step=0.25, release=0.25, wake=1.0, publish=0.5, swap=0.5, serving_gap=3.0
)
seconds = st.floats(0, 300).map(lambda value: round(value, 3))


def result(began_seconds_ago: float | None, *, already_published: bool = False) -> TrainerResult:
    began = None if began_seconds_ago is None else ago(began_seconds_ago)
    version = published(1)
    return TrainerResult(
        succeeded=True, version=version, began=began, already_published=already_published, timings=MEASURED
    )


def completed(status: DistillJobStatus, timings: Timings) -> Timings:
    done = {"timings": timings, "produced_version": 1, "completion_time": NOW}
    return settled(status.model_copy(update=done))


def test_the_start_of_pod_and_programs_is_told() -> None:
    status = DistillJobStatus(start_time=ago(60), timings=Timings(queued=5.0))
    timings = timings_of(status, result(17))
    assert (timings.queued, timings.start, timings.retried) == (5.0, 43.0, None)
    timings = completed(status, timings)
    assert timings.settle == 5.0
    assert timings.seconds == 60.0


def test_failed_attempts_are_told_apart_from_the_start_of_the_one_that_succeeded() -> None:
    status = DistillJobStatus(start_time=ago(200), failed_attempts=2, retry_time=ago(40))
    timings = completed(status, timings_of(status, result(15)))
    assert (timings.retried, timings.start, timings.settle) == (160.0, 25.0, 3.0)
    assert timings.seconds == 200.0


def test_a_step_that_an_earlier_attempt_took_is_not_counted_twice() -> None:
    status = DistillJobStatus(start_time=ago(100), failed_attempts=1, retry_time=ago(40))
    timings = completed(status, timings_of(status, result(10, already_published=True)))
    assert timings.retried == 60.0 - 11.5
    assert timings.seconds == 100.0


@given(admitted=seconds, retry=st.none() | seconds, began=st.none() | seconds, failures=st.integers(0, 3))
def test_the_parts_never_make_less_than_the_whole(
    admitted: float, retry: float | None, began: float | None, failures: int
) -> None:
    retry_time = None if retry is None or not failures else ago(min(retry, admitted))
    status = DistillJobStatus(start_time=ago(admitted), retry_time=retry_time, failed_attempts=failures)
    timings = completed(status, timings_of(status, result(began)))
    assert all(value >= 0 for value in timings.model_dump(exclude_none=True).values())
    assert timings.seconds >= admitted - 0.01


@pytest.mark.parametrize("field", ["start_time", "completion_time", "produced_version"])
def test_a_job_without_a_version_or_a_time_has_no_rest(field: str) -> None:
    whole = DistillJobStatus(start_time=NOW - timedelta(seconds=9), completion_time=NOW, produced_version=1)
    assert settled(whole).settle == 9.0
    assert settled(whole.model_copy(update={field: None})).settle is None
