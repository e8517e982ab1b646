"""Downloads a base model from the hub into the Modal Volume of base weights, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from claas_trainer.engines.modal.container.base_weights import MARKER_FILE, WeightsMarker, broken_file
from claas_trainer.engines.modal.container.mounted_volume import MountedVolume
from claas_trainer.errors import TrainerError
from claas_trainer.forward.weights.files import Checkpoint
from claas_trainer.logs import log
from claas_trainer.model.hub import MODEL_FILES, hub_errors
from claas_trainer.sdpo.errors import WeightsError
from claas_trainer.store.content import Bytes, fsync_folder, hash_file, write_file
from claas_trainer.store.errors import storage_errors


def fill(volume: MountedVolume, repository: str, revision: str) -> dict[str, object]:
    """Download a repository's revision to the folder `/<repository>` of the Volume. A download that was cut off is
    gone on with; another revision in that folder, or one with damaged files, is replaced in one go. Returns what is
    there now. Raises RuntimeError, which every Python unpickles."""
    try:
        volume.reload()
        marker, downloaded = _fill(volume.root, repository, revision, os.environ.get("HF_TOKEN"))
        volume.commit()
    except TrainerError as error:
        raise RuntimeError(error.message) from None
    log("filled", repository=repository, revision=marker.revision, files=len(marker.files), downloaded=downloaded)
    return {"repository": repository, "revision": marker.revision, "downloaded": downloaded}


def _fill(root: Path, repository: str, revision: str, token: str | None) -> tuple[WeightsMarker, bool]:
    from huggingface_hub import HfApi, snapshot_download

    folder, staging = root / repository, root / f".{repository.replace('/', '--')}"
    with hub_errors(f"{repository}@{revision}", root):
        info = HfApi(token=token or False).model_info(repository, revision=revision, files_metadata=True)
        commit, told = info.sha, {file.rfilename: file for file in info.siblings or []}
        assert commit is not None, "the hub tells the commit of every revision"
        present = _marker(folder)
        if present is not None and present.revision == commit:
            broken = broken_file(folder)
            if broken is None:
                return present, False
            log("damaged", repository=repository, file=broken)
        wanted = [name for name in told if any(fnmatch(name, pattern) for pattern in MODEL_FILES)]
        log("downloading", repository=repository, revision=commit, files=len(wanted))
        snapshot_download(
            repository, revision=commit, local_dir=staging, token=token or False, allow_patterns=list(MODEL_FILES)
        )
    expected = {name: lfs.sha256 if (lfs := told[name].lfs) else None for name in wanted}
    with storage_errors(root):
        marker = _completed(staging, repository, commit, expected)
        _replace(folder, staging)
    return marker, True


def _completed(staging: Path, repository: str, commit: str, expected: Mapping[str, str | None]) -> WeightsMarker:
    """Compare the files with the digests that the hub tells of large ones, and write the marker. Raises OSError, and
    RuntimeError if they are not as they should be."""
    for path in [path for path in staging.rglob("*") if path.is_file()]:
        if path.relative_to(staging).as_posix() not in expected:
            path.unlink()
    files: dict[str, str] = {}
    for name in sorted(expected):
        path = staging / name
        found = hash_file(path) if path.is_file() else None
        if found is None or expected[name] not in (None, found):
            path.unlink(missing_ok=True)
            raise RuntimeError(f"{repository}@{commit}: {name} did not arrive whole; run fill_weights again")
        files[name] = found
    try:
        Checkpoint(staging)
    except WeightsError as error:
        raise RuntimeError(f"{repository}@{commit} can't be used: {error}") from None
    marker = WeightsMarker(repository=repository, revision=commit, files=files)
    write_file(staging / MARKER_FILE, Bytes(marker.model_dump_json(indent=1).encode()))
    fsync_folder(staging)
    return marker


def _marker(folder: Path) -> WeightsMarker | None:
    try:
        return WeightsMarker.model_validate_json((folder / MARKER_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def _replace(folder: Path, staging: Path) -> None:
    """Put the new folder in the place of the old one. Raises OSError."""
    old = staging.with_name(f"{staging.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    fsync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
