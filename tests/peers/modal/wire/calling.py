"""What callers ask for: looking up, calls, their results, cancelling."""

import asyncio

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from tests.peers.modal.containers.inputs import Inputs
from tests.peers.modal.containers.pool import Pool
from tests.peers.modal.failures import Fate
from tests.peers.modal.private import api_pb2, copied
from tests.peers.modal.state.apps import Apps, Function, Variant, not_found
from tests.peers.modal.state.calls import Call, Calls, CallState
from tests.peers.modal.wire.dispatch import Asker, Table

LONGEST_POLL_S = 55.0
FATES = {
    Fate.LOST: api_pb2.GenericResult(
        status=api_pb2.GenericResult.GENERIC_STATUS_INTERNAL_FAILURE, exception="the container was lost"
    ),
    Fate.TIMED_OUT: api_pb2.GenericResult(
        status=api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT, exception="Task's current input hit its timeout"
    ),
}


class Calling:
    def __init__(self, apps: Apps, calls: Calls, inputs: Inputs, pool: Pool) -> None:
        self._apps = apps
        self._calls = calls
        self._inputs = inputs
        self._pool = pool

    @property
    def table(self) -> Table:
        return {
            "ClassGet": self.class_get,
            "FunctionGet": self.function_get,
            "FunctionGetById": self.function_get_by_id,
            "FunctionBindParams": self.bind,
            "FunctionMap": self.map,
            "FunctionGetOutputs": self.outputs,
            "FunctionCallFromId": self.from_id,
            "FunctionCallCancel": self.cancel,
        }

    async def class_get(self, request: api_pb2.ClassGetRequest, asker: Asker) -> api_pb2.ClassGetResponse:
        app = self._apps.deployed(request.environment_name, request.app_name)
        if request.object_tag not in app.class_ids:
            raise not_found(f"class '{request.object_tag}' not found in app '{request.app_name}'")
        class_id = app.class_ids[request.object_tag]
        return api_pb2.ClassGetResponse(class_id=class_id, handle_metadata=api_pb2.ClassHandleMetadata())

    async def function_get(self, request: api_pb2.FunctionGetRequest, asker: Asker) -> api_pb2.FunctionGetResponse:
        function = self._apps.deployed_function(request.environment_name, request.app_name, request.object_tag)
        return api_pb2.FunctionGetResponse(
            function_id=function.id, handle_metadata=function.handle(), function=function.data()
        )

    async def function_get_by_id(
        self, request: api_pb2.FunctionGetByIdRequest, asker: Asker
    ) -> api_pb2.FunctionGetByIdResponse:
        function = self._apps.function(request.function_id)
        return api_pb2.FunctionGetByIdResponse(function=function.data(), handle_metadata=function.handle())

    async def bind(
        self, request: api_pb2.FunctionBindParamsRequest, asker: Asker
    ) -> api_pb2.FunctionBindParamsResponse:
        """A variant of a class, with parameters or options of its own; the same one when asked again."""
        base = self._apps.function(request.function_id)
        wanted = Variant(base, request.function_options, request.serialized_params)
        for function in self._apps.functions.values():
            if function.variant_of == wanted:
                break
        else:
            definition = with_options(base.definition, wanted.options)
            function_id = self._apps.new_id("fu")
            function = Function(function_id, base.app, base.tag, definition, version=1, variant_of=wanted)
            self._apps.functions[function_id] = function
        return api_pb2.FunctionBindParamsResponse(bound_function_id=function.id, handle_metadata=function.handle())

    async def map(self, request: api_pb2.FunctionMapRequest, asker: Asker) -> api_pb2.FunctionMapResponse:
        function = self._apps.function(request.function_id)
        if len(request.pipelined_inputs) != 1:
            raise GRPCError(Status.UNIMPLEMENTED, "the peer takes calls with one input")
        item = request.pipelined_inputs[0]
        call = self._calls.add(function, item.input, request.function_call_invocation_type)
        asker.rpc.call_id = call.id
        if asker.fate is None:
            await self._inputs.submit(call)
        else:
            await self.end(call, asker.fate)
        taken = api_pb2.FunctionPutInputsResponseItem(idx=item.idx, input_id=call.input_id, input_jwt=call.input_id)
        return api_pb2.FunctionMapResponse(
            function_call_id=call.id, function_call_jwt=call.id, pipelined_inputs=[taken]
        )

    async def outputs(
        self, request: api_pb2.FunctionGetOutputsRequest, asker: Asker
    ) -> api_pb2.FunctionGetOutputsResponse:
        call = self._calls.get(request.function_call_id)
        seconds = min(LONGEST_POLL_S, max(0.0, request.timeout))
        await self._calls.wait(call, seconds)
        if call.expired:
            await asyncio.sleep(seconds)  # the client asks on until its time is over
            return api_pb2.FunctionGetOutputsResponse(num_unfinished_inputs=0)
        if call.output is None:
            return api_pb2.FunctionGetOutputsResponse(num_unfinished_inputs=1)
        return api_pb2.FunctionGetOutputsResponse(outputs=[call.output], idxs=[0], last_entry_id="1-0")

    async def from_id(
        self, request: api_pb2.FunctionCallFromIdRequest, asker: Asker
    ) -> api_pb2.FunctionCallFromIdResponse:
        call = self._calls.get(request.function_call_id)
        metadata = api_pb2.FunctionCallHandleMetadata(app_id=call.function.app.id, function_id=call.function.id)
        return api_pb2.FunctionCallFromIdResponse(function_call_id=call.id, num_inputs=1, metadata=metadata)

    async def cancel(self, request: api_pb2.FunctionCallCancelRequest, asker: Asker) -> Empty:
        call = self._calls.get(request.function_call_id)
        await self._inputs.cancel(call, terminate=request.terminate_containers)
        return Empty()

    async def end(self, call: Call, fate: Fate) -> None:
        """End a call so, whatever became of it."""
        running = call.state is CallState.RUNNING
        if fate is Fate.UNKNOWN:
            self._calls.forget(call.id)
        else:
            call.expired = fate is Fate.EXPIRED
            await self._calls.finish(call, FATES.get(fate, api_pb2.GenericResult()))
        if running:
            self._pool.containers[call.runs[-1].container].kill()


def with_options(definition: api_pb2.Function, options: api_pb2.FunctionOptions) -> api_pb2.Function:
    """The definition with what the caller changed of it."""
    changed = copied(definition)
    if options.replace_secret_ids:
        changed.ClearField("secret_ids")
        changed.secret_ids.extend(options.secret_ids)
    if options.replace_volume_mounts:
        changed.ClearField("volume_mounts")
        changed.volume_mounts.extend(options.volume_mounts)
    if options.HasField("resources"):
        changed.resources.MergeFrom(options.resources)
    if options.HasField("concurrency_limit"):
        changed.concurrency_limit = changed.autoscaler_settings.max_containers = options.concurrency_limit
    if options.HasField("task_idle_timeout_secs"):
        changed.autoscaler_settings.scaledown_window = options.task_idle_timeout_secs
    if options.HasField("timeout_secs"):
        changed.timeout_secs = options.timeout_secs
    if options.HasField("scheduler_placement"):
        changed.scheduler_placement.CopyFrom(options.scheduler_placement)
    return changed
