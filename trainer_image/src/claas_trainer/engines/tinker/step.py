"""The work of the Tinker engine, imported only for a step."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Literal, TypeAlias

import tinker
from tinker import types
from torch import Tensor

from claas_bounded.waits import Deadline
from claas_contract.engine import DistillBatchRequestPayload, TokenisedSample
from claas_contract.outcome import FailureReason
from claas_crds.v1alpha1.engine import TinkerEngineSpec
from claas_tinker_client.connection import Account, TinkerConnection
from claas_tinker_client.errors import ServiceFault, TinkerServiceError
from claas_tinker_client.version_file import TinkerVersion
from claas_trainer.engines.base import EngineReadiness, EngineTask, RemoteTask, TrainedVersion
from claas_trainer.engines.tinker.digests import task_digest
from claas_trainer.engines.tinker.external.export import Exporter
from claas_trainer.engines.tinker.failures import service_failures
from claas_trainer.engines.tinker.journal import Checkpoints, RemoteJournal
from claas_trainer.engines.tinker.objective import BatchLoss, ScoredSample
from claas_trainer.engines.tinker.optimizer_check import optimizer_restored
from claas_trainer.engines.tinker.remote_run import RemoteRun, RunStart
from claas_trainer.engines.tinker.scoring import Samplers, Scorer
from claas_trainer.engines.tinker.settings import adam_params, check_length, service_model, step_config
from claas_trainer.engines.tinker.version import next_version, read_parent, state_ref, version_file
from claas_trainer.errors import EngineError, TrainerError
from claas_trainer.libraries import library_versions
from claas_trainer.logs import log
from claas_trainer.model.config import read_config
from claas_trainer.sdpo.batch import TokenSample, check_samples, digest
from claas_trainer.sdpo.distance import check_distance
from claas_trainer.sdpo.errors import NonFiniteError, SdpoError
from claas_trainer.store.content import FileContent
from claas_trainer.store.record import RemoteProvenance
from claas_trainer.store.versions import StoredVersion

SessionEnd: TypeAlias = Literal["success", "errored"] | None

_VERSION_BYTES = 64 * 1024
_GRAD_NORMS = ("unclipped_grad_l2", "grad_norm")
"""Names under which services tell the gradient's norm before it is clipped."""
_RESTORED = "optimizer_restored"
"""Metric: 1 if the service restored the parent's optimiser state, 0 if not; absent if that was not seen."""


class RemoteStep:
    """One step by the service, prepared, and its result afterwards. Raises TrainerError and SdpoError."""

    def __init__(
        self,
        payload: DistillBatchRequestPayload,
        task: EngineTask,
        connection: TinkerConnection,
        deadline: Deadline,
        parent: TinkerVersion,
        run: RemoteRun,
        scorer: Scorer | None,
        earlier: Mapping[int, StoredVersion],
        exporter: Exporter | None,
    ) -> None:
        """`scorer`: None if an earlier attempt has taken and saved the step. `earlier`: the usable versions that
        answered. `exporter`: None if no adapter is to be exported."""
        self.number = task.version
        """The number of the version to make."""
        self._samples = payload.samples
        self._config = step_config(payload.training)
        self._task = task
        self._connection = connection
        self._deadline = deadline
        self._parent = parent
        self._run = run
        self._scorer = scorer
        self._earlier = earlier
        self._exporter = exporter
        self._exported: Mapping[str, FileContent] = {}
        self._saved: Checkpoints | None = None
        self._vetoed = False

    def describe(self) -> EngineReadiness:
        """Properties for the attempt."""
        exported = self._exporter.size_bytes if self._exporter else 0
        unusable = frozenset(self._task.earlier.keys() - self._earlier.keys())
        return EngineReadiness(_VERSION_BYTES + exported, unusable=unusable)

    @property
    def superseded_ttl_seconds(self) -> int:
        """Time to live of the checkpoints of versions that no step starts from."""
        assert self._task.remote is not None
        return _settings(self._task.remote).superseded_checkpoint_ttl_seconds

    @property
    def session_end(self) -> SessionEnd:
        """How the session ends; None leaves it to the next attempt, which may take up the step that its run holds."""
        if self._saved is not None:
            return "success"
        return None if self._run.unfinished and not self._vetoed else "errored"

    async def take(self) -> dict[str, float]:
        """Take the step and save it, unless an earlier attempt has; returns its metrics."""
        if self._run.found is not None:
            self._saved = self._run.found
        else:
            scored, restored = await self._asked_beforehand()
            try:
                self._saved = await self._take(scored, restored)
            except SdpoError:
                self._vetoed = True
                raise
        if self._exporter is not None:
            self._task.tell_progress("exporting the weights")
            self._exported = await self._exporter.files(self._saved.state_path)
        return dict(self._saved.metrics)

    async def _asked_beforehand(self) -> tuple[list[ScoredSample], bool | None]:
        """The scored samples, and whether the service restored the optimiser."""
        assert self._scorer is not None
        with service_failures():
            check = asyncio.ensure_future(self._optimizer_restored())
            try:
                return await self._scorer.score(self._samples), await check
            finally:
                check.cancel()

    async def _optimizer_restored(self) -> bool | None:
        state_path = self._parent.state_path
        if state_path is None:
            return None
        restored = await optimizer_restored(self._connection, state_path, self._deadline)
        if restored is False:
            log(
                "optimizer-not-restored",
                checkpoint=state_path,
                what="the service did not restore Adam's state: this step is taken without its momentum",
            )
        return restored

    async def _take(self, scored: Sequence[ScoredSample], restored: bool | None) -> Checkpoints:
        config, tell = self._config, self._task.tell_progress
        loss = BatchLoss(scored, config)
        data = [_datum(sample) for sample in scored]
        tell("gradients and update")
        output = await self._run.step(data, lambda _, logprobs: (loss.loss(logprobs), {}), adam_params(config))
        grad_norm = _grad_norm(output.metrics)
        tell("distance from the parent")
        after = await self._run.forward(data)
        moved, furthest = loss.moved(
            [_logprobs(told, sample) for told, sample in zip(after.loss_fn_outputs, scored, strict=True)]
        )
        check_distance(moved, config.max_kl)
        assert loss.figures is not None
        metrics = {
            **{name: float(value) for name, value in asdict(loss.figures).items() if value is not None},
            **grad_norm,
            "kl_to_parent": moved,
            "kl_to_parent_max": furthest,
            "step": float(self._parent.step + 1),
        }
        if restored is not None:
            metrics[_RESTORED] = float(restored)
        tell("saving")
        return await self._run.save(metrics)

    def trained(self) -> TrainedVersion:
        """The result of `take`."""
        saved = self._saved
        if saved is None:
            raise EngineError(FailureReason.INTERNAL, "engine tinker: asked for a version before the step was taken")
        made = next_version(self._parent, saved.run, saved.state_path, saved.sampler_path)
        return TrainedVersion(
            {**version_file(made), **self._exported},
            saved.metrics,
            {**library_versions(), "tinker": version("tinker")},
            self._provenance(saved),
            state_ref(made),
            saved.sampler_path,
        )

    def _provenance(self, saved: Checkpoints) -> RemoteProvenance:
        usable = self._earlier.keys()
        samples = [_token_sample(sample, usable) for sample in self._samples]
        return RemoteProvenance(
            parent_digest=self._task.parent.record.digest,
            samples_digest=digest(samples),
            answered_by={number: stored.record.digest for number, stored in self._earlier.items()},
            tokens=sum(sample.tokens for sample in samples),
            run=saved.run,
            service_model=self._parent.base_model,
            optimizer_restored=bool(saved.metrics[_RESTORED]) if _RESTORED in saved.metrics else None,
        )


async def prepare(
    payload: DistillBatchRequestPayload, task: EngineTask, remote: RemoteTask, connection: TinkerConnection
) -> RemoteStep:
    """Check what can be checked at no cost, and begin the run. Raises TrainerError and SdpoError."""
    deadline = Deadline.after(_settings(remote).step_timeout_seconds)
    base_model = service_model(remote)
    parent = read_parent(task.parent, base_model)
    config = step_config(payload.training)
    vocabulary = read_config(task.model).limits.vocabulary_size
    samples = [_token_sample(sample, task.earlier.keys()) for sample in payload.samples]
    check_samples(samples, vocabulary)
    with service_failures():
        model = await connection.check_model(base_model, deadline)
    check_length(payload.samples, model.max_context_length)
    exporter = Exporter.of(connection, task.model, parent.rank, deadline) if _settings(remote).export else None
    checkpoint = f"{remote.job.uid}-v{task.version}"
    asked = task_digest(samples, config)
    start = RunStart(base_model, parent.rank, parent.seed, parent.state_path, checkpoint, asked)
    journal = RemoteJournal(remote.journal, remote.job.attempt)
    run = await RemoteRun.begin(connection, journal, start, deadline)
    if run.found is not None:
        return RemoteStep(payload, task, connection, deadline, parent, run, None, task.earlier, exporter)
    with service_failures():
        base = await connection.sampler(None, base_model, deadline)
        student = base
        if parent.sampler_path is not None:
            student = await connection.sampler(parent.sampler_path, base_model, deadline)
        earlier = await _earlier_samplers(connection, task.earlier, base_model, deadline)
    scorer = Scorer(connection, Samplers(base, student, earlier), start, config, deadline, task.tell_progress)
    usable = {number: task.earlier[number] for number in earlier}
    return RemoteStep(payload, task, connection, deadline, parent, run, scorer, usable, exporter)


def connect(remote: RemoteTask) -> TinkerConnection:
    """The connection to the service; nothing is asked yet."""
    spec = _settings(remote)
    return TinkerConnection(Account(remote.key_file, spec.base_url, spec.project_id))


def _settings(remote: RemoteTask) -> TinkerEngineSpec:
    return remote.spec.tinker or TinkerEngineSpec()


async def _earlier_samplers(
    connection: TinkerConnection, versions: Mapping[int, StoredVersion], base_model: str, deadline: Deadline
) -> dict[int, tinker.SamplingClient]:
    """Samplers of the versions that answered; a line in the log says why one can't be used."""
    found = {}
    for number, stored in versions.items():
        try:
            path = read_parent(stored, base_model).sampler_path
            found[number] = await connection.sampler(path, base_model, deadline)
        except TinkerServiceError as error:
            if error.fault is not ServiceFault.CHECKPOINT_EXPIRED:
                raise
            log("version-unusable", version=number, why=error.message)
        except TrainerError as error:
            log("version-unusable", version=number, why=error.message)
    return found


def _token_sample(sample: TokenisedSample, usable: Collection[int]) -> TokenSample:
    return TokenSample(
        sample.student_prompt_ids,
        sample.teacher_prompt_ids,
        sample.response_ids,
        sample.old_logprobs or None,
        sample.version if sample.version in usable else None,
    )


def _datum(sample: ScoredSample) -> types.Datum:
    return types.Datum(
        model_input=types.ModelInput.from_ints(list(sample.input_ids)),
        # Not as a tensor, which the SDK would turn into a sparse one.
        loss_fn_inputs={"target_tokens": types.TensorData.from_torch(sample.targets())},
    )


def _logprobs(told: Mapping[str, types.TensorData], sample: ScoredSample) -> Tensor:
    return told["logprobs"].to_torch().reshape(len(sample.input_ids), -1)


def _grad_norm(metrics: Mapping[str, float]) -> dict[str, float]:
    """The gradient's norm, if the service tells it. A suffix of the name says how parts are combined. Raises
    NonFiniteError: the service may have left the weights as they were, which the distance does not show."""
    told = [value for name, value in metrics.items() if name.partition(":")[0] in _GRAD_NORMS]
    if told and not math.isfinite(told[0]):
        raise NonFiniteError(f"the gradient's norm is {told[0]}: nothing is published; check the samples")
    return {"grad_norm": told[0]} if told else {}
