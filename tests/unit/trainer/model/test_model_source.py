"""Where the base model comes from: a folder, or the hub's cache when the hub can't be asked."""

from __future__ import annotations

import httpx2
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError

from claas_contract.input import ModelLocation
from claas_contract.outcome import FailureReason
from claas_trainer.errors import TrainerError
from claas_trainer.model.source import find_model
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
    ("location", "named", "reason"),
    [
        (ModelLocation(repository="team/absent"), "team/absent can't be downloaded", FailureReason.HUB_UNREACHABLE),
        (ModelLocation(repository="team/base", revision="v9"), "team/base@v9 can't", FailureReason.HUB_UNREACHABLE),
        (ModelLocation(repository="not a//name"), "not a//name can't be", FailureReason.MODEL_NOT_FOUND),
        (ModelLocation(path="absent"), "model.path: .*absent has no config.json", FailureReason.MODEL_NOT_FOUND),
    ],
)
def test_a_model_that_cannot_be_had_is_named_with_what_to_check(
    location: ModelLocation, named: str, reason: FailureReason, paths: Paths
) -> None:
    with pytest.raises(TrainerError, match=named) as caught:
        find_model(location, paths)
    assert caught.value.reason is reason


def test_a_hub_that_refuses_is_told_from_one_that_does_not_answer(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> str:
        request = httpx2.Request("GET", "https://hub.invalid/api")
        raise RepositoryNotFoundError("no such repository", response=httpx2.Response(404, request=request))

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(TrainerError, match="HTTP 404") as caught:
        find_model(ModelLocation(repository="team/absent"), paths)
    assert caught.value.reason is FailureReason.MODEL_NOT_FOUND


def test_an_initial_version_downloads_no_weights(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def remember(*arguments: object, allow_patterns: list[str], **options: object) -> str:
        asked.extend(allow_patterns)
        return "/nowhere"

    monkeypatch.setattr("huggingface_hub.snapshot_download", remember)
    find_model(ModelLocation(repository="team/base"), paths, weights=False)
    assert asked
    assert "*.safetensors" not in asked


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
