"""One container: a process of Modal's own entrypoint on a socket of its own, which tells who asks."""

import asyncio
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from grpclib.server import Server

from tests.peers.modal.private import api_pb2
from tests.peers.modal.state.apps import Function
from tests.peers.modal.state.volumes import View

SUPERVISOR = Path(__file__).with_name("supervisor.py")
RESTORED = ".restored"


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

    async def start(self, server: Server, spec: dict[str, object], *, mounts: bool) -> None:
        """Start its processes by the supervisor, whose SPEC this is; `mounts` lets it mount."""
        self._server = server
        await server.start(path=str(self.socket))
        path = self.folder / "spec.json"
        path.write_text(json.dumps(spec))
        path.chmod(0o600)
        command = [sys.executable, "-I", "-S", str(SUPERVISOR), str(path)]
        if mounts:
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
        """Until all its processes are gone; gives the exit code of the entrypoint."""
        assert self._process is not None
        assert self._server is not None
        code = await self._process.wait()
        self._server.close()
        self.socket.unlink(missing_ok=True)
        (self.folder / "spec.json").unlink(missing_ok=True)
        for view in self.views.values():
            await asyncio.to_thread(view.close)
        self.exit_code = code
        return code

    def over(self) -> None:
        """It has ended, or could not be started at all."""
        self.exit_code = -1 if self.exit_code is None else self.exit_code
        self.ended.set()

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
