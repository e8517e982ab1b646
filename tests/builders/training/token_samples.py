"""Samples as token ids, and chains of steps on them by the local engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch

from claas_contract.engine import DistillBatchRequestPayload, TokenisedSample
from claas_contract.input import AdapterIdentity, ModelLocation, TrainerInput
from claas_contract.jobs import JobIdentity
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.training import TrainingConfig
from claas_trainer.engines.access import ServingAccess
from claas_trainer.engines.base import EngineTask, TrainedVersion
from claas_trainer.engines.initial_versions.local import initial_version
from claas_trainer.engines.local.engine import LocalEngine
from claas_trainer.paths import Paths
from claas_trainer.store.content import FileContent
from claas_trainer.store.record import VersionRecord
from claas_trainer.store.versions import StoredVersion, VersionStore

LENGTHS = [(9, 14, 6), (3, 5, 11), (20, 27, 2)]
"""Of prompt, prompt with hindsight and response."""


def samples(
    seed: int, *, recorded: bool, lengths: list[tuple[int, int, int]] = LENGTHS
) -> tuple[TokenisedSample, ...]:
    """Samples of different lengths; with log-probabilities of every second one, if any are recorded."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 250, (length,), generator=generator).tolist())

    made = []
    for index, (prompt, hindsight, response) in enumerate(lengths):
        old = (-6.0 - torch.rand(response, generator=generator) * 3).tolist() if recorded and index % 2 == 0 else None
        made.append(
            TokenisedSample(
                student_prompt_ids=tokens(prompt),
                teacher_prompt_ids=tokens(hindsight),
                response_ids=tokens(response),
                old_logprobs=None if old is None else tuple(old),
            )
        )
    return tuple(made)


def payload(
    seed: int, *, recorded: bool = True, training: TrainingConfig | None = None
) -> DistillBatchRequestPayload:
    """A batch of such samples."""
    return DistillBatchRequestPayload(
        lora_id="user/coder",
        training=training or TrainingConfig(learning_rate=1e-3, teacher_top_k=10),
        samples=samples(seed, recorded=recorded),
    )


@dataclass
class LocalChain:
    """An adapter that the local engine trains in this process."""

    store: VersionStore
    model: Path
    lora: LoraSpec = field(default_factory=lambda: LoraSpec(rank=8, alpha=16))

    def initial(self) -> StoredVersion:
        """Make version 0."""
        paths = Paths.from_environment()
        document = TrainerInput(
            adapter=AdapterIdentity(namespace="team", name="coder", uid="adapter-uid", lora_id="user/coder"),
            model=ModelLocation(path=str(self.model)),
            lora=self.lora,
            storage_path="team/coder",
            jobs=[],
            parent=0,
        )
        return self.publish(0, dict(initial_version(document, self.model, 5, paths).files))

    async def step(
        self, batch: DistillBatchRequestPayload, earlier: Mapping[int, StoredVersion] | None = None
    ) -> StoredVersion:
        """One step from the head, published."""
        parent = self.store.head()
        assert parent is not None
        number = parent.record.number + 1
        task = EngineTask(self.model, parent, number, lambda detail: None, ServingAccess(), earlier or {})
        engine = LocalEngine()
        try:
            await engine.prepare(batch, task)
            await engine.acquire()
            try:
                await engine.distill(batch)
            finally:
                await engine.release()
            made = await engine.trained()
            return self.publish(number, dict(made.files), made)
        finally:
            await engine.close()

    def publish(
        self, number: int, files: dict[str, FileContent], made: TrainedVersion | None = None
    ) -> StoredVersion:
        job = JobIdentity(namespace="team", name=f"job-{number}", uid=f"job-{number}", attempt=1)
        record = VersionRecord(
            number=number,
            lora_id="user/coder",
            created=datetime.now(UTC),
            parent=number - 1 if number else None,
            jobs=[job],
            engine="local",
            base_model=str(self.model),
            lora=self.lora,
            step=made.provenance if made else None,
            state=made.state if made else None,
            metrics=dict(made.metrics) if made else {},
        )
        self.store.prepare(owner=job.uid, attempt=1, needed_bytes=0)
        return self.store.publish(record, files, owner=job.uid).version
