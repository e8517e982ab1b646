"""Which adapters are loaded, and which checkpoint answers for a model's name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from pydantic import ValidationError

from claas_bounded.waits import Deadline
from claas_inference_proxy.errors import RefusalError, not_found
from claas_inference_proxy.upstream.service import Service
from claas_tinker_client.errors import ServiceFault, TinkerServiceError
from claas_tinker_client.version_file import VERSION_FILE, TinkerVersion


@dataclass(frozen=True)
class Model:
    """What answers for a name: the base model, or an adapter."""

    name: str
    path: str
    """The folder that it was loaded from."""
    checkpoint: str | None
    """None: the base model's own weights."""
    is_adapter: bool


class Models:
    """The base model and the loaded adapters. An adapter needs no memory: loading one opens a sampler for its
    checkpoint, which shows that the service still has it."""

    def __init__(self, service: Service, name: str, path: str) -> None:
        self.base = Model(name, path, None, is_adapter=False)
        self._service = service
        self._adapters: dict[str, Model] = {}

    def __iter__(self) -> Iterator[Model]:
        yield self.base
        yield from self._adapters.values()

    def get(self, name: str | None) -> Model:
        """The model of that name; None means the base model. Raises RefusalError."""
        if name is None or name == self.base.name:
            return self.base
        found = self._adapters.get(name)
        if found is None:
            raise not_found(f"The model `{name}` does not exist.", "model")
        return found

    async def load(self, name: str, path: str, deadline: Deadline) -> None:
        """Load the version in a folder. Raises RefusalError, and TinkerServiceError."""
        if not name or not path:
            raise _invalid("Both 'lora_name' and 'lora_path' must be provided.")
        if name == self.base.name:
            raise _invalid(f"{name} is the name of the base model.")
        self._refuse_loaded(name)
        version = self._read(name, path)
        try:
            await self._service.prepare(version.sampler_path, deadline)
        except TinkerServiceError as error:
            if error.fault is ServiceFault.CHECKPOINT_EXPIRED:
                raise not_found(f"Loading lora {name} failed: {error}") from None
            raise
        # Another request may have loaded it meanwhile.
        self._refuse_loaded(name)
        self._adapters[name] = Model(name, path, version.sampler_path, is_adapter=True)

    def unload(self, name: str) -> None:
        """Forget an adapter; answers that it began go on. Raises RefusalError."""
        if not name:
            raise _invalid("'lora_name' needs to be provided to unload a LoRA adapter.")
        found = self._adapters.pop(name, None)
        if found is None:
            raise not_found(f"The lora adapter '{name}' cannot be found.")
        checkpoint = found.checkpoint
        if checkpoint is not None and all(each.checkpoint != checkpoint for each in self):
            self._service.forget(checkpoint)

    def _refuse_loaded(self, name: str) -> None:
        if name in self._adapters:
            raise _invalid(f"The lora adapter '{name}' has already been loaded.")

    def _read(self, name: str, path: str) -> TinkerVersion:
        try:
            version = TinkerVersion.read(Path(path))
        except OSError as error:
            raise not_found(
                f"Loading lora {name} failed: {path}/{VERSION_FILE} can't be read ({type(error).__name__})"
            ) from None
        except ValidationError:
            raise RefusalError(f"Loading lora {name} failed: {path}/{VERSION_FILE} is not of this form") from None
        if version.base_model != self._service.base_model:
            raise RefusalError(
                f"Loading lora {name} failed: it is an adapter of {version.base_model}, and this proxy answers with"
                f" {self._service.base_model}"
            )
        return version


def _invalid(message: str) -> RefusalError:
    return RefusalError(message, status=HTTPStatus.BAD_REQUEST, kind="InvalidUserInput")
