"""Decides head, desired, candidate and rejected among the versions of an adapter, from their descent and from
serving's verdicts.

Each known version is a node with its parent, its job and its verdict. A version known only as the parent of another
is not a node: it is neither trained from nor served.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from claas_contract.result import PublishedVersion
from claas_crds.v1alpha1.version import AdapterVersion, VersionVerdict
from claas_kube.objects.resources import AdapterObject
from claas_operator.plan.lineage.history import (
    JobReport,
    forgotten,
    last_published,
    merge,
    remembered,
    reported_rejections,
    reported_versions,
)


class Standing(StrEnum):
    """Standing of a version that a job published."""

    UNDECIDED = "Undecided"
    """The adapter's status does not list it yet."""
    REJECTED = "Rejected"
    """Serving rejected it or an ancestor of it; it is never served or trained from."""
    SERVED = "Served"
    """Every ready pod serves it or a descendant."""
    AWAITED = "Awaited"
    """It or a descendant should serve, but does not yet."""
    PASSED_OVER = "PassedOver"
    """The desired version is not known to descend from it."""


@dataclass(frozen=True)
class Lineage:
    """An adapter's versions, and the decisions about them."""

    versions: Mapping[int, AdapterVersion]
    """All known versions, by number."""
    listed: frozenset[int]
    """Numbers of those that the adapter's status lists."""
    rejected: frozenset[int]
    """Numbers of rejected versions and their descendants, which are never served or trained from."""
    head: AdapterVersion | None
    """The version that the next step starts from; None: there is none yet."""
    desired: AdapterVersion | None
    """The version that should serve."""

    @classmethod
    def of(
        cls,
        listed: Iterable[AdapterVersion],
        found: Iterable[PublishedVersion] = (),
        refused: Iterable[AdapterVersion] = (),
    ) -> Lineage:
        """The lineage of the versions in status, of those that trainers and jobs report, and of rejected ones."""
        known = list(listed)
        versions = merge(known, found, refused)
        rejected = _with_descendants(
            versions, (each.number for each in versions.values() if each.verdict is VersionVerdict.REJECTED)
        )
        unusable = rejected | forgotten(known, versions)
        head = last_published(each for each in versions.values() if each.number not in unusable)
        return cls(versions, frozenset(each.number for each in known), rejected, head, _desired(head))

    @property
    def candidate(self) -> AdapterVersion | None:
        """The desired version, while it waits for its first load and probe."""
        version = self.desired
        return version if version is not None and version.verdict is VersionVerdict.UNTRIED else None

    def remembered(self) -> list[AdapterVersion]:
        """The versions to list in the adapter's status. If a version's rejected ancestor is no longer listed, its own
        verdict says that it is rejected."""
        kept = remembered(self.versions, self.head)
        numbers = {each.number for each in kept}
        return [
            each.model_copy(update={"verdict": VersionVerdict.REJECTED})
            if each.number in self.rejected and each.parent not in numbers
            else each
            for each in kept
        ]

    def descends(self, number: int, ancestor: int) -> bool:
        """Whether one version is the other or descends from it."""
        return ancestor in (number, *self._ancestors(number))

    def standing(self, number: int, served: int | None) -> Standing:
        """Standing of a version, given the version that every ready pod serves (None: they differ, or none is
        ready)."""
        if number in self.rejected:
            return Standing.REJECTED
        if number not in self.listed and any(each.number == number for each in self.remembered()):
            return Standing.UNDECIDED
        if served is not None and self.descends(served, number):
            return Standing.SERVED
        if self.desired is None:
            return Standing.UNDECIDED
        return Standing.AWAITED if self.descends(self.desired.number, number) else Standing.PASSED_OVER

    def _ancestors(self, number: int) -> Iterator[int]:
        """The known ancestors, nearest first."""
        seen = {number}
        while (version := self.versions.get(number)) is not None and version.parent not in (None, *seen):
            assert version.parent is not None
            number = version.parent
            seen.add(number)
            yield number


def lineage_for_jobs(adapter: AdapterObject, jobs: Iterable[JobReport]) -> Lineage:
    """An adapter's lineage for its jobs, which may report a version that its status does not list yet. Empty until
    status lists the initial version."""
    if adapter.status.latest_version is None:
        return Lineage.of(())
    known = list(jobs)
    return Lineage.of(adapter.status.versions, reported_versions(known, adapter), reported_rejections(known, adapter))


def _desired(head: AdapterVersion | None) -> AdapterVersion | None:
    """The desired version: each version is promoted when it becomes the head."""
    return head


def _with_descendants(versions: Mapping[int, AdapterVersion], numbers: Iterable[int]) -> frozenset[int]:
    reached = set(numbers)
    if not reached:
        return frozenset()
    children = defaultdict(list)
    for version in versions.values():
        children[version.parent].append(version.number)
    ahead = list(reached)
    while ahead:
        new = [child for child in children[ahead.pop()] if child not in reached]
        reached.update(new)
        ahead.extend(new)
    return frozenset(reached)
