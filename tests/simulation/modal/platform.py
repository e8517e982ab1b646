"""Modal's peer with the played vLLM deployed on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers.modal.server import PROXY_KEY, PROXY_SECRET, TOKEN_ID, TOKEN_SECRET, ModalPeer

APPS = Path(__file__).with_name("apps")
APP = "claas-vllm"
VOLUME = "claas-adapters"
TOKEN = {"token-id": TOKEN_ID, "token-secret": TOKEN_SECRET}
PROXY_TOKEN = {"key": PROXY_KEY, "secret": PROXY_SECRET}


class PlayedModal:
    """The peer, and what its containers are told."""

    def __init__(self, peer: ModalPeer, orders: Path) -> None:
        self.peer = peer
        self._orders = orders

    def deploy(self, app: str = APP, containers: int = 1) -> None:
        """Deploy the app, as users do."""
        environment = {
            **os.environ,
            **self.peer.environment(),
            "PYTHONPATH": os.pathsep.join([str(APPS), *(path for path in sys.path if path)]),
            "PLAYED_APP": app,
            "PLAYED_CONTAINERS": str(containers),
        }
        command = [sys.executable, "-m", "modal", "deploy", "-m", "played_vllm.app"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def refuse(self, served_name: str, *versions: int) -> None:
        """Have all containers refuse these versions of a name from now on."""
        known = json.loads(self._orders.read_text()) if self._orders.exists() else {}
        part = self._orders.with_suffix(".part")
        part.write_text(json.dumps({**known, served_name: versions}))
        part.rename(self._orders)

    def pointers(self, app: str = APP) -> dict[str, int]:
        """The versions that an app is pointed to, by served names."""
        folder = self.peer.volume(VOLUME) / "serving" / app
        found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        return {each["served_name"]: each["version"] for each in found}

    def awake(self, app: str = APP) -> int:
        """How many containers of an app cost money at this moment."""
        return len(self.peer.containers(app))

    def asked(self, *names: str) -> int:
        """How many requests of clients the API has had, by the names of RPCs; all without."""
        return sum(rpc.container is None and (not names or rpc.name in names) for rpc in self.peer.rpcs)


@contextmanager
def played_modal(folder: Path, *, idle_seconds: float | None = None) -> Iterator[PlayedModal]:
    """The peer, with the app; its containers end after so long without a request."""
    orders = folder / "orders.json"
    environment = {"PLAYED_ORDERS": str(orders)}
    with ModalPeer(
        folder / "peer", container_environment=environment, background_commit_s=None, idle_s=idle_seconds
    ) as peer:
        played = PlayedModal(peer, orders)
        peer.volume(VOLUME)  # It comes with the trainer's app.
        played.deploy()
        yield played
