"""The work of the Modal engine in the trainer's pod, imported only for a step."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from claas_bounded.waits import Deadline
from claas_contract.engine import DistillBatchRequestPayload, TokenisedSample
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.engine import ModalEngineSpec, StateKeeping
from claas_modal_client.calls import DeployedClass, preflight
from claas_modal_client.connection import ModalAccount, ModalConnection, ModalToken
from claas_trainer.engines.base import EngineReadiness, EngineTask, RemoteTask, TrainedVersion
from claas_trainer.engines.local.settings import step_config, teacher_of
from claas_trainer.engines.local.version_files import EarlierVersions
from claas_trainer.engines.modal.asking import Asking
from claas_trainer.engines.modal.calls import CallJournal
from claas_trainer.engines.modal.deployment import CLASS_NAME, model_name
from claas_trainer.engines.modal.failures import failed, service_failures
from claas_trainer.engines.modal.folders import VersionFolders
from claas_trainer.engines.modal.result import StepResult
from claas_trainer.engines.modal.tidying import tidy
from claas_trainer.engines.modal.wire import StepAnswer, StepRequest, TakenStep
from claas_trainer.errors import EngineError
from claas_trainer.model.config import read_config
from claas_trainer.model.lora import AdapterWeights, read_adapter
from claas_trainer.sdpo.batch import TokenSample, check_samples
from claas_trainer.sdpo.errors import AdapterError
from claas_trainer.store.errors import storage_errors
from claas_trainer.store.staging import make_staging
from claas_trainer.store.versions import StoredVersion, VersionStore

_MASTER_BYTES = 4
_MOST_VECTORS = 4
"""Master weights, two moments, and an average with the teacher `ema`."""
_MARGIN_BYTES = 64 * 1024


@dataclass(frozen=True)
class _Work:
    """What a step has to do."""

    task: EngineTask
    remote: RemoteTask
    spec: ModalEngineSpec
    payload: DistillBatchRequestPayload
    earlier: Mapping[int, StoredVersion]
    """The usable versions besides the parent that samples name."""
    connection: ModalConnection
    deadline: Deadline

    async def request(self, lost: Collection[str] = ()) -> StepRequest:
        """With all that it needs on the Volume; `lost`: addresses that the app did not find whole."""
        folders = VersionFolders(self.connection, self.spec.volume, self.remote.adapter.uid, self.deadline)
        return StepRequest(
            adapter_uid=self.remote.adapter.uid,
            version=self.task.version,
            base_model=model_name(self.remote.base_model),
            lora=self.remote.lora,
            payload=self.payload,
            parent=await folders.parent(self.task.parent, lost),
            earlier=tuple([await folders.adapter(self.earlier[number], lost) for number in sorted(self.earlier)]),
        )


class ModalStep:
    """One step on the Modal platform, prepared, and its result afterwards. Raises TrainerError."""

    def __init__(self, work: _Work, request: StepRequest, readiness: EngineReadiness) -> None:
        self._work = work
        self._request = request
        self._readiness = readiness
        self._asking = Asking(
            work.connection,
            DeployedClass(work.spec.app, CLASS_NAME),
            CallJournal(work.remote.journal, work.remote.job.attempt),
            work.deadline,
            work.task.tell_progress,
        )
        self._result: StepResult | None = None
        self._staging: Path | None = None

    @property
    def number(self) -> int:
        """The number of the version to make."""
        return self._work.task.version

    def describe(self) -> EngineReadiness:
        """Properties for the attempt."""
        return self._readiness

    async def take(self) -> dict[str, float]:
        """Have the step taken, or find the answer to an earlier attempt's call; returns its metrics."""
        work, asking = self._work, self._asking
        call, answer = await asking.answer(self._request)
        if answer.missing is not None:
            call, answer = await asking.answer(await work.request(answer.missing))
        taken = self._taken(answer)
        with asking.using(call):
            self._result = await StepResult.of(work.connection, call, taken, work.spec.volume, work.deadline)
        return self._result.metrics

    def _taken(self, answer: StepAnswer) -> TakenStep:
        if answer.failure is not None:
            raise failed(answer.failure.reason, answer.failure.message)
        if answer.taken is None:
            spec = self._work.spec
            raise failed(
                FailureReason.APP_NOT_DEPLOYED,
                f"the app {spec.app} does not find {', '.join(answer.missing or ())}, which is on the Volume"
                f" {spec.volume}; deploy it with that Volume (CLAAS_MODAL_VOLUME), or name its own in"
                " spec.engine.modal.volume",
            )
        return answer.taken

    async def trained(self) -> TrainedVersion:
        """The result of `take`."""
        work, result = self._work, self._result
        if result is None:
            raise EngineError(FailureReason.INTERNAL, "engine modal: asked for a version before the step was taken")
        keep, versions = work.spec.keep_state, work.task.parent.folder.parent
        if keep is StateKeeping.PVC:
            with storage_errors(versions):
                self._staging = make_staging(versions, work.remote.job.uid, work.remote.job.attempt)
        with self._asking.using(result.call):
            return await result.version(work.connection, keep, self._staging or versions, work.deadline)

    async def tidy(self, store: VersionStore) -> None:
        """Remove from the Volume what is needed no more, after the version was published. Raises nothing."""
        work = self._work
        spec, adapter = work.spec, work.remote.adapter.uid
        await tidy(work.connection, spec.volume, adapter, store, spec.superseded_state_ttl_seconds)

    def close(self) -> None:
        """Remove what was downloaded."""
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)


async def prepare(
    payload: DistillBatchRequestPayload, task: EngineTask, remote: RemoteTask, connection: ModalConnection
) -> ModalStep:
    """Check what can be checked at no cost, and have all that the step needs on the Volume. Raises TrainerError and
    SdpoError."""
    spec = settings(remote)
    deadline = Deadline.after(spec.step_timeout_seconds)
    with service_failures():
        await preflight(connection, DeployedClass(spec.app, CLASS_NAME), deadline)
    adapter, earlier = await asyncio.to_thread(_checked, payload, task)
    samples = tuple(
        each if each.version in (*earlier.adapters, task.parent.record.number) else _versionless(each)
        for each in payload.samples
    )
    usable = {number: task.earlier[number] for number in earlier.adapters}
    asked = payload.model_copy(update={"samples": samples})
    work = _Work(task, remote, spec, asked, usable, connection, deadline)
    readiness = EngineReadiness(_version_bytes(adapter, spec.keep_state), unusable=earlier.unusable)
    # An answer has an adapter as large as these: the memory for both is not needed.
    del adapter, earlier
    return ModalStep(work, await work.request(), readiness)


def _version_bytes(parent: AdapterWeights, keep: StateKeeping) -> int:
    """The most that the new version and its download need on the volume."""
    tensors = parent.tensors.values()
    needed = sum(tensor.nbytes for tensor in tensors) + _MARGIN_BYTES
    if keep is StateKeeping.PVC:
        # Downloaded beside the versions, and copied into the new one.
        needed += 2 * _MOST_VECTORS * _MASTER_BYTES * sum(tensor.numel() for tensor in tensors)
    return needed


def connect(remote: RemoteTask) -> ModalConnection:
    """The connection to the platform; nothing is asked yet. Raises EngineError."""
    with service_failures():
        return ModalConnection(ModalAccount(ModalToken.read(remote.token_folder), settings(remote).environment))


def settings(remote: RemoteTask) -> ModalEngineSpec:
    """The engine's settings; the defaults when it was chosen by the execution mode."""
    return remote.spec.modal or ModalEngineSpec()


def _checked(payload: DistillBatchRequestPayload, task: EngineTask) -> tuple[AdapterWeights, EarlierVersions]:
    """The parent's adapter, and the earlier versions that fit it; everything that the step would refuse is refused
    here. Raises TrainerError and SdpoError."""
    step_config(payload.training)
    teacher_of(payload.training)
    check_samples([_token_sample(each) for each in payload.samples], read_config(task.model).limits.vocabulary_size)
    try:
        adapter = read_adapter(task.parent.folder, None)
    except AdapterError as error:
        raise EngineError(FailureReason.PARENT_CORRUPT, str(error)) from error
    return adapter, EarlierVersions.read(task.earlier, adapter)


def _token_sample(sample: TokenisedSample) -> TokenSample:
    return TokenSample(
        sample.student_prompt_ids, sample.teacher_prompt_ids, sample.response_ids, sample.old_logprobs or None
    )


def _versionless(sample: TokenisedSample) -> TokenisedSample:
    return sample if sample.version is None else sample.model_copy(update={"version": None})
