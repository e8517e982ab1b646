"""Calls of functions: their input, who runs it, how often it was run, and its result."""

import asyncio
import itertools
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic

from tests.peers.modal.private import api_pb2
from tests.peers.modal.state.apps import Function, not_found

SUCCESS = api_pb2.GenericResult.GENERIC_STATUS_SUCCESS


class CallState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True)
class Run:
    """One attempt at a call."""

    container: str
    at: float


@dataclass(eq=False)
class Call:
    id: str
    function: Function
    method: str
    input: api_pb2.FunctionInput
    invocation: "api_pb2.FunctionCallInvocationType.ValueType"
    state: CallState = CallState.QUEUED
    runs: list[Run] = field(default_factory=list)
    """Each time that a container took it: more than one after crashes and preemptions."""
    output: api_pb2.FunctionGetOutputsItem | None = None
    cancelled: bool = False
    expired: bool = False
    at: float = field(default_factory=monotonic)

    @property
    def input_id(self) -> str:
        return f"in-{self.id}"

    @property
    def app(self) -> str:
        return self.function.app.name

    @property
    def succeeded(self) -> bool:
        return self.output is not None and self.output.result.status == SUCCESS


class Calls:
    """All calls, oldest first. Used from the peer's event loop alone; tests read."""

    def __init__(self) -> None:
        self._by_id: dict[str, Call] = {}
        self._numbers = itertools.count(1)
        self._news = asyncio.Condition()

    def all(self) -> list[Call]:
        return list(self._by_id.values())

    def get(self, call_id: str) -> Call:
        if call_id not in self._by_id:
            raise not_found(f"function call {call_id} not found")
        return self._by_id[call_id]

    def by_input(self, input_id: str) -> Call:
        return self.get(input_id.removeprefix("in-"))

    def forget(self, call_id: str) -> None:
        self._by_id.pop(call_id, None)

    def add(self, function: Function, put: api_pb2.FunctionInput, invocation: int) -> Call:
        call_id = f"fc-{next(self._numbers):020d}"
        kind = api_pb2.FunctionCallInvocationType.ValueType(invocation)
        call = Call(call_id, function, put.method_name, put, kind)
        self._by_id[call_id] = call
        return call

    def waiting(self, function: Function) -> list[Call]:
        return [call for call in self.all() if call.function is function and call.state is CallState.QUEUED]

    def running_in(self, container: str) -> list[Call]:
        return [c for c in self.all() if c.state is CallState.RUNNING and c.runs[-1].container == container]

    def start(self, call: Call, container: str) -> None:
        call.state = CallState.RUNNING
        call.runs.append(Run(container, monotonic()))

    def requeue(self, call: Call) -> None:
        call.state = CallState.QUEUED

    async def finish(
        self,
        call: Call,
        result: api_pb2.GenericResult,
        data_format: "api_pb2.DataFormat.ValueType" = api_pb2.DATA_FORMAT_UNSPECIFIED,
    ) -> None:
        """Set the result; the first one stays."""
        if call.state is not CallState.DONE:
            call.state = CallState.DONE
            call.output = api_pb2.FunctionGetOutputsItem(
                result=result,
                input_id=call.input_id,
                data_format=data_format,
                task_id=call.runs[-1].container if call.runs else "",
                retry_count=max(0, len(call.runs) - 1),
            )
        async with self._news:
            self._news.notify_all()

    async def wait(self, call: Call, seconds: float) -> None:
        """Until the call is done, at most so long."""
        async with self._news:
            try:
                async with asyncio.timeout(seconds):
                    await self._news.wait_for(lambda: call.state is CallState.DONE)
            except TimeoutError:
                return
