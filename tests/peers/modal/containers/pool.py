"""Which containers run: started for work that waits, started again after crashes, ended when idle."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from time import monotonic

from grpclib.server import Server

from tests.peers.modal.containers.container import Container
from tests.peers.modal.containers.start import Place, describe, prepare, specify
from tests.peers.modal.private import api_pb2
from tests.peers.modal.state.apps import App, Apps, Function
from tests.peers.modal.state.calls import Calls
from tests.peers.modal.state.volumes import Volumes

LOG = logging.getLogger(__name__)
MOST = 8
"""Containers of a function that sets no limit."""
FAILED_STARTS = 3
"""After so many in a row the calls that wait fail as the start did."""
LONGEST_BACKOFF_S = 5.0
EXIT_S = 30.0
DEFAULT_TIMEOUT_S = 300
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

    async def run(self) -> None:
        """Do what is due, for ever."""
        while True:
            for function in list(self.known.apps.functions.values()):
                self.scale(function)
            await asyncio.sleep(TICK_S)

    def started(self, container: Container) -> None:
        """A container is through with its start."""
        container.ready = True
        self._of(container.function).failed_starts = 0

    def well(self, function: Function) -> None:
        """One of the function's containers has done its work."""
        self._trouble.pop(function.id, None)

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
        self.scale(function)

    def entered(self, container: Container) -> None:
        """A Server's `enter` methods are through: it has requests once its port is open."""
        self.spawn(self._await_port(container))

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
            self.started(container)
            return

    def app_changed(self, app: App) -> None:
        """Containers of older deployments end when they are idle; those of a stopped app at once."""
        for container in self.containers.values():
            function = container.function
            if function.app is not app or not container.alive:
                continue
            if app.stopped:
                container.kill()
            elif function.definition.is_server and container.version != function.version:
                self.spawn(self._end_server(container))

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

    def scale(self, function: Function) -> None:
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
                self.spawn(self._end_server(container))

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
        self.spawn(self._run(container))

    async def _run(self, container: Container) -> None:
        beside: list[asyncio.Future[None]] = []
        try:
            for view in container.views.values():
                await asyncio.to_thread(view.open)
            spec = await asyncio.to_thread(specify, container, self.place, describe(container, self.known.apps))
            await container.start(self.serve(container), spec, mounts=self.place.mounts)
            beside.append(asyncio.ensure_future(self._commit_in_background(container)))
            beside.append(asyncio.ensure_future(self._watch_start(container)))
            await container.wait()
        finally:
            for work in beside:
                work.cancel()
            container.over()
        await self._ended(container)

    async def _watch_start(self, container: Container) -> None:
        """Kill what does not get through its start in time."""
        definition = container.function.definition
        seconds = definition.startup_timeout_secs or definition.timeout_secs or DEFAULT_TIMEOUT_S
        await asyncio.sleep(seconds)
        if not container.ready:
            timeout = api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT
            text = f"the container was not ready {seconds} s after its start"
            container.failure = api_pb2.GenericResult(status=timeout, exception=text)
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
        if not container.ready and (container.failure is not None or not container.killed):
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
        self.scale(function)

    def _of(self, function: Function) -> Trouble:
        return self._trouble.setdefault(function.id, Trouble())

    def spawn(self, work: "Coroutine[None, None, None]") -> None:
        async def logged() -> None:
            try:
                await work
            except Exception:
                LOG.exception("the peer failed at a container's work")

        task = asyncio.ensure_future(logged())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
