"""The gateway as a process of its own, as its image runs it, with a SQLite database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from claas_gateway.records import Rollout
from claas_gateway.store.sql_store import open_store
from tests.cluster.light import LightCluster
from tests.cluster.services.control_plane import free_ports
from tests.simulation.program import Program

SOURCES = ("crds/src", "kube/src", "gateway/src")
START_SECONDS = 60.0


class GatewayProcess(Program):
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
        self.url = f"http://127.0.0.1:{port}"
        self.database_url = database_url or f"sqlite+aiosqlite:///{folder}/gateway.db"
        program = {
            "CLAAS_GATEWAY_KEYS": "off",
            "CLAAS_GATEWAY_DATABASE_URL": self.database_url,
            "CLAAS_GATEWAY_PORT": str(port),
            "CLAAS_METRICS_PORT": str(metrics_port),
            "CLAAS_WATCH_NAMESPACES": ",".join(namespaces),
            "POD_NAME": name,
            **(settings or {}),
        }
        super().__init__("claas_gateway", cluster, folder / f"{name}.log", SOURCES, program)

    def keep(self, rollouts: Sequence[Rollout]) -> None:
        """Store rollouts, as if it had served them; it must not run."""

        async def stored() -> None:
            async with open_store(self.database_url) as store:
                await store.rollouts.add(rollouts)

        asyncio.run(stored())

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
