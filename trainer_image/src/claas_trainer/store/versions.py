"""Finds, checks and publishes the versions of one adapter.

A version is a folder `<root>/versions/<number>/`. It is written in a hidden folder beside, every file and then the
folder is fsynced, and the folder is renamed. A rename onto a non-empty folder fails, so publishing never replaces a
version.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from claas_contract.jobs import JobReference, names_any
from claas_contract.outcome import FailureReason
from claas_contract.result import PublishedVersion
from claas_crds.v1alpha1.version import VersionVerdict
from claas_trainer.errors import StoreError
from claas_trainer.logs import log
from claas_trainer.store.content import (
    Bytes,
    FileContent,
    digest_of,
    fsync_folder,
    hash_file,
    write_file,
    write_files,
)
from claas_trainer.store.errors import storage_errors, store_error
from claas_trainer.store.record import OPTIMIZER_FILES, RECORD_FILE, VersionRecord
from claas_trainer.store.staging import make_staging, remove_stale
from claas_trainer.store.trial import try_volume
from claas_trainer.store.verdict import UNTRIED, Verdict, read_verdict

_UNUSABLE = frozenset({FailureReason.PARENT_CORRUPT, FailureReason.PARENT_NOT_FOUND})
"""Permanent faults of a version, as opposed to faults of the volume."""
_MARGIN_BYTES = 1024 * 1024


@dataclass(frozen=True)
class StoredVersion:
    """A version on the volume."""

    folder: Path
    record: VersionRecord
    verdict: Verdict = UNTRIED

    @property
    def rejected(self) -> bool:
        """Whether serving rejected it; it is never served or trained from then."""
        return self.verdict.verdict is VersionVerdict.REJECTED

    def published(self, path: str) -> PublishedVersion:
        """The version in the form for the operator; `path` is below the volume's root."""
        record = self.record
        return PublishedVersion(
            number=record.number,
            path=path,
            digest=record.digest,
            created=record.created,
            parent=record.parent,
            jobs=[JobReference(name=job.name, uid=job.uid) for job in record.jobs],
            metrics=record.metrics,
            weights=record.weights,
            verdict=self.verdict.verdict,
        )

    def file(self, name: str) -> Path | None:
        """The path of one of its files; None if there is no such file."""
        return self.folder / name if name in self.record.files else None

    def files(self, beginning: str) -> list[Path]:
        """The paths of its files with this prefix."""
        return [self.folder / name for name in sorted(self.record.files) if name.startswith(beginning)]


@dataclass(frozen=True)
class Publication:
    """Result of publishing. `created` is False if an earlier attempt of the job had published already."""

    version: StoredVersion
    created: bool


class VersionStore:
    """The versions below one adapter's folder. All methods raise StoreError."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.versions = root / "versions"

    def prepare(self, *, owner: str, attempt: int, needed_bytes: int) -> None:
        """Make the folders, remove remnants of dead attempts, and check that a version can be published.
        STORAGE_UNSUITABLE names the operation that the file system lacks. `owner` is the job's UID, or the adapter's
        for an initial version; `needed_bytes` an estimate of the new version's size.
        """
        with storage_errors(self.versions):
            self.versions.mkdir(parents=True, exist_ok=True)
            remove_stale(self.versions, owner, attempt)
        try_volume(self.versions, owner, attempt)
        with storage_errors(self.versions):
            usage = os.statvfs(self.versions)
        free = usage.f_bavail * usage.f_frsize
        if free < needed_bytes + _MARGIN_BYTES:
            raise StoreError(
                FailureReason.STORAGE_FULL,
                f"{self.versions}: {free} bytes are free and a version needs about {needed_bytes + _MARGIN_BYTES};"
                " enlarge the volume or remove old versions",
            )

    def numbers(self) -> list[int]:
        """The numbers in use, ascending; does not check that the versions are intact."""
        with storage_errors(self.versions):
            try:
                names = [path.name for path in self.versions.iterdir()]
            except FileNotFoundError:
                return []
        return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]{0,17}", name))

    def read(self, number: int) -> StoredVersion:
        """A version by its number: PARENT_NOT_FOUND if it is absent, PARENT_CORRUPT if it is unreadable."""
        folder = self.versions / str(number)
        with storage_errors(folder):
            try:
                text = (folder / RECORD_FILE).read_bytes()
            except FileNotFoundError:
                raise StoreError(
                    FailureReason.PARENT_NOT_FOUND,
                    f"version {number} is not in {self.versions}; choose one that is, or restore it",
                ) from None
        try:
            record = VersionRecord.model_validate_json(text)
        except ValidationError:
            raise self._corrupt(number, f"{RECORD_FILE} can't be read") from None
        if record.number != number:
            raise self._corrupt(number, f"{RECORD_FILE} says it is version {record.number}")
        return StoredVersion(folder, record, read_verdict(folder))

    def verify(self, version: StoredVersion, *, adapter_alone: bool = False) -> None:
        """Recompute the digests of all files, or of all but the optimiser's state. PARENT_CORRUPT names the file that
        does not match."""
        number, files = version.record.number, version.record.files
        read = [name for name in sorted(files) if not (adapter_alone and name.startswith(OPTIMIZER_FILES))]
        with ThreadPoolExecutor(max(1, len(read))) as readers:
            hashing = {name: readers.submit(hash_file, version.folder / name) for name in read}
        for name, hashed in hashing.items():
            with storage_errors(version.folder / name):
                try:
                    actual = hashed.result()
                except FileNotFoundError:
                    raise self._corrupt(number, f"{name} is missing") from None
            if actual != files[name]:
                raise self._corrupt(number, f"{name} does not match its digest")
        if digest_of(files) != version.record.digest:
            raise self._corrupt(number, "the list of files does not match the version's digest")

    def with_adapter(self, number: int) -> StoredVersion | None:
        """A version with an intact adapter, whatever its optimiser state; None if it is absent or corrupt."""
        try:
            version = self.read(number)
            self.verify(version, adapter_alone=True)
        except StoreError as error:
            if error.reason not in _UNUSABLE:
                raise
            log("version-unusable", version=number, why=error.message)
            return None
        return version

    def head(self) -> StoredVersion | None:
        """What training goes on from: the version published last, of those that are whole and neither rejected
        nor descend from a rejected one. None: there is none."""
        for number in reversed(self.numbers()):
            version = self._usable(number)
            if version is not None and not self._descends_from_rejected(version):
                return version
        return None

    def _descends_from_rejected(self, version: StoredVersion) -> bool:
        """Whether serving rejected the version, or one that it descends from, as far as those can be read."""
        seen = set[int]()
        while not version.rejected:
            parent = version.record.parent
            if parent is None or parent in seen:
                return False
            seen.add(parent)
            try:
                version = self.read(parent)
            except StoreError as error:
                if error.reason not in _UNUSABLE:
                    raise
                return False
        return True

    def next_number(self) -> int:
        """One above the highest number in use."""
        numbers = self.numbers()
        return numbers[-1] + 1 if numbers else 0

    def published_by(self, job_uids: Collection[str], *, after: int) -> StoredVersion | None:
        """The intact version published for any of these jobs, among those numbered above `after`, or None. Its name
        is durable on return, because the attempt that renamed the folder may have died before syncing it.
        """
        for number in reversed(self.numbers()):
            if number <= after:
                return None
            version = self._usable(number, job_uids)
            if version is not None:
                with storage_errors(self.versions):
                    fsync_folder(self.versions)
                return version
        return None

    def _usable(self, number: int, job_uids: Collection[str] | None = None) -> StoredVersion | None:
        """The version if it is intact and, if jobs are given, of one of them; else None."""
        try:
            version = self.read(number)
            if job_uids is not None and not names_any(version.record.jobs, job_uids):
                return None
            self.verify(version)
        except StoreError as error:
            if error.reason not in _UNUSABLE:
                raise
            log("version-unusable", version=number, why=error.message)
            return None
        return version

    def publish(self, record: VersionRecord, files: Mapping[str, FileContent], *, owner: str) -> Publication:
        """Publish a version under `record.number`; fills in `files` and `digest` of the record. `owner` is the first
        job's UID, or the adapter's for an initial version. PUBLISH_CONFLICT if another job took the number meanwhile.
        If anything fails, nothing becomes visible.
        """
        final = self.versions / str(record.number)
        with storage_errors(final):
            attempt = record.jobs[0].attempt if record.jobs else 0
            staging = make_staging(self.versions, owner, attempt)
            try:
                hashes = write_files(staging, files)
                complete = record.model_copy(update={"files": hashes, "digest": digest_of(hashes)})
                write_file(staging / RECORD_FILE, Bytes(complete.model_dump_json(indent=1).encode()))
                fsync_folder(staging)
                staging.rename(final)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return self._taken(record, owner)
                raise store_error(error, final) from error
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            fsync_folder(self.versions)
        return Publication(StoredVersion(final, complete), created=True)

    def _taken(self, record: VersionRecord, owner: str) -> Publication:
        present = self.read(record.number)
        if not record.jobs or names_any(present.record.jobs, {job.uid for job in record.jobs}):
            return Publication(present, created=False)
        others = ", ".join(job.name for job in present.record.jobs) or "init"
        raise StoreError(
            FailureReason.PUBLISH_CONFLICT,
            f"version {record.number} in {self.versions} was published by {others}"
            " meanwhile; the next attempt trains from the head at that time",
        )

    def _corrupt(self, number: int, what: str) -> StoreError:
        return StoreError(
            FailureReason.PARENT_CORRUPT,
            f"version {number} in {self.versions}: {what}; restore it from a backup or go back to an older version",
        )
