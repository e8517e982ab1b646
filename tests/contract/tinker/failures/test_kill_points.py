"""A worker killed at any call of its step, and the attempt after it: one version, of one step."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from claas_contract.input import ModelLocation, TrainerInput
from claas_contract.jobs import JobIdentity
from claas_crds.v1alpha1.engine import EngineName, EngineSpec, TinkerEngineSpec
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.training import TrainingConfig
from claas_tinker_client.version_file import TinkerVersion
from claas_trainer.attempt.head_fit import base_name
from claas_trainer.engines.tinker.version import first_version, version_file
from claas_trainer.paths import Paths
from claas_trainer.store.record import VersionRecord
from claas_trainer.store.versions import VersionStore
from tests.contract.workers.attempts import Attempts, attempts
from tests.contract.workers.killer import Killer
from tests.peers.tinker.calls import Call, Operation
from tests.peers.tinker.failures import Do, When
from tests.peers.tinker.server import TinkerPeer
from tests.unit.trainer.attempts import SAMPLES
from tests.unit.trainer.conftest import document

pytestmark = pytest.mark.contract

KEY = "tml-a-key-that-appears-nowhere"


@dataclass
class Adapter:
    """An adapter whose jobs are taken one after the other, each by workers in processes of their own."""

    peer: TinkerPeer
    model: Path
    paths: Paths
    attempts: Attempts
    jobs: int = 0

    @property
    def store(self) -> VersionStore:
        return VersionStore(self.paths.adapter_folder("team/coder"))

    def head(self) -> int:
        head = self.store.head()
        assert head is not None
        return head.record.number

    def document(self, attempt: int) -> TrainerInput:
        samples = self.paths.scratch / "samples.json"
        samples.write_text(json.dumps(SAMPLES))
        spec = TinkerEngineSpec(base_model=self.peer.model_name, base_url=self.peer.url)
        job = JobIdentity(namespace="team", name="job", uid=f"job-{self.jobs}", attempt=max(1, attempt))
        return document().model_copy(
            update={
                "engine": EngineSpec(tinker=spec),
                "lora": LoraSpec(rank=4),
                "model": ModelLocation(path=str(self.model)),
                "jobs": [job],
                "parent": self.head() if attempt else None,
                "samples_file": str(samples),
                "training": TrainingConfig(learning_rate=1e-3, teacher_top_k=10),
            }
        )


@pytest.fixture(scope="module")
def adapter(tinker_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapter]:
    root = tmp_path_factory.mktemp("killed")
    key = root / "key"
    key.write_text(KEY)
    (root / "scratch").mkdir()
    paths = Paths(storage=root / "storage", scratch=root / "scratch", model=root, tinker_key=key)
    paths.storage.mkdir()
    environment = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TINKER_TELEMETRY": "0",
        "CLAAS_STORAGE_DIRECTORY": str(paths.storage),
        "CLAAS_SCRATCH_DIRECTORY": str(paths.scratch),
        "CLAAS_MODEL_DIRECTORY": str(root),
        "CLAAS_TINKER_KEY_FILE": str(key),
    }
    modules = ["claas_trainer.attempt.run", "claas_trainer.engines.tinker.step"]
    with attempts(modules, environment, paths.scratch) as workers, TinkerPeer(tinker_model, api_key=KEY) as peer:
        adapter = Adapter(peer, tinker_model, paths, workers)
        record = VersionRecord(
            number=0,
            lora_id="user/coder",
            created=datetime.now(UTC),
            parent=None,
            jobs=[JobIdentity(namespace="team", name="init", uid="init", attempt=1)],
            engine=EngineName.TINKER.value,
            base_model=base_name(adapter.document(0).model),
            lora=LoraSpec(rank=4),
        )
        adapter.store.prepare(owner="init", attempt=1, needed_bytes=0)
        adapter.store.publish(record, version_file(first_version(peer.model_name, 4, 1)), owner="init")
        yield adapter


POINTS = [
    (operation, at, when, False)
    for operation, at in [
        (Operation.FORWARD, 1),
        (Operation.FORWARD_BACKWARD, 1),
        (Operation.OPTIM_STEP, 1),
        (Operation.FORWARD, 2),
        (Operation.SAVE_STATE, 1),
        (Operation.SAVE_FOR_SAMPLER, 1),
    ]
    for when in (When.RECEIVED, When.DONE)
]
FORGOTTEN = [
    (Operation.OPTIM_STEP, 1, When.DONE, True),
    (Operation.FORWARD, 2, When.DONE, True),
    (Operation.SAVE_STATE, 1, When.DONE, True),
    (Operation.SAVE_FOR_SAMPLER, 1, When.DONE, True),
]
"""Points after which the service ends the session before the second attempt comes."""


@pytest.mark.parametrize(("operation", "at", "when", "forgotten"), [*POINTS, *FORGOTTEN])
def test_a_worker_killed_at_any_call_and_the_attempt_after_it_make_one_version_of_one_step(
    operation: Operation, at: int, when: When, forgotten: bool, adapter: Adapter
) -> None:
    peer, parent = adapter.peer, adapter.head()
    adapter.jobs += 1
    uid = f"job-{adapter.jobs}"
    before = len(peer.calls)
    # Of the run that takes its step: the first of its session.
    killer = Killer[Call](lambda call: call.run is not None and call.run.endswith(":train:0"), at)
    rule = peer.fail(operation, Do(killer), when=when)
    killer.pid = adapter.attempts.begin(adapter.document(1))
    killer.ready.set()
    assert adapter.attempts.result() is None
    assert killer.killed
    rule.lift()
    # Nothing of it serves: the head is what it was.
    assert adapter.head() == parent
    if forgotten:
        for session in peer.state.sessions.values():
            session.finished = True
    adapter.attempts.begin(adapter.document(2))
    result = adapter.attempts.result()
    assert result is not None
    assert result.succeeded, result.message
    assert adapter.head() == parent + 1
    published = adapter.store.read(adapter.head())
    version = TinkerVersion.read(published.folder)
    assert version.step == parent + 1
    assert version.state_path is not None
    optimizer = peer.checkpoints.get(version.state_path, "training").snapshot.optimizer
    assert optimizer is not None
    assert {int(state["step"]) for state in optimizer["state"].values()} == {parent + 1}
    steps = [
        call
        for call in peer.calls[before:]
        if call.operation is Operation.OPTIM_STEP and call.run == version.run and not call.resent
    ]
    assert len(steps) == 1
    assert {"loss", "kl_to_parent"} <= published.record.metrics.keys()
    of_job = [number for number in adapter.store.numbers() if adapter.store.read(number).record.jobs[0].uid == uid]
    assert of_job == [parent + 1]
