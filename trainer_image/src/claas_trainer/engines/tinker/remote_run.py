"""One training run at the service, of which nothing happens twice.

Every call is bounded by the step's deadline, kept in the journal before and after, and fails as a TrainerError. What
an earlier attempt has begun is finished where that is possible: a saved step is only published, and a run that the
service still has is asked the same again under the same numbers, which it does not do twice. Otherwise a new run
starts from the parent's checkpoint. So no step is ever taken on top of one whose result was lost.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Final, TypeVar

import tinker
import torch
from tinker import types

from claas_bounded.waits import Deadline
from claas_tinker_client.connection import TinkerConnection
from claas_tinker_client.errors import ServiceFault, TinkerServiceError
from claas_trainer.engines.tinker.digests import step_digest
from claas_trainer.engines.tinker.failures import service_failures
from claas_trainer.engines.tinker.journal import Checkpoints, EarlierRun, RemoteJournal
from claas_trainer.logs import log
from claas_trainer.store.journal import RemoteCall

T = TypeVar("T")

LossFunction = Callable[[list[types.Datum], list[torch.Tensor]], tuple[torch.Tensor, dict[str, float]]]
_LOSS: Final = "cross_entropy"
_LOST = frozenset({ServiceFault.SESSION_LOST, ServiceFault.REQUEST_REFUSED, ServiceFault.REQUEST_FAILED})
"""What says that a run is of no use: it is gone, or it would answer the same to the same request."""


@dataclass(frozen=True)
class RunStart:
    """Where a run begins, what it learns, and the name of what it will save."""

    base_model: str
    """The service's name of the base model."""
    rank: int
    seed: int
    """Of the initial weights, where the run begins with new ones."""
    state_path: str | None
    """The parent's checkpoint; None: a new LoRA of the base model."""
    checkpoint: str
    """Name of the checkpoints, the same in each attempt at the step."""
    task: str
    """Digest of the step's samples and settings (`digests.task_digest`)."""

    @property
    def digest(self) -> str:
        """What tells this start from another."""
        return hashlib.sha256(repr(astuple(self)).encode()).hexdigest()[:16]


class RemoteRun:
    """A training run. With `found`, the step is taken and saved already."""

    def __init__(
        self, connection: TinkerConnection, journal: RemoteJournal, start: RunStart, deadline: Deadline
    ) -> None:
        self.found: Checkpoints | None = None
        """The finished checkpoints of an earlier attempt: nothing is left to do but to publish them."""
        self.unfinished = False
        """Whether the run holds a step that is not saved: the next attempt may take it up, so its session must not be
        ended."""
        self._connection = connection
        self._journal = journal
        self._start = start
        self._deadline = deadline
        self._client: tinker.TrainingClient | None = None
        self._session = ""
        self._earlier: EarlierRun | None = None
        self._taken_up = False
        """Whether the run is an earlier attempt's."""

    @classmethod
    async def begin(
        cls, connection: TinkerConnection, journal: RemoteJournal, start: RunStart, deadline: Deadline
    ) -> RemoteRun:
        """The run that takes the step from `start`, or what an earlier attempt has left. Raises TrainerError."""
        self = cls(connection, journal, start, deadline)
        with service_failures():
            await self._look_back()
            if self.found is None and self._earlier is None:
                await self._begin_anew()
        return self

    async def step(
        self, data: Sequence[types.Datum], loss: LossFunction, adam: types.AdamParams
    ) -> types.ForwardBackwardOutput:
        """Forward and backward of a loss on the log-probabilities, and the optimiser's step queued behind; the answer
        has the metrics of both. An exception of `loss` is raised as it is, and no step is taken then. Raises
        TrainerError."""
        digest = step_digest(data, adam)
        with service_failures():
            await self._take_up(digest)
            try:
                return await self._step(data, loss, adam, digest)
            except TinkerServiceError as error:
                if not self._taken_up or error.fault not in _LOST:
                    raise
                await self._begin_anew()
                return await self._step(data, loss, adam, digest)

    async def forward(self, data: Sequence[types.Datum]) -> types.ForwardBackwardOutput:
        """Log-probabilities of the targets, as the run's weights are now. Raises TrainerError."""
        with service_failures(), self._asking(self._training.model_id):
            output: types.ForwardBackwardOutput = await self._wait(
                "for log-probabilities", self._training.forward(_sendable(data), _LOSS)
            )
        return output

    async def save(self, metrics: Mapping[str, float] | None = None) -> Checkpoints:
        """Keep the run's weights and optimiser state under the chosen name. `metrics` are kept for the attempt that
        may have to publish what this one has saved. Raises TrainerError."""
        with service_failures(), self._asking(self._training.model_id):
            saved = await self._save(self._training, dict(metrics or {}))
        self.unfinished = False
        return saved

    async def _look_back(self) -> None:
        """Find what earlier attempts have left."""
        left = self._journal.left(self._start.digest)
        if left.saved is not None:
            self._find(left.saved, "journal")
        for earlier in left.runs:
            if self.found is None:
                await self._look_for_checkpoints(earlier)
        going_on = next((earlier for earlier in left.runs if not earlier.lost), None)
        if self.found is None and going_on is not None:
            if going_on.saving is None or going_on.saving.sequence is None:
                self._earlier = going_on
            else:
                await self._save_again(going_on, going_on.saving.sequence, going_on.saving.metrics)

    async def _look_for_checkpoints(self, earlier: EarlierRun) -> None:
        """What the service has saved of an earlier run under the chosen name."""
        paths = await self._connection.checkpoints(earlier.run, self._start.checkpoint, self._deadline)
        metrics = earlier.saving.metrics if earlier.saving else {}
        if paths.training and paths.sampler:
            self._find(Checkpoints(earlier.run, paths.training, paths.sampler, metrics), "list")
        elif paths.training:
            self._find(await self._save_for_sampling(earlier, paths.training, metrics), "training state")

    async def _save_for_sampling(
        self, earlier: EarlierRun, state_path: str, metrics: Mapping[str, float]
    ) -> Checkpoints:
        """The second checkpoint, from the first."""
        call, start, session = RemoteCall.SAVE_FOR_SAMPLING, self._start.digest, await self._own_session()
        self._journal.asked(call, start, session, earlier.run, name=self._start.checkpoint)
        client = await self._connection.run_from(state_path, self._deadline)
        sampler = await self._wait("to save", client.save_weights_for_sampler(self._start.checkpoint))
        saved = Checkpoints(earlier.run, state_path, sampler.path, metrics)
        self._journal.done(call, start, session, earlier.run, saved)
        return saved

    async def _save_again(self, earlier: EarlierRun, sequence: int, metrics: Mapping[str, float]) -> None:
        """Ask a run that has taken its step once more to save it."""
        self._taken_up = True
        try:
            with self._asking(earlier.run):
                client = await self._connection.attach(earlier.session, earlier.run, self._deadline, sequence)
                self._session = earlier.session
                self._find(await self._save(client, metrics), "run")
        except TinkerServiceError as error:
            if error.fault not in _LOST:
                raise

    async def _take_up(self, digest: str) -> None:
        """Have a client: one for an earlier attempt's run if it was asked the same and the service still has it."""
        earlier, self._earlier = self._earlier, None
        if earlier is None:
            return
        if earlier.request == digest:
            self._taken_up = True
            try:
                with self._asking(earlier.run):
                    self._client = await self._connection.attach(earlier.session, earlier.run, self._deadline)
            except TinkerServiceError as error:
                if error.fault not in _LOST:
                    raise
            else:
                self._session = earlier.session
                log("run-taken-up", run=earlier.run)
                return
        else:
            log("run-not-taken-up", run=earlier.run, why="it was asked something else")
            self._journal.lost(earlier.run)
        await self._begin_anew()

    async def _begin_anew(self) -> None:
        start, self._taken_up = self._start, False
        self._session = await self._own_session()
        self._journal.asked(RemoteCall.RUN, start.digest, self._session, name=start.checkpoint)
        if start.state_path is None:
            self._client = await self._connection.new_run(start.base_model, start.rank, start.seed, self._deadline)
        else:
            self._client = await self._connection.run_from(start.state_path, self._deadline)
        self._journal.done(RemoteCall.RUN, start.digest, self._session, self._client.model_id)

    async def _step(
        self, data: Sequence[types.Datum], loss: LossFunction, adam: types.AdamParams, digest: str
    ) -> types.ForwardBackwardOutput:
        client, start = self._training, self._start.digest
        run, sequence = client.model_id, next_sequence(client)
        self._journal.asked(RemoteCall.STEP, start, self._session, run, sequence=sequence, request=digest)
        self.unfinished = True
        gradient = client.forward_backward_custom(list(data), loss)
        step = client.optim_step(adam)
        try:
            with self._asking(run):
                output: types.ForwardBackwardOutput = await self._wait("to compute gradients", gradient)
                stepped: types.OptimStepResponse = await self._wait("to take a step", step)
            output.metrics.update(stepped.metrics or {})
        except TinkerServiceError:
            raise
        except Exception:
            # The loss was refused, so the run holds no step, and its client takes no more requests.
            self.unfinished = False
            self._journal.lost(run)
            raise
        self._journal.done(RemoteCall.STEP, start, self._session, run)
        return output

    async def _save(self, client: tinker.TrainingClient, metrics: Mapping[str, float]) -> Checkpoints:
        start, name, run = self._start.digest, self._start.checkpoint, client.model_id
        self._journal.asked(
            RemoteCall.SAVE, start, self._session, run, sequence=next_sequence(client), name=name, metrics=metrics
        )
        state, sampler = await asyncio.gather(
            self._wait("to save the training state", client.save_state(name)),
            self._wait("to save weights for sampling", client.save_weights_for_sampler(name)),
        )
        saved = Checkpoints(run, state.path, sampler.path, metrics)
        self._journal.done(RemoteCall.SAVE, start, self._session, run, saved)
        return saved

    def _find(self, saved: Checkpoints, where: str) -> None:
        log("step-found", run=saved.run, where=where)
        self.found = saved

    @contextmanager
    def _asking(self, run: str) -> Iterator[None]:
        """Context manager: keeps the next attempt from taking up a run of no use, or one that has not answered two
        attempts."""
        try:
            yield
        except TinkerServiceError as error:
            if error.fault in _LOST or (self._taken_up and not self._deadline.left()):
                log("run-lost", run=run, why=error.message)
                self._journal.lost(run)
                self.unfinished = False
            raise

    async def _own_session(self) -> str:
        return await self._connection.session(self._deadline)

    @property
    def _training(self) -> tinker.TrainingClient:
        if self._client is None:
            raise RuntimeError("no step is to be taken: it is saved already, or it was never begun")
        return self._client

    async def _wait(self, asked: str, future: Awaitable[T]) -> T:
        return await self._connection.call(asked, lambda: future, self._deadline)


def next_sequence(client: tinker.TrainingClient) -> int:
    """Number of the next request of a client within its run."""
    return client._request_id_counter + 1


def _sendable(data: Sequence[types.Datum]) -> list[types.Datum]:
    """The data with what the service takes: targets and weights."""
    return [
        types.Datum(
            model_input=datum.model_input, loss_fn_inputs={"target_tokens": targets, "weights": _zeros(targets)}
        )
        for datum in data
        for targets in [datum.loss_fn_inputs["target_tokens"]]
    ]


def _zeros(targets: types.TensorData) -> types.TensorData:
    return types.TensorData(data=[0.0] * len(targets.data), dtype="float32", shape=targets.shape)
