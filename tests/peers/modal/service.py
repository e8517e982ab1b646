"""The parts of the peer, put together; all in one event loop."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from google.protobuf.message import Message
from grpclib.server import Server

from tests.peers.modal.containers.container import Container
from tests.peers.modal.containers.inputs import Inputs
from tests.peers.modal.containers.pool import Known, Pool
from tests.peers.modal.containers.start import Place
from tests.peers.modal.failures import Rules
from tests.peers.modal.private import STATUS_DETAILS_CODEC
from tests.peers.modal.state.apps import App, Apps, Function
from tests.peers.modal.state.blobs import Blobs
from tests.peers.modal.state.calls import Calls
from tests.peers.modal.state.volumes import Volumes
from tests.peers.modal.web.files import Files
from tests.peers.modal.web.front import Front, Settings
from tests.peers.modal.web.listener import Port, bound
from tests.peers.modal.wire.calling import Calling
from tests.peers.modal.wire.containing import Containing
from tests.peers.modal.wire.deploying import Deploying
from tests.peers.modal.wire.dispatch import Asker, Gate, Table, Wire
from tests.peers.modal.wire.storing import Storing


@dataclass(frozen=True)
class Options:
    """ModalPeer's arguments."""

    folder: Path
    sockets: Path
    host: str
    port: int
    http_port: int
    server_ports: dict[str, int]
    advertise: str
    tokens: dict[str, str]
    proxy_tokens: dict[str, str]
    environments: tuple[str, ...]
    idle_s: float | None
    background_commit_s: float | None
    multipart_bytes: int
    container_environment: dict[str, str]
    mounts: bool


class Service:
    def __init__(self, options: Options, control: list[web.RouteDef]) -> None:
        """`control` are further routes beside those of blobs."""
        self.options = options
        folder = options.folder
        self.apps = Apps(folder / "sources", options.environments)
        self.calls = Calls()
        self.volumes = Volumes(folder / "volumes")
        self.blobs = Blobs(folder / "blobs")
        self.gate = Gate(Rules(), [], dict(options.tokens), self._subject, self.cut)
        place = Place(
            folder / "containers", options.sockets, self.apps.sources, options.container_environment, options.mounts
        )
        known = Known(self.apps, self.calls, self.volumes)
        self.pool = Pool(known, place, self._container_server, options.idle_s, options.background_commit_s)
        self.proxy = Settings(dict(options.proxy_tokens))
        inputs = Inputs(self.calls, self.pool)
        self.calling = Calling(self.apps, self.calls, inputs, self.pool)
        deploying = Deploying(self.apps, self.blobs, self._server_url, self.pool.app_changed)
        storing = Storing(self.apps, self.volumes, self.blobs, self._files_url, options.multipart_bytes)
        self._control = control
        self._table: Table = {
            **deploying.table,
            **storing.table,
            **self.calling.table,
            **Containing(inputs, self.pool).table,
        }
        self._api = Port(options.host, options.port, options.sockets / "api")
        self._http = Port(options.host, options.http_port, options.sockets / "http")
        self._api_server: Server | None = None
        self._runners: list[web.AppRunner] = []
        self._fronts: dict[tuple[str, str, str], str] = {}
        self._running: asyncio.Task[None] | None = None
        self._starting: set[asyncio.Task[None]] = set()

    @property
    def api_port(self) -> int:
        return self._api.port

    @property
    def http_port(self) -> int:
        return self._http.port

    async def start(self) -> None:
        self._api_server = Server([Wire(self._table, self.gate)], status_details_codec=STATUS_DETAILS_CODEC)
        await self._api_server.start(path=str(self.options.sockets / "api"))
        app = web.Application(client_max_size=1 << 31)
        app.add_routes([*Files(self.blobs, self.volumes).routes(), *self._control])
        runner = await self._runner(app)
        await web.UnixSite(runner, str(self.options.sockets / "http")).start()
        await self.come_back()
        self._running = asyncio.ensure_future(self.pool.run())

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
        self.cut(None)
        await self.pool.stop()
        if self._api_server is not None:
            self._api_server.close()
        for runner in self._runners:
            await runner.cleanup()

    def cut(self, seconds: float | None) -> None:
        for port in (self._api, self._http):
            port.cut()
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, lambda: asyncio.ensure_future(self.come_back()))

    async def come_back(self) -> None:
        for port in (self._api, self._http):
            await port.open()

    def _container_server(self, container: Container) -> Server:
        return Server([Wire(self._table, self.gate, container)], status_details_codec=STATUS_DETAILS_CODEC)

    def _files_url(self, asker: Asker) -> str:
        host = self.options.advertise if asker.container is None else local(self.options.host)
        return f"http://{host}:{self.http_port}"

    def _server_url(self, app: App, tag: str) -> str:
        """The address of a Server's proxy; it listens from now on."""
        key = (app.environment, app.name, tag)
        if key not in self._fronts:
            listening = bound(self.options.host, self.options.server_ports.get(f"{app.name}/{tag}", 0))
            self._fronts[key] = f"http://{self.options.advertise}:{listening.getsockname()[1]}"

            def deployed() -> Function | None:
                found = self.apps.app_by_name(app.environment, app.name)
                return self.apps.functions.get(found.function_ids.get(tag, "")) if found else None

            async def start() -> None:
                runner = await self._runner(Front(deployed, self.pool, self.proxy).app())
                await web.SockSite(runner, listening).start()

            task = asyncio.ensure_future(start())
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)
        return self._fronts[key]

    async def _runner(self, app: web.Application) -> web.AppRunner:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._runners.append(runner)
        return runner

    def _subject(self, request: Message) -> str:
        """What a request is about, as the app calls it."""
        function_id, volume_id = getattr(request, "function_id", ""), getattr(request, "volume_id", "")
        call_id = getattr(request, "function_call_id", "")
        if volume_id:
            return volume_id.split("-", 2)[-1]
        if call_id and any(call.id == call_id for call in self.calls.all()):
            return self.calls.get(call_id).function.tag
        if function_id in self.apps.functions:
            return self.apps.functions[function_id].tag
        for field in ("object_tag", "deployment_name", "name"):
            if named := getattr(request, field, ""):
                return str(named)
        return ""


def local(host: str) -> str:
    """Where containers of this machine reach what listens at `host`."""
    return "127.0.0.1" if host == "0.0.0.0" else host
