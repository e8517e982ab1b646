"""Head, desired, candidate and rejected over graphs of versions, and what becomes of the jobs that published them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claas_contract.result import PublishedVersion
from claas_crds.v1alpha1.conditions import ConditionStatus, condition_of
from claas_crds.v1alpha1.distill_job import CompletionPoint, DistillJobStatus
from claas_crds.v1alpha1.lora_adapter import LoraAdapterStatus
from claas_crds.v1alpha1.step import JobPhase
from claas_crds.v1alpha1.version import HISTORY_LIMIT, AdapterVersion, VersionVerdict
from claas_kube.objects.resources import AdapterObject
from claas_operator.plan.adapter.adapter import plan_adapter
from claas_operator.plan.job.job import plan_job
from claas_operator.plan.lineage.history import with_served
from claas_operator.plan.lineage.lineage import Lineage, Standing, lineage_for_jobs
from claas_operator.plan.queueing import finished
from tests.builders.world import adapter, adapter_world, ago, chain, condition, job, job_world, published, version

REJECTED, SERVED, UNTRIED = VersionVerdict.REJECTED, VersionVerdict.SERVED, VersionVerdict.UNTRIED


@dataclass(frozen=True)
class Reports:
    """What is told of an adapter's versions: by its status, by trainers and jobs, and as refused."""

    listed: list[AdapterVersion]
    found: list[PublishedVersion]
    refused: list[AdapterVersion]

    @property
    def lineage(self) -> Lineage:
        return Lineage.of(self.listed, self.found, self.refused)


@st.composite
def reports(draw: st.DrawFn) -> Reports:
    """A forest as a volume has it: a version's parent was published before it, or is not known any more. Each is
    told of by status, by its job, or by both; any may have been refused."""
    numbers = sorted(draw(st.sets(st.integers(0, 60), max_size=HISTORY_LIMIT + 5)))
    parents: dict[int, int | None] = {}
    for number in numbers:
        before = st.sampled_from(list(parents)) if parents else st.none()
        parents[number] = draw(before | (st.integers(0, number - 1) if number else st.none()))
    verdicts = st.sampled_from([UNTRIED, SERVED, REJECTED, UNTRIED])
    listed = set(draw(st.lists(st.sampled_from(numbers), max_size=HISTORY_LIMIT))) if numbers else set()
    told = [n for n in numbers if n not in listed or draw(st.booleans())]
    refused = draw(st.lists(st.sampled_from(numbers), max_size=3)) if numbers else []
    return Reports(
        [version(n, parent=parents[n]).model_copy(update={"verdict": draw(verdicts)}) for n in sorted(listed)],
        [published(n, parent=parents[n], job=f"job-{n}") for n in told],
        [version(n, parent=parents[n]) for n in refused],
    )


def numbers_of(*versions: AdapterVersion | None) -> list[int | None]:
    return [None if each is None else each.number for each in versions]


@given(told=reports())
def test_the_head_is_neither_rejected_nor_descends_from_a_rejected_version_and_none_is_ahead_of_it(
    told: Reports,
) -> None:
    lineage = told.lineage
    bad = {n for n, each in lineage.versions.items() if each.verdict is REJECTED}
    assert {each.number for each in told.refused} <= bad
    usable = {n for n in lineage.versions if not any(lineage.descends(n, refused) for refused in bad)}
    assert usable == set(lineage.versions) - lineage.rejected
    assert (lineage.head is None) is (not usable)
    if lineage.head is not None:
        assert lineage.head.number in usable
        assert not any(lineage.descends(n, lineage.head.number) for n in usable - {lineage.head.number})


@given(told=reports())
def test_the_desired_version_is_whole_and_usable_and_a_candidate_until_it_was_served(told: Reports) -> None:
    lineage = told.lineage
    assert lineage.desired == lineage.head, "each version is promoted when it is published"
    if lineage.desired is None:
        assert lineage.candidate is None
        return
    whole = {each.number for each in (*told.listed, *told.refused)} | {each.number for each in told.found}
    assert lineage.desired.number in whole - lineage.rejected
    assert (lineage.candidate is lineage.desired) is (lineage.desired.verdict is UNTRIED)
    served = with_served(lineage.remembered(), lineage.desired.number)
    assert Lineage.of(served).candidate is None


def test_a_version_stays_rejected_when_its_rejected_ancestor_is_no_longer_listed() -> None:
    numbers = range(2, HISTORY_LIMIT + 1)
    refused = version(1, parent=0).model_copy(update={"verdict": REJECTED})
    first = Lineage.of([version(0), refused, *(version(n, parent=1) for n in numbers)], [published(40, parent=0)])
    again = Lineage.of(first.remembered(), [published(41, parent=40)])
    assert 1 not in again.versions
    assert {2, 3, HISTORY_LIMIT} & set(again.versions) <= again.rejected
    assert Lineage.of(each for each in again.remembered() if each.number < 40).head is None


@given(told=reports(), orders=st.data())
def test_the_order_in_which_jobs_report_means_nothing(told: Reports, orders: st.DataObject) -> None:
    found = orders.draw(st.permutations(told.found))
    refused = orders.draw(st.permutations(told.refused))
    again = Lineage.of(told.listed, [*found, *found], [*refused, *refused])
    assert again == told.lineage
    assert again.remembered() == told.lineage.remembered()


@given(told=reports())
def test_what_status_lists_then_leads_to_the_same_decisions(told: Reports) -> None:
    lineage = told.lineage
    listed = lineage.remembered()
    order = [each.number for each in listed]
    assert order == sorted(set(order))
    assert len(order) <= HISTORY_LIMIT
    again = Lineage.of(listed, told.found, told.refused)
    assert again.remembered() == listed
    assert numbers_of(again.head, again.desired, again.candidate) == numbers_of(
        lineage.head, lineage.desired, lineage.candidate
    )
    # Told once is told for good, whatever becomes of the jobs that told it.
    assert {n for n in Lineage.of(listed).rejected if n in order} >= {
        each.number for each in listed if each.verdict is REJECTED
    }


def of_status(told: Reports) -> AdapterObject:
    head = told.lineage.head
    status = LoraAdapterStatus(versions=told.listed, latest_version=head.number if head else None)
    return adapter().model_copy(update={"status": status})


@given(told=reports())
def test_a_second_pass_over_an_adapter_decides_nothing_anew(told: Reports) -> None:
    world = adapter_world(of_status(told), products=tuple(told.found), rejected=tuple(told.refused))
    first = plan_adapter(world).status
    again = plan_adapter(
        adapter_world(
            world.adapter.model_copy(update={"status": first}),
            products=world.products,
            rejected=world.rejected,
        )
    ).status
    assert (again.versions, again.latest_version) == (first.versions, first.latest_version)


@given(told=reports(), deadline_over=st.booleans(), when=st.sampled_from(CompletionPoint))
def test_each_job_that_published_ends_once_the_desired_version_serves_and_at_its_deadline_else(
    told: Reports, deadline_over: bool, when: CompletionPoint
) -> None:
    lineage = told.lineage
    status = plan_adapter(adapter_world(of_status(told), products=tuple(told.found), rejected=tuple(told.refused)))
    served = None if deadline_over or lineage.desired is None else lineage.desired.number
    of = adapter().model_copy(update={"status": status.status.model_copy(update={"served_version": served})})
    if served is None and not deadline_over:
        return  # Nothing can be served; the deadline is what ends these.
    for made in told.found:
        start = ago(4000 if deadline_over else 20)
        done = DistillJobStatus(
            start_time=start,
            attempts=1,
            produced_version=made.number,
            parent_version=made.parent,
            conditions=[condition("Trained", True, since_seconds=3000 if deadline_over else 10)],
        )
        plan = plan_job(job_world(job(status=done, complete_when=when), on=of, reports=tuple(told.found)))
        assert finished(plan.status.conditions), (made.number, plan.status.message)


LISTED = adapter(versions=(0, 1, 2), served=0)
FORKED = LISTED.model_copy(
    update={"status": LISTED.status.model_copy(update={"versions": [*chain(0, 1), version(2, parent=0)]})}
)
REFUSED = LISTED.model_copy(
    update={
        "status": LISTED.status.model_copy(
            update={
                "versions": [
                    version(0),
                    version(1, parent=0).model_copy(update={"verdict": REJECTED}),
                    version(2, parent=1),
                    version(3, parent=0),
                ]
            }
        )
    }
)


def serving(of: AdapterObject, number: int | None) -> AdapterObject:
    return of.model_copy(update={"status": of.status.model_copy(update={"served_version": number})})


@pytest.mark.parametrize(
    ("of", "made", "served", "standing", "phase", "complete", "in_service"),
    [
        (serving(adapter(versions=(0,)), 0), 1, 0, Standing.UNDECIDED, JobPhase.SWAPPING, None, "PuttingIntoService"),
        (serving(LISTED, 0), 1, 0, Standing.AWAITED, JobPhase.SWAPPING, None, "PuttingIntoService"),
        (serving(LISTED, None), 2, None, Standing.AWAITED, JobPhase.SWAPPING, None, "PuttingIntoService"),
        (serving(LISTED, 1), 1, 1, Standing.SERVED, JobPhase.SUCCEEDED, True, "InService"),
        (serving(LISTED, 2), 1, 2, Standing.SERVED, JobPhase.SUCCEEDED, True, "InService"),
        # A higher number is no descendant.
        (serving(FORKED, 2), 1, 2, Standing.PASSED_OVER, JobPhase.SUCCEEDED, True, "PassedOver"),
        (serving(FORKED, 0), 1, 0, Standing.PASSED_OVER, JobPhase.SUCCEEDED, True, "PassedOver"),
        # While its pods serve it still, it is in service.
        (serving(FORKED, 1), 1, 1, Standing.SERVED, JobPhase.SUCCEEDED, True, "InService"),
        (serving(REFUSED, 3), 1, 3, Standing.REJECTED, JobPhase.FAILED, None, "VersionRejected"),
        (serving(REFUSED, 2), 2, 2, Standing.REJECTED, JobPhase.FAILED, None, "VersionRejected"),
    ],
)
def test_a_job_ends_by_what_was_decided_about_its_version(
    of: AdapterObject,
    made: int,
    served: int | None,
    standing: Standing,
    phase: JobPhase,
    complete: bool | None,
    in_service: str,
) -> None:
    world = job_world(job(status=DistillJobStatus(start_time=ago(20), attempts=1, produced_version=made)), on=of)
    assert world.lineage.standing(made, served) is standing
    plan = plan_job(world)
    assert plan.status.phase is phase
    ended = condition_of(plan.status.conditions, "Complete")
    assert (ended is not None and ended.status is ConditionStatus.TRUE) is bool(complete)
    told = condition_of(plan.status.conditions, "Served")
    assert told is not None
    assert told.reason == in_service


def test_a_version_that_status_has_dropped_since_ends_its_job_too() -> None:
    newest = tuple(range(10, 10 + HISTORY_LIMIT))
    of = serving(adapter(versions=newest), newest[-1])
    world = job_world(job(status=DistillJobStatus(start_time=ago(20), attempts=1, produced_version=3)), on=of)
    assert world.lineage.standing(3, newest[-1]) is Standing.PASSED_OVER
    # Where the jobs in between still tell of their versions, the way back to it is known.
    between = tuple(published(number, parent=number - 1) for number in range(4, 11))
    known = job_world(world.job, on=serving(of.model_copy(), newest[-1]), reports=between)
    assert (
        Lineage.of(
            [each if each.number != 10 else version(10, parent=9) for each in of.status.versions],
            (published(3), *between),
        ).standing(3, newest[-1])
        is Standing.SERVED
    )
    assert plan_job(known).status.phase is JobPhase.SUCCEEDED


def test_a_circle_of_parents_ends_the_way_back() -> None:
    circle = Lineage.of([version(1, parent=2), version(2, parent=1), version(3, parent=3)])
    assert circle.descends(1, 2)
    assert circle.descends(2, 1)
    assert not circle.descends(3, 1)


def test_until_status_lists_the_initial_version_nothing_is_decided() -> None:
    new = adapter(versions=(), served=None)
    lineage = lineage_for_jobs(new, [])
    assert lineage.head is None
    assert lineage.standing(0, None) is Standing.UNDECIDED


def test_a_version_that_a_full_list_has_left_behind_is_no_head_again() -> None:
    # Version 1 descends from version 0, which was rejected; neither is listed any more, and a job still reports 1.
    newest = [version(n, parent=0) for n in range(2, 2 + HISTORY_LIMIT)]
    listed = [each.model_copy(update={"verdict": REJECTED}) for each in newest]
    assert Lineage.of(listed, (published(1, parent=0),)).head is None
