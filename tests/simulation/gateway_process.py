"""The gateway as a process of its own, as its image runs it, with a SQLite database."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from claas_gateway.records import Rollout
from claas_gateway.store.sql_store import open_store
from tests.cluster.light import LightCluster
from tests.cluster.paths import REPOSITORY_ROOT
from tests.cluster.services.control_plane import free_ports

SOURCES = ("crds/src", "kube/src", "gateway/src")
START_SECONDS = 60.0


class GatewayProcess:
    """`python -m claas_gateway` against one API server; started, killed and started again on its database."""

    def __init__(
        self,
        cluster: LightCluster,
        folder: Path,
        namespaces: Sequence[str],
        *,
        name: str = "gateway-0",
        database_url: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        port, metrics_port = free_ports(2)
        self.log = folder / f"{name}.log"
        self.url = f"http://127.0.0.1:{port}"
        self.database_url = database_url or f"sqlite+aiosqlite:///{folder}/gateway.db"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": os.pathsep.join(str(REPOSITORY_ROOT / source) for source in SOURCES),
            "PYTHONUNBUFFERED": "1",
            "KUBECONFIG": str(cluster.operator_kubeconfig),
            "CLAAS_GATEWAY_KEYS": "off",
            "CLAAS_GATEWAY_DATABASE_URL": self.database_url,
            "CLAAS_GATEWAY_PORT": str(port),
            "CLAAS_METRICS_PORT": str(metrics_port),
            "CLAAS_WATCH_NAMESPACES": ",".join(namespaces),
            "POD_NAME": name,
            **(settings or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def keep(self, rollouts: Sequence[Rollout]) -> None:
        """Store rollouts, as if it had served them; it must not run."""

        async def stored() -> None:
            async with open_store(self.database_url) as store:
                await store.rollouts.add(rollouts)

        asyncio.run(stored())

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; it may not be ready yet."""
        assert not self.running
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "claas_gateway"],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def start_ready(self) -> None:
        """Start the process and wait until it is ready."""
        self.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            assert self.running, f"the gateway ended: {self.tail()}"
            assert time.monotonic() < deadline, f"the gateway is not ready: {self.tail()}"
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=10)

    def stop(self) -> int:
        """SIGTERM; the exit status. Killed when it does not end."""
        assert self._process is not None
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def tail(self) -> str:
        """The end of the log, for messages of failed tests."""
        return self.log.read_text(errors="replace")[-4000:]
