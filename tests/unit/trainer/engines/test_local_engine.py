"""The local engine at its edges: what it refuses, what its errors mean, and what a failed step lets go of."""

from __future__ import annotations

import weakref
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from claas_contract.engine import ENGINE_NEEDS, OWN_FILES, DistillBatchRequestPayload, StateRef, TokenisedSample
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.engine import EngineName
from claas_crds.v1alpha1.lora import LoraSpec
from claas_trainer.attempt.run import run
from claas_trainer.engines.access import ServingAccess
from claas_trainer.engines.base import EngineTask
from claas_trainer.engines.failures import engine_errors
from claas_trainer.engines.local import local_step
from claas_trainer.engines.local.decoder_placement import DecoderPlacement
from claas_trainer.engines.local.engine import LocalEngine
from claas_trainer.engines.local.placement import Fit
from claas_trainer.engines.registry import ENGINES, make_engine
from claas_trainer.errors import TrainerError
from claas_trainer.messages.events import Reporter
from claas_trainer.paths import Paths
from claas_trainer.sdpo.errors import (
    AdapterError,
    InvalidBatchError,
    InvalidConfigError,
    NonFiniteError,
    PolicyMovedError,
    UnsupportedModelError,
    WeightsError,
)
from claas_trainer.sdpo.settings import Schedule
from claas_trainer.store.record import RECORD_FILE, VersionRecord
from claas_trainer.store.versions import StoredVersion
from tests.builders.models import build_tiny_qwen3
from tests.unit.trainer.attempts import attempt, job, record, step_record, store


async def test_a_step_in_place_is_refused_by_name_rather_than_taken_beside(paths: Paths) -> None:
    record = VersionRecord(
        number=0,
        lora_id="user/coder",
        created=datetime.now(UTC),
        engine="local",
        base_model="base",
        lora=LoraSpec(rank=8, alpha=16),
    )
    parent = StoredVersion(paths.storage / "versions" / "0", record)
    task = EngineTask(paths.model / "base", parent, 1, lambda detail: None, ServingAccess())
    sample = TokenisedSample(student_prompt_ids=(1,), teacher_prompt_ids=(1, 2), response_ids=(3,))
    payload = DistillBatchRequestPayload(lora_id="user/coder", samples=(sample,), save_in_place=True)
    with pytest.raises(TrainerError, match="save_in_place") as caught:
        await LocalEngine().prepare(payload, task)
    assert caught.value.reason is FailureReason.INVALID_INPUT


async def test_a_version_whose_state_is_with_another_engine_is_refused_before_any_weights_are_read(
    tmp_path: Path, paths: Paths, reporter: Reporter
) -> None:
    model = build_tiny_qwen3(tmp_path / "tiny")
    await attempt(job(model, paths), paths, reporter)
    made = record(paths, 1)
    assert made.state == OWN_FILES
    elsewhere = made.model_copy(update={"state": StateRef(engine="other", uri="other://run/7")})
    (store(paths).read(1).folder / RECORD_FILE).write_text(elsewhere.model_dump_json())
    (model / "model.safetensors").unlink()
    with pytest.raises(TrainerError, match=r"version 1 was made by engine other.*other://run/7") as caught:
        await run(job(model, paths, uid="job-2", parent=1), paths, reporter)
    assert caught.value.reason is FailureReason.INVALID_INPUT


def test_a_step_that_does_not_fit_lets_its_tensors_go_before_serving_wakes() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    def step() -> None:
        activations = torch.zeros(4)
        kept.append(weakref.ref(activations))
        raise torch.OutOfMemoryError

    with pytest.raises(TrainerError) as caught, engine_errors():
        step()
    assert caught.value.reason is FailureReason.OUT_OF_MEMORY
    # The error, its cause and their frames are still there at this point.
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert kept[0]() is None


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError(), FailureReason.OUT_OF_MEMORY),
        (InvalidBatchError(), FailureReason.INVALID_SAMPLE),
        (InvalidConfigError(), FailureReason.INVALID_INPUT),
        (NonFiniteError(), FailureReason.NOT_FINITE),
        (PolicyMovedError(), FailureReason.POLICY_MOVED),
        (WeightsError(), FailureReason.MODEL_NOT_FOUND),
        (AdapterError(), FailureReason.INVALID_INPUT),
        (UnsupportedModelError(), FailureReason.INTERNAL),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_step_raises_has_a_reason(error: Exception, reason: FailureReason) -> None:
    with pytest.raises(TrainerError) as caught, engine_errors():
        raise error
    assert caught.value.reason is reason


def test_an_error_that_nobody_knows_passes_as_it_is() -> None:
    with pytest.raises(KeyError), engine_errors():
        raise KeyError("x")


class OnGpu(DecoderPlacement):
    """The CPU, which says what a GPU beside a sleeping server would."""

    planned_with: ClassVar[list[int | None]] = []

    def __init__(self, *arguments: Any) -> None:
        _, _, _, residue_bytes, *_ = arguments
        self.planned_with.append(residue_bytes)
        super().__init__(*arguments)

    def acquire(self) -> Fit:
        return Fit(Schedule(5, 2), checkpointed_layers=1, residue_bytes=3 << 30)


async def test_what_serving_was_seen_to_keep_is_recorded_and_the_next_step_is_planned_with_it(
    tmp_path: Path, paths: Paths, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_step, "DecoderPlacement", OnGpu)
    OnGpu.planned_with.clear()
    model = build_tiny_qwen3(tmp_path / "tiny")
    await attempt(job(model, paths), paths, reporter)
    await run(job(model, paths, uid="job-2", parent=1), paths, reporter)
    assert OnGpu.planned_with == [None, 3 << 30]
    step = step_record(paths, 2)
    assert (step.micro_batch_tokens, step.tile_rows, step.checkpointed_layers) == (5, 2, 1)
    assert step.serving_residue_bytes == 3 << 30
    assert record(paths, 2).metrics["micro_batches"] == 2


async def test_a_device_that_has_too_little_memory_after_all_fails_and_is_given_back(
    tmp_path: Path, paths: Paths, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[bool] = []

    class TooSmall(DecoderPlacement):
        def acquire(self) -> Fit:
            raise torch.OutOfMemoryError

        def release(self) -> None:
            given_back.append(True)

    monkeypatch.setattr(local_step, "DecoderPlacement", TooSmall)
    with pytest.raises(TrainerError) as caught:
        await attempt(job(build_tiny_qwen3(tmp_path / "tiny"), paths), paths, reporter)
    assert caught.value.reason is FailureReason.OUT_OF_MEMORY
    assert given_back == [True]
    assert store(paths).numbers() == [0]


@pytest.mark.parametrize("name", EngineName)
def test_every_engine_that_may_be_named_can_be_made(name: EngineName) -> None:
    assert name in ENGINES
    assert name in ENGINE_NEEDS
    make_engine(name)
