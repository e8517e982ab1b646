"""A step that was taken on Modal, as a version: its files, where its optimiser state is, and what is known of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as library_version
from pathlib import Path

from claas_bounded.waits import Deadline
from claas_contract.engine import OWN_FILES, StateRef
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.engine import EngineName, StateKeeping
from claas_modal_client.addresses import VolumeAddress
from claas_modal_client.connection import ModalConnection
from claas_modal_client.folders import fetch, manifest
from claas_trainer.engines.base import TrainedVersion
from claas_trainer.engines.modal.failures import failed, service_failures
from claas_trainer.engines.modal.wire import TakenStep
from claas_trainer.store.content import Bytes, FileContent, LocalFile
from claas_trainer.store.errors import storage_errors
from claas_trainer.store.record import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, OPTIMIZER_FILES, ModalProvenance

_LEAST_SECONDS = 45.0
"""Least time for reading what is there already, also of an answer that came at the deadline."""


@dataclass(frozen=True)
class StepResult:
    """An answer whose files lie on the Volume as it says."""

    call: str
    taken: TakenStep
    address: VolumeAddress
    """The folder with all files of the version."""
    on_volume: Mapping[str, str]
    """Their digests."""

    @classmethod
    async def of(
        cls, connection: ModalConnection, call: str, taken: TakenStep, volume: str, deadline: Deadline
    ) -> StepResult:
        """Raises EngineError: CALL_LOST if the files are not those that lie on the Volume."""
        try:
            address = VolumeAddress.parse(taken.state)
        except ValueError as error:
            raise failed(FailureReason.CALL_LOST, f"{call} answered with a folder that is none: {error}") from None
        if address.volume != volume:
            raise failed(
                FailureReason.APP_NOT_DEPLOYED,
                f"the app keeps versions on the Volume {address.volume}, and spec.engine.modal.volume is {volume};"
                " name the same",
            )
        with service_failures():
            on_volume = (await manifest(connection, address, _longer(deadline))).files
        told = {name: hashlib.sha256(data).hexdigest() for name, data in taken.adapter.items()}
        if told.keys() != {ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE} or not told.items() <= on_volume.items():
            raise failed(FailureReason.CALL_LOST, f"{call} answered with other files than lie in {address.folder}")
        return cls(call, taken, address, on_volume)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the step, with the seconds in which the platform computed it."""
        seconds = {f"modal_seconds_{name}": value for name, value in self.taken.seconds.model_dump().items()}
        return {**self.taken.metrics, **seconds}

    async def version(
        self, connection: ModalConnection, keep: StateKeeping, folder: Path, deadline: Deadline
    ) -> TrainedVersion:
        """The version; its optimiser's files are downloaded below `folder` if they are to be kept."""
        files: dict[str, FileContent] = {name: Bytes(data) for name, data in self.taken.adapter.items()}
        state = StateRef(engine=EngineName.MODAL.value, uri=str(self.address))
        if keep is StateKeeping.PVC:
            files |= await self._optimizer_files(connection, folder / "state", _longer(deadline))
            state = OWN_FILES
        return TrainedVersion(
            files,
            self.metrics,
            {**self.taken.libraries, "modal": library_version("modal")},
            self._provenance(),
            state,
            str(self.address),
        )

    async def _optimizer_files(
        self, connection: ModalConnection, folder: Path, deadline: Deadline
    ) -> dict[str, FileContent]:
        names = [name for name in self.on_volume if name.startswith(OPTIMIZER_FILES)]
        with service_failures(), storage_errors(folder):
            await fetch(connection, self.address, folder, deadline, names)
        return {name: LocalFile(folder / name) for name in names}

    def _provenance(self) -> ModalProvenance:
        taken = self.taken
        return ModalProvenance(
            **dict(taken.provenance),
            modal_call=self.call,
            modal_container=taken.place.container,
            modal_gpu=taken.place.gpu,
        )


def _longer(deadline: Deadline) -> Deadline:
    return Deadline.after(max(_LEAST_SECONDS, deadline.left()))
