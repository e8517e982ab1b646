"""Where the base model comes from: a folder, or the hub's cache when the hub can't be asked."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from claas_crds.contract import FailureReason, ModelLocation
from claas_trainer.errors import TrainerError
from claas_trainer.model_source import find_model
from claas_trainer.paths import Paths

COMMIT = "0" * 40


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_repository_in_the_cache_is_found_without_the_hub(paths: Paths) -> None:
    repository = paths.hub_cache / "models--team--base"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert find_model(ModelLocation(repository="team/base"), paths) == snapshot
    assert find_model(ModelLocation(repository="team/base", revision=COMMIT), paths) == snapshot


@pytest.mark.parametrize(
    ("location", "named"),
    [
        (ModelLocation(repository="team/absent"), "model.repository: team/absent can't be downloaded"),
        (ModelLocation(repository="team/base", revision="v9"), "model.repository: team/base@v9 can't be downloaded"),
        (ModelLocation(repository="not a//name"), "model.repository: not a//name can't be downloaded"),
        (ModelLocation(path="absent"), "model.path: .*absent has no config.json"),
    ],
)
def test_a_model_that_cannot_be_had_is_named_with_what_to_check(
    location: ModelLocation, named: str, paths: Paths
) -> None:
    with pytest.raises(TrainerError, match=named) as caught:
        find_model(location, paths)
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND


def test_a_cache_that_is_full_is_the_volume_s_fault_and_not_the_model_s(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", _fill_the_disk)
    with pytest.raises(TrainerError, match="no space left") as caught:
        find_model(ModelLocation(repository="team/base"), paths)
    assert caught.value.reason is FailureReason.STORAGE_FULL


def _fill_the_disk(*arguments: object, **options: object) -> str:
    with open("/dev/full", "wb", buffering=0) as disk:
        disk.write(b"x")
    raise AssertionError("/dev/full took a byte")
