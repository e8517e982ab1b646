"""Files of a Volume, through the platform's API: nothing is mounted, so nothing has to be reloaded."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from claas_bounded.waits import Deadline
from claas_modal_client.connection import ModalConnection
from claas_modal_client.errors import ModalFault
from claas_modal_client.faults import Missing, fault
from claas_modal_client.sdk import FileEntryType, modal

_SMALL = 1 << 20


@dataclass(frozen=True)
class VolumeEntry:
    """A file or folder."""

    path: str
    """From the Volume's root, without a slash in front."""
    is_folder: bool
    size: int
    """In bytes."""
    modified: float
    """When it was written last, in seconds since 1970, as the platform says."""

    @property
    def name(self) -> str:
        """Last part of its path."""
        return self.path.rpartition("/")[2]


class ModalVolume:
    """A Volume. All methods raise ModalServiceError; a Volume that is not there is NOT_DEPLOYED, since the apps make
    it when they are deployed."""

    def __init__(self, connection: ModalConnection, name: str) -> None:
        self._connection = connection
        self.name = name
        self._handle: modal.Volume | None = None

    async def read(self, path: str, deadline: Deadline, limit: int = _SMALL) -> bytes:
        """Content of a small file, of `limit` bytes at most."""
        buffer = io.BytesIO()
        await self._copy(path, buffer, deadline, limit)
        return buffer.getvalue()

    async def download(self, path: str, to: Path, deadline: Deadline, limit: int) -> str:
        """Write a file to a new local one, and return its SHA-256. Raises OSError besides, if it can't be written."""
        with to.open("xb") as file:
            return await self._copy(path, file, deadline, limit)

    async def list(self, folder: str, deadline: Deadline, *, recursive: bool = False) -> tuple[VolumeEntry, ...]:
        """What is in a folder. FILE_MISSING if there is no such folder."""
        handle = await self._open(deadline)
        found = await self._connection.call(
            f"what is in {self._place(folder)}",
            lambda: handle.listdir.aio(folder or "/", recursive=recursive),
            deadline,
            Missing.FILE,
        )
        return tuple(
            VolumeEntry(
                each.path.strip("/"),
                each.type is FileEntryType.DIRECTORY,
                each.size,
                float(each.mtime),
            )
            for each in found
        )

    async def upload(self, files: Mapping[str, Path | bytes], deadline: Deadline, *, overwrite: bool = False) -> None:
        """Write files, by their paths on the Volume; none, or all at once. Unless they may be overwritten, a file
        that is there already is REQUEST_REFUSED."""
        handle = await self._open(deadline)

        async def put() -> None:
            async with handle.batch_upload(force=overwrite) as batch:
                for path, content in files.items():
                    batch.put_file(io.BytesIO(content) if isinstance(content, bytes) else content, f"/{path}")

        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        asked = f"to write {self._place(next(iter(files), ''))}{more}"
        await self._connection.call(asked, put, deadline, Missing.FILE)

    async def remove(self, path: str, deadline: Deadline) -> bool:
        """Remove a file, or a folder with all that is in it. False if it was not there."""
        handle = await self._open(deadline)

        async def remove() -> bool:
            try:
                await handle.remove_file.aio(path, recursive=True)
            except FileNotFoundError:
                return False
            return True

        return await self._connection.call(f"to remove {self._place(path)}", remove, deadline, Missing.FILE)

    async def _open(self, deadline: Deadline) -> modal.Volume:
        if self._handle is None:
            client = await self._connection.client(deadline)
            handle = modal.Volume.from_name(self.name, environment_name=self._connection.environment, client=client)
            await self._connection.call(f"for the Volume {self.name}", lambda: handle.hydrate.aio(), deadline)
            self._handle = handle
        return self._handle

    async def _copy(self, path: str, to: IO[bytes], deadline: Deadline, limit: int) -> str:
        handle = await self._open(deadline)
        asked = f"for {self._place(path)}"
        digest = hashlib.sha256()

        async def copy() -> None:
            size = 0
            async for chunk in handle.read_file.aio(path):
                size += len(chunk)
                if size > limit:
                    raise fault(ModalFault.REQUEST_REFUSED, asked, f"has more than the {limit} bytes that are read")
                digest.update(chunk)
                to.write(chunk)

        await self._connection.call(asked, copy, deadline, Missing.FILE)
        return digest.hexdigest()

    def _place(self, path: str) -> str:
        return f"{path or '/'} on the Volume {self.name}"
