"""The adapter volume, kept in memory: what trainers publish and what vLLM may load."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from claas_contract.jobs import JobIdentity, JobReference, names_any
from claas_contract.result import PublishedVersion

MOUNT_PATH = "/mnt/adapters"
"""Where the vLLM pods of the simulation mount the volume."""


class Volume:
    """One volume for each namespace; versions by folder."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, str], list[PublishedVersion]] = {}
        self._feedback_ids: dict[tuple[str, str, int], tuple[str, ...]] = {}
        self.elsewhere: dict[tuple[str, str], str] = {}
        """Of folders whose versions lie in an engine's service too: their address there, with `{number}`."""

    def versions(self, namespace: str, folder: str) -> list[PublishedVersion]:
        """The versions of an adapter, oldest first."""
        return self._versions.setdefault((namespace, folder), [])

    def folders(self, namespace: str) -> list[tuple[str, list[PublishedVersion]]]:
        """All adapters' folders of a namespace, with their versions."""
        return [(folder, versions) for (place, folder), versions in self._versions.items() if place == namespace]

    def feedback_ids(self, namespace: str, folder: str, number: int) -> tuple[str, ...]:
        """The feedback that a version learned from, as its `version.json` has it."""
        return self._feedback_ids.get((namespace, folder, number), ())

    def restore(self, namespace: str, folder: str, versions: list[PublishedVersion]) -> None:
        """Have these versions of an adapter."""
        self._versions[namespace, folder] = versions

    def initial(self, namespace: str, folder: str) -> PublishedVersion:
        """The newest version, made if there is none."""
        return self._newest(namespace, folder) or self._add(namespace, folder, None, None)

    def published_by(self, namespace: str, folder: str, job_uid: str) -> PublishedVersion | None:
        """The version that a job published, if it did."""
        found = (version for version in self.versions(namespace, folder) if names_any(version.jobs, {job_uid}))
        return next(found, None)

    def publish(
        self, namespace: str, folder: str, job: JobIdentity, parent: int, feedback_ids: Sequence[str] = ()
    ) -> PublishedVersion:
        """A new version; a job publishes once, and only from a parent that is there."""
        assert self.published_by(namespace, folder, job.uid) is None, f"{job.name} publishes twice"
        assert parent in {version.number for version in self.versions(namespace, folder)}
        version = self._add(namespace, folder, job, parent)
        self._feedback_ids[namespace, folder, version.number] = tuple(feedback_ids)
        return version

    def can_load(self, namespace: str, path: str) -> bool:
        """Whether a path, as a vLLM pod sees it, is a whole version."""
        return any(
            path == f"{MOUNT_PATH}/{version.path}"
            for (place, _), versions in self._versions.items()
            if place == namespace
            for version in versions
        )

    def _newest(self, namespace: str, folder: str) -> PublishedVersion | None:
        versions = self.versions(namespace, folder)
        return versions[-1] if versions else None

    def _add(self, namespace: str, folder: str, job: JobIdentity | None, parent: int | None) -> PublishedVersion:
        newest = self._newest(namespace, folder)
        number = newest.number + 1 if newest else 0
        elsewhere = self.elsewhere.get((namespace, folder))
        version = PublishedVersion(
            number=number,
            path=f"{folder}/versions/{number}",
            digest=f"sha256:{number:064x}",
            created=datetime.now(UTC),
            parent=parent,
            jobs=[JobReference(name=job.name, uid=job.uid)] if job else [],
            metrics={"loss": 0.5, "grad_norm": 1.25} if job else {},
            weights=elsewhere.format(number=number) if elsewhere is not None else None,
        )
        self.versions(namespace, folder).append(version)
        return version
