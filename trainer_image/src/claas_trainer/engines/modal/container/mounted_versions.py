"""Versions as folders of the Modal Volume: read with every digest compared, written once and never changed."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from claas_contract.outcome import FailureReason
from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.manifest import MANIFEST_FILE, Manifest
from claas_trainer.engines.base import TrainedVersion
from claas_trainer.engines.modal.container.mounted_volume import MountedVolume
from claas_trainer.engines.modal.wire import (
    FolderRef,
    StepPlace,
    StepRequest,
    StepSeconds,
    TakenStep,
    adapter_folder,
)
from claas_trainer.errors import EngineError
from claas_trainer.logs import log
from claas_trainer.store.content import Bytes, fsync_folder, hash_file, write_file, write_files
from claas_trainer.store.errors import storage_errors
from claas_trainer.store.record import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, OPTIMIZER_FILES, LocalProvenance

STEP_FILE = "step.json"
"""What a step told besides its files: whoever asks for the same step again is answered from it."""
_ADAPTER_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE)
_CHUNK_BYTES = 8 * 1024 * 1024
_STALE_SECONDS = 86400.0
"""No step lasts longer."""


class _Told(BaseModel):
    """The content of `step.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, ser_json_inf_nan="constants")

    request: str
    """Digest of the request."""
    metrics: dict[str, float]
    libraries: dict[str, str]
    provenance: LocalProvenance
    seconds: StepSeconds
    place: StepPlace = StepPlace()


@dataclass(frozen=True)
class MountedVersions:
    """The folders `adapters/<UID of the adapter>/<name>` of a Volume. All methods raise TrainerError."""

    volume: MountedVolume

    def fetch(self, ref: FolderRef, into: Path, *, adapter_alone: bool = False) -> dict[str, str] | None:
        """Copy a version's files to a new local folder, so that none of the Volume's stays open. Returns their
        digests by name; None if not all of them are on the Volume as the reference vouches for."""
        address = self._address(ref)
        folder = self.volume.root / address.folder
        with storage_errors(folder):
            manifest = _manifest(folder, address.digest)
        if manifest is None:
            return None
        wanted = list(_ADAPTER_FILES)
        if ref.optimizer and not adapter_alone:
            state = [name for name in manifest.files if name.startswith(OPTIMIZER_FILES)]
            if not state:
                return None
            wanted += state
        if not manifest.files.keys() >= set(wanted):
            return None
        digests = {name: manifest.files[name] for name in wanted}
        with storage_errors(into):
            into.mkdir(parents=True)
            return digests if _copy(folder, into, digests) else None

    def finished(self, request: StepRequest) -> TakenStep | None:
        """The step that an equal request has left as a whole folder, if there is one."""
        home = self._home(request)
        with storage_errors(home):
            try:
                names = sorted(path.name for path in home.iterdir() if path.name.startswith(request.folder_prefix))
            except FileNotFoundError:
                return None
            taken = next((found for name in names if (found := self._taken(request, name)) is not None), None)
        if taken is not None:
            # It may have been written by this container, and the commit refused.
            self.volume.commit()
        return taken

    def publish(
        self, request: StepRequest, made: TrainedVersion, seconds: StepSeconds, place: StepPlace
    ) -> TakenStep:
        """Write a step's result as a new folder and commit it: others see all of it or nothing."""
        began = time.monotonic()
        home, name = self._home(request), f"{request.folder_prefix}{secrets.token_hex(4)}"
        hidden = home / f".{name}"
        assert isinstance(made.provenance, LocalProvenance), "the local engine says how it computed"
        told = _Told(
            request=request.digest,
            metrics=dict(made.metrics),
            libraries=dict(made.libraries),
            provenance=made.provenance,
            seconds=seconds,
            place=place,
        )
        adapter = {each: b"".join(made.files[each].chunks()) for each in _ADAPTER_FILES}
        small = {**adapter, STEP_FILE: told.model_dump_json(indent=1).encode()}
        with storage_errors(home):
            home.mkdir(parents=True, exist_ok=True)
            _remove_stale(home)
            hidden.mkdir()
            try:
                written = write_files(hidden, {**made.files, **{each: Bytes(data) for each, data in small.items()}})
                manifest = Manifest(files=written)
                write_file(hidden / MANIFEST_FILE, Bytes(manifest.to_bytes()))
                fsync_folder(hidden)
                hidden.rename(home / name)
            finally:
                shutil.rmtree(hidden, ignore_errors=True)
            fsync_folder(home)
        self.volume.commit()
        spent = seconds.model_copy(update={"commit": time.monotonic() - began})
        return _answer(told, spent, adapter, self._at(request, name, manifest.digest))

    def _taken(self, request: StepRequest, name: str) -> TakenStep | None:
        """The step in a folder, if it is whole and of an equal request. Raises OSError."""
        folder = self._home(request) / name
        try:
            content = (folder / MANIFEST_FILE).read_bytes()
            manifest = Manifest.model_validate_json(content)
            told = _Told.model_validate_json((folder / STEP_FILE).read_bytes())
            if told.request != request.digest:
                return None
            adapter = {each: (folder / each).read_bytes() for each in _ADAPTER_FILES}
            changed = [each for each, digest in manifest.files.items() if hash_file(folder / each) != digest]
        except (FileNotFoundError, ValidationError):
            changed = [MANIFEST_FILE]
        if changed:
            log("folder-not-whole", folder=name, file=changed[0])
            return None
        digest = hashlib.sha256(content).hexdigest()
        return _answer(told, told.seconds, adapter, self._at(request, name, digest), found=True)

    def _home(self, request: StepRequest) -> Path:
        return self.volume.root / adapter_folder(request.adapter_uid)

    def _at(self, request: StepRequest, name: str, digest: str) -> VolumeAddress:
        return VolumeAddress(self.volume.name, f"{adapter_folder(request.adapter_uid)}/{name}", digest)

    def _address(self, ref: FolderRef) -> VolumeAddress:
        address = VolumeAddress.parse(ref.address)
        if address.volume != self.volume.name:
            raise EngineError(
                FailureReason.APP_NOT_DEPLOYED,
                f"spec.engine.modal.volume: version {ref.number} is on the Volume {address.volume}, and the app was"
                f" deployed with the Volume {self.volume.name}; deploy it again with CLAAS_MODAL_VOLUME, or name the"
                " Volume that it has",
            )
        return address


def _answer(
    told: _Told, seconds: StepSeconds, adapter: Mapping[str, bytes], state: VolumeAddress, *, found: bool = False
) -> TakenStep:
    return TakenStep(
        adapter=dict(adapter),
        state=str(state),
        metrics=told.metrics,
        libraries=told.libraries,
        provenance=told.provenance,
        seconds=seconds,
        place=told.place,
        found=found,
    )


def _manifest(folder: Path, digest: str) -> Manifest | None:
    """The manifest with this digest; None if there is another one or none. Raises OSError."""
    try:
        content = (folder / MANIFEST_FILE).read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            return None
        return Manifest.model_validate_json(content)
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def _copy(folder: Path, into: Path, digests: Mapping[str, str]) -> bool:
    """Copy files concurrently; whether all are there with these digests. Raises OSError."""
    with ThreadPoolExecutor(len(digests)) as copying:
        copied = {name: copying.submit(_copy_file, folder / name, into / name) for name in digests}
    try:
        return all(each.result() == digests[name] for name, each in copied.items())
    except FileNotFoundError:
        return False


def _copy_file(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with source.open("rb") as reading, target.open("xb") as writing:
        while chunk := reading.read(_CHUNK_BYTES):
            digest.update(chunk)
            writing.write(chunk)
    return digest.hexdigest()


def _remove_stale(home: Path) -> None:
    """Remove what containers left that died while they wrote. Raises OSError."""
    for hidden in home.glob(".*"):
        if time.time() - hidden.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(hidden, ignore_errors=True)
