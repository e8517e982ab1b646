"""Which container gets which call's input, and what becomes of it."""

import asyncio
from time import monotonic

from tests.peers.modal.containers.container import Container
from tests.peers.modal.containers.pool import TICK_S, Pool
from tests.peers.modal.private import api_pb2
from tests.peers.modal.state.calls import Call, Calls, CallState


class Inputs:
    def __init__(self, calls: Calls, pool: Pool) -> None:
        self._calls = calls
        self._pool = pool
        self._news = asyncio.Condition()

    async def next(self, container: Container) -> api_pb2.FunctionGetInputsResponse:
        """The next input for a container; when none comes for the idle window, the order to end."""
        function = container.function
        self._pool.started(container)
        deadline = monotonic() + (self._pool.idle_s or function.idle_s)
        while not container.retiring and container.version == function.version:
            if waiting := self._calls.waiting(function):
                return self._hand_out(waiting[0], container)
            busy = bool(self._calls.running_in(container.id))
            if monotonic() > deadline and not busy and len(self._pool.alive(function)) > function.min_containers:
                break
            async with self._news:
                try:
                    async with asyncio.timeout(TICK_S):
                        await self._news.wait()
                except TimeoutError:
                    continue
        container.retiring = True
        return api_pb2.FunctionGetInputsResponse(inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)])

    async def submit(self, call: Call) -> None:
        """There is a new call."""
        self._pool.scale(call.function)
        async with self._news:
            self._news.notify_all()

    async def finish(self, put: api_pb2.FunctionPutOutputsItem, container: Container) -> None:
        """A container has a result."""
        call = self._calls.by_input(put.input_id)
        container.cancelled.discard(put.input_id)
        self._pool.well(call.function)
        await self._calls.finish(call, put.result, put.data_format)

    async def cancel(self, call: Call, *, terminate: bool) -> None:
        terminated = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_TERMINATED)
        running = call.state is CallState.RUNNING
        if call.state is not CallState.DONE:
            call.cancelled = True
        await self._calls.finish(call, terminated)
        if running:
            container = self._pool.containers[call.runs[-1].container]
            if terminate:
                container.kill()
            else:
                container.cancelled.add(call.input_id)
                container.cancelling.set()

    def _hand_out(self, call: Call, container: Container) -> api_pb2.FunctionGetInputsResponse:
        self._calls.start(call, container.id)
        attempt = len(call.runs)
        if seconds := call.function.definition.timeout_secs:
            self._pool.spawn(self._time_out(call, attempt, float(seconds)))
        item = api_pb2.FunctionGetInputsItem(
            input_id=call.input_id,
            input=call.input,
            function_call_id=call.id,
            function_call_invocation_type=call.invocation,
            retry_count=attempt - 1,
        )
        return api_pb2.FunctionGetInputsResponse(inputs=[item])

    async def _time_out(self, call: Call, attempt: int, seconds: float) -> None:
        await self._calls.wait(call, seconds)
        if call.state is CallState.RUNNING and len(call.runs) == attempt:
            text = f"Task's current input {call.input_id} hit its timeout of {seconds:g}s"
            result = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT, exception=text)
            await self._calls.finish(call, result)
            self._pool.containers[call.runs[-1].container].kill()
