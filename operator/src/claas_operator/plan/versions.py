"""An adapter's versions as its status names them: what is known of each, and which is the newest that may be used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from claas_contract.result import PublishedVersion
from claas_crds.v1alpha1.lora_adapter import HISTORY_LIMIT, AdapterVersion, VersionVerdict


def adapter_version(version: PublishedVersion) -> AdapterVersion:
    """A version that a trainer told of, as status names it."""
    return AdapterVersion(
        number=version.number,
        path=version.path,
        digest=version.digest,
        created=version.created,
        job=version.job_name,
        job_uid=version.job_uid,
        parent=version.parent,
        metrics=version.metrics,
        verdict=version.verdict,
    )


def history(
    known: Sequence[AdapterVersion], found: Iterable[PublishedVersion], rejected: Iterable[AdapterVersion]
) -> list[AdapterVersion]:
    """The newest few: those that status has, those that were found, and those that serving refused, which stay
    refused whatever else is told of them. The newest that may be used is always among them."""
    versions = {version.number: version for version in known}
    for version in found:
        versions.setdefault(version.number, adapter_version(version))
    for refused in rejected:
        stands = versions.get(refused.number, refused)
        versions[refused.number] = stands.model_copy(update={"verdict": VersionVerdict.REJECTED})
    ordered = [versions[number] for number in sorted(versions)]
    kept, usable = ordered[-HISTORY_LIMIT:], newest(ordered)
    if usable is not None and usable not in kept:
        return [usable, *kept[1:]]
    return kept


def newest(versions: Sequence[AdapterVersion]) -> AdapterVersion | None:
    """The newest that serving has not refused: what is served, and what the next step starts from."""
    return next((each for each in reversed(versions) if each.verdict is not VersionVerdict.REJECTED), None)


def with_served(versions: Sequence[AdapterVersion], number: int | None) -> list[AdapterVersion]:
    """The versions once every pod serves this one."""
    return [
        each.model_copy(update={"verdict": VersionVerdict.SERVED})
        if each.number == number and each.verdict is VersionVerdict.UNTRIED
        else each
        for each in versions
    ]
