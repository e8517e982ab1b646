"""One training run at the service, of which nothing happens twice.

Every call is bounded by the step's deadline, kept in the journal before and after, and fails as a TrainerError.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import tinker
import torch
from tinker import types

from claas_tinker_client.bounded import Deadline
from claas_tinker_client.connection import TinkerConnection
from claas_trainer.engines.tinker.failures import service_failures
from claas_trainer.engines.tinker.journal import RemoteJournal
from claas_trainer.store.journal import RemoteCall

T = TypeVar("T")

LossFunction = Callable[[list[types.Datum], list[torch.Tensor]], tuple[torch.Tensor, dict[str, float]]]
_LOSS: Final = "cross_entropy"


@dataclass(frozen=True)
class RunStart:
    """Where a run begins, and the name of what it will save."""

    base_model: str
    """The service's name of the base model."""
    rank: int
    seed: int
    """Of the initial weights, where the run begins with new ones."""
    state_path: str | None
    """The parent's checkpoint; None: a new LoRA of the base model."""
    checkpoint: str
    """Name of the checkpoints, the same in each attempt at the step."""


@dataclass(frozen=True)
class Checkpoints:
    """What a finished step has left at the service."""

    run: str
    """The run that saved them."""
    state_path: str
    """Weights and optimiser state: the next step starts from it."""
    sampler_path: str
    """Weights for sampling."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the step, as they were given to `save`."""


class RemoteRun:
    """A training run. With `found`, the step is taken and saved already."""

    def __init__(
        self,
        connection: TinkerConnection,
        journal: RemoteJournal,
        start: RunStart,
        deadline: Deadline,
        client: tinker.TrainingClient | None,
        session: str,
        found: Checkpoints | None,
    ) -> None:
        self.found = found
        """The finished checkpoints of an earlier attempt: nothing is left to do but to publish them."""
        self._connection = connection
        self._journal = journal
        self._start = start
        self._deadline = deadline
        self._client = client
        self._session = session

    @classmethod
    async def begin(
        cls, connection: TinkerConnection, journal: RemoteJournal, start: RunStart, deadline: Deadline
    ) -> RemoteRun:
        """The run that takes the step from `start`, or what it has left. Raises TrainerError."""
        with service_failures():
            session = await connection.session(deadline)
            journal.asked(RemoteCall.RUN, session, name=start.checkpoint)
            if start.state_path is None:
                client = await connection.new_run(start.base_model, start.rank, start.seed, deadline)
            else:
                client = await connection.run_from(start.state_path, deadline)
            journal.done(RemoteCall.RUN, session, client.model_id)
            return cls(connection, journal, start, deadline, client, session, None)

    @property
    def run(self) -> str:
        """The run's identifier."""
        return self.found.run if self.found else self._training.model_id

    async def step(
        self, data: Sequence[types.Datum], loss: LossFunction, adam: types.AdamParams
    ) -> types.ForwardBackwardOutput:
        """Forward and backward of a loss on the log-probabilities, and the optimiser's step queued behind; the answer
        has the metrics of both. An exception of `loss` is raised as it is, and no step is taken then. Raises
        TrainerError."""
        self._journal.asked(RemoteCall.STEP, self._session, self.run)
        with service_failures():
            client = self._training
            gradient = client.forward_backward_custom(list(data), loss)
            step = client.optim_step(adam)
            output: types.ForwardBackwardOutput = await self._wait("to compute gradients", gradient)
            stepped: types.OptimStepResponse = await self._wait("to take a step", step)
            output.metrics.update(stepped.metrics or {})
        self._journal.done(RemoteCall.STEP, self._session, self.run)
        return output

    async def forward(self, data: Sequence[types.Datum]) -> types.ForwardBackwardOutput:
        """Log-probabilities of the targets, as the run's weights are now. Raises TrainerError."""
        with service_failures():
            output: types.ForwardBackwardOutput = await self._wait(
                "for log-probabilities", self._training.forward(_sendable(data), _LOSS)
            )
        return output

    async def save(self, metrics: Mapping[str, float] | None = None) -> Checkpoints:
        """Keep the run's weights and optimiser state under the chosen name. `metrics` are kept for the attempt that
        may have to publish what this one has saved. Raises TrainerError."""
        name = self._start.checkpoint
        self._journal.asked(RemoteCall.SAVE, self._session, self.run, name=name, metrics=metrics)
        with service_failures():
            client = self._training
            state = client.save_state(name)
            sampler = client.save_weights_for_sampler(name)
            paths = await asyncio.gather(
                self._wait("to save the training state", state), self._wait("to save weights for sampling", sampler)
            )
        saved = Checkpoints(self.run, paths[0].path, paths[1].path, dict(metrics or {}))
        self._journal.done(
            RemoteCall.SAVE, self._session, self.run, state_path=saved.state_path, sampler_path=saved.sampler_path
        )
        return saved

    @property
    def _training(self) -> tinker.TrainingClient:
        if self._client is None:
            raise RuntimeError("the step is taken and saved already; see found")
        return self._client

    async def _wait(self, asked: str, future: Awaitable[T]) -> T:
        return await self._connection.call(asked, lambda: future, self._deadline)


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
