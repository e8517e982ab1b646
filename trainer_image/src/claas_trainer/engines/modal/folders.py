"""Versions' files on the Volume: found there, or uploaded from the volume of the cluster."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from pathlib import Path

from claas_bounded.waits import Deadline
from claas_contract.engine import OWN_FILES
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.engine import EngineName
from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.connection import ModalConnection
from claas_modal_client.errors import ModalFault, ModalServiceError
from claas_modal_client.folders import manifest, store
from claas_trainer.engines.modal.failures import failed, service_failures
from claas_trainer.engines.modal.wire import FolderRef, adapter_folder
from claas_trainer.errors import InputError
from claas_trainer.logs import log
from claas_trainer.store.content import digest_of
from claas_trainer.store.errors import storage_errors
from claas_trainer.store.record import OPTIMIZER_FILES, VersionRecord
from claas_trainer.store.versions import StoredVersion

_NAME_DIGITS = 16


def uploaded_name(number: int, files: Mapping[str, str]) -> str:
    """Name of the folder in which a trainer uploads these files, with their digests, of a version."""
    return f"{number}-{digest_of(files)[:_NAME_DIGITS]}"


def adapter_files(files: Mapping[str, str]) -> dict[str, str]:
    """A version's files without the optimiser's state, with their digests."""
    return {name: digest for name, digest in files.items() if not name.startswith(OPTIMIZER_FILES)}


class VersionFolders:
    """The folders of one adapter on a Volume. All methods raise TrainerError."""

    def __init__(self, connection: ModalConnection, volume: str, adapter_uid: str, deadline: Deadline) -> None:
        self._connection = connection
        self._volume = volume
        self._root = adapter_folder(adapter_uid)
        self._deadline = deadline

    async def parent(self, version: StoredVersion, lost: Collection[str] = ()) -> FolderRef:
        """What a step starts from, with its optimiser state; uploaded if it is not there, or among the addresses that
        the app has `lost`. CHECKPOINT_EXPIRED if its state is gone."""
        record = version.record
        state = record.optimizer_state
        if state in (None, OWN_FILES):
            address = await self._found_or_uploaded(version, record.files, lost)
            return _ref(record, address, optimizer=state is not None)
        assert state is not None
        if state.engine != EngineName.MODAL.value:
            raise InputError(
                f"spec.engine: version {record.number} was made by engine {state.engine}, which keeps its optimiser"
                f" state at {state.uri}, and engine modal can't go on from there; train the adapter with that engine,"
                " or make a new one for this engine"
            )
        address = _parsed(record, state.uri)
        if address.volume != self._volume:
            raise InputError(
                f"spec.engine.modal.volume is {self._volume}, and the optimiser state of version {record.number} is"
                f" on the Volume {address.volume}; name that one, with an app that has it, or make a new adapter"
            )
        if str(address) in lost or await self._files(address) is None:
            raise failed(
                FailureReason.CHECKPOINT_EXPIRED,
                f"the optimiser state of version {record.number} is no longer whole at {address}, and"
                " spec.engine.modal.keepState kept it nowhere else; go on from an older version, or make a new"
                " adapter",
            )
        return _ref(record, address, optimizer=True)

    async def adapter(self, version: StoredVersion, lost: Collection[str] = ()) -> FolderRef:
        """The adapter alone of an earlier version; uploaded like a parent."""
        record = version.record
        address = await self._found_or_uploaded(version, adapter_files(record.files), lost)
        return _ref(record, address, optimizer=False)

    async def upload(
        self, number: int, files: Mapping[str, str], below: Path, lost: Collection[str] = ()
    ) -> VolumeAddress:
        """Upload a version's files, of these digests, from the folder `below`, unless they are there; returns their
        address."""
        folder = f"{self._root}/{uploaded_name(number, files)}"
        paths = {name: below / name for name in files}
        with service_failures(), storage_errors(below):
            address = await store(self._connection, self._volume, folder, paths, self._deadline)
            if str(address) in lost:
                # What lies there is damaged, and no folder is ever written again.
                beside = f"{folder}-{secrets.token_hex(4)}"
                address = await store(self._connection, self._volume, beside, paths, self._deadline)
        log("uploaded", version=number, to=str(address))
        return address

    async def _found_or_uploaded(
        self, version: StoredVersion, files: Mapping[str, str], lost: Collection[str]
    ) -> VolumeAddress:
        record = version.record
        if record.weights is not None and record.weights not in lost:
            address = _parsed(record, record.weights)
            found = await self._files(address) if address.volume == self._volume else None
            if found is not None and files.items() <= found.items():
                return address
        return await self.upload(record.number, files, version.folder, lost)

    async def _files(self, address: VolumeAddress) -> Mapping[str, str] | None:
        """Digests of a folder's files, by its manifest; None if it is not there."""
        with service_failures():
            try:
                return (await manifest(self._connection, address, self._deadline)).files
            except ModalServiceError as error:
                if error.kind is not ModalFault.FILE_MISSING:
                    raise
                return None


def _parsed(record: VersionRecord, text: str) -> VolumeAddress:
    try:
        return VolumeAddress.parse(text)
    except ValueError:
        raise failed(
            FailureReason.PARENT_CORRUPT,
            f"version {record.number} names no folder of a Modal Volume ({text}); restore the version from a backup"
            " or go back to an older one",
        ) from None


def _ref(record: VersionRecord, address: VolumeAddress, *, optimizer: bool) -> FolderRef:
    return FolderRef(
        number=record.number,
        address=str(address),
        digest=record.digest,
        optimizer=optimizer,
        provenance=record.local,
    )
