"""Files and folders of the trainer's pod. Environment variables override them, for tests and for running by hand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from claas_contract import places
from claas_contract.input import ModelLocation
from claas_trainer.errors import InputError
from claas_vllm_client.tokens import token_fault, token_text


@dataclass(frozen=True)
class Paths:
    """The files and folders of one pod; the defaults are the contract's."""

    storage: Path = Path(places.STORAGE_DIRECTORY)
    model: Path = Path(places.MODEL_DIRECTORY)
    hub_cache: Path = Path(places.HUB_CACHE_DIRECTORY)
    scratch: Path = Path(places.SCRATCH_DIRECTORY)
    control_token: Path = Path(places.CONTROL_TOKEN_FILE)
    api_key: Path = Path(places.API_KEY_FILE)
    serving_ca: Path = Path(places.SERVING_CA_FILE)
    hub_token: Path = Path(places.HUB_TOKEN_FILE)
    tinker_key: Path = Path(places.TINKER_KEY_FILE)
    modal_token: Path = Path(places.MODAL_TOKEN_DIRECTORY)
    termination_message: Path = Path(places.TERMINATION_MESSAGE_FILE)
    progress_port: int = places.PROGRESS_PORT

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Paths:
        """The contract's paths, overridden by environment variables (`CLAAS_STORAGE_DIRECTORY`, ...)."""

        def path(variable: str, default: str) -> Path:
            return Path(environment.get(variable) or default)

        return cls(
            storage=path("CLAAS_STORAGE_DIRECTORY", places.STORAGE_DIRECTORY),
            model=path("CLAAS_MODEL_DIRECTORY", places.MODEL_DIRECTORY),
            hub_cache=path("CLAAS_HUB_CACHE_DIRECTORY", places.HUB_CACHE_DIRECTORY),
            scratch=path("CLAAS_SCRATCH_DIRECTORY", places.SCRATCH_DIRECTORY),
            control_token=path("CLAAS_CONTROL_TOKEN_FILE", places.CONTROL_TOKEN_FILE),
            api_key=path("CLAAS_API_KEY_FILE", places.API_KEY_FILE),
            serving_ca=path("CLAAS_SERVING_CA_FILE", places.SERVING_CA_FILE),
            hub_token=path("CLAAS_HUB_TOKEN_FILE", places.HUB_TOKEN_FILE),
            tinker_key=path("CLAAS_TINKER_KEY_FILE", places.TINKER_KEY_FILE),
            modal_token=path("CLAAS_MODAL_TOKEN_DIRECTORY", places.MODAL_TOKEN_DIRECTORY),
            termination_message=path("CLAAS_TERMINATION_MESSAGE_FILE", places.TERMINATION_MESSAGE_FILE),
            progress_port=int(environment.get("CLAAS_PROGRESS_PORT") or places.PROGRESS_PORT),
        )

    def adapter_folder(self, storage_path: str) -> Path:
        """The adapter's folder. `storage_path` is relative to the volume's root; an absolute one is used as it is.
        Raises InputError if it contains `..`.
        """
        if ".." in PurePosixPath(storage_path).parts:
            raise InputError("storage_path: must not contain '..'")
        return self.storage / storage_path

    def below_volume(self, folder: Path) -> str:
        """A folder relative to the volume's root, as the operator knows it; unchanged if it is elsewhere."""
        return str(folder.relative_to(self.storage)) if folder.is_relative_to(self.storage) else str(folder)

    def model_folder(self, location: ModelLocation) -> Path | None:
        """The base model's folder; None for a repository on the hub."""
        return None if location.path is None else self.model / location.path

    def mounted_control_token(self, mounted: bool) -> MountedToken | None:
        """The control token; None if none is mounted. Raises InputError."""
        return MountedToken(self.control_token, "spec.serving.controlTokenSecretRef") if mounted else None

    def mounted_api_key(self, mounted: bool) -> MountedToken | None:
        """vLLM's API key; None if none is mounted. Raises InputError."""
        return MountedToken(self.api_key, "spec.serving.apiKeySecretRef") if mounted else None

    def read_serving_ca(self, mounted: bool) -> str | None:
        """The CA of vLLM's certificate in PEM; None if none is mounted. Raises InputError."""
        if not mounted:
            return None
        try:
            return self.serving_ca.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise InputError(
                f"spec.serving.tls: the file {self.serving_ca} can't be read; check the Secret or ConfigMap"
            ) from None

    def read_hub_token(self) -> str | None:
        """The hub's token; None if none is mounted. Raises InputError."""
        if not self.hub_token.exists():
            return None
        return MountedToken(self.hub_token, "spec.model.source.hub.tokenSecretRef")()


class MountedToken:
    """A token in a file of a mounted Secret. Read at each call, because the kubelet replaces the file when the Secret
    changes."""

    def __init__(self, path: Path, field: str) -> None:
        """`field`: the LoraAdapter's field that names the Secret. Raises InputError if the file holds no token."""
        self._path = path
        self._field = field
        self._latest = self._read()

    def __call__(self) -> str:
        """The current token; the last one read if the file holds none now."""
        with suppress(InputError):
            self._latest = self._read()
        return self._latest

    def _read(self) -> str:
        try:
            raw = self._path.read_bytes()
        except OSError as error:
            why = f"can't be read ({type(error).__name__}); look for the key in the Secret"
            raise InputError(f"{self._field}: the file {self._path} {why}") from error
        fault = token_fault(raw)
        if fault is not None:
            raise InputError(f"{self._field}: the Secret's key, mounted as {self._path}, {fault}")
        return token_text(raw)
