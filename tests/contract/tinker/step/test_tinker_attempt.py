"""Whole attempts at jobs by the Tinker service, from samples to published versions, as the trainer runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from claas_contract.input import ModelLocation, TrainerInput
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.engine import EngineName, EngineSpec, TinkerEngineSpec
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.training import TrainingConfig
from claas_tinker_client.version_file import TinkerVersion
from claas_trainer.attempt.initialise import initialise
from claas_trainer.attempt.run import run
from claas_trainer.errors import TrainerError
from claas_trainer.messages.events import Reporter
from claas_trainer.paths import Paths
from claas_trainer.store.versions import VersionStore
from tests.peers.tinker.calls import Operation
from tests.peers.tinker.server import TinkerPeer
from tests.unit.trainer.conftest import document, paths, reporter

__all__ = ["paths", "reporter"]

pytestmark = pytest.mark.contract

KEY = "tml-a-private-key"
FEEDBACK = "the-private-feedback"
SAMPLES = [
    {"id": "one", "user_prompt": "Why?", "response": "Because.", "feedback": FEEDBACK},
    {"id": "two", "user_prompt": "When?", "response": "Now, I think.", "feedback": "shorter"},
]


@pytest.fixture
def peer(tinker_model: Path) -> Iterator[TinkerPeer]:
    with TinkerPeer(tinker_model, api_key=KEY) as peer:
        yield peer


@pytest.fixture
def task(tinker_model: Path, peer: TinkerPeer, paths: Paths) -> TrainerInput:
    paths.tinker_key.write_text(KEY + "\n")
    samples = paths.scratch / "samples.json"
    samples.write_text(json.dumps(SAMPLES))
    return document().model_copy(
        update={
            "engine": EngineSpec(tinker=TinkerEngineSpec(base_model=peer.model_name, base_url=peer.url)),
            "lora": LoraSpec(rank=8),
            "model": ModelLocation(path=str(tinker_model)),
            "samples_file": str(samples),
            "training": TrainingConfig(learning_rate=3e-4),
        }
    )


def of_job(task: TrainerInput, uid: str, parent: int) -> TrainerInput:
    job = task.jobs[0].model_copy(update={"uid": uid})
    return task.model_copy(update={"jobs": [job], "parent": parent})


async def test_jobs_make_versions_that_descend_from_version_0_and_a_second_attempt_takes_no_step(
    task: TrainerInput, peer: TinkerPeer, paths: Paths, reporter: Reporter, capsys: pytest.CaptureFixture[str]
) -> None:
    initialise(task, paths, reporter)
    assert not peer.called(Operation.CREATE_MODEL)
    for number in (1, 2):
        result = await run(of_job(task, f"job-{number}", number - 1), paths, reporter)
        assert result.version is not None
        assert result.version.number == number
        assert result.version.weights is not None
        assert result.version.weights.startswith("tinker://")
    store = VersionStore(paths.adapter_folder(task.storage_path))
    first, second = store.read(1), store.read(2)
    store.verify(second)
    assert second.record.engine == EngineName.TINKER.value
    assert second.record.feedback_ids == ["one", "two"]
    assert second.record.libraries["tinker"]
    assert TinkerVersion.read(second.folder).lineage == (TinkerVersion.read(first.folder).state_path,)
    assert second.record.metrics["optimizer_restored"] == 1
    taken = len(peer.called(Operation.OPTIM_STEP))
    again = await run(of_job(task, "job-2", 1), paths, reporter)
    assert again.already_published
    assert len(peer.called(Operation.OPTIM_STEP)) == taken
    written = capsys.readouterr().out + "".join(
        path.read_text(errors="replace") for path in paths.storage.rglob("*") if path.is_file()
    )
    assert KEY not in written
    assert FEEDBACK not in written


async def test_a_version_of_the_local_engine_is_no_parent_for_this_one(
    task: TrainerInput, paths: Paths, reporter: Reporter
) -> None:
    local = task.model_copy(update={"engine": EngineSpec.of(EngineName.LOCAL)})
    initialise(local, paths, reporter)
    with pytest.raises(TrainerError, match=r"spec\.engine") as caught:
        await run(of_job(task, "job-1", 0), paths, reporter)
    assert caught.value.reason is FailureReason.ADAPTER_MISMATCH
