"""An attempt from input to result in this process: the real engine on a random tiny model, nothing served."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue
from safetensors.torch import load_file

from claas_contract.input import ModelLocation, TrainerInput
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.engine import EngineName
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.serving import HandoverKind
from claas_crds.v1alpha1.step import JobPhase
from claas_trainer.attempt.initialise import initial_seed, initialise
from claas_trainer.attempt.run import run
from claas_trainer.engines.local import local_step
from claas_trainer.engines.local.engine import LocalEngine
from claas_trainer.engines.local.version_files import EarlierVersions, read_parent
from claas_trainer.engines.local.weight_access import open_weights
from claas_trainer.engines.registry import chosen_engine
from claas_trainer.errors import TrainerError
from claas_trainer.forward.weights.host import HostWeights
from claas_trainer.forward.weights.mapped import MappedWeights
from claas_trainer.forward.weights.source import WeightSource
from claas_trainer.messages.events import Event, PauseAnnounced, PhaseReached, Published, Reporter, decode
from claas_trainer.paths import Paths
from tests.builders.models import build_tiny_qwen3
from tests.unit.trainer.attempts import attempt, job, record, store
from tests.unit.trainer.conftest import document
from tests.unit.trainer.sleeping_server import sleeping_server


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("model"))


def hashes(paths: Paths, number: int) -> Mapping[str, str]:
    return record(paths, number).files


async def test_the_same_input_and_seed_give_the_same_bytes(model: Path, paths: Paths, reporter: Reporter) -> None:
    again = replace(paths, storage=paths.storage / "again")
    first = await attempt(job(model, paths), paths, reporter)
    second = await attempt(job(model, paths), again, reporter)
    assert hashes(paths, 0) == hashes(again, 0)
    assert hashes(paths, 1) == hashes(again, 1)
    assert first.version is not None
    assert second.version is not None
    assert first.version.metrics == second.version.metrics


async def test_a_job_that_was_published_takes_no_second_step_even_with_samples_that_are_gone(
    model: Path, paths: Paths, reporter: Reporter
) -> None:
    await attempt(job(model, paths), paths, reporter)
    task = job(model, paths)
    (paths.scratch / "samples.json").unlink()
    result = await run(task, paths, reporter)
    assert result.already_published
    assert result.samples.total == 2
    assert store(paths).numbers() == [0, 1]


async def test_a_step_beside_serving_gives_the_bytes_of_one_that_serving_sleeps_for(
    model: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[WeightSource] = []

    def open_and_tell(*arguments: Any) -> WeightSource:
        opened.append(open_weights(*arguments))
        return opened[-1]

    monkeypatch.setattr(local_step, "open_weights", open_and_tell)
    told: dict[HandoverKind, list[Event]] = {}
    made: dict[HandoverKind, Mapping[str, str]] = {}
    gaps: dict[HandoverKind, float | None] = {}
    for kind in (HandoverKind.SLEEP, HandoverKind.SHARE, HandoverKind.NONE):
        own = replace(paths, storage=paths.storage / kind.value)
        with sleeping_server() as server:
            serving = document(server.url).serving
            assert serving is not None
            task = job(model, own).model_copy(update={"serving": serving.model_copy(update={"handover": kind})})
            reading, writing = os.pipe()
            with pytest.raises(TrainerError) as caught:
                await attempt(task, own, Reporter(writing))
            os.close(writing)
            # That server takes no adapter; all before the swap has happened.
            assert caught.value.reason is FailureReason.VERSION_REJECTED
            assert ("POST /sleep" in server.calls) == (kind is HandoverKind.SLEEP)
        with os.fdopen(reading, "rb") as lines:
            told[kind] = [decode(line) for line in lines]
        made[kind], gaps[kind] = hashes(own, 1), record(own, 1).timings.serving_gap
    assert [type(source) for source in opened] == [HostWeights, MappedWeights, HostWeights]
    assert made[HandoverKind.SLEEP] == made[HandoverKind.SHARE] == made[HandoverKind.NONE]
    assert gaps[HandoverKind.SHARE] == gaps[HandoverKind.NONE] == 0 < (gaps[HandoverKind.SLEEP] or 0)
    phases = {
        kind: [event.phase for event in events if isinstance(event, PhaseReached)] for kind, events in told.items()
    }
    assert phases[HandoverKind.SHARE] == phases[HandoverKind.NONE]
    pauses = (JobPhase.PAUSING, JobPhase.RESUMING)
    assert [each for each in phases[HandoverKind.SLEEP] if each not in pauses] == phases[HandoverKind.SHARE]
    assert [each for each in phases[HandoverKind.SLEEP] if each in pauses] == list(pauses)
    paused = {kind for kind, events in told.items() if any(isinstance(event, PauseAnnounced) for event in events)}
    assert paused == {HandoverKind.SLEEP}


async def test_memory_is_given_back_when_the_new_version_was_loaded_for_that_takes_long(
    model: Path, paths: Paths, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    close = LocalEngine.close

    async def note_and_close(self: LocalEngine) -> None:
        seen.extend(server.calls)
        await close(self)

    monkeypatch.setattr(LocalEngine, "close", note_and_close)
    with sleeping_server() as server:
        task = job(model, paths).model_copy(update={"serving": document(server.url).serving})
        with pytest.raises(TrainerError):
            await attempt(task, paths, reporter)
    assert "POST /v1/load_lora_adapter" in seen


async def test_an_attempt_tells_how_far_the_step_is(model: Path, paths: Paths) -> None:
    task = job(model, paths)
    reading, writing = os.pipe()
    await attempt(task, paths, Reporter(writing))
    os.close(writing)
    with os.fdopen(reading, "rb") as lines:
        events = [decode(line) for line in lines]
    told = [event.detail for event in events if isinstance(event, PhaseReached) and event.phase is JobPhase.TRAINING]
    assert told[-1] == "micro-batch 1 of 1"


async def test_a_second_step_goes_on_from_the_first_one_s_optimiser_state(
    model: Path, paths: Paths, reporter: Reporter
) -> None:
    await attempt(job(model, paths), paths, reporter)
    result = await run(job(model, paths, uid="job-2", parent=1), paths, reporter)
    assert result.version is not None
    assert (result.version.number, result.version.parent) == (2, 1)
    state = {"optimizer_exp_avg.safetensors", "optimizer_exp_avg_sq.safetensors", "optimizer_master.safetensors"}
    assert state < set(hashes(paths, 2))


async def test_a_job_from_an_older_version_gets_the_next_free_number(
    model: Path, paths: Paths, reporter: Reporter
) -> None:
    await attempt(job(model, paths), paths, reporter)
    result = await run(job(model, paths, uid="job-2", parent=0), paths, reporter)
    assert result.version is not None
    assert (result.version.number, result.version.parent) == (2, 0)


def answered(version: int | None, number: int) -> dict[str, JsonValue]:
    """A sample with recorded token ids, whose log-probabilities were not recorded."""
    return {
        "user_prompt": "Why?",
        "response": "So.",
        "feedback": "kinder",
        "response_token_ids": [20 + number, 40, 60],
        "version": version,
        "id": f"fb-{number}",
    }


async def test_log_probabilities_are_computed_under_the_version_that_answered(
    model: Path, paths: Paths, reporter: Reporter
) -> None:
    await attempt(job(model, paths), paths, reporter)
    for number in (2, 3):
        await run(job(model, paths, uid=f"job-{number}", parent=number - 1), paths, reporter)
    versions = paths.adapter_folder("team/coder") / "versions"
    # What is not needed of a version may be damaged, and what is needed may not.
    (versions / "1" / "optimizer_master.safetensors").write_bytes(b"damaged")
    (versions / "2" / "adapter_model.safetensors").write_bytes(b"damaged")
    task = job(model, paths, uid="job-4", parent=3)
    batch = [answered(version, number) for number, version in enumerate((1, 2, 3, 9, None))]
    (paths.scratch / "samples.json").write_text(json.dumps(batch))
    result = await run(task, paths, reporter)
    counts = result.samples
    assert (counts.total, counts.recorded, counts.computed, counts.reconstructed) == (5, 0, 2, 3)
    assert counts.lost_versions == 2, "version 2 is damaged, version 9 is not there"
    made = record(paths, 4)
    assert made.samples == counts
    assert made.feedback_ids == [f"fb-{number}" for number in range(5)]
    assert made.local is not None
    assert made.local.answered_by == {1: record(paths, 1).digest}
    assert made.metrics["ratio_max"] > 1
    # One sample of five has a ratio other than 1.
    assert 0 < abs(made.metrics["ratio_mean"] - 1) < (made.metrics["ratio_max"] - 1)


async def test_a_version_of_another_shape_gives_no_log_probabilities(
    model: Path, paths: Paths, reporter: Reporter
) -> None:
    task = job(model, paths)
    await attempt(task, paths, reporter)
    other = replace(paths, storage=paths.storage / "other")
    initialise(task.model_copy(update={"lora": LoraSpec(rank=4, alpha=16)}), other, reporter)
    parent, _ = read_parent(store(paths).read(1))
    found = EarlierVersions.read({0: store(paths).read(0), 7: store(other).read(0)}, parent)
    assert set(found.adapters) == {0}
    assert found.unusable == {7}
    assert found.digests == {0: record(paths, 0).digest}


async def test_a_server_that_is_gone_fails_before_the_model_is_read(
    paths: Paths, reporter: Reporter, model: Path
) -> None:
    task = job(model, paths)
    initialise(task, paths, reporter)
    serving = document("http://127.0.0.1:9").serving
    broken = task.model_copy(update={"serving": serving, "model": ModelLocation(path="/absent")})
    with pytest.raises(TrainerError) as caught:
        await run(broken, paths, reporter)
    assert caught.value.reason is FailureReason.VLLM_UNREACHABLE


async def test_a_published_version_whose_server_is_gone_is_a_success_that_names_the_pod(
    model: Path, paths: Paths, reporter: Reporter
) -> None:
    await attempt(job(model, paths), paths, reporter)
    serving = document("http://127.0.0.1:9").serving
    result = await run(job(model, paths).model_copy(update={"serving": serving}), paths, reporter)
    assert result.succeeded
    assert result.swapped_pods == []
    assert "vllm-0" in result.message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parent": 9}, FailureReason.PARENT_NOT_FOUND),
        ({"model": ModelLocation(path="/absent")}, FailureReason.MODEL_NOT_FOUND),
        ({"model": ModelLocation()}, FailureReason.INVALID_INPUT),
        ({"samples_file": "/absent"}, FailureReason.INVALID_INPUT),
        ({"jobs": []}, FailureReason.INVALID_INPUT),
        ({"storage_path": "../elsewhere"}, FailureReason.INVALID_INPUT),
    ],
)
async def test_a_wrong_input_fails_with_its_reason(
    changes: dict[str, object], reason: FailureReason, model: Path, paths: Paths, reporter: Reporter
) -> None:
    task = job(model, paths)
    initialise(task, paths, reporter)
    with pytest.raises(TrainerError) as caught:
        await run(task.model_copy(update=changes), paths, reporter)
    assert caught.value.reason is reason


def test_initialising_names_a_target_module_that_the_model_lacks(
    model: Path, paths: Paths, reporter: Reporter
) -> None:
    lora = LoraSpec(rank=8, alpha=16, target_modules=["q_proj", "wq_proj"])
    with pytest.raises(TrainerError) as caught:
        initialise(job(model, paths).model_copy(update={"lora": lora}), paths, reporter)
    assert caught.value.reason is FailureReason.INVALID_INPUT
    assert "lora.targetModules: the base model has no layer named wq_proj; there are " in caught.value.message


@pytest.mark.parametrize("wanted", [None, "all-linear", r".*\.(q|v)_proj", ["self_attn.q_proj", "down_proj"]])
def test_initialising_records_the_layers_that_were_chosen(
    wanted: str | list[str] | None, model: Path, paths: Paths, reporter: Reporter
) -> None:
    lora = LoraSpec(rank=8, alpha=16, target_modules=wanted)
    initialise(job(model, paths).model_copy(update={"lora": lora}), paths, reporter)
    folder = paths.adapter_folder("team/coder") / "versions" / "0"
    names = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    stored = {name.split(".")[-3] for name in load_file(folder / "adapter_model.safetensors")}
    assert isinstance(names, list)
    assert {name.rpartition(".")[2] for name in names} == stored


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (["q_proj", "v_proj", "embed_tokens"], "embed_tokens is no linear layer but Embedding"),
        (["q_proj", "lm_head"], "lm_head is the head"),
        ("embed_tokens", "matches no layer's whole name"),
    ],
)
def test_initialising_refuses_what_never_learns_and_lists_what_there_is(
    wanted: str | list[str], said: str, model: Path, paths: Paths, reporter: Reporter
) -> None:
    lora = LoraSpec(rank=8, alpha=16, target_modules=wanted)
    with pytest.raises(
        TrainerError, match=f"lora.targetModules: .*{said}.*; there are down_proj, gate_proj"
    ) as caught:
        initialise(job(model, paths).model_copy(update={"lora": lora}), paths, reporter)
    assert caught.value.reason is FailureReason.INVALID_INPUT


def test_initialising_never_replaces_versions_of_which_none_is_whole(
    model: Path, paths: Paths, reporter: Reporter
) -> None:
    task = job(model, paths)
    initialise(task, paths, reporter)
    weights = paths.adapter_folder("team/coder") / "versions" / "0" / "adapter_model.safetensors"
    weights.write_bytes(b"damaged")
    with pytest.raises(TrainerError, match="none is whole"):
        initialise(task, paths, reporter)
    assert weights.read_bytes() == b"damaged"


def test_a_published_version_is_told_before_it_is_put_into_service(model: Path, paths: Paths) -> None:
    reading, writing = os.pipe()
    initialise(job(model, paths), paths, Reporter(writing))
    os.close(writing)
    with os.fdopen(reading, "rb") as lines:
        events = [decode(line) for line in lines]
    assert isinstance(events[-1], Published)
    assert events[-1].version.path == "team/coder/versions/0"


def test_identifiers_have_seeds_of_their_own() -> None:
    assert initial_seed("a/b") == initial_seed("a/b")
    assert initial_seed("a/b") != initial_seed("a/c")


def test_the_input_s_engine_comes_before_the_execution_mode_and_unknown_modes_name_those_there_are() -> None:
    task = document()
    assert chosen_engine(task, {}) is EngineName.LOCAL
    with pytest.raises(TrainerError, match="'tunker' is no engine; there are local"):
        chosen_engine(task, {"CLAAS_DISTILL_EXECUTION_MODE": "tunker"})
    said: list[JsonValue] = ["local", {"local": {}}]
    for engine in said:
        named = TrainerInput.model_validate(task.model_dump() | {"engine": engine})
        assert chosen_engine(named, {"CLAAS_DISTILL_EXECUTION_MODE": "tunker"}) is EngineName.LOCAL
