"""The Tinker engine. `prepare` imports PyTorch and the SDK late, so that failures that do not need them are reported
sooner."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from claas_contract.engine import DistillBatchRequestPayload, DistillResponse
from claas_contract.engine_refusals import engine_refusals
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.engine import EngineName, EngineSpec
from claas_trainer.engines.base import EngineReadiness, EngineTask, RemoteTask, TrainedVersion, TrainingEngine
from claas_trainer.errors import EngineError, InputError
from claas_trainer.heavy_imports import first_import_of
from claas_trainer.store.versions import VersionStore

if TYPE_CHECKING:
    from claas_tinker_client.connection import TinkerConnection
    from claas_trainer.engines.tinker.step import RemoteStep


class TinkerEngine(TrainingEngine):
    """Has the Tinker service take the step; needs no device."""

    def __init__(self) -> None:
        self._connection: TinkerConnection | None = None
        self._prepared: RemoteStep | None = None

    async def prepare(self, payload: DistillBatchRequestPayload, task: EngineTask) -> EngineReadiness:
        if task.remote is None:
            raise _out_of_turn("a step without the settings of its service")
        _check_settings(payload, task.remote)
        try:
            with first_import_of("claas_trainer.engines.tinker.step"):
                from claas_trainer.engines.failures import engine_errors
                from claas_trainer.engines.tinker.step import connect, prepare
        except ImportError as error:
            raise EngineError(
                FailureReason.ENGINE_UNAVAILABLE,
                f"engine tinker: this image lacks {error.name}; use an image that has it, or another engine",
            ) from error
        with engine_errors():
            self._connection = connect(task.remote)
            self._prepared = await prepare(payload, task, task.remote, self._connection)
        return self._prepared.describe()

    async def distill(self, payload: DistillBatchRequestPayload) -> DistillResponse:
        from claas_trainer.engines.failures import engine_errors

        step, started = self._step, time.monotonic()
        with engine_errors():
            metrics = await step.take()
        return DistillResponse(
            lora_id=f"{payload.lora_id}@{step.number}",
            metadata={**metrics, "step_seconds": time.monotonic() - started},
        )

    async def trained(self) -> TrainedVersion:
        return self._step.trained()

    async def tidy(self, store: VersionStore, version: int) -> None:
        from claas_trainer.engines.tinker.checkpoints import tidy

        if self._connection is not None:
            await tidy(self._connection, store, version, self._step.superseded_ttl_seconds)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close(self._prepared.session_end if self._prepared else "errored")

    @property
    def _step(self) -> RemoteStep:
        if self._prepared is None:
            raise _out_of_turn("a step before it was prepared")
        return self._prepared


def _check_settings(payload: DistillBatchRequestPayload, task: RemoteTask) -> None:
    """Checks that the service can follow the settings. Raises InputError that names each one that it can't."""
    # Chosen by the execution mode, the engine has no settings of its own.
    spec = task.spec if task.spec.tinker is not None else EngineSpec.of(EngineName.TINKER)
    refusals = engine_refusals(spec, payload.training, task.lora)
    if payload.save_in_place:
        refusals.append("save_in_place: each step makes new checkpoints; leave it out, or set it to false")
    if refusals:
        raise InputError("engine tinker: " + "; ".join(refusals))


def _out_of_turn(what: str) -> EngineError:
    return EngineError(FailureReason.INTERNAL, f"engine tinker: asked for {what}")
