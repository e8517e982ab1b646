"""The holder of a serving lease: whether it still needs the lease, and whether it may have left a version that its
adapter does not know of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from claas_crds.v1alpha1.conditions import JobCondition, condition_of
from claas_crds.v1alpha1.distill_job import JobPhase
from claas_kube.objects.resources import AdapterObject, JobObject
from claas_operator.clients.job_view import KnownJob
from claas_operator.plan.queueing import finished
from claas_operator.plan.serving_lease import Grant, ServingLease

ADOPTION_SECONDS = 10
"""How long a lease waits for the adapter's status to name the version that its holder published."""


@dataclass(frozen=True)
class HolderState:
    """What becomes of a lease once no trainer runs and serving is awake."""

    needs_lease: bool
    unaccounted: bool
    """Whether it may have published a version that the adapter does not know of."""


def holder_state(grant: Grant, job: JobObject | None, adapter: AdapterObject | None, now: datetime) -> HolderState:
    """The state of the job that a grant names. `adapter`: the one of the grant's name, if there is one."""
    adopts = (
        adapter is not None
        and adapter.metadata.uid == grant.adapter_uid
        and adapter.metadata.deletion_timestamp is None
        and all(version.job_uid != grant.job_uid for version in adapter.status.versions)
    )
    if job is None or job.metadata.uid != grant.job_uid or job.metadata.deletion_timestamp is not None:
        return HolderState(needs_lease=False, unaccounted=adopts)
    status = job.status
    if status.produced_version is not None:
        trained = condition_of(status.conditions, JobCondition.TRAINED)
        just_now = trained is not None and now - trained.last_transition_time < timedelta(seconds=ADOPTION_SECONDS)
        return HolderState(needs_lease=adopts and just_now, unaccounted=adopts)
    unknown = adopts and status.recovery_time is not None
    if finished(status.conditions):
        return HolderState(needs_lease=False, unaccounted=unknown)
    begun = status.attempts > status.failed_attempts
    waits = job.spec.suspend or status.phase is JobPhase.PENDING
    return HolderState(needs_lease=begun or not waits, unaccounted=unknown)


def running_job(adapter: AdapterObject, lease: ServingLease | None, jobs: Iterable[KnownJob]) -> str | None:
    """The DistillJob that holds the lease for this adapter and has not published; it may have been deleted."""
    grant = lease.grant if lease is not None else None
    if grant is None or grant.adapter_uid != adapter.metadata.uid:
        return None
    holder = next((job for job in jobs if job.uid == grant.job_uid), None)
    if holder is not None and (holder.published is not None or holder.finished):
        return None
    return grant.job_name
