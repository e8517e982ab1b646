"""The base model on the Modal Volume of base weights: found, checked, and read into memory."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from claas_modal_client.deployment import model_missing
from claas_trainer.engines.failures import engine_errors
from claas_trainer.engines.local.held_model import HeldModel
from claas_trainer.errors import not_found
from claas_trainer.heavy_imports import first_import_of
from claas_trainer.logs import log
from claas_trainer.sdpo.errors import UnsupportedModelError
from claas_trainer.store.content import hash_file
from claas_trainer.store.errors import storage_errors

MARKER_FILE = "claas-weights.json"
"""Written last by `fill_weights`. A folder without it was uploaded by somebody, and is taken as it is."""
_HASHERS = 4


class WeightsMarker(BaseModel):
    """The content of `claas-weights.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    repository: str
    revision: str
    """The hub's commit."""
    files: dict[str, str]
    """sha256 of every other file, by its path in the folder."""


@dataclass(frozen=True)
class BaseModelOnVolume:
    """A base model, with its weights in memory."""

    folder: Path
    identity: str
    """Differs when the folder holds another model."""
    held: HeldModel | None
    """None: only the generic forward can compute it, which reads the weights from the folder for each step."""

    @classmethod
    def read(cls, root: Path, volume: str, repository: str, *, cuda: bool) -> BaseModelOnVolume:
        """Read it from a Volume that is mounted at `root`; no file stays open, and no GPU is asked. Raises
        TrainerError."""
        folder = root / repository
        if not (folder / "config.json").is_file():
            raise not_found(model_missing(volume, repository, f"it has no {repository}/config.json"))
        with storage_errors(folder):
            identity = model_identity(folder)
            broken = broken_file(folder)
        if broken is not None:
            raise not_found(model_missing(volume, repository, f"{repository}/{broken} is not as it was downloaded"))
        with engine_errors():
            try:
                held = HeldModel.read(folder, cuda=cuda)
            except UnsupportedModelError as error:
                # Imported now, for the snapshot to have its libraries.
                with first_import_of("claas_trainer.engines.local.peft_placement"):
                    import_module("claas_trainer.engines.local.peft_placement")
                log("generic-forward", why=str(error))
                held = None
        return cls(folder, identity, held)

    def is_current(self) -> bool:
        """Whether the folder still holds this model, as far as names, sizes and small files tell. Raises
        TrainerError."""
        with storage_errors(self.folder):
            try:
                return model_identity(self.folder) == self.identity
            except FileNotFoundError:
                return False


def model_identity(folder: Path) -> str:
    """Digest over the configuration, the marker, and the weights' names and sizes. Raises OSError."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    marker = folder / MARKER_FILE
    digest.update(marker.read_bytes() if marker.is_file() else b"")
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    return digest.hexdigest()


def broken_file(folder: Path) -> str | None:
    """The first file that does not match the marker; None where all do, or there is no marker. Raises OSError."""
    marker = folder / MARKER_FILE
    if not marker.is_file():
        return None
    try:
        files = WeightsMarker.model_validate_json(marker.read_bytes()).files
    except ValidationError:
        return MARKER_FILE
    with ThreadPoolExecutor(_HASHERS) as hashers:
        hashing = {name: hashers.submit(hash_file, folder / name) for name in sorted(files)}
    for name, hashed in hashing.items():
        try:
            if hashed.result() != files[name]:
                return name
        except FileNotFoundError:
            return name
    return None
