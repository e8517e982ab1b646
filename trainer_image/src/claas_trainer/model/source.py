"""The base model's folder: on a volume, or a repository of the hub downloaded into the cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from claas_contract.input import ModelLocation
from claas_trainer.errors import InputError, not_found
from claas_trainer.model.hub import CONFIGURATION_FILES, MODEL_FILES, hub_errors
from claas_trainer.paths import Paths


def find_model(location: ModelLocation, paths: Paths, *, weights: bool = True) -> Path:
    """The folder with config, tokenizer and weights; a hub repository is downloaded into the cache first.

    Without `weights` the download omits them. Raises InputError (MODEL_NOT_FOUND, or HUB_UNREACHABLE if the hub does
    not answer, which may pass).
    """
    folder = paths.model_folder(location)
    if folder is None:
        return _snapshot(location, paths, MODEL_FILES if weights else CONFIGURATION_FILES)
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
