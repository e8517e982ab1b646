"""The base model from a hub to the Volume of base weights, by the hub's real client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from claas_trainer.engines.modal.container.base_weights import BaseModelOnVolume
from claas_trainer.engines.modal.container.hub_download import fill
from tests.builders.models import build_tiny_qwen3
from tests.builders.training.hub import COMMIT, ModelHub
from tests.unit.trainer.engines.modal.container.modal_volume import FolderVolume

REPOSITORY = "acme/tiny"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_tiny_qwen3(tmp_path_factory.mktemp("hub"))
    (folder / "README.md").write_text("not needed")
    return folder


@pytest.fixture
def hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    with ModelHub(model, REPOSITORY) as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield made


@pytest.fixture
def volume(tmp_path: Path) -> FolderVolume:
    return FolderVolume("claas-weights", tmp_path / "weights")


def filled(volume: FolderVolume) -> dict[str, object]:
    return fill(volume.mounted(), REPOSITORY, "main")


def test_a_model_is_downloaded_committed_and_read(hub: ModelHub, volume: FolderVolume, model: Path) -> None:
    assert filled(volume) == {"repository": REPOSITORY, "revision": COMMIT, "downloaded": True}
    folder = volume.root / REPOSITORY
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert not (folder / "README.md").exists()
    assert [path.name for path in volume.root.iterdir()] == ["acme"]
    assert volume.commits == 1
    assert BaseModelOnVolume.read(volume.root, volume.name, REPOSITORY, cuda=False).held is not None


def test_a_model_that_is_there_is_not_downloaded_again(hub: ModelHub, volume: FolderVolume) -> None:
    filled(volume)
    hub.downloads.clear()
    assert filled(volume)["downloaded"] is False
    assert hub.downloads == []


@pytest.mark.parametrize("lost", [True, False])
def test_a_model_whose_files_were_damaged_is_downloaded_again(
    lost: bool, hub: ModelHub, volume: FolderVolume, model: Path
) -> None:
    filled(volume)
    weights = volume.root / REPOSITORY / "model.safetensors"
    weights.unlink()
    if not lost:
        weights.write_bytes(b"cut off")
    assert filled(volume)["downloaded"] is True
    assert weights.read_bytes() == (model / "model.safetensors").read_bytes()


def test_another_revision_takes_the_place_of_the_old_one(hub: ModelHub, volume: FolderVolume) -> None:
    filled(volume)
    (volume.root / REPOSITORY / "old.safetensors").write_bytes(b"")
    hub.commit = "d" * 40
    assert filled(volume)["revision"] == "d" * 40
    assert not (volume.root / REPOSITORY / "old.safetensors").exists()
    assert [path.name for path in volume.root.iterdir()] == ["acme"]


def test_a_file_that_did_not_arrive_whole_leaves_what_was_there_and_is_downloaded_again(
    hub: ModelHub, volume: FolderVolume
) -> None:
    hub.damaged.add("model.safetensors")
    with pytest.raises(RuntimeError, match=r"model\.safetensors did not arrive whole"):
        filled(volume)
    assert not (volume.root / REPOSITORY).exists()
    hub.damaged.clear()
    hub.downloads.clear()
    assert filled(volume)["downloaded"] is True
    assert hub.downloads == ["model.safetensors"]


def test_a_hub_that_refuses_is_told_with_what_to_check(hub: ModelHub, volume: FolderVolume) -> None:
    hub.token = "hf_right"
    with pytest.raises(RuntimeError, match=r"HTTP 401.*token"):
        filled(volume)
    assert list(volume.root.iterdir()) == []


def test_the_token_of_the_secret_is_shown_to_the_hub(
    hub: ModelHub, volume: FolderVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert filled(volume)["downloaded"] is True
