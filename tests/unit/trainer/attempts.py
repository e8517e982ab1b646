"""Attempts at jobs in this process: the real engine on a tiny random model, nothing served."""

from __future__ import annotations

import json
from pathlib import Path

from claas_contract.input import ModelLocation, TrainerInput
from claas_contract.result import TrainerResult
from claas_crds.v1alpha1.training import TrainingConfig
from claas_trainer.attempt.initialise import initialise
from claas_trainer.attempt.run import run
from claas_trainer.messages.events import Reporter
from claas_trainer.paths import Paths
from claas_trainer.store.record import LocalProvenance, VersionRecord
from claas_trainer.store.versions import VersionStore
from tests.unit.trainer.conftest import document

SAMPLES = [
    {"user_prompt": "Why?", "response": "Because.", "feedback": "kinder"},
    {"user_prompt": "When?", "response": "Now, I think.", "feedback": "shorter"},
]
TRAINING = TrainingConfig(learning_rate=1e-3, teacher_top_k=10)


def job(
    model: Path, paths: Paths, *, uid: str = "job-1", parent: int = 0, training: TrainingConfig = TRAINING
) -> TrainerInput:
    """A job's input; its samples lie in the scratch folder."""
    samples = paths.scratch / "samples.json"
    samples.write_text(json.dumps(SAMPLES))
    return document(uid=uid).model_copy(
        update={
            "model": ModelLocation(path=str(model)),
            "parent": parent,
            "samples_file": str(samples),
            "training": training,
        }
    )


async def attempt(task: TrainerInput, paths: Paths, reporter: Reporter) -> TrainerResult:
    """Version 0 if there is none, and one attempt at the job."""
    initialise(task, paths, reporter)
    return await run(task, paths, reporter)


def store(paths: Paths) -> VersionStore:
    """Where the versions of these jobs are."""
    return VersionStore(paths.adapter_folder("team/coder"))


def record(paths: Paths, number: int) -> VersionRecord:
    """What a version says of itself."""
    return store(paths).read(number).record


def step_record(paths: Paths, number: int) -> LocalProvenance:
    """What a version says of its step."""
    step = record(paths, number).local
    assert step is not None
    return step
