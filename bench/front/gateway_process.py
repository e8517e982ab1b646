"""The gateway in a process of its own: its real hot path, directory and store, over a small API server that tells
where the paced server is.

    python bench/front/gateway_process.py PORT UPSTREAM_PORT DATABASE_FILE
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import uvicorn
import uvloop

from claas_gateway.access.guard import OpenGuard
from claas_gateway.directory.watching import WatchedDirectory
from claas_gateway.inference.routes import Inference
from claas_gateway.metrics import GatewayMetrics
from claas_gateway.services import Services
from claas_gateway.store.sql_store import open_store
from claas_gateway.upstream.connections import new_session
from claas_gateway.upstream.servers import Upstream
from tests.builders.api_server import SmallApi, serving_api
from tests.builders.front import NAMESPACE, place, settings


async def serve(port: int, upstream_port: int, database: str) -> None:
    """Serve until the process is told to end."""
    small = SmallApi()
    place(small, ["127.0.0.1"], upstream_port)
    async with (
        serving_api(small) as api,
        open_store(f"sqlite+aiosqlite:///{database}") as store,
        new_session() as http,
    ):
        directory = WatchedDirectory(api, [NAMESPACE])
        watching = asyncio.create_task(directory.run())
        await directory.ready()
        services = Services(
            settings=settings(),
            store=store,
            directory=directory,
            guard=OpenGuard(),
            api=api,
            http=http,
            upstream=Upstream(http, api, directory),
            metrics=GatewayMetrics(),
            clock=lambda: datetime.now(UTC),
        )
        config = uvicorn.Config(
            Inference(services), host="127.0.0.1", port=port, http="httptools", lifespan="off", access_log=False,
            log_level="warning", timeout_graceful_shutdown=1,
        )  # fmt: skip
        await uvicorn.Server(config).serve()
        watching.cancel()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
