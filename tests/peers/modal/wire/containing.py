"""What containers ask for: inputs, putting outputs, heartbeats, snapshots, their views of Volumes."""

import asyncio
from pathlib import Path

from google.protobuf.empty_pb2 import Empty
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from tests.peers.modal.containers.container import Container
from tests.peers.modal.containers.inputs import Inputs
from tests.peers.modal.containers.pool import Pool
from tests.peers.modal.containers.supervisor import descendants
from tests.peers.modal.private import api_pb2
from tests.peers.modal.state.volumes import View
from tests.peers.modal.wire.dispatch import Asker, Table

HEARTBEAT_POLL_S = 14.5
"""Shorter than the 15 s that a container waits for the answer."""


class Containing:
    def __init__(self, inputs: Inputs, pool: Pool) -> None:
        self._inputs = inputs
        self._pool = pool

    @property
    def table(self) -> Table:
        return {
            "ContainerHello": self.hello,
            "ContainerHeartbeat": self.heartbeat,
            "ContainerCheckpoint": self.checkpoint,
            "ContainerServerLifecycleReady": self.server_ready,
            "ContainerStop": self.stop,
            "FunctionGetInputs": self.get_inputs,
            "FunctionPutOutputs": self.put_outputs,
            "TaskResult": self.task_result,
            "VolumeCommit": self.commit,
            "VolumeReload": self.reload,
        }

    async def hello(self, request: Empty, asker: Asker) -> Empty:
        return Empty()

    async def heartbeat(
        self, request: api_pb2.ContainerHeartbeatRequest, asker: Asker
    ) -> api_pb2.ContainerHeartbeatResponse:
        """Answers when there is something to cancel, again until it is: the container may not know the input yet."""
        container = of(asker)
        if not container.cancelled:
            container.cancelling.clear()
            try:
                async with asyncio.timeout(HEARTBEAT_POLL_S):
                    await container.cancelling.wait()
            except TimeoutError:
                return api_pb2.ContainerHeartbeatResponse()
        event = api_pb2.CancelInputEvent(input_ids=sorted(container.cancelled))
        return api_pb2.ContainerHeartbeatResponse(cancel_input_event=event)

    async def checkpoint(self, request: api_pb2.ContainerCheckpointRequest, asker: Asker) -> Empty:
        """The process is not frozen: it goes on as the restored one, under another id."""
        container = of(asker)
        asyncio.get_running_loop().call_later(0.05, container.restore)
        return Empty()

    async def server_ready(self, request: api_pb2.ContainerServerLifecycleReadyRequest, asker: Asker) -> Empty:
        self._pool.entered(of(asker))
        return Empty()

    async def stop(self, request: api_pb2.ContainerStopRequest, asker: Asker) -> api_pb2.ContainerStopResponse:
        container = asker.container or self._pool.find(request.task_id)
        container.retiring = True
        return api_pb2.ContainerStopResponse()

    async def get_inputs(
        self, request: api_pb2.FunctionGetInputsRequest, asker: Asker
    ) -> api_pb2.FunctionGetInputsResponse:
        response = await self._inputs.next(of(asker))
        asker.rpc.call_id = response.inputs[0].function_call_id or None
        return response

    async def put_outputs(self, request: api_pb2.FunctionPutOutputsRequest, asker: Asker) -> Empty:
        for output in request.outputs:
            asker.rpc.call_id = output.input_id.removeprefix("in-")
            await self._inputs.finish(output, of(asker))
        return Empty()

    async def task_result(self, request: api_pb2.TaskResultRequest, asker: Asker) -> Empty:
        of(asker).failure = request.result
        return Empty()

    async def commit(self, request: api_pb2.VolumeCommitRequest, asker: Asker) -> api_pb2.VolumeCommitResponse:
        await asyncio.to_thread(view_of(of(asker), request.volume_id).commit)
        return api_pb2.VolumeCommitResponse(skip_reload=False)

    async def reload(self, request: api_pb2.VolumeReloadRequest, asker: Asker) -> Empty:
        container = of(asker)
        view = view_of(container, request.volume_id)
        await asyncio.to_thread(refuse_open_files, container, view)
        await asyncio.to_thread(view.reload)
        return Empty()


def of(asker: Asker) -> Container:
    if asker.container is None:
        raise GRPCError(Status.PERMISSION_DENIED, "for containers only")
    return asker.container


def view_of(container: Container, volume_id: str) -> View:
    if volume_id not in container.views:
        raise GRPCError(Status.NOT_FOUND, f"volume {volume_id} is not mounted in this container")
    return container.views[volume_id]


def refuse_open_files(container: Container, view: View) -> None:
    """Raise the error that Modal has for a file of the Volume that is open or mapped."""
    inodes = view.inodes()
    for pid in () if container.pid is None else descendants(container.pid):
        process = Path("/proc", str(pid))
        for opened in (process / "fd", process / "map_files"):
            try:
                found = list(opened.iterdir())
            except (FileNotFoundError, PermissionError):
                continue
            for path in found:
                try:
                    stat = path.stat()
                except OSError:
                    continue
                if (stat.st_dev, stat.st_ino) in inodes:
                    text = "there are open files preventing the operation"
                    raise GRPCError(Status.FAILED_PRECONDITION, text)
