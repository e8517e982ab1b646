"""Answers requests for steps: each is looked up on the Volume, or taken by the local engine and written there."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from claas_contract.engine import OWN_FILES
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.engine import EngineName
from claas_modal_client.deployment import NO_GPU, CommonSettings
from claas_trainer.engines.access import ServingAccess, WeightAccess
from claas_trainer.engines.base import EngineTask, TrainedVersion
from claas_trainer.engines.failures import engine_errors
from claas_trainer.engines.local.local_step import prepare
from claas_trainer.engines.modal.container.base_weights import BaseModelOnVolume
from claas_trainer.engines.modal.container.mounted_versions import MountedVersions
from claas_trainer.engines.modal.container.mounted_volume import MountedVolume
from claas_trainer.engines.modal.wire import (
    FolderRef,
    StepAnswer,
    StepFailure,
    StepPlace,
    StepRequest,
    StepSeconds,
    WireError,
)
from claas_trainer.errors import EngineError, TrainerError
from claas_trainer.logs import log, log_exception
from claas_trainer.store.record import VersionRecord
from claas_trainer.store.versions import StoredVersion

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class _Versions:
    parent: StoredVersion
    earlier: Mapping[int, StoredVersion]


class StepServer:
    """Takes the steps of a deployment, one at a time, in the thread that Modal interrupts to cancel a call."""

    def __init__(
        self,
        deployment: CommonSettings,
        versions: MountedVolume,
        weights: MountedVolume,
        retire: Callable[[], None],
        scratch: Path | None = None,
    ) -> None:
        """`retire` is called when this process may be damaged, so that another one takes the next step. `scratch`:
        local folder for copies of versions; None for the system's."""
        self._deployment = deployment
        self._folders = MountedVersions(versions)
        self._weights = weights
        self._retire = retire
        self._scratch = scratch
        self._model: BaseModelOnVolume | None = None
        self._start_seconds = 0.0

    @property
    def _place(self) -> StepPlace:
        # A process that was restored from a snapshot has the environment of its own container.
        container = os.environ.get("MODAL_TASK_ID", "")
        return StepPlace(container=container, gpu=",".join(self._deployment.gpu) or NO_GPU)

    def load(self) -> None:
        """Read the base model, before a snapshot is taken of this process. The first step tells what failed, since a
        container that does not start would be started again and again."""
        began = time.monotonic()
        try:
            self._model = self._found_model()
        except TrainerError as error:
            log("not-loaded", reason=error.reason.value, message=error.message)
        except Exception as error:  # noqa: BLE001 - told by the first step, which tries again
            log_exception("not-loaded", error)
        self._start_seconds = time.monotonic() - began
        log("loaded", model=self._deployment.model, held=self._model is not None, seconds=self._start_seconds)

    def resume(self, *, restored: bool) -> None:
        """Begin to serve, in this process or in one that was restored from its snapshot."""
        if restored:
            self._start_seconds = 0.0
        try:
            if self._model is not None and not self._model.is_current():
                log("model-replaced", model=self._deployment.model)
                self._model = None
        except TrainerError as error:
            log("not-compared", reason=error.reason.value, message=error.message)

    def step(self, document: object) -> dict[str, object]:
        """The answer to a request; every failure is one. Only a cancelled call raises."""
        try:
            answer = self._answer(StepRequest.of(document))
        except WireError as error:
            answer = _failure(
                FailureReason.APP_NOT_DEPLOYED,
                f"the app {self._deployment.app} on Modal is of another release ({error}); deploy it again from the"
                " release that the operator has",
            )
        except TrainerError as error:
            log("failed", reason=error.reason.value, message=error.message)
            answer = _failure(error.reason, error.message)
        except Exception as error:  # noqa: BLE001 - the edge of the process: every error is answered
            log_exception("unexpected", error)
            self._retire()
            answer = _failure(
                FailureReason.INTERNAL,
                f"unexpected {type(error).__name__} in the app {self._deployment.app} on Modal; its log says where",
            )
        return answer.document()

    def _answer(self, request: StepRequest) -> StepAnswer:
        began = time.monotonic()
        start, self._start_seconds = self._start_seconds, 0.0
        if request.base_model != self._deployment.model:
            raise EngineError(
                FailureReason.APP_NOT_DEPLOYED,
                f"the app {self._deployment.app} on Modal was deployed with the base model {self._deployment.model},"
                f" and the adapter has {request.base_model}; deploy another app (CLAAS_MODAL_APP) with"
                f" CLAAS_MODAL_MODEL={request.base_model}, and name it in spec.engine.modal.app",
            )
        log("request", version=request.version, digest=request.digest, samples=len(request.payload.samples))
        self._folders.volume.reload()
        taken = self._folders.finished(request)
        if taken is not None:
            log("found", state=taken.state)
            return StepAnswer(taken=taken)
        with tempfile.TemporaryDirectory(prefix="claas-step-", dir=self._scratch) as scratch:
            versions = self._fetch(request, Path(scratch))
            if not isinstance(versions, _Versions):
                log("missing", folders=len(versions))
                return StepAnswer(missing=versions)
            made, acquired = self._take(request, versions, self._read_model())
            seconds = StepSeconds(start=start, load=acquired - began, step=time.monotonic() - acquired)
            taken = self._folders.publish(request, made, seconds, self._place)
        log("taken", state=taken.state, **taken.seconds.model_dump())
        return StepAnswer(taken=taken)

    def _fetch(self, request: StepRequest, scratch: Path) -> _Versions | tuple[str, ...]:
        """The versions as local files, or the addresses of those that are not whole on the Volume."""
        found: dict[int, StoredVersion] = {}
        missing: list[str] = []
        for ref in (request.parent, *request.earlier):
            folder = scratch / str(ref.number)
            files = self._folders.fetch(ref, folder, adapter_alone=ref is not request.parent)
            if files is None:
                missing.append(ref.address)
            else:
                found[ref.number] = StoredVersion(folder, _record(ref, request, files))
        if missing:
            return tuple(missing)
        return _Versions(found.pop(request.parent.number), found)

    def _take(
        self, request: StepRequest, versions: _Versions, model: BaseModelOnVolume
    ) -> tuple[TrainedVersion, float]:
        """The step, and the time at which it had its device."""
        if self._deployment.gpu and not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no GPU in a container that was rented with one")
        task = EngineTask(
            model.folder,
            versions.parent,
            request.version,
            tell_progress=lambda detail: log("progress", detail=detail),
            access=ServingAccess(WeightAccess.ALONE),
            earlier=versions.earlier,
        )
        with ExitStack() as resources, engine_errors():
            prepared = prepare(request.payload, task, resources, model.held)
            try:
                prepared.acquire()
                acquired = time.monotonic()
                prepared.take()
            finally:
                prepared.release()
            return prepared.trained(), acquired

    def _read_model(self) -> BaseModelOnVolume:
        """The base model; read again where the Volume did not have it before. Raises TrainerError."""
        if self._model is None:
            self._weights.reload()
            self._model = self._found_model()
        return self._model

    def _found_model(self) -> BaseModelOnVolume:
        deployment, volume = self._deployment, self._weights
        return BaseModelOnVolume.read(volume.root, volume.name, deployment.model, cuda=bool(deployment.gpu))


def _record(ref: FolderRef, request: StepRequest, files: Mapping[str, str]) -> VersionRecord:
    """What the step needs to know of a version; the trainer's pod has its whole record."""
    return VersionRecord(
        number=ref.number,
        lora_id=request.payload.lora_id,
        created=_BEGINNING,
        engine=EngineName.MODAL.value,
        base_model=request.base_model,
        lora=request.lora,
        step=ref.provenance,
        state=OWN_FILES if ref.optimizer else None,
        files=dict(files),
        digest=ref.digest,
    )


def _failure(reason: FailureReason, message: str) -> StepAnswer:
    return StepAnswer(failure=StepFailure(reason=reason, message=message))
