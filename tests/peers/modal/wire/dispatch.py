"""Every RPC comes in here: the token is checked, what was ordered to fail fails, a handler answers the rest."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from google.protobuf.message import Message
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from tests.peers.modal.failures import Cut, Do, Effect, EndCall, Fate, KillContainer, Refuse, Rpc, Rules, Slow, When
from tests.peers.modal.private import handlers

if TYPE_CHECKING:
    from tests.peers.modal.containers.container import Container


@dataclass
class Asker:
    """Who sent a request, and the record of it."""

    rpc: Rpc
    container: "Container | None"
    fate: Fate | None = None
    """For FunctionMap: how the call is ordered to end."""


class Answers(Protocol):
    """One handler for each RPC that the peer knows: a coroutine, or for a stream an asynchronous generator."""

    def __call__(self, request: Any, asker: Asker) -> Awaitable[Message] | AsyncIterator[Message]: ...


Table = Mapping[str, Answers]


@dataclass
class Gate:
    """What all connections share."""

    rules: Rules
    rpcs: list[Rpc]
    """The record of all requests, oldest first."""
    tokens: dict[str, str]
    """Each accepted token id with its secret."""
    subject: Callable[[Message], str]
    """What a request is about, as Rpc.of tells it."""
    cut: Callable[[float | None], None]
    kept: dict[tuple[str, str], Message] = field(default_factory=dict)
    """Answers to requests that must not be done twice, by RPC and idempotency key."""


ONCE = frozenset({"FunctionMap"})
"""A client that lost the answer asks again with the same idempotency key, and gets the first answer."""


class Wire:
    """The RPCs as one client sees them: all on the peer's port, or one container on its own socket."""

    def __init__(self, table: Table, gate: Gate, container: "Container | None" = None) -> None:
        self._table = table
        self._gate = gate
        self._container = container

    def __mapping__(self) -> Mapping[str, Handler]:
        return handlers(self._method)

    def _method(self, name: str) -> Callable[[Stream[Any, Any]], Awaitable[None]]:
        async def answer(stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            metadata = {key: str(value) for key, value in (stream.metadata or {}).items()}
            container, of = self._container, self._gate.subject(request)
            if container is not None:
                of = of or container.function.tag
            call_id = getattr(request, "function_call_id", None)
            rpc = Rpc(name, of, None if container is None else container.id, call_id)
            self._gate.rpcs.append(rpc)
            try:
                await self._answer(Asker(rpc, self._container), request, stream, metadata)
                rpc.status = Status.OK
            except GRPCError as error:
                rpc.status = error.status
                raise

        return answer

    async def _answer(self, asker: Asker, request: Any, stream: Stream[Any, Any], metadata: dict[str, str]) -> None:
        name = asker.rpc.name
        if self._container is None:
            secret = self._gate.tokens.get(metadata.get("x-modal-token-id", ""))
            if secret is None or secret != metadata.get("x-modal-token-secret"):
                raise GRPCError(Status.UNAUTHENTICATED, "Token validation failed")
        await self._carry_out(self._gate.rules.effects(asker.rpc, When.RECEIVED), asker)
        if name not in self._table:
            raise GRPCError(Status.UNIMPLEMENTED, f"the peer has no {name}")
        key = (name, metadata.get("x-idempotency-key", ""))
        answer = self._gate.kept.get(key)
        if answer is None:
            answered = self._table[name](request, asker)
            if not inspect.isawaitable(answered):
                async for message in answered:
                    await stream.send_message(message)
                return
            answer = await answered
            if name in ONCE and key[1]:
                self._gate.kept[key] = answer
        await self._carry_out(self._gate.rules.effects(asker.rpc, When.DONE), asker)
        await stream.send_message(answer)

    async def _carry_out(self, effects: list[Effect], asker: Asker) -> None:
        for effect in effects:
            if isinstance(effect, Slow):
                await asyncio.sleep(effect.seconds)
            elif isinstance(effect, Do):
                await asyncio.to_thread(effect.function, asker.rpc)
            elif isinstance(effect, EndCall):
                asker.fate = effect.fate
            elif isinstance(effect, Cut):
                self._gate.cut(effect.seconds)
                await asyncio.Event().wait()
            elif isinstance(effect, KillContainer) and asker.container is not None:
                asker.container.kill()
                await asyncio.Event().wait()
            elif isinstance(effect, Refuse):
                raise effect.error()
