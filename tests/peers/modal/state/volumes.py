"""Volumes: what is committed is a folder each; a container works on a view of its own.

A view shows what was committed when it was made or reloaded, and what the container wrote since. `commit` makes the
latter visible to all others, `reload` fetches what others committed, as Modal's Volumes do.
"""

import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from tests.peers.modal.private import api_pb2
from tests.peers.modal.state.apps import not_found
from tests.peers.modal.state.blobs import BLOCK_BYTES, Blobs


@dataclass(frozen=True)
class Volume:
    id: str
    environment: str
    name: str
    folder: Path
    """What is committed."""
    parts: Path
    """A folder beside it, for files that are not whole yet."""
    version: "api_pb2.VolumeFsVersion.ValueType" = api_pb2.VOLUME_FS_VERSION_V2

    def path(self, path: str) -> Path:
        """Where a file of the Volume is."""
        parts = [part for part in PurePosixPath("/", path).parts[1:] if part != "."]
        if ".." in parts:
            raise GRPCError(Status.INVALID_ARGUMENT, f"'{path}' leaves the Volume")
        return self.folder.joinpath(*parts)

    def existing(self, path: str) -> Path:
        found = self.path(path)
        if not found.exists():
            raise not_found(f"'{path}' not found in Volume '{self.name}'")
        return found

    def entries(self, path: str, *, recursive: bool) -> Iterator[api_pb2.FileEntry]:
        """What a folder of the Volume has, in the order of names; a file has itself."""
        found = self.existing(path)
        inside = [found] if found.is_file() else sorted(found.rglob("*") if recursive else found.iterdir())
        for one in inside:
            stat = one.stat()
            yield api_pb2.FileEntry(
                path=one.relative_to(self.folder).as_posix(),
                type=api_pb2.FileEntry.DIRECTORY if one.is_dir() else api_pb2.FileEntry.FILE,
                mtime=int(stat.st_mtime),
                size=0 if one.is_dir() else stat.st_size,
            )

    def remove(self, path: str, *, recursive: bool) -> None:
        found = self.existing(path)
        if not found.is_dir():
            found.unlink()
        elif recursive:
            shutil.rmtree(found)
        else:
            raise GRPCError(Status.INVALID_ARGUMENT, f"'{path}' is a folder; remove it recursively")

    def put(self, file: api_pb2.VolumePutFiles2Request.File, blobs: Blobs) -> None:
        """Write a file whose blocks are all uploaded; readers see the old one or the new one."""
        goal = self.path(file.path)
        goal.parent.mkdir(parents=True, exist_ok=True)
        part = new_part(self.parts)
        with part.open("wb") as whole:
            for number, block in enumerate(file.blocks):
                whole.seek(number * BLOCK_BYTES)
                whole.write(blobs.block(block.contents_sha256).read_bytes())
            whole.truncate(file.size)
        part.chmod(file.mode or 0o644)
        part.replace(goal)


@dataclass
class View:
    """One container's view of a Volume."""

    volume: Volume
    folder: Path
    """The Volume's own folder for a view that is never reloaded, as where nothing can be mounted."""
    read_only: bool
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Size and time of each file, when view and Volume were last the same."""
    _closed: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def open(self) -> None:
        """Show what is committed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._mirror()

    def close(self) -> None:
        """Leave nothing of it. What goes is not removed from the Volume by a commit that comes too late."""
        with self._lock:
            self._closed = True
        if self.folder != self.volume.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def commit(self) -> None:
        """Publish what was written and removed since the last commit or reload; the last writer of a file wins."""
        if self.read_only:
            return
        with self._lock:
            if not self._closed:
                self._publish()

    def _publish(self) -> None:
        mine = _files(self.folder)
        for name, stamp in mine.items():
            if self._seen.get(name) != stamp:
                self._copy(self.folder / name, self.volume.folder / name)
        for name in self._seen.keys() - mine.keys():
            (self.volume.folder / name).unlink(missing_ok=True)
        for folder in _folders(self.folder):
            (self.volume.folder / folder).mkdir(parents=True, exist_ok=True)
        self._drop_empty(self.volume.folder, self.folder)
        self._seen = mine

    def reload(self) -> None:
        """Fetch what others committed; commits what the container wrote first, as Modal may."""
        with self._lock:
            self.commit()
            self._mirror()

    def inodes(self) -> set[tuple[int, int]]:
        """Device and inode of each file and folder of the view."""
        stats = [path.lstat() for path in [self.folder, *self.folder.rglob("*")]]
        return {(stat.st_dev, stat.st_ino) for stat in stats}

    def _mirror(self) -> None:
        theirs = _files(self.volume.folder)
        mine = _files(self.folder)
        for folder in _folders(self.volume.folder):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        for name, stamp in theirs.items():
            if mine.get(name) != stamp:
                self._copy(self.volume.folder / name, self.folder / name)
        for name in mine.keys() - theirs.keys():
            (self.folder / name).unlink(missing_ok=True)
        self._drop_empty(self.folder, self.volume.folder)
        self._seen = {name: stamp for name, stamp in _files(self.folder).items() if theirs.get(name) == stamp}

    def _copy(self, source: Path, goal: Path) -> None:
        """By way of another name: whoever has the old file open keeps it."""
        goal.parent.mkdir(parents=True, exist_ok=True)
        part = new_part(self.volume.parts)
        try:
            # Committed files are replaced and never changed, so that a view which can't change them needs no copy.
            (os.link if self.read_only else shutil.copy2)(source, part)
        except FileNotFoundError:
            return
        part.replace(goal)

    @staticmethod
    def _drop_empty(here: Path, there: Path) -> None:
        """Remove empty folders that the other side does not have."""
        for folder in sorted(_folders(here), reverse=True):
            if not (there / folder).exists() and not any((here / folder).iterdir()):
                (here / folder).rmdir()


class Volumes:
    """All Volumes of all environments; those of an earlier peer with the same folder are there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_id: dict[str, Volume] = {}

    def get_or_create(
        self,
        environment: str,
        name: str,
        *,
        create: bool,
        version: "api_pb2.VolumeFsVersion.ValueType" = api_pb2.VOLUME_FS_VERSION_V2,
    ) -> Volume:
        volume_id = _id(environment, name)
        folder = self._folder / environment / name
        if volume_id not in self._by_id:
            if not create and not folder.exists():
                raise not_found(f"volume '{name}' not found in environment '{environment}'")
            parts = self._folder / ".parts"
            for one in (folder, parts):
                one.mkdir(parents=True, exist_ok=True)
            self._by_id[volume_id] = Volume(volume_id, environment, name, folder, parts, version)
        return self._by_id[volume_id]

    def has(self, environment: str, name: str) -> bool:
        return (self._folder / environment / name).exists()

    def by_id(self, volume_id: str) -> Volume:
        if volume_id not in self._by_id:
            raise not_found(f"volume {volume_id} not found")
        return self._by_id[volume_id]

    def delete(self, volume_id: str) -> None:
        shutil.rmtree(self.by_id(volume_id).folder)
        del self._by_id[volume_id]


def _id(environment: str, name: str) -> str:
    return f"vo-{environment}-{name}"


_numbers = itertools.count(1)


def new_part(folder: Path) -> Path:
    """A name that no other file has."""
    return folder / f"{next(_numbers):020d}"


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file below a folder, by its path; a file that vanishes meanwhile is none."""
    found = {}
    for path in folder.rglob("*"):
        try:
            if path.is_file():
                stat = path.stat()
                found[path.relative_to(folder).as_posix()] = (stat.st_size, stat.st_mtime_ns)
        except FileNotFoundError:
            continue
    return found


def _folders(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_dir()]
