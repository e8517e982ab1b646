"""Adopts versions of deleted jobs: a deleted DistillJob may have published a version that its trainer could not
report.

The serving lease names such jobs. Before the adapter is trained further, and before its pods change versions, a
recovery pod looks on the volume. A version that it finds becomes one of the adapter's versions.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from claas_contract.jobs import JobIdentity
from claas_contract.result import PublishedVersion
from claas_kube.objects.meta import ObjectMeta
from claas_operator.plan import naming
from claas_operator.plan.actions import Action, CreateRecovery, Note
from claas_operator.plan.job_draft import end
from claas_operator.plan.serving_lease import ServingLease
from claas_operator.plan.world import AdapterWorld, TrainerState

LOOK_AGAIN_SECONDS = 30


@dataclass(frozen=True)
class Adoption:
    """Actions for the first unaccounted job."""

    pending: str | None = None
    """Name of that job, until its version is known."""
    version: PublishedVersion | None = None
    """Its version, found on the volume."""
    settled: str | None = None
    """UID of that job, once it is accounted for."""
    actions: tuple[Action, ...] = ()
    notes: tuple[Note, ...] = ()


def plan_adoption(world: AdapterWorld) -> Adoption:
    """Plan for the first unaccounted job, if there is one."""
    lease = world.steps_lease
    found = lease.unaccounted_of(world.adapter.metadata.uid) if lease is not None else None
    if found is None:
        return Adoption()
    uid, job = found
    recovery = world.recovery
    result = recovery.result if recovery.state is TrainerState.SUCCEEDED else None
    over = (end(recovery, 1, "it has looked"),) if recovery.state is not TrainerState.ABSENT else ()
    if any(version.job_uid == uid for version in world.adapter.status.versions):
        return Adoption(settled=uid, actions=over)
    if result is not None and result.succeeded and result.version is None:
        return Adoption(settled=uid, actions=over)
    if result is not None and result.succeeded and result.version is not None:
        said = f"Version {result.version.number} of DistillJob {job.job_name}, which is gone, was found on the volume"
        return Adoption(job.job_name, result.version, notes=(Note("VersionAdopted", said),))
    actions: tuple[Action, ...] = ()
    if recovery.state is TrainerState.ABSENT and not recovery.alive:
        namespace = world.adapter.metadata.namespace
        identity = JobIdentity(namespace=namespace, name=job.job_name, uid=uid, attempt=job.attempt)
        name = adoption_name(namespace, job.job_name, uid, job.attempt)
        actions = (CreateRecovery(name, identity),) if world.claim_found else ()
    elif recovery.state not in (TrainerState.RUNNING, TrainerState.ABSENT):
        ended = recovery.finished_at
        if ended is None or world.now - ended > timedelta(seconds=LOOK_AGAIN_SECONDS):
            actions = (end(recovery, 1, "the volume is looked at again"),)
    return Adoption(job.job_name, actions=actions)


def adoption_name(namespace: str, job_name: str, job_uid: str, attempt: int) -> str:
    """Name of the recovery pod for a deleted job."""
    return naming.recovery_name(ObjectMeta(name=job_name, namespace=namespace, uid=job_uid), attempt, None)


def without(lease: ServingLease, job_uid: str | None) -> ServingLease:
    """The lease without a job that is accounted for."""
    left = {uid: each for uid, each in lease.unaccounted.items() if uid != job_uid}
    return lease if left == lease.unaccounted else lease.model_copy(update={"unaccounted": left})
