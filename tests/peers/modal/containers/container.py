"""One container: a process of Modal's own entrypoint on a socket of its own, which tells who asks."""

import asyncio
import json
import os
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from grpclib.server import Server

from tests.peers.modal.private import ENTRYPOINT, api_pb2
from tests.peers.modal.state.apps import Function
from tests.peers.modal.state.volumes import View, Volumes

SUPERVISOR = Path(__file__).with_name("supervisor.py")
LISTEN_HOST = "CLAAS_MODAL_LISTEN_HOST"
"""Where a Server's process listens: on one machine two containers can't have the same port of all addresses."""
RESTORED = ".restored"


@dataclass(frozen=True)
class Place:
    """What all containers of a peer have in common."""

    folder: Path
    sockets: Path
    """Elsewhere, for a socket's path must be short."""
    sources: Path
    environment: dict[str, str]
    mounts: bool
    """Whether Volumes are mounted; else they are symbolic links."""


@dataclass(eq=False)
class Container:
    id: str
    function: Function
    version: int
    """Of the function, when the container was started."""
    folder: Path
    socket: Path
    views: dict[str, View]
    host: str
    """The loopback address that is this container's."""
    started: float = field(default_factory=monotonic)
    ready: bool = False
    """It took inputs, or its Server listens."""
    served: float = field(default_factory=monotonic)
    """When a Server's container last had a request, in whole or in part."""
    requests: int = 0
    retiring: bool = False
    """It gets no more work and is about to end."""
    failure: api_pb2.GenericResult | None = None
    """What it told when its start failed."""
    killed: bool = False
    snapshot: bool = False
    exit_code: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """All its processes are gone."""
    cancelled: set[str] = field(default_factory=set)
    """Inputs that it is to give up."""
    cancelling: asyncio.Event = field(default_factory=asyncio.Event)
    _process: asyncio.subprocess.Process | None = None
    _server: Server | None = None

    @property
    def task_id(self) -> str:
        """What the container knows as its own id: another one after a restore."""
        return self.id + (RESTORED if self.snapshot else "")

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    @property
    def pid(self) -> int | None:
        """The process that supervises the container's processes."""
        return None if self._process is None else self._process.pid

    @property
    def log(self) -> str:
        """What its processes wrote."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    async def start(self, place: Place, server: Server, spec: dict[str, object]) -> None:
        self._server = server
        await server.start(path=str(self.socket))
        path = self.folder / "spec.json"
        path.write_text(json.dumps(spec))
        path.chmod(0o600)
        command = [sys.executable, "-I", "-S", str(SUPERVISOR), str(path)]
        if place.mounts:
            command = ["unshare", "-rm", "--", *command]
        with (self.folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": os.environ.get("PATH", os.defpath)},
            )
        if self.killed:
            self._order(b"K")

    async def wait(self) -> int:
        """Until all its processes are gone."""
        assert self._process is not None
        assert self._server is not None
        code = await self._process.wait()
        self._server.close()
        self.socket.unlink(missing_ok=True)
        (self.folder / "spec.json").unlink(missing_ok=True)
        for view in self.views.values():
            await asyncio.to_thread(view.close)
        self.exit_code = code
        self.ended.set()
        return code

    def terminate(self) -> None:
        """Ask its process to end (SIGTERM)."""
        self.retiring = True
        self._order(b"T")

    def kill(self) -> None:
        """Kill all its processes."""
        self.retiring = self.killed = True
        self._order(b"K")

    def restore(self) -> None:
        """Let the container go on after its snapshot, under another id, as one that was restored from it."""
        self.snapshot = True
        part = self.folder / "restore.part"
        part.write_text(json.dumps({"task_id": self.task_id}))
        part.rename(self.folder / "restore.json")

    def _order(self, letter: bytes) -> None:
        stdin = None if self._process is None else self._process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(letter)


def new_host() -> str:
    """A loopback address that other containers, also those of other peers, hardly have."""
    return f"127.{random.randint(16, 250)}.{random.randint(1, 250)}.{random.randint(2, 250)}"


def prepare(
    function: Function,
    container_id: str,
    place: Place,
    volumes: Volumes,
) -> Container:
    """A container that was not started yet, with fresh views of its Volumes."""
    folder = place.folder / container_id
    folder.mkdir(parents=True)
    views = {}
    for mount in function.definition.volume_mounts:
        volume = volumes.by_id(mount.volume_id)
        shared = mount.read_only and not place.mounts
        own = folder / "volumes" / mount.volume_id
        view = View(volume, volume.folder if shared else own, mount.read_only)
        view.open()
        views[mount.volume_id] = view
    return Container(
        container_id, function, function.version, folder, place.sockets / container_id, views, new_host()
    )


@dataclass(frozen=True)
class Start:
    """What a container's process is started with."""

    arguments: api_pb2.ContainerArguments
    environment: dict[str, str]
    sources: list[api_pb2.MountFile]


def specify(container: Container, place: Place, start: Start) -> dict[str, object]:
    """The supervisor's SPEC; writes the arguments and puts the sources in place."""
    folder, definition = container.folder, container.function.definition
    (folder / "arguments").write_bytes(start.arguments.SerializeToString())
    root = folder / "sources"
    for file in start.sources:
        goal = root / file.filename.lstrip("/")
        goal.parent.mkdir(parents=True, exist_ok=True)
        goal.unlink(missing_ok=True)
        os.link(place.sources / file.sha256_hex, goal)
    home = folder / "home"
    for one in (root / "root", home, folder / "tmp", folder / "root"):
        one.mkdir(parents=True, exist_ok=True)
    binds = []
    for mount in definition.volume_mounts:
        source = container.views[mount.volume_id].folder / mount.sub_path.strip("/")
        source.mkdir(parents=True, exist_ok=True)
        binds.append([str(source), mount.mount_path, "ro" if mount.read_only else "rw"])
    environment = {
        **{name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ},
        "HOME": str(home),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONUNBUFFERED": "1",
        **place.environment,
        **start.environment,
        "PYTHONPATH": str(root / "root"),
        LISTEN_HOST: container.host,
        "MODAL_IS_REMOTE": "1",
        "MODAL_TASK_ID": container.task_id,
        "MODAL_IMAGE_ID": definition.image_id,
        "MODAL_ENVIRONMENT": container.function.app.environment,
        "MODAL_SERVER_URL": f"unix://{container.socket}",
        "MODAL_CONTAINER_ARGUMENTS_PATH": str(folder / "arguments"),
        "MODAL_RESTORE_STATE_PATH": str(folder / "restore.json"),
    }
    if definition.is_checkpointing_function:
        environment["MODAL_ENABLE_SNAP_RESTORE"] = "1"
    return {
        "root": str(folder / "root") if place.mounts else "",
        "binds": binds,
        "command": [sys.executable, "-m", ENTRYPOINT],
        "environment": environment,
        "folder": str(root / "root"),
    }
