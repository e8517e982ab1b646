"""From a job's samples to token ids, before any engine is there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from claas_contract.engine import EngineNeeds, ServingNeed
from claas_contract.input import ModelLocation, TrainerInput
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.training import DistillBatchItem, TrainingConfig
from claas_trainer.attempt import batch as batches
from claas_trainer.attempt.batch import make_batch
from claas_trainer.errors import TrainerError
from claas_trainer.paths import Paths
from claas_trainer.samples.chat_template import ServerChat
from tests.builders.models import build_tiny_qwen3
from tests.unit.trainer.conftest import document

ITEM = DistillBatchItem(user_prompt="Why?", response="Because.", feedback="kinder")
HERE = EngineNeeds(ServingNeed.DEVICE, base_weights=True)
ELSEWHERE = EngineNeeds(ServingNeed.NOTHING, base_weights=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_qwen3(tmp_path_factory.mktemp("model"))


def task(model: Path, training: TrainingConfig | None = None) -> TrainerInput:
    changes = {"model": ModelLocation(path=str(model)), "training": training or TrainingConfig()}
    return document().model_copy(update=changes)


async def made(
    model: Path, paths: Paths, items: Sequence[DistillBatchItem] = (ITEM,), needs: EngineNeeds = HERE
) -> batches.Batch:
    return await make_batch(task(model), items, needs, paths, None)


async def test_settings_and_the_server_s_way_of_making_prompts_reach_the_samples(model: Path, paths: Paths) -> None:
    recorded = task(model, TrainingConfig(require_recorded_prompt=True))
    with pytest.raises(TrainerError, match=r"samples\[0\].prompt_token_ids: is missing"):
        await make_batch(recorded, [ITEM], HERE, paths, None)
    refusing = ServerChat(
        template="{% if messages[0].content == 'Why?' %}{{ raise_exception('no') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    with pytest.raises(TrainerError, match=r"samples\[0\]: the chat template refuses") as caught:
        await make_batch(task(model), [ITEM], HERE, paths, refusing)
    assert caught.value.reason is FailureReason.INVALID_SAMPLE


async def test_samples_keep_their_places_and_their_texts_stay_behind(model: Path, paths: Paths) -> None:
    items = [ITEM.model_copy(update={"response": "a" * length}) for length in (9, 3, 6)]
    batch = await made(model, paths, items)
    one_by_one = [(await made(model, paths, [item])).payload.samples[0] for item in items]
    assert list(batch.payload.samples) == one_by_one
    assert "kinder" not in batch.payload.model_dump_json()
    assert (batch.counts.total, batch.payload.lora_id) == (3, "user/coder")


async def test_samples_of_a_version_that_can_t_be_used_are_counted_as_reconstructed(
    model: Path, paths: Paths
) -> None:
    items = [ITEM.model_copy(update={"response_token_ids": [5, 6], "version": number}) for number in (1, 2, 2, None)]
    batch = await made(model, paths, items)
    assert batch.payload.versions == {1, 2}
    assert (batch.counts.computed, batch.counts.reconstructed) == (3, 1)
    without = batch.without_versions({2})
    assert [each.version for each in without.payload.samples] == [1, None, None, None]
    counts = without.counts
    assert (counts.total, counts.computed, counts.reconstructed, counts.lost_versions) == (4, 1, 3, 2)
    assert without.without_versions({7}) is without


async def test_a_forward_pass_under_an_earlier_version_is_a_third_of_a_sample_s_work(
    model: Path, paths: Paths
) -> None:
    items = [ITEM.model_copy(update={"response_token_ids": [5, 6], "version": number}) for number in (1, 2, None)]
    batch = await made(model, paths, items)
    each = batch.payload.samples[0].tokens
    assert batch.payload.tokens == 3 * each
    assert batch.work_tokens(parent=2) == 3 * each + each // 3


@pytest.mark.parametrize("needs", [HERE, ELSEWHERE], ids=["computes here", "computes elsewhere"])
async def test_weights_are_read_ahead_for_an_engine_that_needs_them_alone(
    needs: EngineNeeds, model: Path, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(batches, "read_ahead", read.append)
    batch = await made(model, paths, needs=needs)
    assert read == ([model] if needs.base_weights else [])
    assert batch.model == model


async def test_an_identifier_that_no_engine_takes_is_the_input_s_fault(model: Path, paths: Paths) -> None:
    wrong = task(model)
    wrong = wrong.model_copy(update={"adapter": wrong.adapter.model_copy(update={"lora_id": "a@7"})})
    with pytest.raises(TrainerError, match=r"adapter\.lora_id") as caught:
        await make_batch(wrong, [ITEM], HERE, paths, None)
    assert caught.value.reason is FailureReason.INVALID_INPUT


def test_an_image_that_lacks_a_library_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch', name='torch')")
    program = f"""
import asyncio
from pathlib import Path
from claas_contract.engine import ENGINE_NEEDS
from claas_contract.input import TrainerInput
from claas_trainer.attempt.batch import make_batch
from claas_trainer.errors import TrainerError
from claas_trainer.paths import Paths
document = TrainerInput.model_validate_json({document().model_dump_json()!r})
try:
    asyncio.run(make_batch(document, [], ENGINE_NEEDS[document.engine.name], Paths(), None))
except TrainerError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join([str(tmp_path), *(path for path in sys.path if path)])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "EngineUnavailable" in done.stdout, done.stderr
    assert "lacks torch" in done.stdout
