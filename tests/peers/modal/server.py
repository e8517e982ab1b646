"""The peer as tests use it.

`with ModalPeer(folder) as peer: subprocess.run(["modal", "deploy", "-m", "app"], env=environ | peer.environment())`
"""

import asyncio
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.peers.modal.containers.container import Container
from tests.peers.modal.failures import Do, Effect, Fate, Rpc, Rule, When
from tests.peers.modal.service import Options, Service
from tests.peers.modal.state.calls import Call
from tests.peers.modal.view import DeployedApp, view_app
from tests.peers.modal.web.control import control_routes

START_TIMEOUT_S = 20.0
TOKEN_ID, TOKEN_SECRET = "ak-peer", "as-peer"
PROXY_KEY, PROXY_SECRET = "wk-peer", "ws-peer"
T = TypeVar("T")


class ModalPeer:
    """Modal for one workspace. Its state outlives `cut` and `come_back`, not the object; Volumes' folders stay."""

    def __init__(
        self,
        folder: Path,
        port: int = 0,
        *,
        host: str = "127.0.0.1",
        http_port: int = 0,
        server_ports: dict[str, int] | None = None,
        advertise: str | None = None,
        token_id: str = TOKEN_ID,
        token_secret: str = TOKEN_SECRET,
        proxy_key: str = PROXY_KEY,
        proxy_secret: str = PROXY_SECRET,
        environments: tuple[str, ...] = ("main",),
        idle_s: float | None = None,
        background_commit_s: float | None = 5.0,
        multipart_bytes: int = 1 << 30,
        container_environment: dict[str, str] | None = None,
        mounts: bool | None = None,
    ) -> None:
        """`folder` keeps everything. `advertise` is the host that clients reach the peer at, `host` without.

        `server_ports` fixes the ports of Servers, by `app/Server`; others get free ones. `idle_s` is the idle window
        of all containers, each function's own without. `container_environment` is what this machine adds to every
        container's environment. `mounts` tells whether Volumes can be mounted; without, it is tried.
        """
        self.host = host
        self.folder = folder
        self._token = (token_id, token_secret)
        self._sockets = Path(tempfile.mkdtemp(prefix="modal-peer-"))
        options = Options(
            folder=folder,
            sockets=self._sockets,
            host=host,
            port=port,
            http_port=http_port,
            server_ports=server_ports or {},
            advertise=advertise or host,
            tokens={token_id: token_secret},
            proxy_tokens={proxy_key: proxy_secret},
            environments=environments,
            idle_s=idle_s,
            background_commit_s=background_commit_s,
            multipart_bytes=multipart_bytes,
            container_environment=container_environment or {},
            mounts=can_mount() if mounts is None else mounts,
        )
        self._loop = asyncio.new_event_loop()
        self.service = Service(options, control_routes(self))
        self._thread = threading.Thread(target=self._loop.run_forever, name="modal-peer", daemon=True)

    @property
    def url(self) -> str:
        """Where the API is, for MODAL_SERVER_URL."""
        return f"http://{self.service.options.advertise}:{self.service.api_port}"

    @property
    def http_url(self) -> str:
        """Where blobs are, and the orders of `control.py`."""
        return f"http://{self.service.options.advertise}:{self.service.http_port}"

    def environment(self) -> dict[str, str]:
        """What the client and the CLI need to use the peer, and no file of the user's."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": self._token[0],
            "MODAL_TOKEN_SECRET": self._token[1],
            "MODAL_ENVIRONMENT": self.service.apps.environments[0],
            "MODAL_CONFIG_PATH": str(self.folder / "no-such-config.toml"),
            "MODAL_MAX_THROTTLE_WAIT": "2",
            "MODAL_DISABLE_API_PROXY": "1",
        }

    def start(self) -> Self:
        self._thread.start()
        self._do(self.service.start())
        return self

    def stop(self) -> None:
        """Kill all containers and be gone."""
        self._do(self.service.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_TIMEOUT_S)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def fail(
        self,
        at: str | Collection[str],
        effect: Effect,
        *,
        when: When = When.RECEIVED,
        first: int = 1,
        times: int | None = None,
        of: str | None = None,
    ) -> Rule:
        """Order an effect for RPCs from the `first` matching one on, `times` of them, for ever without.

        `of` narrows it to one function (`fill_weights`, `Trainer.*`), Volume or Secret.
        """
        rpcs = frozenset([at] if isinstance(at, str) else at)
        return self.service.gate.rules.add(Rule(rpcs, effect, when, first, times, of))

    def do(self, at: str, function: Callable[[Rpc], None], *, when: When = When.RECEIVED, first: int = 1) -> Rule:
        """Call a function of the test once, at the `first` such RPC."""
        return self.fail(at, Do(function), when=when, first=first, times=1)

    def clear_failures(self) -> None:
        self.service.gate.rules.clear()

    def accept(self, token_id: str, token_secret: str) -> None:
        """Take this token alone from now on."""
        self.service.gate.tokens.clear()
        self.service.gate.tokens[token_id] = token_secret

    def accept_proxy(self, key: str, secret: str) -> None:
        """Take this proxy token alone from now on."""
        self.service.proxy.tokens = {key: secret}

    def cut(self, seconds: float | None = None) -> None:
        """Be gone for clients, for so long or until `come_back`; containers go on."""
        self._loop.call_soon_threadsafe(self.service.cut, seconds)

    def come_back(self) -> None:
        """Be reachable again at the same addresses, with all that was there."""
        self._do(self.service.come_back())

    @property
    def rpcs(self) -> list[Rpc]:
        """All requests as they arrived, oldest first."""
        return list(self.service.gate.rpcs)

    @property
    def calls(self) -> list[Call]:
        """All function calls, oldest first; `Call.runs` has each time that a container took it."""
        return self.service.calls.all()

    def end_call(self, call_id: str, fate: Fate) -> None:
        """End a call so; what runs it is killed."""
        self._do(self.service.calling.end(self.service.calls.get(call_id), fate))

    def app(self, name: str, environment: str = "") -> DeployedApp:
        """What is deployed under this name; the client's NotFoundError as LookupError."""
        app = self.service.apps.app_by_name(environment, name)
        if app is None:
            raise LookupError(f"no app '{name}'")
        return view_app(app, self.service.apps, self.service.volumes)

    def secret(self, name: str, values: dict[str, str], environment: str = "") -> None:
        """Make or replace a Secret."""
        self.service.apps.add_secret(environment, name, values, overwrite=True)

    def volume(self, name: str, environment: str = "") -> Path:
        """The folder of what is committed to a Volume; made if there is none."""
        environment = self.service.apps.environment(environment)
        return self.service.volumes.get_or_create(environment, name, create=True).folder

    def server_url(self, app: str, server: str, environment: str = "") -> str:
        """The address of a deployed Server."""
        return self.service.apps.deployed_function(environment, app, server).server_url

    def containers(self, app: str | None = None, *, alive: bool = True) -> list[Container]:
        """Containers, of one app or all, oldest first."""
        found = list(self.service.pool.containers.values())
        return [c for c in found if app in (None, c.function.app.name) and (c.alive or not alive)]

    def kill_container(self, container_id: str) -> None:
        """Kill a container with all its processes, as a machine's end does; its input runs again in another one."""
        self._loop.call_soon_threadsafe(self.service.pool.find(container_id).kill)

    def start_containers(self, app: str, server: str, count: int, environment: str = "") -> None:
        """Have so many containers of a Server, until they are idle."""
        function = self.service.apps.deployed_function(environment, app, server)
        self._loop.call_soon_threadsafe(self.service.pool.want, function, count)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_TIMEOUT_S)


def can_mount() -> bool:
    """Whether a process may have mounts of its own here."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"]
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0
    except FileNotFoundError:
        return False
