"""Folders of a Volume that are whole: every file has the digest that the folder's address vouches for."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import ValidationError

from claas_bounded.waits import Deadline, in_thread
from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.connection import ModalConnection
from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_modal_client.faults import fault
from claas_modal_client.manifest import MANIFEST_FILE, MOST_MANIFEST_BYTES, Manifest
from claas_modal_client.volume import ModalVolume

MOST_FILE_BYTES = 64 << 30


async def manifest(connection: ModalConnection, address: VolumeAddress, deadline: Deadline) -> Manifest:
    """The manifest of a folder. FILE_MISSING if it is not there, or not the one of the address. Raises
    ModalServiceError."""
    path = f"{address.folder}/{MANIFEST_FILE}"
    content = await ModalVolume(connection, address.volume).read(path, deadline, MOST_MANIFEST_BYTES)
    if hashlib.sha256(content).hexdigest() != address.digest:
        raise _damaged(address, MANIFEST_FILE)
    try:
        return Manifest.model_validate_json(content)
    except ValidationError:
        raise _damaged(address, MANIFEST_FILE) from None


async def present(connection: ModalConnection, address: VolumeAddress, deadline: Deadline) -> bool:
    """Whether a folder is there and whole, as far as its manifest tells. Raises ModalServiceError."""
    try:
        await manifest(connection, address, deadline)
    except ModalServiceError as error:
        if error.kind is not ModalFault.FILE_MISSING:
            raise
        return False
    return True


async def fetch(
    connection: ModalConnection,
    address: VolumeAddress,
    to: Path,
    deadline: Deadline,
    names: Collection[str] | None = None,
) -> Manifest:
    """Copy a folder, or the named files of it, to a local folder that does not exist yet: it appears whole or not at
    all. FILE_MISSING if a file is not there, or not as the address vouches for. Raises ModalServiceError, and OSError
    if the local folder can't be written."""
    known = await manifest(connection, address, deadline)
    wanted = sorted(known.files if names is None else names)
    if missing := [name for name in wanted if name not in known.files]:
        raise _damaged(address, missing[0])
    volume = ModalVolume(connection, address.volume)
    partial = to.with_name(f".{to.name}.{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        for name in wanted:
            local = partial / name
            local.parent.mkdir(parents=True, exist_ok=True)
            digest = await volume.download(f"{address.folder}/{name}", local, deadline, MOST_FILE_BYTES)
            if digest != known.files[name]:
                raise _damaged(address, name)
        await in_thread(lambda: _settle(partial, to))
    finally:
        await in_thread(lambda: shutil.rmtree(partial, ignore_errors=True))
    return known


async def store(
    connection: ModalConnection, volume: str, folder: str, files: Mapping[str, Path], deadline: Deadline
) -> VolumeAddress:
    """Upload local files as a folder, and return its address. The manifest comes last, so an upload that is cut off
    leaves a folder that is not whole, which the next one completes. The folder's name must depend on its content.
    Raises ModalServiceError, OSError and ValueError."""
    content = await in_thread(lambda: Manifest.of(files))
    address = VolumeAddress(volume, folder, content.digest)
    if await present(connection, address, deadline):
        return address
    target = ModalVolume(connection, volume)
    await target.upload({f"{folder}/{name}": path for name, path in files.items()}, deadline, overwrite=True)
    await target.upload({f"{folder}/{MANIFEST_FILE}": content.to_bytes()}, deadline, overwrite=True)
    return address


def _settle(partial: Path, to: Path) -> None:
    """Give a folder its name, once all that is in it has reached the disk."""
    for path in [*partial.rglob("*"), partial]:
        descriptor = os.open(path, os.O_RDONLY)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, descriptor)
            os.fsync(descriptor)
    partial.rename(to)


def _damaged(address: VolumeAddress, name: str) -> ModalServiceError:
    asked = f"for {address.folder} on the Volume {address.volume}"
    return fault(ModalFault.FILE_MISSING, asked, f"has no {name} with the digest that was promised")
