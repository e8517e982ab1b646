"""Folders as Modal Volumes, and a step server on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from claas_contract.engine import DistillBatchRequestPayload
from claas_crds.v1alpha1.lora import LoraSpec
from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.manifest import MANIFEST_FILE, Manifest
from claas_trainer.engines.modal.container.mounted_volume import MountedVolume
from claas_trainer.engines.modal.container.step_server import StepServer
from claas_trainer.engines.modal.deployment import TrainerDeployment
from claas_trainer.engines.modal.wire import FolderRef, StepAnswer, StepRequest
from claas_trainer.store.versions import StoredVersion

REPOSITORY = "acme/tiny"
LORA = LoraSpec(rank=8, alpha=16)


@dataclass
class FolderVolume:
    """A Volume that is a folder; `refused` commits are refused first."""

    name: str
    root: Path
    refused: int = 0
    commits: int = 0
    slept: list[float] = field(default_factory=list)
    before_commit: Callable[[], None] | None = None

    def mounted(self) -> MountedVolume:
        self.root.mkdir(exist_ok=True)
        return MountedVolume(self.name, self.root, lambda: None, self._commit, self.slept.append)

    def _commit(self) -> None:
        if self.before_commit is not None:
            self.before_commit()
        if self.refused:
            self.refused -= 1
            raise RuntimeError("another commit is under way")
        self.commits += 1

    def upload(self, version: StoredVersion, uid: str, *, optimizer: bool | None = None) -> FolderRef:
        """As a trainer uploads a version from its own volume; by default with the optimiser's state if it has one."""
        stateful = version.record.optimizer_state is not None
        kept = stateful if optimizer is None else optimizer
        files = {name: version.folder / name for name in version.record.files if kept or "optimizer" not in name}
        content = Manifest.of(files)
        place = f"adapters/{uid}/{version.record.number}-{version.record.digest[:16]}"
        (self.root / place).mkdir(parents=True, exist_ok=True)
        for name, path in files.items():
            shutil.copy(path, self.root / place / name)
        (self.root / place / MANIFEST_FILE).write_bytes(content.to_bytes())
        return reference(version, str(VolumeAddress(self.name, place, content.digest)), optimizer=stateful)


def reference(version: StoredVersion, address: str, *, optimizer: bool) -> FolderRef:
    return FolderRef(
        number=version.record.number,
        address=address,
        digest=version.record.digest,
        optimizer=optimizer,
        provenance=version.record.local,
    )


def request(
    batch: DistillBatchRequestPayload, parent: FolderRef, *earlier: FolderRef, uid: str = "adapter-uid"
) -> StepRequest:
    return StepRequest(
        adapter_uid=uid,
        version=parent.number + 1,
        base_model=REPOSITORY,
        lora=LORA,
        payload=batch,
        parent=parent,
        earlier=earlier,
    )


@dataclass
class Site:
    """The two Volumes, and a server of a deployment for the CPU."""

    versions: FolderVolume
    weights: FolderVolume
    server: StepServer
    retired: list[bool]

    @classmethod
    def at(cls, folder: Path, model: Path | None, settings: Mapping[str, str] | None = None) -> Site:
        """`model`: the folder that the Volume of base weights holds."""
        versions = FolderVolume("claas-adapters", folder / "adapters-volume")
        weights = FolderVolume("claas-weights", folder / "weights-volume")
        retired: list[bool] = []
        deployment = TrainerDeployment.of(
            {"CLAAS_MODAL_GPU": "none", "CLAAS_MODAL_MODEL": REPOSITORY, **(settings or {})}
        )
        server = StepServer(
            deployment.common, versions.mounted(), weights.mounted(), lambda: retired.append(True), scratch=folder
        )
        if model is not None:
            shutil.copytree(model, weights.root / REPOSITORY)
        return cls(versions, weights, server, retired)

    def start(self, *, restored: bool = False) -> None:
        self.server.load()
        self.server.resume(restored=restored)

    def ask(self, asked: StepRequest) -> StepAnswer:
        return StepAnswer.of(self.server.step(asked.document()))

    def folder(self, address: str) -> Path:
        return self.versions.root / VolumeAddress.parse(address).folder
