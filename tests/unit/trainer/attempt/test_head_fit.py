"""An adapter made on a folder with versions goes on from them only when they are its own in shape and base."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from claas_contract.input import ModelLocation, TrainerInput
from claas_contract.outcome import ExitCode, FailureReason
from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_crds.v1alpha1.lora import LoraSpec
from claas_trainer.attempt.head_fit import check_shape, shape_differences
from claas_trainer.attempt.initialise import initialise
from claas_trainer.attempt.run import run
from claas_trainer.errors import TrainerError
from claas_trainer.messages.events import Reporter
from claas_trainer.messages.result import exit_code, failure
from claas_trainer.paths import Paths
from claas_trainer.store.content import Bytes
from claas_trainer.store.record import VersionRecord
from claas_trainer.store.versions import StoredVersion
from tests.builders.models import build_tiny_qwen3
from tests.unit.trainer.attempts import attempt, job, store

Q_AND_V = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("model"))


def lora(rank: int = 8, alpha: int = 16, modules: list[str] | None = None) -> LoraSpec:
    return LoraSpec(rank=rank, alpha=alpha, target_modules=modules or Q_AND_V)


@pytest.mark.parametrize(
    ("now", "recorded", "stored", "fields"),
    [
        (lora(), lora(), {"r": 8, "lora_alpha": 16, "target_modules": Q_AND_V}, []),
        (lora(), lora(), {}, []),
        (lora(modules=["v_proj", "q_proj"]), lora(), {"r": 8, "lora_alpha": 16, "target_modules": Q_AND_V}, []),
        # Asked for alike, and kept by another spelling.
        (
            lora(modules=["self_attn.q_proj"]),
            lora(modules=["self_attn.q_proj"]),
            {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]},
            [],
        ),
        (lora(32), lora(8), {"r": 8, "lora_alpha": 16, "target_modules": Q_AND_V}, ["rank is 32 and was 8"]),
        # The tensors count, not what a record took over from an adapter that was made anew.
        (lora(32), lora(32), {"r": 8, "lora_alpha": 16, "target_modules": Q_AND_V}, ["rank is 32 and was 8"]),
        (lora(8, 32), lora(), {"r": 8, "lora_alpha": 16}, ["alpha is 32 and was 16"]),
        (
            lora(modules=["q_proj"]),
            lora(),
            {"target_modules": Q_AND_V},
            ["targetModules is q_proj and was q_proj, v_proj"],
        ),
        (
            lora(modules=["q_proj"]),
            lora(),
            {"target_modules": "all-linear"},
            ["targetModules is q_proj and was all-linear"],
        ),
        (lora(32, 64, ["o_proj"]), lora(), {}, ["rank is 32", "alpha is 64", "targetModules is o_proj"]),
    ],
)
def test_each_field_of_the_shape_that_differs_is_named_with_both_values(
    now: LoraSpec, recorded: LoraSpec, stored: dict[str, object], fields: list[str]
) -> None:
    differences = shape_differences(now, recorded, stored, lambda: _meant(now))
    assert len(differences) == len(fields)
    for difference, field in zip(differences, fields, strict=True):
        assert difference.startswith("spec.lora.")
        assert field in difference


def _meant(asked: LoraSpec) -> list[str]:
    """On a model with three kinds of layers."""
    match asked.target_modules:
        case None | "all-linear":
            return ["o_proj", *Q_AND_V]
        case str() as pattern:
            return [name for name in ("o_proj", *Q_AND_V) if re.fullmatch(pattern, name)]
        case names:
            return [name.rpartition(".")[2] for name in names]


@pytest.mark.parametrize("asked", [None, "all-linear", "[oqv]_proj", ["v_proj", "o_proj", "q_proj"]])
@pytest.mark.parametrize("recorded", [None, "all-linear", ["o_proj", "q_proj", "v_proj"]])
def test_the_same_layers_in_other_words_are_no_difference(
    asked: list[str] | str | None, recorded: list[str] | str | None
) -> None:
    now, then = (LoraSpec(rank=8, alpha=16, target_modules=modules) for modules in (asked, recorded))
    stored: dict[str, object] = {"r": 8, "lora_alpha": 16, "target_modules": ["o_proj", *Q_AND_V]}
    assert shape_differences(now, then, stored, lambda: _meant(now)) == []
    # A step does not load the model's parts to compare words.
    assert shape_differences(now, then, stored, None) == []


@pytest.mark.parametrize(("asked", "said"), [(None, "left out"), ("all-linear", "all-linear"), ("[oq]_proj", "[oq]")])
def test_other_layers_in_other_words_are_a_difference(asked: str | None, said: str) -> None:
    now = LoraSpec(rank=8, alpha=16, target_modules=asked)
    stored: dict[str, object] = {"r": 8, "lora_alpha": 16, "target_modules": Q_AND_V}
    [difference] = shape_differences(now, lora(), stored, lambda: _meant(now))
    assert difference.startswith(f"spec.lora.targetModules is {said}")
    assert difference.endswith("was q_proj, v_proj")


def test_layers_that_the_model_is_asked_for_are_compared_by_what_they_come_to(
    model: Path, paths: Paths, reporter: Reporter
) -> None:
    everything = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    task = job(model, paths).model_copy(update={"lora": lora(modules=everything)})
    initialise(task, paths, reporter)
    for words in (None, "all-linear"):
        anew = LoraSpec(rank=8, alpha=16, target_modules=words)
        assert initialise(task.model_copy(update={"lora": anew}), paths, reporter).already_published
    fewer = LoraSpec(rank=8, alpha=16, target_modules=r".*\.[qv]_proj")
    assert "targetModules" in refused(task.model_copy(update={"lora": fewer}), paths, reporter).message


def refused(task: TrainerInput, paths: Paths, reporter: Reporter) -> TrainerError:
    """The error of an init that changes nothing on the volume."""
    before = {path: path.stat().st_mtime_ns for path in paths.storage.rglob("*")}
    with pytest.raises(TrainerError) as caught:
        initialise(task, paths, reporter)
    assert {path: path.stat().st_mtime_ns for path in paths.storage.rglob("*")} == before
    assert exit_code(failure(caught.value)) is ExitCode.PERMANENT
    return caught.value


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (lora(32), "spec.lora.rank is 32 and was 8"),
        (lora(8, 64), "spec.lora.alpha is 64 and was 16"),
        (lora(modules=["q_proj", "o_proj"]), "spec.lora.targetModules is o_proj, q_proj and was q_proj, v_proj"),
    ],
)
async def test_an_adapter_made_anew_with_another_shape_is_refused_and_names_the_field(
    spec: LoraSpec, field: str, model: Path, paths: Paths, reporter: Reporter
) -> None:
    task = job(model, paths).model_copy(update={"lora": lora()})
    initialise(task, paths, reporter)
    anew = task.model_copy(update={"lora": spec})
    error = refused(anew, paths, reporter)
    assert error.reason is FailureReason.ADAPTER_MISMATCH
    assert field in error.message
    assert "spec.storage.path" in error.message
    # Nor does a step go on with the old shape and record the new one.
    with pytest.raises(TrainerError) as caught:
        await run(anew, paths, reporter)
    assert (caught.value.reason, field in caught.value.message) == (FailureReason.ADAPTER_MISMATCH, True)
    assert store(paths).numbers() == [0]
    again = initialise(task, paths, reporter)
    assert again.already_published


@pytest.mark.parametrize(
    ("spec", "differs"),
    [
        (LoraSpec(rank=8), None),
        # Alpha and layers are the service's own, whatever the adapter or an exported configuration say.
        (LoraSpec(rank=8, alpha=128, target_modules=["q_proj"]), None),
        (LoraSpec(rank=16), "spec.lora.rank is 16 and was 8"),
    ],
)
def test_of_an_engine_that_chooses_the_shape_only_the_rank_is_compared(
    spec: LoraSpec, differs: str | None, paths: Paths
) -> None:
    version = _made_by("tinker", paths)
    if differs is None:
        check_shape(EngineName.TINKER, spec, version)
    else:
        with pytest.raises(TrainerError, match=differs) as caught:
            check_shape(EngineName.TINKER, spec, version)
        assert caught.value.reason is FailureReason.ADAPTER_MISMATCH


@pytest.mark.parametrize(("now", "then"), [("local", "tinker"), ("tinker", "local")])
async def test_no_engine_goes_on_from_another_ones_version(
    now: str, then: str, model: Path, paths: Paths, reporter: Reporter
) -> None:
    _made_by(then, paths)
    task = job(model, paths).model_copy(update={"engine": EngineSpec.of(EngineName(now))})
    error = refused(task, paths, reporter)
    assert error.reason is FailureReason.ADAPTER_MISMATCH
    assert f"spec.engine is {now} and was {then}" in error.message
    with pytest.raises(TrainerError, match=f"spec.engine is {now} and was {then}"):
        await run(task, paths, reporter)


def _made_by(engine: str, paths: Paths) -> StoredVersion:
    """Version 0 with an adapter of rank 8 by this engine."""
    versions = store(paths)
    versions.prepare(owner="adapter", attempt=1, needed_bytes=0)
    record = VersionRecord(
        number=0,
        lora_id="user/coder",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        engine=engine,
        base_model="base",
        lora=LoraSpec(rank=8),
    )
    config = {"r": 8, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}
    return versions.publish(record, {"adapter_config.json": Bytes(json.dumps(config).encode())}, owner="a").version


def _at(task: TrainerInput, folder: Path) -> TrainerInput:
    return task.model_copy(update={"model": ModelLocation(path=str(folder))})


async def test_a_base_model_is_told_by_its_weights_once_a_step_was_taken_on_them(
    paths: Paths, reporter: Reporter, tmp_path: Path
) -> None:
    first = build_tiny_qwen3(tmp_path / "first")
    task = job(first, paths)
    await attempt(task, paths, reporter)
    # The same model in another folder is the same model.
    moved = first.rename(tmp_path / "moved")
    assert initialise(_at(task, moved), paths, reporter).already_published
    # Another one where the first was is another.
    build_tiny_qwen3(first, seed=1)
    error = refused(task, paths, reporter)
    assert error.reason is FailureReason.ADAPTER_MISMATCH
    assert "spec.model.source" in error.message


def test_a_base_model_is_told_by_name_and_configuration_before_the_first_step(
    paths: Paths, reporter: Reporter, tmp_path: Path
) -> None:
    first, second = (build_tiny_qwen3(tmp_path / name) for name in ("first", "second"))
    task = job(first, paths)
    initialise(task, paths, reporter)
    error = refused(_at(task, second), paths, reporter)
    assert error.reason is FailureReason.ADAPTER_MISMATCH
    assert f"spec.model.source is {second} and was {first}" in error.message
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps(config | {"transformers_version": "9.9"}, indent=3))
    assert initialise(task, paths, reporter).already_published
    (first / "config.json").write_text(json.dumps(config | {"hidden_size": 128}))
    error = refused(task, paths, reporter)
    assert error.reason is FailureReason.ADAPTER_MISMATCH
    assert "another configuration" in error.message


def test_a_repository_is_told_by_its_name(model: Path, paths: Paths, reporter: Reporter) -> None:
    task = job(model, paths)
    initialise(task, paths, reporter)
    error = refused(task.model_copy(update={"model": ModelLocation(repository="team/other")}), paths, reporter)
    assert "spec.model.source is team/other" in error.message


FOREIGN = {
    "peft_type": "LORA",
    "base_model_name_or_path": "team/base",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": Q_AND_V,
    "use_rslora": True,
    "modules_to_save": None,
}


@pytest.mark.parametrize("place", [".", "versions/0", "versions/3", "checkpoint-500", "versions/checkpoint-500"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            json.dumps(FOREIGN),
            "rank 8, alpha 16, target modules q_proj, v_proj, use_rslora True",
        ),
        (json.dumps({"peft_type": "IA3"}), "type IA3"),
        ("{", "no readable adapter_config.json"),
        ("[]", "no readable adapter_config.json"),
        ("{}", "no shape"),
    ],
    ids=["a LoRA", "another kind", "cut short", "a list", "empty"],
)
def test_an_adapter_of_another_trainer_is_neither_ignored_nor_called_broken(
    place: str, content: str, said: str, paths: Paths, reporter: Reporter, tmp_path: Path
) -> None:
    folder = paths.adapter_folder("team/coder") / place
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(content)
    error = refused(job(tmp_path, paths), paths, reporter)
    assert error.reason is FailureReason.FOREIGN_ADAPTER
    assert str(folder) in error.message
    assert said in error.message
    assert "spec.storage.path" in error.message


def test_weights_without_a_configuration_are_an_adapter_too(paths: Paths, reporter: Reporter, tmp_path: Path) -> None:
    folder = paths.adapter_folder("team/coder")
    folder.mkdir(parents=True)
    (folder / "adapter_model.bin").write_bytes(b"x")
    assert refused(job(tmp_path, paths), paths, reporter).reason is FailureReason.FOREIGN_ADAPTER


def _left_by_a_dead_writer(folder: Path) -> None:
    staging = folder / "versions" / ".staging-adapter-uid-1-0123abcd"
    staging.mkdir(parents=True)
    (staging / "adapter_config.json").write_text("{}")


def _beside_it(folder: Path) -> None:
    (folder.parent / "other").mkdir(parents=True)
    (folder.parent / "other" / "adapter_config.json").write_text("{}")


def _something_else(folder: Path) -> None:
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "readme.txt").write_text("x")


@pytest.mark.parametrize("put", [_left_by_a_dead_writer, _beside_it, _something_else])
def test_what_is_no_foreign_adapter_is_in_nobody_s_way(
    put: Callable[[Path], None], model: Path, paths: Paths, reporter: Reporter
) -> None:
    put(paths.adapter_folder("team/coder"))
    made = initialise(job(model, paths), paths, reporter)
    assert made.version is not None
    assert not made.already_published
