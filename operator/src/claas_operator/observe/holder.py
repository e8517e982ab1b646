"""The lease holder: whether it still needs the lease, and whether it may have published a version that its adapter
does not know of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from claas_contract.jobs import JobIdentity
from claas_crds.v1alpha1.conditions import JobCondition, condition_of
from claas_crds.v1alpha1.step import JobPhase
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_operator.clients.job_view import KnownJob
from claas_operator.plan.queueing import finished
from claas_operator.plan.serving_lease import Grant, ServingLease

ADOPTION_SECONDS = 10
"""How long a lease waits for the adapter's status to name the version that its holder published."""


@dataclass(frozen=True)
class HolderState:
    """State of the lease holder, which decides about the lease once no trainer runs and serving is awake."""

    needs_lease: bool
    unaccounted: tuple[JobIdentity, ...] = ()
    """Jobs that may have published a version that the adapter does not know of."""


def holder_state(
    grant: Grant, jobs: Sequence[JobObject | None], adapter: AdapterObject | None, now: datetime
) -> HolderState:
    """The state of the jobs that a grant names, which are given in its order. `adapter`: the one of the grant's name,
    if there is one."""
    states = [_state_of(each, grant, job, adapter, now) for each, job in zip(grant.jobs, jobs, strict=True)]
    unaccounted = tuple(job for state in states for job in state.unaccounted)
    return HolderState(any(state.needs_lease for state in states), unaccounted)


def _state_of(
    named: JobIdentity, grant: Grant, job: JobObject | None, adapter: AdapterObject | None, now: datetime
) -> HolderState:
    """The state of one of the jobs."""
    adopts = (
        adapter is not None
        and adapter.metadata.uid == grant.adapter_uid
        and adapter.metadata.deletion_timestamp is None
        and all(version.job_uid != named.uid for version in adapter.status.versions)
    )
    unadopted = (named,) if adopts else ()
    if job is None or job.metadata.uid != named.uid or job.metadata.deletion_timestamp is not None:
        return HolderState(needs_lease=False, unaccounted=unadopted)
    status = job.status
    if status.produced_version is not None:
        trained = condition_of(status.conditions, JobCondition.TRAINED)
        just_now = trained is not None and now - trained.last_transition_time < timedelta(seconds=ADOPTION_SECONDS)
        return HolderState(needs_lease=adopts and just_now, unaccounted=unadopted)
    unknown = unadopted if status.recovery_time is not None else ()
    if finished(status.conditions):
        return HolderState(needs_lease=False, unaccounted=unknown)
    begun = status.attempts > status.failed_attempts
    waits = job.spec.suspend or status.phase is JobPhase.PENDING
    return HolderState(needs_lease=begun or not waits, unaccounted=unknown)


def running_job(adapter: AdapterObject, lease: ServingLease | None, jobs: Iterable[KnownJob]) -> str | None:
    """The first DistillJob that holds the lease for this adapter and has not published; it may have been deleted."""
    grant = lease.grant if lease is not None else None
    if grant is None or grant.adapter_uid != adapter.metadata.uid:
        return None
    through = {job.uid for job in jobs if job.published is not None or job.finished}
    return next((job.name for job in grant.jobs if job.uid not in through), None)
