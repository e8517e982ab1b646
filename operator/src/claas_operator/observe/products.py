"""What an adapter's jobs have made of it: the versions that they report, the newest, and who is at work."""

from __future__ import annotations

from collections.abc import Iterable

from claas_contract.result import PublishedVersion
from claas_crds.v1alpha1.lora_adapter import AdapterVersion
from claas_kube.objects.resources import AdapterObject
from claas_operator.observe.job_view import KnownJob
from claas_operator.plan.serving_lease import ServingLease
from claas_operator.plan.versions import history, newest


def products(jobs: Iterable[KnownJob], adapter: AdapterObject) -> tuple[PublishedVersion, ...]:
    """The versions that jobs report of this adapter, and not of an earlier one of the same name."""
    created = adapter.metadata.creation_timestamp
    reported = (job.published for job in jobs)
    return tuple(
        version.model_copy(update={"path": version.path or f"{adapter.storage_path}/versions/{version.number}"})
        for version in reported
        if version is not None and (created is None or version.created >= created)
    )


def rejections(jobs: Iterable[KnownJob], adapter: AdapterObject) -> tuple[AdapterVersion, ...]:
    """The versions of which jobs of this adapter report that serving refused them."""
    made = adapter.metadata.creation_timestamp
    return tuple(
        job.rejected
        for job in jobs
        # A refused parent may be older than the adapter, and a job that waited for the adapter too: not both.
        if job.rejected is not None and (made is None or max(job.rejected.created, job.created or made) >= made)
    )


def newest_version(adapter: AdapterObject, jobs: Iterable[KnownJob]) -> int | None:
    """What the next step starts from: a version may be published that the adapter's status does not name yet."""
    known = list(jobs)
    versions = history(adapter.status.versions, products(known, adapter), rejections(known, adapter))
    usable = newest(versions)
    listed = adapter.status.latest_version
    return None if listed is None or usable is None else usable.number


def running_job(adapter: AdapterObject, lease: ServingLease | None, jobs: Iterable[KnownJob]) -> str | None:
    """The DistillJob that holds the lease for this adapter and has not published; it may have been deleted."""
    grant = lease.grant if lease is not None else None
    if grant is None or grant.adapter_uid != adapter.metadata.uid:
        return None
    holder = next((job for job in jobs if job.uid == grant.job_uid), None)
    if holder is not None and (holder.published is not None or holder.finished):
        return None
    return grant.job_name
