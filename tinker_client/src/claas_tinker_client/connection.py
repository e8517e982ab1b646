"""A connection to the Tinker service: the SDK's clients, each call bounded, each failure one of `errors`."""

from __future__ import annotations

import os

# The SDK would send exceptions and request headers, which hold the key. It reads this when a client is made.
os.environ["TINKER_TELEMETRY"] = "0"

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import tinker
from tinker.lib.base_url import resolve_base_url
from tinker.lib.internal_client_holder import InternalClientHolder
from tinker.lib.public_interfaces.training_client import fetch_training_info

from claas_bounded.waits import Deadline, in_thread, wait_until
from claas_tinker_client.answers import AnswerWatch
from claas_tinker_client.errors import ServiceFault, TinkerServiceError
from claas_tinker_client.faults import Subject, fault, key_fault, overdue, service_fault

T = TypeVar("T")

# The SDK's log quotes answers of the service, which may quote requests, and so a user's tokens.
_SDK_LOG = logging.getLogger("tinker")
_SDK_LOG.addHandler(logging.NullHandler())
_SDK_LOG.propagate = False

CLOSE_SECONDS = 10.0
"""Longest time that closing takes."""
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Patience:
    """How long the SDK may retry what keeps failing in the same way, in seconds; the deadline holds besides."""

    billing: float = 60.0
    """HTTP 402: a payment takes its time."""
    other: float = 300.0
    """As long as the SDK itself retries most calls."""


@dataclass(frozen=True)
class Account:
    """Where the service is, and how it knows us."""

    key_file: Path
    """The file with the API key, read when a client is made, so that a key that was replaced is used."""
    base_url: str | None = None
    """None: the SDK's own."""
    project: str | None = None
    patience: Patience = field(default_factory=Patience)

    def read_key(self) -> str:
        """The API key. Raises TinkerServiceError."""
        try:
            key = self.key_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise key_fault(self.key_file, f"can't be read ({type(error).__name__})") from None
        if not key.startswith(("tml-", "eyJ")):
            raise key_fault(self.key_file, "holds no key of the service, which begins with tml-")
        return key


@dataclass(frozen=True)
class ServiceModel:
    """What the service does with a base model."""

    max_context_length: int | None
    """Longest prompt with its answer, in tokens; None if it does not say."""


@dataclass(frozen=True)
class SavedPaths:
    """Checkpoints of a run under one name; None where there is none."""

    training: str | None
    sampler: str | None


class TinkerConnection:
    """The SDK's clients for one session, made when first needed. All methods raise TinkerServiceError, at their
    deadline at the latest."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._answers = AnswerWatch(resolve_base_url(account.base_url))
        self._answers.listen()
        self._service: tinker.ServiceClient | None = None
        self._rest: tinker.RestClient | None = None
        self._attached: list[InternalClientHolder] = []

    async def call(
        self, asked: str, start: Callable[[], Awaitable[T]], deadline: Deadline, subject: Subject = Subject.RUN
    ) -> T:
        """The result of what `start` begins, as a future of the SDK. `asked` ends `the service was asked ...`."""
        began = deadline.clock()
        try:
            task = asyncio.ensure_future(_awaited(start()))
            try:
                while True:
                    done, _ = await asyncio.wait({task}, timeout=min(deadline.left(), _LOOK_SECONDS))
                    if done:
                        return task.result()
                    failing = self._answers.failing()
                    if deadline.left() <= 0 or self._out_of_patience():
                        raise overdue(asked, deadline.clock() - began, failing)
            finally:
                task.cancel()
        except Exception as error:
            known = service_fault(error, asked, subject)
            if known is None or known is error:
                raise
            raise known from None

    def _out_of_patience(self) -> bool:
        failing = self._answers.failing()
        if failing is None:
            return False
        patience = self._account.patience.billing if failing.status == 402 else self._account.patience.other
        return self._answers.clock() - failing.since > patience

    async def service(self, deadline: Deadline) -> tinker.ServiceClient:
        """The SDK's client, whose session is open."""
        if self._service is None:
            account, key = self._account, self._account.read_key()
            client = tinker.ServiceClient(project_id=account.project, base_url=account.base_url, api_key=key)
            # The session is opened by the first use, which blocks.
            await self.call("to open a session", lambda: in_thread(lambda: client.holder), deadline)
            # Its loop would print what nobody waits for any more, with the service's words.
            client.holder.get_loop().set_exception_handler(lambda loop, context: None)
            self._service = client
        return self._service

    async def session(self, deadline: Deadline) -> str:
        """Identifier of the session."""
        return (await self.service(deadline)).holder.get_session_id()

    async def rest(self, deadline: Deadline) -> tinker.RestClient:
        """The SDK's client for what needs no session: capabilities, lists, times to live."""
        if self._rest is None:
            account, key = self._account, self._account.read_key()

            def make() -> tinker.RestClient:
                return tinker.RestClient(base_url=account.base_url, api_key=key)

            self._rest = await self.call("for its settings", lambda: in_thread(make), deadline)
        return self._rest

    async def capabilities(self, deadline: Deadline) -> tinker.types.GetServerCapabilitiesResponse:
        """The models that the service has. Costs nothing."""
        rest = await self.rest(deadline)
        return await self.call("which models it has", rest.get_server_capabilities, deadline)

    async def check_model(self, base_model: str, deadline: Deadline) -> ServiceModel:
        """What the service does with the base model. Raises MODEL_RETIRED unless it trains it and samples from it."""
        models = {model.model_name: model for model in (await self.capabilities(deadline)).supported_models}
        model = models.get(base_model)
        asked = f"for the base model {base_model}"
        if model is None:
            names = ", ".join(sorted(name for name in models if name)[:20])
            raise fault(ServiceFault.MODEL_RETIRED, asked, f"has only {names}")
        # A server that predates the fields does both.
        for able, what in ((model.trainable, "train"), (model.sampleable, "sample from")):
            if able is False:
                raise fault(ServiceFault.MODEL_RETIRED, asked, f"does not {what} it any more")
        return ServiceModel(model.max_context_length)

    async def sampler(self, path: str | None, base_model: str, deadline: Deadline) -> tinker.SamplingClient:
        """A client that samples from a checkpoint, or with None from the base model."""
        service = await self.service(deadline)
        if path is None:
            asked, subject = f"to sample from {base_model}", Subject.MODEL
        else:
            asked, subject = f"to sample from {path}", Subject.CHECKPOINT

        def start() -> Awaitable[tinker.SamplingClient]:
            if path is None:
                return service.create_sampling_client(base_model=base_model)
            return service.create_sampling_client(model_path=path)

        return await self.call(asked, start, deadline, subject)

    async def new_run(self, base_model: str, rank: int, seed: int, deadline: Deadline) -> tinker.TrainingClient:
        """A run that trains a new LoRA of the base model."""
        service = await self.service(deadline)

        def start() -> Awaitable[tinker.TrainingClient]:
            # vLLM takes no LoRA of the unembedding.
            return service.create_lora_training_client(base_model, rank=rank, seed=seed, train_unembed=False)

        return await self.call(f"to train {base_model} with rank {rank}", start, deadline, Subject.MODEL)

    async def run_from(self, state_path: str, deadline: Deadline) -> tinker.TrainingClient:
        """A run that goes on from a checkpoint, with its optimiser state."""
        service = await self.service(deadline)
        return await self.call(
            f"to go on from {state_path}",
            lambda: service.create_training_client_from_state_with_optimizer(state_path),
            deadline,
            Subject.CHECKPOINT,
        )

    async def attach(self, session: str, run: str, deadline: Deadline, sequence: int = 1) -> tinker.TrainingClient:
        """A client for a run of another process, which has ended. Its requests are numbered like those that the other
        sent, from `sequence` on: the service knows them and does not carry them out again."""
        account, key = self._account, self._account.read_key()
        asked = f"to take up the run {run}"

        def make() -> InternalClientHolder:
            holder = InternalClientHolder(base_url=account.base_url, api_key=key, session_id=session)
            self._attached.append(holder)
            return holder

        holder = await self.call(asked, lambda: in_thread(make), deadline)
        number = int(run.rpartition(":")[2])
        info = await self.call(
            asked, lambda: holder.run_coroutine_threadsafe(fetch_training_info(holder, run)), deadline
        )
        client = tinker.TrainingClient(holder, number, run, info=info)
        # The SDK has no other way to go on from a number. A client's turn is always that of its next request.
        client._request_id_counter = client._turn_counter = sequence - 1
        return client

    async def checkpoints(self, run: str, name: str, deadline: Deadline) -> SavedPaths:
        """What a run has saved under a name."""
        rest = await self.rest(deadline)
        try:
            listed = await self.call(f"what {run} has saved", lambda: rest.list_checkpoints(run), deadline)
        except TinkerServiceError as error:
            if error.fault is not ServiceFault.SESSION_LOST:
                raise
            return SavedPaths(None, None)
        paths = {
            checkpoint.checkpoint_type: checkpoint.tinker_path
            for checkpoint in listed.checkpoints
            if checkpoint.tinker_path.endswith(f"/{name}")
        }
        return SavedPaths(paths.get("training"), paths.get("sampler"))

    async def close(self, status: Literal["success", "errored", "interrupted"] | None = "success") -> None:
        """End the session, or with None leave it to the next attempt at the same work, which may take up its runs.
        Takes 10 s at most, and raises nothing."""
        self._answers.stop()
        for holder in self._attached:
            holder.close()
        service, self._service = self._service, None
        if service is None:
            return
        if status is None:
            service.holder.close()
            return
        with contextlib.suppress(TimeoutError, tinker.TinkerError):
            await wait_until(Deadline.after(CLOSE_SECONDS), service.close(status))


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable
