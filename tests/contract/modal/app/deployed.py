"""The trainer's app at the peer, deployed unmodified, and called as a trainer's pod calls it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from claas_bounded.waits import Deadline
from claas_contract.engine import DistillBatchRequestPayload
from claas_crds.v1alpha1.lora import LoraSpec
from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.calls import DeployedClass, spawn, take
from claas_modal_client.connection import ModalAccount, ModalConnection, ModalToken
from claas_modal_client.folders import store
from claas_trainer.engines.modal.deployment import CLASS_NAME, STEP_METHOD
from claas_trainer.engines.modal.wire import FolderRef, StepAnswer, StepRequest, TakenStep
from claas_trainer.store.versions import StoredVersion
from tests.peers.modal.server import TOKEN_ID, TOKEN_SECRET, ModalPeer
from tests.peers.modal.state.calls import Call

APP, VOLUME, WEIGHTS, REPOSITORY = "claas-trainer", "claas-adapters", "claas-weights", "acme/tiny"
SECONDS = 120.0


def modal_cli(peer: ModalPeer, *arguments: str, settings: Mapping[str, str] | None = None) -> str:
    """Run Modal's command line against the peer; returns what it printed."""
    environment = {
        **os.environ,
        **peer.environment(),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        **(settings or {}),
    }
    command = [sys.executable, "-m", "modal", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def deploy(peer: ModalPeer, settings: Mapping[str, str] | None = None) -> str:
    """As docs/modal.md says, for steps on the CPU unless the settings say otherwise."""
    given = {"CLAAS_MODAL_MODEL": REPOSITORY, "CLAAS_MODAL_GPU": "none", "CLAAS_MODAL_IDLE_SECONDS": "600"}
    return modal_cli(peer, "deploy", "-m", "claas_trainer.engines.modal.app", settings={**given, **(settings or {})})


@dataclass(frozen=True)
class DeployedTrainer:
    """The deployed class, and a connection to it."""

    peer: ModalPeer
    connection: ModalConnection
    app: str = APP

    @classmethod
    def at(cls, peer: ModalPeer, app: str = APP) -> DeployedTrainer:
        token = ModalToken(TOKEN_ID, TOKEN_SECRET)
        return cls(peer, ModalConnection(ModalAccount(token, server_url=peer.url)), app)

    async def begin(self, asked: StepRequest) -> str:
        """Begin a call; returns its id."""
        deployed = DeployedClass(self.app, CLASS_NAME)
        return await spawn(self.connection, deployed, STEP_METHOD, asked.document(), Deadline.after(SECONDS))  # type: ignore[arg-type]

    async def end(self, call: str) -> StepAnswer:
        """The answer of a call."""
        return StepAnswer.of(await take(self.connection, call, Deadline.after(SECONDS)))

    async def ask(self, asked: StepRequest) -> StepAnswer:
        return await self.end(await self.begin(asked))

    async def taken(self, asked: StepRequest) -> TakenStep:
        """The step that was taken."""
        answer = await self.ask(asked)
        assert answer.taken is not None, answer
        return answer.taken

    async def upload(self, version: StoredVersion, uid: str) -> FolderRef:
        """A version's files to the Volume, as a trainer uploads them."""
        files = {name: version.folder / name for name in version.record.files}
        place = f"adapters/{uid}/{version.record.number}-{version.record.digest[:16]}"
        address = await store(self.connection, VOLUME, place, files, Deadline.after(SECONDS))
        return reference(version, str(address))

    def call(self, call_id: str) -> Call:
        return next(call for call in self.peer.calls if call.id == call_id)

    def folder(self, address: str) -> Path:
        """What is committed under an address."""
        return self.peer.volume(VOLUME) / VolumeAddress.parse(address).folder

    def folders(self, uid: str, version: int) -> list[str]:
        """Names of all committed folders of a version, hidden ones too."""
        home = self.peer.volume(VOLUME) / "adapters" / uid
        return [path.name for path in home.iterdir() if path.name.lstrip(".").startswith(f"{version}-")]


def reference(version: StoredVersion, address: str) -> FolderRef:
    record = version.record
    stateful = record.optimizer_state is not None
    return FolderRef(
        number=record.number, address=address, digest=record.digest, optimizer=stateful, provenance=record.local
    )


def request(
    batch: DistillBatchRequestPayload, uid: str, lora: LoraSpec, parent: FolderRef, *earlier: FolderRef
) -> StepRequest:
    return StepRequest(
        adapter_uid=uid,
        version=parent.number + 1,
        base_model=REPOSITORY,
        lora=lora,
        payload=batch,
        parent=parent,
        earlier=earlier,
    )


def put_model(peer: ModalPeer, model: Path) -> None:
    """Upload a base model as docs/modal.md says."""
    modal_cli(peer, "volume", "create", WEIGHTS, "--version", "2")
    modal_cli(peer, "volume", "put", WEIGHTS, str(model), f"/{REPOSITORY}")
