"""Which containers run: started for work that waits, one input at a time to each, ended when idle."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from time import monotonic

from grpclib.server import Server

from tests.peers.modal.containers.container import Container, Place, Start, prepare, specify
from tests.peers.modal.private import api_pb2, copied
from tests.peers.modal.state.apps import App, Apps, Function
from tests.peers.modal.state.calls import Call, Calls, CallState
from tests.peers.modal.state.volumes import Volumes

LOG = logging.getLogger(__name__)
MOST = 8
"""Containers of a function that sets no limit."""
FAILED_STARTS = 3
"""After so many in a row the calls that wait fail as the start did."""
LONGEST_BACKOFF_S = 5.0
EXIT_S = 30.0
TICK_S = 0.2


@dataclass
class Known:
    """What the state of a pool is made of."""

    apps: Apps
    calls: Calls
    volumes: Volumes


@dataclass
class Trouble:
    """Of one function: starts and runs that failed since the last success."""

    failed_starts: int = 0
    crashes: int = 0
    not_before: float = 0.0


@dataclass
class Pool:
    known: Known
    place: Place
    serve: Callable[[Container], Server]
    """Makes the server for a container's own socket."""
    idle_s: float | None = None
    """Instead of every function's own idle window."""
    background_commit_s: float | None = None
    containers: dict[str, Container] = field(default_factory=dict)
    """All that ever were, oldest first."""
    _stopping: bool = False
    _wanted: dict[str, int] = field(default_factory=dict)
    """Servers: how many containers requests ask for, by function id."""
    _trouble: dict[str, Trouble] = field(default_factory=dict)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def run(self) -> None:
        """Do what is due, for ever."""
        while True:
            for function in list(self.known.apps.functions.values()):
                self._scale(function)
            await asyncio.sleep(TICK_S)

    def alive(self, function: Function) -> list[Container]:
        return [c for c in self.containers.values() if c.function is function and c.alive]

    def usable(self, function: Function) -> list[Container]:
        """A Server's containers that take requests."""
        return [c for c in self.alive(function) if c.ready and not c.retiring]

    def find(self, container_id: str) -> Container:
        """By its id, or the one that it has since its restore."""
        for container in self.containers.values():
            if container_id in (container.id, container.task_id):
                return container
        raise LookupError(f"no container {container_id}")

    def want(self, function: Function, count: int = 1) -> None:
        """Have at least so many containers of a Server, until they are idle."""
        most = function.max_containers or MOST
        self._wanted[function.id] = min(most, max(count, self._wanted.get(function.id, 0)))
        self._scale(function)

    async def next_inputs(self, container: Container) -> api_pb2.FunctionGetInputsResponse:
        """The next input for a container; when none comes for the idle window, the order to end."""
        function, calls = container.function, self.known.calls
        self._trouble[function.id] = Trouble(crashes=self._trouble.get(function.id, Trouble()).crashes)
        container.ready = True
        deadline = monotonic() + (self.idle_s or function.idle_s)
        while not container.retiring and container.version == function.version:
            if waiting := calls.waiting(function):
                return self._hand_out(waiting[0], container)
            busy = bool(calls.running_in(container.id))
            if monotonic() > deadline and not busy and len(self.alive(function)) > function.min_containers:
                break
            async with self._news:
                try:
                    async with asyncio.timeout(TICK_S):
                        await self._news.wait()
                except TimeoutError:
                    continue
        container.retiring = True
        return api_pb2.FunctionGetInputsResponse(inputs=[api_pb2.FunctionGetInputsItem(kill_switch=True)])

    def entered(self, container: Container) -> None:
        """A Server's `enter` methods are through: it has requests once its port is open."""
        self._spawn(self._await_port(container))

    async def _await_port(self, container: Container) -> None:
        port = container.function.definition.http_config.port
        while container.alive:
            try:
                _, writer = await asyncio.open_connection(container.host, port)
            except OSError:
                await asyncio.sleep(TICK_S / 2)
                continue
            writer.close()
            container.served = monotonic()
            container.ready = True
            self._trouble.pop(container.function.id, None)
            return

    async def submit(self, call: Call) -> None:
        """There is a new call."""
        self._scale(call.function)
        async with self._news:
            self._news.notify_all()

    async def finish(self, put: api_pb2.FunctionPutOutputsItem, container: Container) -> None:
        """A container has a result."""
        call = self.known.calls.by_input(put.input_id)
        container.cancelled.discard(put.input_id)
        self._trouble.pop(call.function.id, None)
        await self.known.calls.finish(call, put.result, put.data_format)

    async def cancel(self, call: Call, *, terminate: bool) -> None:
        terminated = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_TERMINATED)
        running = call.state is CallState.RUNNING
        if call.state is not CallState.DONE:
            call.cancelled = True
        await self.known.calls.finish(call, terminated)
        if running:
            container = self.containers[call.runs[-1].container]
            if terminate:
                container.kill()
            else:
                container.cancelled.add(call.input_id)
                container.cancelling.set()

    def app_changed(self, app: App) -> None:
        """Containers of older deployments end when they are idle; those of a stopped app at once."""
        for container in self.containers.values():
            function = container.function
            if function.app is not app or not container.alive:
                continue
            if app.stopped:
                container.kill()
            elif function.definition.is_server and container.version != function.version:
                self._spawn(self._end_server(container))

    async def stop(self) -> None:
        """Kill all containers, and start no more."""
        self._stopping = True
        for container in self.containers.values():
            if container.alive:
                container.kill()
        for container in self.containers.values():
            await container.ended.wait()
        for task in self._tasks:
            task.cancel()

    def _hand_out(self, call: Call, container: Container) -> api_pb2.FunctionGetInputsResponse:
        calls = self.known.calls
        calls.start(call, container.id)
        attempt = len(call.runs)
        if seconds := call.function.definition.timeout_secs:
            self._spawn(self._time_out(call, attempt, float(seconds)))
        item = api_pb2.FunctionGetInputsItem(
            input_id=call.input_id,
            input=call.input,
            function_call_id=call.id,
            function_call_invocation_type=call.invocation,
            retry_count=attempt - 1,
        )
        return api_pb2.FunctionGetInputsResponse(inputs=[item])

    async def _time_out(self, call: Call, attempt: int, seconds: float) -> None:
        await self.known.calls.wait(call, seconds)
        if call.state is CallState.RUNNING and len(call.runs) == attempt:
            text = f"Task's current input {call.input_id} hit its timeout of {seconds:g}s"
            result = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT, exception=text)
            await self.known.calls.finish(call, result)
            self.containers[call.runs[-1].container].kill()

    def _scale(self, function: Function) -> None:
        """Start the containers that are missing; end a Server's idle ones."""
        published = function.variant_of is not None or function.id in function.app.function_ids.values()
        if self._stopping or function.app.stopped or not published:
            return
        alive = self.alive(function)
        wanted = function.min_containers if function.app.deployed else 0
        if function.definition.is_server:
            self._end_idle(function)
            wanted = max(wanted, self._wanted.get(function.id, 0))
        else:
            free = [c for c in alive if not c.retiring and not self.known.calls.running_in(c.id)]
            busy = len(alive) - len(free)
            wanted = max(wanted, busy + len(self.known.calls.waiting(function)))
        missing = min(wanted, function.max_containers or MOST) - len(alive)
        if missing > 0 and monotonic() >= self._of(function).not_before and self._may_mount(function):
            for _ in range(missing if self.place.mounts else 1):
                self._start(function)

    def _may_mount(self, function: Function) -> bool:
        """Without mounts a Volume's place is one link on this machine: one container at a time may write there."""
        if self.place.mounts:
            return True
        others = [c.function.definition for c in self.containers.values() if c.alive]
        taken = {mount.mount_path: mount for other in others for mount in other.volume_mounts}
        for mount in function.definition.volume_mounts:
            other = taken.get(mount.mount_path)
            shared = other is not None and other.read_only and other == mount
            if other is not None and not shared:
                return False
        return True

    def _end_idle(self, function: Function) -> None:
        usable = self.usable(function)
        idle_s = self.idle_s or function.idle_s
        for container in usable[function.min_containers :]:
            if not container.requests and monotonic() - container.served > idle_s:
                self._wanted[function.id] = max(0, self._wanted.get(function.id, 0) - 1)
                container.retiring = True
                self._spawn(self._end_server(container))

    async def _end_server(self, container: Container) -> None:
        container.terminate()
        try:
            async with asyncio.timeout(container.function.definition.http_config.exit_grace_period or EXIT_S):
                await container.ended.wait()
        except TimeoutError:
            container.kill()

    def _start(self, function: Function) -> None:
        container = prepare(function, f"ta-{next(self._numbers):020d}", self.place, self.known.volumes)
        self.containers[container.id] = container
        self._spawn(self._run(container))

    async def _run(self, container: Container) -> None:
        spec = await asyncio.to_thread(specify, container, self.place, describe(container, self.known.apps))
        await container.start(self.place, self.serve(container), spec)
        commits = asyncio.ensure_future(self._commit_in_background(container))
        starting = asyncio.ensure_future(self._watch_start(container))
        await container.wait()
        commits.cancel()
        starting.cancel()
        await self._ended(container)

    async def _watch_start(self, container: Container) -> None:
        definition = container.function.definition
        await asyncio.sleep(definition.startup_timeout_secs or definition.timeout_secs or 300)
        if not container.ready:
            container.kill()

    async def _commit_in_background(self, container: Container) -> None:
        while self.background_commit_s is not None:
            await asyncio.sleep(self.background_commit_s)
            for view in container.views.values():
                await asyncio.to_thread(view.commit)

    async def _ended(self, container: Container) -> None:
        """Run again what the container had under way; back off when it could not start, or crashed."""
        function, trouble = container.function, self._of(container.function)
        lost = self.known.calls.running_in(container.id)
        for call in lost:
            self.known.calls.requeue(call)
        if not container.ready and not container.killed:
            trouble.failed_starts += 1
        elif lost and not container.killed:
            trouble.crashes += 1
        failures = trouble.failed_starts + trouble.crashes
        trouble.not_before = monotonic() + (min(LONGEST_BACKOFF_S, 0.1 * 2**failures) if failures else 0)
        if trouble.failed_starts >= FAILED_STARTS:
            trouble.failed_starts = 0
            text = f"container exited with code {container.exit_code} before it took an input"
            failed = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_INIT_FAILURE, exception=text)
            for call in self.known.calls.waiting(function):
                await self.known.calls.finish(call, container.failure or failed)
        self._scale(function)

    def _of(self, function: Function) -> Trouble:
        return self._trouble.setdefault(function.id, Trouble())

    def _spawn(self, work: "Coroutine[None, None, None]") -> None:
        async def logged() -> None:
            try:
                await work
            except Exception:
                LOG.exception("the peer failed at a container's work")

        task = asyncio.ensure_future(logged())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def describe(container: Container, apps: Apps) -> Start:
    """What the function's container is told: its arguments, environment and sources."""
    function, app = container.function, container.function.app
    definition = copied(function.definition)
    objects = [
        api_pb2.Object(object_id=each.id, function_handle_metadata=each.handle())
        for each in apps.functions.values()
        if each.app is app
    ]
    objects += [
        api_pb2.Object(object_id=id, class_handle_metadata=api_pb2.ClassHandleMetadata())
        for id in app.class_ids.values()
    ]
    known = {each.object_id for each in objects}
    for id in [dependency.object_id for dependency in definition.object_dependencies]:
        if id not in known:
            objects.append(api_pb2.Object(object_id=id))
    mount_ids = apps.mount_ids(definition)
    environment = apps.image_environment(definition.image_id)
    for secret_id in definition.secret_ids:
        environment |= apps.secrets[secret_id].values
    layout = api_pb2.AppLayout(objects=objects, function_ids=app.function_ids, class_ids=app.class_ids)
    arguments = api_pb2.ContainerArguments(
        task_id=container.task_id,
        function_id=function.id,
        app_id=app.id,
        function_def=definition,
        serialized_params=function.variant_of.parameters if function.variant_of else b"",
        environment_name=app.environment,
        checkpoint_id=f"ch-{container.id}" if definition.is_checkpointing_function else "",
        app_layout=layout,
    )
    sources = [file for mount_id in mount_ids for file in apps.mounts[mount_id].files]
    return Start(arguments, environment, sources)
