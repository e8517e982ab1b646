"""The local engine at its edges: what it refuses, and what a failed step lets go of."""

from __future__ import annotations

import weakref
from datetime import UTC, datetime

import pytest
import torch

from claas_crds.contract import FailureReason, ModelLocation
from claas_crds.lora_adapter import EngineName, LoraSpec
from claas_crds.training import DistillBatchItem, DistillBatchRequestPayload
from claas_trainer.engines.base import StepPlan
from claas_trainer.engines.failures import engine_errors
from claas_trainer.engines.local import LocalEngine
from claas_trainer.engines.registry import ENGINES, make_engine
from claas_trainer.errors import TrainerError
from claas_trainer.paths import Paths
from claas_trainer.store.record import VersionRecord
from claas_trainer.store.versions import StoredVersion

ITEM = DistillBatchItem(user_prompt="Why?", response="Because.", feedback="kinder")


def plan(paths: Paths) -> StepPlan:
    lora = LoraSpec(rank=8, alpha=16)
    record = VersionRecord(
        number=0, lora_id="user/coder", created=datetime.now(UTC), engine="local", base_model="base", lora=lora
    )
    parent = StoredVersion(paths.storage / "versions" / "0", record)
    return StepPlan(ModelLocation(path="base"), lora, parent, 1, paths, lambda detail: None)


async def test_a_step_in_place_is_refused_by_name_rather_than_taken_beside(paths: Paths) -> None:
    payload = DistillBatchRequestPayload(lora_id="user/coder", samples=[ITEM], save_in_place=True)
    with pytest.raises(TrainerError, match="save_in_place") as caught:
        await LocalEngine().prepare(payload, plan(paths))
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


def test_an_error_that_nobody_knows_passes_as_it_is() -> None:
    with pytest.raises(KeyError), engine_errors():
        raise KeyError("x")


@pytest.mark.parametrize("name", EngineName)
def test_every_engine_that_may_be_named_can_be_made(name: EngineName) -> None:
    assert name in ENGINES
    make_engine(name)
