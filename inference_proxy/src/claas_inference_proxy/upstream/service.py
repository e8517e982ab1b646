"""A session with the service that lasts: opened again when it is lost, with a sampler for each checkpoint."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import tinker

from claas_bounded.waits import Deadline
from claas_inference_proxy.upstream.sampling import Ask, Samples, sampled
from claas_tinker_client.connection import Account, TinkerConnection
from claas_tinker_client.errors import ServiceFault, TinkerServiceError

_T = TypeVar("_T")

logger = logging.getLogger(__name__)

_BETWEEN_SESSIONS_SECONDS = {
    ServiceFault.SESSION_LOST: 5.0,
    ServiceFault.CREDENTIALS_REFUSED: 5.0,
    ServiceFault.CHECKPOINT_EXPIRED: 60.0,
}
"""Faults after which another session may do, and the least age of a session that is given up for it: the service has
ended this one, the key was replaced, or what looks like a lost checkpoint is the lost session it was asked for in."""


class _Session:
    """One session, and the requests that it answers."""

    def __init__(self, connection: TinkerConnection, base_model: str) -> None:
        self.connection = connection
        self.opened = time.monotonic()
        self._base_model = base_model
        self._samplers: dict[str | None, asyncio.Task[tinker.SamplingClient]] = {}
        self._users = 0
        self._retired = False
        self._closing: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """A request that this session answers; the last one of a retired session closes it."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._close_if_idle()

    def retire(self) -> asyncio.Task[None] | None:
        """Close it when its requests are answered; returns the closing if there are none."""
        self._retired = True
        return self._close_if_idle()

    async def sampler(self, checkpoint: str | None, deadline: Deadline) -> tinker.SamplingClient:
        """The sampler of a checkpoint, made by the first request for it."""
        task = self._samplers.get(checkpoint)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.ensure_future(self.connection.sampler(checkpoint, self._base_model, deadline))
            self._samplers[checkpoint] = task
        # Other requests wait for it too.
        return await asyncio.shield(task)

    def forget(self, checkpoint: str) -> None:
        """No further request is for this checkpoint."""
        self._samplers.pop(checkpoint, None)

    def _close_if_idle(self) -> asyncio.Task[None] | None:
        if self._retired and not self._users and self._closing is None:
            # Nobody waits for it but the process's end: it may take ten seconds.
            self._closing = asyncio.ensure_future(self.connection.close())
        return self._closing


class Service:
    """The Tinker service for one base model. All methods raise TinkerServiceError, at the deadline at the latest."""

    def __init__(self, account: Account, base_model: str) -> None:
        self.base_model = base_model
        self._account = account
        self._session = self._new_session()

    async def context_length(self, deadline: Deadline) -> int | None:
        """Longest prompt with its answer, in tokens; None if the service does not say."""

        async def ask(session: _Session) -> int | None:
            return (await session.connection.check_model(self.base_model, deadline)).max_context_length

        return await self._with_session(ask)

    async def prepare(self, checkpoint: str | None, deadline: Deadline) -> None:
        """Make the sampler of a checkpoint, or of the base model."""

        async def make(session: _Session) -> None:
            await session.sampler(checkpoint, deadline)

        await self._with_session(make)

    async def sample(self, checkpoint: str | None, ask: Ask, deadline: Deadline) -> Samples:
        """Answers to a prompt by a checkpoint, or by the base model."""

        async def answer(session: _Session) -> Samples:
            sampler = await session.sampler(checkpoint, deadline)

            def start() -> Awaitable[tinker.types.SampleResponse]:
                return sampler.sample(
                    ask.model_input(),
                    ask.number,
                    ask.params(),
                    include_prompt_logprobs=ask.prompt_likeliest is not None,
                    topk_prompt_logprobs=ask.prompt_likeliest or 0,
                    topk_sample_logprobs=ask.likeliest,
                    prompt_logprobs_last_n=ask.scored,
                )

            return sampled(await session.connection.call("for an answer", start, deadline), ask)

        return await self._with_session(answer)

    def forget(self, checkpoint: str) -> None:
        """No further request is for this checkpoint."""
        self._session.forget(checkpoint)

    async def close(self) -> None:
        """End the session. Raises nothing."""
        closing = self._session.retire()
        if closing is not None:
            await closing

    async def _with_session(self, work: Callable[[_Session], Awaitable[_T]]) -> _T:
        session = self._session
        try:
            async with session.used():
                return await work(session)
        except TinkerServiceError as error:
            if not self._renewed(session, error.fault):
                raise
        session = self._session
        async with session.used():
            return await work(session)

    def _renewed(self, lost: _Session, fault: ServiceFault) -> bool:
        """Whether there is another session to try than the one with this fault."""
        least = _BETWEEN_SESSIONS_SECONDS.get(fault)
        if least is None:
            return False
        if self._session is lost:
            if time.monotonic() - lost.opened < least:
                return False
            logger.warning("The session with the Tinker service is opened anew")
            self._session = self._new_session()
            lost.retire()
        return True

    def _new_session(self) -> _Session:
        return _Session(TinkerConnection(self._account), self.base_model)
