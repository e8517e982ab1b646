"""The base model on the Volume of base weights, and what a snapshot of its reader may hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from claas_contract.outcome import FailureReason
from claas_trainer.engines.modal.container.base_weights import MARKER_FILE, BaseModelOnVolume, WeightsMarker
from claas_trainer.errors import TrainerError
from claas_trainer.store.content import hash_file
from tests.builders.models import build_tiny_qwen3
from tests.unit.trainer.tiny_models import build_gemma

REPOSITORY = "acme/tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_tiny_qwen3(tmp_path / REPOSITORY)


def read(root: Path) -> BaseModelOnVolume:
    return BaseModelOnVolume.read(root, "claas-weights", REPOSITORY, cuda=False)


def mark(folder: Path) -> None:
    files = {path.name: hash_file(path) for path in folder.iterdir() if path.name != MARKER_FILE}
    marker = WeightsMarker(repository=REPOSITORY, revision="1" * 40, files=files)
    (folder / MARKER_FILE).write_text(marker.model_dump_json())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_a_folder_that_somebody_uploaded_is_read_without_a_list_of_digests(folder: Path, tmp_path: Path) -> None:
    assert read(tmp_path).held is not None


def test_a_downloaded_folder_is_compared_with_its_digests(folder: Path, tmp_path: Path) -> None:
    mark(folder)
    assert read(tmp_path).held is not None


@pytest.mark.parametrize(
    ("name", "damage", "marked"),
    [
        ("model.safetensors", Path.unlink, False),
        ("model.safetensors", Path.unlink, True),
        ("model.safetensors", cut, False),
        ("model.safetensors", cut, True),
        ("model.safetensors", change, True),
        ("config.json", Path.unlink, False),
        ("config.json", change, True),
        ("tokenizer.json", Path.unlink, True),
        (MARKER_FILE, cut, True),
    ],
)
def test_a_model_that_is_not_whole_is_refused_with_its_place(
    folder: Path, tmp_path: Path, name: str, damage: Callable[[Path], None], marked: bool
) -> None:
    if marked:
        mark(folder)
    damage(folder / name)
    with pytest.raises(TrainerError, match=REPOSITORY) as caught:
        read(tmp_path)
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND


def test_a_model_that_is_not_there_is_told_with_both_ways_to_fill_the_volume(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"fill_weights.*modal volume put claas-weights FOLDER /acme/tiny"):
        read(tmp_path)


def test_another_model_in_the_same_folder_is_noticed(folder: Path, tmp_path: Path) -> None:
    mark(folder)
    model = read(tmp_path)
    assert model.is_current()
    document = json.loads((folder / MARKER_FILE).read_text())
    (folder / MARKER_FILE).write_text(json.dumps({**document, "revision": "2" * 40}))
    assert not model.is_current()
    (folder / "config.json").unlink()
    assert not model.is_current()


def test_a_model_that_only_the_generic_forward_knows_is_not_held(tmp_path: Path) -> None:
    build_gemma(tmp_path / REPOSITORY)
    assert read(tmp_path).held is None
