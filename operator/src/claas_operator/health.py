"""Probes for the kubelet: `/healthz` answers while the operator leads, `/readyz` once it knows the cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web


class Health:
    """Whether the operator has seen the cluster."""

    def __init__(self) -> None:
        self.ready = False

    async def live(self, request: web.Request) -> web.Response:
        """Answers while the operator leads and its event loop runs."""
        return web.Response(text="ok")

    async def readiness(self, request: web.Request) -> web.Response:
        """Answers 503 until the operator has read the cluster once."""
        return web.Response(text="ok") if self.ready else web.Response(status=503, text="reading the cluster")


@asynccontextmanager
async def health_endpoint(port: int) -> AsyncIterator[Health]:
    """Serve the probes meanwhile."""
    health = Health()
    application = web.Application()
    application.router.add_get("/healthz", health.live)
    application.router.add_get("/readyz", health.readiness)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield health
    finally:
        await runner.cleanup()
