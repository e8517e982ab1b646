"""The base model's folder: on a volume, or a repository of the hub downloaded into the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from claas_contract.input import ModelLocation
from claas_contract.outcome import FailureReason
from claas_trainer.errors import InputError, not_found
from claas_trainer.paths import Paths
from claas_trainer.store.errors import is_storage_fault, store_error

_CONFIGURATION = ("*.json", "*.jinja", "*.txt", "*.model")
MODEL_FILES = (*_CONFIGURATION, "*.safetensors")
"""Patterns of the names of a model's files, as far as the trainer reads them."""
_REFUSALS = range(400, 500)


def find_model(location: ModelLocation, paths: Paths, *, weights: bool = True) -> Path:
    """The folder with config, tokenizer and weights; a hub repository is downloaded into the cache first.

    Without `weights` the download omits them. Raises InputError (MODEL_NOT_FOUND, or HUB_UNREACHABLE if the hub does
    not answer, which may pass).
    """
    folder = paths.model_folder(location)
    if folder is None:
        return _snapshot(location, paths, MODEL_FILES if weights else _CONFIGURATION)
    if not (folder / "config.json").is_file():
        raise not_found(f"model.path: {folder} has no config.json; check spec.model.source and the volume")
    return folder


def _snapshot(location: ModelLocation, paths: Paths, files: Sequence[str]) -> Path:
    if not location.repository:
        raise InputError("model: neither path nor repository is given")
    from huggingface_hub import snapshot_download

    cache = paths.hub_cache if paths.hub_cache.is_dir() else paths.scratch / "hub"
    token = paths.read_hub_token()
    name = location.repository + (f"@{location.revision}" if location.revision else "")
    with hub_errors(name, cache):
        return Path(
            snapshot_download(
                location.repository,
                revision=location.revision,
                cache_dir=cache,
                token=token or False,
                allow_patterns=list(files),
            )
        )


@contextmanager
def hub_errors(name: str, where: Path) -> Iterator[None]:
    """Context manager around calls of the hub's client for a repository, whose files go to folder `where`. Raises
    TrainerError for all that can go wrong there."""
    # The hub's client uses httpx2 and raises that library's errors.
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise not_found(f"model.repository: {name} can't be downloaded; it is not a repository name") from error
    except (HTTPError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in _REFUSALS:
            raise not_found(
                f"model.repository: {name} can't be downloaded (HTTP {error.response.status_code}); check name, "
                "revision and token"
            ) from error
        if isinstance(error, OSError) and is_storage_fault(error):
            raise store_error(error, where) from error
        raise InputError(
            f"model.repository: {name} can't be downloaded ({type(error).__name__}) and is not in the cache; check"
            " that the pod can reach the hub",
            FailureReason.HUB_UNREACHABLE,
        ) from error
