"""Head, desired, candidate and rejected: what the versions of one adapter are, decided from how they descend from
each other and from what serving said of them.

A version is a node: its parent, the job that made it, serving's verdict on it. What is not known of a version but
that another was trained from it is no node: it is neither trained from nor served.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from claas_contract.result import PublishedVersion
from claas_crds.v1alpha1.lora_adapter import AdapterVersion, VersionVerdict
from claas_kube.objects.resources import AdapterObject
from claas_operator.plan.lineage.history import (
    JobReport,
    last_published,
    merge,
    remembered,
    reported_rejections,
    reported_versions,
)


class Standing(StrEnum):
    """What was decided about a version that a job published."""

    UNDECIDED = "Undecided"
    """The adapter's status does not list it yet."""
    REJECTED = "Rejected"
    """Serving refused it, or a version that it descends from: it is never served or trained from."""
    SERVED = "Served"
    """It is served by every ready pod, or a descendant of it is."""
    AWAITED = "Awaited"
    """It should serve, or a descendant of it, and does not yet."""
    PASSED_OVER = "PassedOver"
    """What should serve is not known to descend from it."""


@dataclass(frozen=True)
class Lineage:
    """An adapter's versions, and what was decided about them."""

    versions: Mapping[int, AdapterVersion]
    """All that is known, by number."""
    listed: frozenset[int]
    """Numbers of those that the adapter's status lists."""
    rejected: frozenset[int]
    """Numbers of those that serving refused, and of their descendants: they are never served or trained from."""
    head: AdapterVersion | None
    """What the next step starts from. None: nothing can be trained from yet."""
    desired: AdapterVersion | None
    """What should serve."""

    @classmethod
    def of(
        cls,
        listed: Iterable[AdapterVersion],
        found: Iterable[PublishedVersion] = (),
        refused: Iterable[AdapterVersion] = (),
    ) -> Lineage:
        """The lineage of what status lists, of what trainers and jobs report, and of what serving refused."""
        known = list(listed)
        versions = merge(known, found, refused)
        rejected = _with_descendants(
            versions, (each.number for each in versions.values() if each.verdict is VersionVerdict.REJECTED)
        )
        head = last_published(each for each in versions.values() if each.number not in rejected)
        return cls(versions, frozenset(each.number for each in known), rejected, head, _desired(head))

    @property
    def candidate(self) -> AdapterVersion | None:
        """What should serve and waits for its first load and probe."""
        version = self.desired
        return version if version is not None and version.verdict is VersionVerdict.UNTRIED else None

    def remembered(self) -> list[AdapterVersion]:
        """What the adapter's status is to list."""
        return remembered(self.versions, self.head)

    def descends(self, number: int, ancestor: int) -> bool:
        """Whether one version is the other, or was trained from it, with whatever versions in between."""
        return ancestor in (number, *self._ancestors(number))

    def standing(self, number: int, served: int | None) -> Standing:
        """What was decided about a version, while every ready pod serves another one, or this one (None: they differ,
        or none is ready)."""
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
        """The parent, its parent, and so on, as far as they are known."""
        seen = {number}
        while (version := self.versions.get(number)) is not None and version.parent not in (None, *seen):
            assert version.parent is not None
            number = version.parent
            seen.add(number)
            yield number


def lineage_for_jobs(adapter: AdapterObject, jobs: Iterable[JobReport]) -> Lineage:
    """An adapter's lineage as far as its jobs need it: they may report a version that its status does not list yet.
    Until status lists the initial version, nothing is known."""
    if adapter.status.latest_version is None:
        return Lineage.of(())
    known = list(jobs)
    return Lineage.of(adapter.status.versions, reported_versions(known, adapter), reported_rejections(known, adapter))


def _desired(head: AdapterVersion | None) -> AdapterVersion | None:
    """What should serve: each version is promoted when it becomes the head."""
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
