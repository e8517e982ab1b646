"""What the trainer's GPU is paid for: three calls, of which one takes a step."""

from __future__ import annotations

import tempfile
import time
import uuid
from pathlib import Path
from typing import cast

from claas_contract.engine import DistillBatchRequestPayload, TokenisedSample
from claas_crds.v1alpha1.lora import LoraSpec
from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.calls import DeployedClass, Document, cancel, spawn, take
from claas_modal_client.connection import ModalConnection
from claas_modal_client.errors import ModalFault
from claas_modal_client.folders import present
from claas_modal_client.volume import ModalVolume
from claas_trainer.engines.modal.deployment import CLASS_NAME, STEP_METHOD
from claas_trainer.engines.modal.folders import VersionFolders
from claas_trainer.engines.modal.wire import FolderRef, StepAnswer, StepRequest, TakenStep, adapter_folder
from claas_trainer.model.config import read_config
from claas_trainer.model.lora import LoraShape, config_file, new_adapter
from claas_trainer.store.content import Bytes, FileContent, digest_of, write_file
from claas_trainer.store.record import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from claas_trainer.store.tensors import Tensors
from tools.live_check import Findings
from tools.modal_check.subject import SERVED_NAME, Subject, fault_of, soon

STEP_SECONDS = 1800.0
RANK = 8


class Steps:
    """Steps of a new adapter."""

    def __init__(self, findings: Findings, subject: Subject, connection: ModalConnection) -> None:
        self._findings = findings
        self._subject = subject
        self._connection = connection
        self._deployed = DeployedClass(subject.trainer, CLASS_NAME)
        self._volume = ModalVolume(connection, subject.volume)
        self.uid = f"live-check-{uuid.uuid4().hex}"

    async def check(self) -> TakenStep | None:
        """A step from a new adapter, the same once more, and one that is cancelled."""
        parent = await self._parent()
        began = time.monotonic()
        first = await self._ask(self._request(parent, 16))
        self._findings.told(
            "a step from a cold start",
            f"{time.monotonic() - began:.1f} s, of which " + ", ".join(
                f"{name} {seconds:.1f}" for name, seconds in first.seconds.model_dump(exclude={"protocol"}).items()
            ),
        )  # fmt: skip
        there = await present(self._connection, VolumeAddress.parse(first.state), soon())
        self._findings.tell("its folder on the Volume", "whole" if there else "not whole", as_assumed=there)
        began = time.monotonic()
        again = await self._ask(self._request(parent, 16))
        self._findings.tell(
            "the same step again",
            f"{'found' if again.found else 'taken anew'} in {time.monotonic() - began:.1f} s",
            as_assumed=again.found and again.adapter == first.adapter,
            assumed="found on the Volume, with the same bytes",
        )
        await self._check_cancelled(parent)
        return first

    async def clean_up(self) -> None:
        """Remove what the steps wrote."""
        await self._volume.remove(adapter_folder(self.uid), soon())

    async def _check_cancelled(self, parent: FolderRef) -> None:
        request = self._request(parent, 17)
        call = await spawn(self._connection, self._deployed, STEP_METHOD, cast(Document, request.document()), soon())
        await cancel(self._connection, call, soon())
        began = time.monotonic()
        found = await fault_of(take(self._connection, call, soon(STEP_SECONDS)))
        self._findings.tell(
            "a call that was cancelled together with its container",
            f"{'finished' if found is None else found.value} after {time.monotonic() - began:.1f} s",
            as_assumed=found is ModalFault.CALL_CANCELLED,
            assumed=ModalFault.CALL_CANCELLED.value,
        )

    async def _ask(self, request: StepRequest) -> TakenStep:
        call = await spawn(self._connection, self._deployed, STEP_METHOD, cast(Document, request.document()), soon())
        answer = StepAnswer.of(await take(self._connection, call, soon(STEP_SECONDS)))
        if answer.taken is None:
            raise RuntimeError(f"no step: {answer.failure or answer.missing}")
        return answer.taken

    def _request(self, parent: FolderRef, length: int) -> StepRequest:
        # Ids that every model has.
        prompt, response = tuple(range(20, 20 + length)), tuple(range(60, 76))
        sample = TokenisedSample(
            student_prompt_ids=prompt, teacher_prompt_ids=(*prompt, *range(40, 48)), response_ids=response
        )
        return StepRequest(
            adapter_uid=self.uid,
            version=1,
            base_model=self._subject.model,
            lora=LoraSpec(rank=RANK),
            payload=DistillBatchRequestPayload(lora_id=SERVED_NAME, samples=(sample,)),
            parent=parent,
        )

    async def _parent(self) -> FolderRef:
        """Version 0, made from the base model's configuration, and uploaded as a trainer does."""
        weights = ModalVolume(self._connection, self._subject.weights_volume)
        lora = LoraSpec(rank=RANK)
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / "model"
            model.mkdir()
            content = await weights.read(f"{self._subject.model}/config.json", soon())
            (model / "config.json").write_bytes(content)
            adapter = new_adapter(model, LoraShape(lora.rank, lora.alpha, "all-linear"), 0)
            tensors = Tensors(adapter.tensors, {"format": "pt"}, read_config(model).dtype)
            files: dict[str, FileContent] = {
                ADAPTER_CONFIG_FILE: Bytes(config_file(adapter.shape)),
                ADAPTER_WEIGHTS_FILE: tensors,
            }
            digests = {name: write_file(Path(scratch) / name, each) for name, each in files.items()}
            folders = VersionFolders(self._connection, self._subject.volume, self.uid, soon(300))
            address = await folders.upload(0, digests, Path(scratch))
        return FolderRef(number=0, address=str(address), digest=digest_of(digests))
