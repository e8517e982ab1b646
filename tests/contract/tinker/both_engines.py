"""The same steps by the local engine and by the Tinker engine against the peer, from the same initial adapter."""

from __future__ import annotations

import os

os.environ["TINKER_TELEMETRY"] = "0"

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors

from claas_contract.engine import DistillBatchRequestPayload, TokenisedSample
from claas_contract.input import AdapterIdentity
from claas_contract.jobs import JobIdentity
from claas_crds.v1alpha1.engine import EngineName, EngineSpec, TinkerEngineSpec
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.training import TrainingConfig
from claas_tinker_client.version_file import TinkerVersion
from claas_trainer.engines.access import ServingAccess
from claas_trainer.engines.base import EngineTask, RemoteTask, TrainedVersion
from claas_trainer.engines.registry import make_engine
from claas_trainer.engines.tinker.version import first_version, version_file
from claas_trainer.store.content import Bytes, FileContent
from claas_trainer.store.journal import RunJournal
from claas_trainer.store.record import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, VersionRecord
from claas_trainer.store.versions import StoredVersion, VersionStore
from tests.builders.training.token_samples import samples as samples
from tests.peers.tinker.checkpoints import external_files
from tests.peers.tinker.model.lora import ALPHA, LoraShape
from tests.peers.tinker.server import TinkerPeer

RANK, SEED = 8, 5
LORA = {EngineName.LOCAL: LoraSpec(rank=RANK, alpha=ALPHA), EngineName.TINKER: LoraSpec(rank=RANK)}
Tensors = dict[str, torch.Tensor]


@dataclass
class Side:
    """One engine with its versions."""

    name: EngineName
    store: VersionStore
    model: Path
    peer: TinkerPeer
    spec: EngineSpec
    key_file: Path
    job: str = "job"

    def publish(
        self, number: int, files: dict[str, FileContent], made: TrainedVersion | None = None
    ) -> StoredVersion:
        record = VersionRecord(
            number=number,
            lora_id="user/coder",
            created=datetime.now(UTC),
            parent=number - 1 if number else None,
            jobs=[JobIdentity(namespace="team", name=f"job-{number}", uid=f"job-{number}", attempt=1)],
            engine=self.name.value,
            base_model=str(self.model),
            lora=LORA[self.name],
            step=made.provenance if made else None,
            state=made.state if made else None,
            weights=made.weights if made else None,
            metrics=dict(made.metrics) if made else {},
        )
        self.store.prepare(owner=f"job-{number}", attempt=1, needed_bytes=0)
        return self.store.publish(record, files, owner=f"job-{number}").version

    def task(self, parent: StoredVersion, earlier: dict[int, StoredVersion] | None = None) -> EngineTask:
        number = parent.record.number + 1
        job = JobIdentity(namespace="team", name=f"{self.job}-{number}", uid=f"{self.job}-{number}", attempt=1)
        remote = RemoteTask(
            self.spec,
            LORA[self.name],
            self.peer.model_name,
            RunJournal(self.store.root, job.uid),
            job,
            self.key_file,
            self.key_file.parent,
            AdapterIdentity(namespace="team", name="tone", uid="adapter", lora_id="team/tone"),
        )
        return EngineTask(self.model, parent, number, self.told.append, ServingAccess(), earlier or {}, remote)

    def __post_init__(self) -> None:
        self.told: list[str] = []

    async def step(
        self,
        batch: tuple[TokenisedSample, ...],
        training: TrainingConfig,
        earlier: dict[int, StoredVersion] | None = None,
    ) -> StoredVersion:
        """One step from the head in an engine, and so a session, of its own."""
        parent = self.store.head()
        assert parent is not None
        payload = DistillBatchRequestPayload(lora_id="user/coder", training=training, samples=batch)
        engine = make_engine(self.name)
        try:
            await engine.prepare(payload, self.task(parent, earlier))
            await engine.acquire()
            try:
                await engine.distill(payload)
            finally:
                await engine.release()
            made = await engine.trained()
        finally:
            await engine.close()
        return self.publish(parent.record.number + 1, dict(made.files), made)


def local_side(folder: Path, model: Path, peer: TinkerPeer) -> Side:
    """With version 0 as the peer makes a new LoRA."""
    lora = peer.model.new_lora(LoraShape(RANK, SEED, train_unembed=False))
    files = external_files(peer.model_name, lora)
    side = Side(EngineName.LOCAL, VersionStore(folder), model, peer, EngineSpec.of(EngineName.LOCAL), folder)
    config = files[ADAPTER_CONFIG_FILE].replace(b"}", b', "target_modules": "all-linear", "bias": "none"}')
    side.publish(0, {ADAPTER_CONFIG_FILE: Bytes(config), ADAPTER_WEIGHTS_FILE: Bytes(files[ADAPTER_WEIGHTS_FILE])})
    return side


def tinker_side(folder: Path, model: Path, peer: TinkerPeer) -> Side:
    """With version 0 as the base model."""
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "key"
    key.write_text("tml-test")
    spec = EngineSpec(tinker=TinkerEngineSpec(base_model=peer.model_name, base_url=peer.url))
    side = Side(EngineName.TINKER, VersionStore(folder), model, peer, spec, key)
    side.publish(0, dict(version_file(first_version(peer.model_name, RANK, SEED))))
    return side


def adapter_of(version: StoredVersion, peer: TinkerPeer) -> Tensors:
    """A version's tensors by PEFT's names; of the Tinker engine's as the service would export them."""
    file = version.file(ADAPTER_WEIGHTS_FILE)
    if file is None:
        sampler_path = TinkerVersion.read(version.folder).sampler_path
        assert sampler_path is not None
        exported = external_files(peer.model_name, peer.checkpoints.get(sampler_path, "sampler").snapshot.lora)
        tensors: Tensors = load_tensors(exported[ADAPTER_WEIGHTS_FILE])
    else:
        tensors = load_tensors(file.read_bytes())
    return tensors
