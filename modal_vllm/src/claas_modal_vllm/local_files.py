"""The versions' folders on the container's own disk. Nothing is mounted: a mount would have to be reloaded, which
fails while vLLM has a file open."""

from __future__ import annotations

import shutil
from pathlib import Path

from claas_bounded.waits import Deadline, in_thread
from claas_modal_client.connection import ModalConnection
from claas_modal_client.folders import fetch
from claas_modal_client.pointers import Pointer

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What vLLM loads. The optimiser's state, which may be beside it, is many times as large."""


class LocalFiles:
    """Copies of versions' folders, each whole or absent."""

    def __init__(self, root: Path, connection: ModalConnection) -> None:
        self._root = root
        self._connection = connection

    def path(self, pointer: Pointer) -> str:
        """Where a pointer's version is, or would be: one folder for each adapter, so that versions of one can be told
        from those of another. The digest is part of it, because vLLM's prefix cache knows adapters by their path."""
        address = pointer.weights
        name = address.folder.rpartition("/")[2]
        return str(self._root / pointer.adapter_uid / f"{name}-{address.digest[:16]}")

    async def fetch(self, pointer: Pointer, deadline: Deadline) -> str:
        """Bring a pointer's version here, unless it is; returns its path. Raises ModalServiceError and OSError."""
        path = Path(self.path(pointer))
        if not await in_thread(path.is_dir):
            await in_thread(lambda: path.parent.mkdir(parents=True, exist_ok=True))
            await fetch(self._connection, pointer.weights, path, deadline, ADAPTER_FILES)
        return str(path)

    async def all(self) -> list[str]:
        """The paths of all versions that are here. Raises OSError."""
        return await in_thread(lambda: [str(path) for path in self._root.glob("*/[!.]*")])

    async def forget(self, path: str) -> None:
        """Remove a version. Raises OSError."""
        await in_thread(lambda: shutil.rmtree(path))
