"""The trainer's app on a peer, deployed as users do it, and adapters whose jobs are taken as in trainer pods."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from claas_contract.input import AdapterIdentity, ModelLocation, TrainerInput
from claas_contract.jobs import JobIdentity
from claas_crds.v1alpha1.engine import EngineSpec, ModalEngineSpec
from claas_crds.v1alpha1.lora import LoraSpec
from claas_crds.v1alpha1.training import TrainingConfig
from claas_trainer.paths import Paths
from claas_trainer.store.versions import StoredVersion, VersionStore
from tests.contract.modal.app import deployed
from tests.contract.modal.app.deployed import APP, VOLUME, WEIGHTS
from tests.peers.modal.server import TOKEN_ID, TOKEN_SECRET, ModalPeer
from tests.peers.modal.state.calls import Call

MODEL = "tests/tiny"
LORA = LoraSpec(rank=8, alpha=16)
FEEDBACK = "the-private-feedback"
SAMPLES = [
    {"id": "one", "user_prompt": "Why?", "response": "Because.", "feedback": FEEDBACK},
    {"id": "two", "user_prompt": "When?", "response": "Now, I think.", "feedback": "shorter"},
]
TRAINING = TrainingConfig(learning_rate=1e-3, teacher_top_k=10)


def deploy(peer: ModalPeer, model: Path, settings: Mapping[str, str] | None = None) -> None:
    """Put the base model on its Volume and deploy the app, as docs/modal.md says."""
    shutil.copytree(model, peer.volume(WEIGHTS) / MODEL, dirs_exist_ok=True)
    peer.volume(VOLUME)
    deployed.deploy(peer, {"CLAAS_MODAL_MODEL": MODEL, **(settings or {})})


@dataclass
class ModalAdapter:
    """A LoraAdapter with a volume of its own, whose jobs are taken one after the other."""

    peer: ModalPeer
    model: Path
    root: Path
    uid: str = "adapter-uid"
    spec: ModalEngineSpec = field(default_factory=lambda: ModalEngineSpec(step_timeout_seconds=120))
    lora: LoraSpec = LORA
    weights: bool = False
    """Whether the pods have the base model's weights."""
    jobs: int = 0
    """How many jobs have begun."""

    def __post_init__(self) -> None:
        for name in ("storage", "scratch", "token", "models"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        # The base model's name on the platform is its path in the pod.
        without = None if self.weights else shutil.ignore_patterns("*.safetensors")
        shutil.copytree(self.model, self.root / "models" / MODEL, ignore=without)
        self.give_token()

    @property
    def paths(self) -> Paths:
        return Paths(
            storage=self.root / "storage",
            scratch=self.root / "scratch",
            model=self.root / "models",
            modal_token=self.root / "token",
            termination_message=self.root / "termination-log",
        )

    @property
    def environment(self) -> dict[str, str]:
        """Of a trainer pod's process."""
        paths = self.paths
        return {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "MODAL_SERVER_URL": self.peer.url,
            "MODAL_MAX_THROTTLE_WAIT": "2",
            "CLAAS_STORAGE_DIRECTORY": str(paths.storage),
            "CLAAS_SCRATCH_DIRECTORY": str(paths.scratch),
            "CLAAS_MODEL_DIRECTORY": str(paths.model),
            "CLAAS_MODAL_TOKEN_DIRECTORY": str(paths.modal_token),
            "CLAAS_TERMINATION_MESSAGE_FILE": str(paths.termination_message),
        }

    def give_token(self, secret: str = TOKEN_SECRET) -> None:
        (self.root / "token" / "token-id").write_text(TOKEN_ID + "\n")
        (self.root / "token" / "token-secret").write_text(secret + "\n")

    @property
    def store(self) -> VersionStore:
        return VersionStore(self.paths.adapter_folder("team/tone"))

    def head(self) -> StoredVersion:
        head = self.store.head()
        assert head is not None
        return head

    def document(self, attempt: int = 1, **changes: object) -> TrainerInput:
        """The input of an attempt at the current job, on the head; attempt 0: of `init`."""
        samples = self.root / "scratch" / "samples.json"
        samples.write_text(json.dumps(SAMPLES))
        job = JobIdentity(namespace="team", name="job", uid=f"job-{self.jobs}", attempt=max(1, attempt))
        made = TrainerInput(
            adapter=AdapterIdentity(namespace="team", name="tone", uid=self.uid, lora_id="team/tone"),
            engine=EngineSpec(modal=self.spec),
            model=ModelLocation(path=MODEL),
            lora=self.lora,
            storage_path="team/tone",
            jobs=[job] if attempt else [],
            parent=self.head().record.number if attempt else None,
            samples_file=str(samples) if attempt else None,
            training=TRAINING,
        )
        return made.model_copy(update=changes)

    def of_job(self) -> list[int]:
        """Numbers of the versions that the current job has published."""
        records = [self.store.read(number).record for number in self.store.numbers()]
        return [each.number for each in records if any(job.uid == f"job-{self.jobs}" for job in each.jobs)]

    def folders(self, version: int | None = None) -> list[Path]:
        """The adapter's folders on the Volume, of one version or of all."""
        root = self.peer.volume(VOLUME) / "adapters" / self.uid
        found = sorted(root.iterdir()) if root.exists() else []
        return [each for each in found if version is None or each.name.startswith(f"{version}-")]

    def remove(self, version: int) -> None:
        """Remove a version's folders from the Volume, as a user would."""
        for folder in self.folders(version):
            shutil.rmtree(folder)


def calls_since(peer: ModalPeer, count: int) -> list[Call]:
    """The calls of the app after the first `count` of all."""
    return [call for call in peer.calls[count:] if call.app == APP]
