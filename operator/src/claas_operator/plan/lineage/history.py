"""The known versions of an adapter: those in its status, merged with those that trainers and jobs report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from claas_contract.result import PublishedVersion
from claas_crds.v1alpha1.version import HISTORY_LIMIT, AdapterVersion, VersionVerdict
from claas_kube.objects.resources import AdapterObject

_WEIGHT = {VersionVerdict.UNTRIED: 0, VersionVerdict.SERVED: 1, VersionVerdict.REJECTED: 2}
"""Weight of verdicts; of two on one version the heavier holds, so a rejection is never withdrawn."""


class JobReport(Protocol):
    """A DistillJob's report about versions of its adapter."""

    @property
    def created(self) -> datetime | None:
        """When the job was created."""

    @property
    def published(self) -> PublishedVersion | None:
        """The version that it published."""

    @property
    def rejected(self) -> AdapterVersion | None:
        """A version that serving rejected, by its report."""


def reported_versions(jobs: Iterable[JobReport], adapter: AdapterObject) -> tuple[PublishedVersion, ...]:
    """The versions that jobs report of this adapter, not of an earlier one with the same name."""
    made = adapter.metadata.creation_timestamp
    return tuple(
        version
        if version.path
        else version.model_copy(update={"path": f"{adapter.storage_path}/versions/{version.number}"})
        for job in jobs
        if (version := job.published) is not None and (made is None or version.created >= made)
    )


def reported_rejections(jobs: Iterable[JobReport], adapter: AdapterObject) -> tuple[AdapterVersion, ...]:
    """The versions that serving rejected, by reports of this adapter's jobs."""
    made = adapter.metadata.creation_timestamp
    return tuple(
        job.rejected
        for job in jobs
        # A rejected parent may be older than the adapter, and so may a job that waited for the adapter, but not both.
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
        weights=version.weights,
        verdict=version.verdict,
    )


def merge(
    listed: Iterable[AdapterVersion], found: Iterable[PublishedVersion], rejected: Iterable[AdapterVersion]
) -> dict[int, AdapterVersion]:
    """All versions by number: those listed in status, found on the volume, and rejected. Independent of their order;
    except for the verdict, status takes precedence over other reports.
    """
    refused = [each.model_copy(update={"verdict": VersionVerdict.REJECTED}) for each in rejected]
    told = sorted([*map(adapter_version, found), *refused], key=lambda each: (each.created, each.model_dump_json()))
    versions: dict[int, AdapterVersion] = {}
    for version in (*listed, *told):
        stands = versions.setdefault(version.number, version)
        if _WEIGHT[version.verdict] > _WEIGHT[stands.verdict]:
            versions[version.number] = stands.model_copy(update={"verdict": version.verdict})
    return versions


def forgotten(listed: Sequence[AdapterVersion], versions: Iterable[int]) -> frozenset[int]:
    """Numbers of the versions that a full list has left behind, though an old job still reports them: they may
    descend from a rejected version that nobody remembers. The list begins with the head, or with the oldest kept."""
    numbers = sorted(each.number for each in listed)
    if len(numbers) < HISTORY_LIMIT:
        return frozenset()
    return frozenset(number for number in versions if number < numbers[1] and number not in numbers)


def last_published(versions: Iterable[AdapterVersion]) -> AdapterVersion | None:
    """The version published last. Numbers follow the order of publication; they do not show lineage."""
    return max(versions, key=lambda version: version.number, default=None)


def remembered(versions: Mapping[int, AdapterVersion], head: AdapterVersion | None) -> list[AdapterVersion]:
    """The versions to list in status: the last few published, oldest first, and always the head."""
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
