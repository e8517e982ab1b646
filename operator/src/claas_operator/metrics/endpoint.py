"""`/metrics` of the operator's pod, answered whether it leads or not."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler

log = logging.getLogger(__name__)

METRICS_PATH = "/metrics"


@asynccontextmanager
async def metrics_endpoint(registry: CollectorRegistry, port: int) -> AsyncIterator[None]:
    """Serve the registry, in the event loop that also changes what is measured.

    An operator whose port is taken does without: waking vLLM matters more.
    """
    application = web.Application()
    application.router.add_get(METRICS_PATH, make_aiohttp_handler(registry))
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, port=port).start()
        except OSError as error:
            log.error("metrics are not served: %s", error)
        yield
    finally:
        await runner.cleanup()
