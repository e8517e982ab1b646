"""What is known of an adapter's versions: what its status names, merged with what trainers and jobs report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Protocol

from claas_contract.result import PublishedVersion
from claas_crds.v1alpha1.lora_adapter import HISTORY_LIMIT, AdapterVersion, VersionVerdict
from claas_kube.objects.resources import AdapterObject

_WEIGHT = {VersionVerdict.UNTRIED: 0, VersionVerdict.SERVED: 1, VersionVerdict.REJECTED: 2}
"""Of two verdicts on a version the weightier holds: a refusal is never taken back."""


class JobReport(Protocol):
    """What a DistillJob says about versions of its adapter."""

    @property
    def created(self) -> datetime | None:
        """When the job was created."""

    @property
    def published(self) -> PublishedVersion | None:
        """The version that it published."""

    @property
    def rejected(self) -> AdapterVersion | None:
        """A version of which it reports that serving refused it."""


def reported_versions(jobs: Iterable[JobReport], adapter: AdapterObject) -> tuple[PublishedVersion, ...]:
    """The versions that jobs report of this adapter, and not of an earlier one of the same name."""
    made = adapter.metadata.creation_timestamp
    return tuple(
        version
        if version.path
        else version.model_copy(update={"path": f"{adapter.storage_path}/versions/{version.number}"})
        for job in jobs
        if (version := job.published) is not None and (made is None or version.created >= made)
    )


def reported_rejections(jobs: Iterable[JobReport], adapter: AdapterObject) -> tuple[AdapterVersion, ...]:
    """The versions of which jobs of this adapter report that serving refused them."""
    made = adapter.metadata.creation_timestamp
    return tuple(
        job.rejected
        for job in jobs
        # A refused parent may be older than the adapter, and a job that waited for the adapter too: not both.
        if job.rejected is not None and (made is None or max(job.rejected.created, job.created or made) >= made)
    )


def adapter_version(version: PublishedVersion) -> AdapterVersion:
    """A version that a trainer reported, as status names it: with the first of its jobs."""
    job = next(iter(version.jobs), None)
    return AdapterVersion(
        number=version.number,
        path=version.path,
        digest=version.digest,
        created=version.created,
        job=job.name if job else None,
        job_uid=job.uid if job else None,
        parent=version.parent,
        metrics=version.metrics,
        verdict=version.verdict,
    )


def merge(
    listed: Iterable[AdapterVersion], found: Iterable[PublishedVersion], rejected: Iterable[AdapterVersion]
) -> dict[int, AdapterVersion]:
    """All versions by number: those that status lists, that were found, and that serving refused. The order in which
    they are given means nothing, and what status says of a version comes before what others do, but for the verdict.
    """
    refused = [each.model_copy(update={"verdict": VersionVerdict.REJECTED}) for each in rejected]
    told = sorted([*map(adapter_version, found), *refused], key=lambda each: (each.created, each.model_dump_json()))
    versions: dict[int, AdapterVersion] = {}
    for version in (*listed, *told):
        stands = versions.setdefault(version.number, version)
        if _WEIGHT[version.verdict] > _WEIGHT[stands.verdict]:
            versions[version.number] = stands.model_copy(update={"verdict": version.verdict})
    return versions


def last_published(versions: Iterable[AdapterVersion]) -> AdapterVersion | None:
    """The one that was published last. The volume gives out numbers in the order of publication; which version was
    trained from which, numbers don't tell."""
    return max(versions, key=lambda version: version.number, default=None)


def remembered(versions: Mapping[int, AdapterVersion], head: AdapterVersion | None) -> list[AdapterVersion]:
    """What status lists of them: the few that were published last, oldest first, and the head in any case."""
    ordered = [versions[number] for number in sorted(versions)]
    kept = ordered[-HISTORY_LIMIT:]
    return kept if head is None or head in kept else [head, *kept[1:]]


def with_served(versions: Iterable[AdapterVersion], number: int | None) -> list[AdapterVersion]:
    """The versions once every pod serves this one."""
    return [
        each.model_copy(update={"verdict": VersionVerdict.SERVED})
        if each.number == number and each.verdict is VersionVerdict.UNTRIED
        else each
        for each in versions
    ]
