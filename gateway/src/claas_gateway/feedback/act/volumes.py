"""Samples of large batches, as files on the adapter's volume."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from claas_gateway.directory.models import Adapter
from claas_gateway.feedback.plan.manifests import SAMPLES_FOLDER, file_name


class SampleVolumes:
    """The claims that are mounted into the gateway, each below its name. A pod mounts claims of its own namespace
    alone."""

    def __init__(self, root: Path | None, namespace: str) -> None:
        self._root = root
        self._namespace = namespace

    def claim_for(self, adapter: Adapter) -> str | None:
        """The adapter's claim, if it is mounted here."""
        claim = adapter.found.spec.storage.claim_name
        if self._root is None or adapter.namespace != self._namespace or not (self._root / claim).is_dir():
            return None
        return claim

    async def write(self, claim: str, batch_id: str, samples: bytes) -> None:
        """Write the file; it is whole or absent, also after a crash."""
        await asyncio.to_thread(self._write, self._folder(claim), batch_id, samples)

    async def remove(self, batch_id: str) -> None:
        """Remove a batch's file, wherever it lies."""
        if self._root is not None:
            await asyncio.to_thread(self._remove, self._root, batch_id)

    def _folder(self, claim: str) -> Path:
        assert self._root is not None
        return self._root / claim / SAMPLES_FOLDER

    @staticmethod
    def _write(folder: Path, batch_id: str, samples: bytes) -> None:
        folder.mkdir(mode=0o750, exist_ok=True)
        place = folder / file_name(batch_id)
        hidden = folder / f".{place.name}.{os.getpid()}"
        with hidden.open("wb") as file:
            file.write(samples)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(place)

    @staticmethod
    def _remove(root: Path, batch_id: str) -> None:
        for claim in root.iterdir():
            (claim / SAMPLES_FOLDER / file_name(batch_id)).unlink(missing_ok=True)
