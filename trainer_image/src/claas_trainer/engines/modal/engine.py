"""The Modal engine. `prepare` imports PyTorch and the SDK late, so that failures that do not need them are reported
sooner."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from claas_contract.engine import DistillBatchRequestPayload, DistillResponse
from claas_contract.outcome import FailureReason
from claas_trainer.engines.base import EngineReadiness, EngineTask, TrainedVersion, TrainingEngine
from claas_trainer.errors import EngineError, InputError
from claas_trainer.heavy_imports import first_import_of
from claas_trainer.store.versions import VersionStore

if TYPE_CHECKING:
    from claas_modal_client.connection import ModalConnection
    from claas_trainer.engines.modal.step import ModalStep


class ModalEngine(TrainingEngine):
    """Has a container of the Modal platform take the local engine's step; needs no device."""

    def __init__(self) -> None:
        self._connection: ModalConnection | None = None
        self._prepared: ModalStep | None = None

    async def prepare(self, payload: DistillBatchRequestPayload, task: EngineTask) -> EngineReadiness:
        if task.remote is None:
            raise _out_of_turn("a step without the settings of its service")
        if payload.save_in_place:
            raise InputError(
                "engine modal: save_in_place: each step makes a new version beside its parent; leave it out, or"
                " set it to false"
            )
        try:
            with first_import_of("claas_trainer.engines.modal.step"):
                from claas_trainer.engines.failures import engine_errors
                from claas_trainer.engines.modal.step import connect, prepare
        except ImportError as error:
            raise EngineError(
                FailureReason.ENGINE_UNAVAILABLE,
                f"engine modal: this image lacks {error.name}; use an image that has it, or another engine",
            ) from error
        with engine_errors():
            self._connection = connect(task.remote)
            self._prepared = await prepare(payload, task, task.remote, self._connection)
        return self._prepared.describe()

    async def distill(self, payload: DistillBatchRequestPayload) -> DistillResponse:
        step, started = self._step, time.monotonic()
        metrics = await step.take()
        return DistillResponse(
            lora_id=f"{payload.lora_id}@{step.number}",
            metadata={**metrics, "step_seconds": time.monotonic() - started},
        )

    async def trained(self) -> TrainedVersion:
        return await self._step.trained()

    async def tidy(self, store: VersionStore, version: int) -> None:
        await self._step.tidy(store)

    async def close(self) -> None:
        if self._prepared is not None:
            self._prepared.close()
        if self._connection is not None:
            await self._connection.close()

    @property
    def _step(self) -> ModalStep:
        if self._prepared is None:
            raise _out_of_turn("a step before it was prepared")
        return self._prepared


def _out_of_turn(what: str) -> EngineError:
    return EngineError(FailureReason.INTERNAL, f"engine modal: asked for {what}")
