"""The local engine: PyTorch in this process, on a GPU or on the CPU.

`prepare` imports PyTorch late, so that failures that do not need it are reported sooner.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from claas_contract.engine import DistillBatchRequestPayload, DistillResponse
from claas_contract.outcome import FailureReason
from claas_trainer.engines.base import EngineReadiness, EngineTask, TrainedVersion, TrainingEngine
from claas_trainer.errors import EngineError, InputError
from claas_trainer.heavy_imports import first_import_of

if TYPE_CHECKING:
    from claas_trainer.engines.local.local_step import PreparedTraining


class LocalEngine(TrainingEngine):
    """Holds the base model and the adapter between `prepare` and `close`."""

    def __init__(self) -> None:
        self._resources = ExitStack()
        self._prepared: PreparedTraining | None = None

    async def prepare(self, payload: DistillBatchRequestPayload, task: EngineTask) -> EngineReadiness:
        if payload.save_in_place:
            raise InputError(
                "save_in_place: the local engine makes a new version beside its parent, which a rollback may need;"
                " leave it out, or set it to false"
            )
        try:
            with first_import_of("claas_trainer.engines.local.local_step"):
                from claas_trainer.engines.failures import engine_errors
                from claas_trainer.engines.local.local_step import prepare
        except ImportError as error:
            raise EngineError(
                FailureReason.ENGINE_UNAVAILABLE,
                f"engine local: this image lacks {error.name}; use an image that has it, or another engine",
            ) from error
        with engine_errors():
            self._prepared = await asyncio.to_thread(prepare, payload, task, self._resources)
        return self._prepared.describe()

    async def acquire(self) -> None:
        from claas_trainer.engines.failures import engine_errors

        self._step.task.tell_progress("weights to the device")
        with engine_errors():
            await asyncio.to_thread(self._step.acquire)

    async def distill(self, payload: DistillBatchRequestPayload) -> DistillResponse:
        from claas_trainer.engines.failures import engine_errors

        step = self._step
        started = time.monotonic()
        with engine_errors():
            metrics = await asyncio.to_thread(step.take)
        return DistillResponse(
            lora_id=f"{payload.lora_id}@{step.task.version}",
            metadata={**metrics, "step_seconds": time.monotonic() - started},
        )

    async def release(self) -> None:
        if self._prepared is not None:
            await asyncio.to_thread(self._prepared.release)

    async def trained(self) -> TrainedVersion:
        return self._step.trained()

    async def close(self) -> None:
        self._resources.close()

    @property
    def _step(self) -> PreparedTraining:
        if self._prepared is None:
            raise EngineError(FailureReason.INTERNAL, "engine local: asked for a step before it was prepared")
        return self._prepared
