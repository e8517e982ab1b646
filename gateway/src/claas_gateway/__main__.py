"""`python -m claas_gateway`: listen, watch the cluster, and work on feedback until a signal."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime

import uvicorn
import uvloop
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler

from claas_gateway.access.guard import Guard, KeyGuard, OpenGuard, key_places
from claas_gateway.access.keys.ring import KeyRing
from claas_gateway.access.rates import Rates
from claas_gateway.adapters.template import read_template
from claas_gateway.app import Application
from claas_gateway.directory.interface import Directory
from claas_gateway.directory.watching import WatchedDirectory
from claas_gateway.errors import SettingsError
from claas_gateway.feedback.queue import told
from claas_gateway.metrics import GatewayMetrics
from claas_gateway.services import Services
from claas_gateway.settings import Settings
from claas_gateway.store.sql_store import open_store
from claas_gateway.upstream.connections import new_session
from claas_gateway.upstream.servers import Upstream
from claas_kube.api import Api, connected
from claas_kube.errors import ApiError

log = logging.getLogger("claas_gateway")

_KEEP_ALIVE_SECONDS = 75
"""Longer than load balancers keep an idle connection, so that they close it, not we under their hands."""
_ENDING_SECONDS = 110
"""What answers have for their end; below the pod's grace period."""
_AGAIN_SECONDS = 2.0


class _Server(uvicorn.Server):
    """Uvicorn without signal handlers: what a signal means is decided here."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set. Raises SettingsError."""
    async with AsyncExitStack() as stack:
        metrics = GatewayMetrics()
        await stack.enter_async_context(_metrics_endpoint(metrics.registry, settings.metrics_port))
        api, _ = await stack.enter_async_context(connected())
        store = await stack.enter_async_context(open_store(settings.database_url))
        http = await stack.enter_async_context(new_session())
        directory = WatchedDirectory(api, settings.watch_namespaces)
        api.keep_informed(directory)
        services = Services(
            settings=settings,
            store=store,
            directory=directory,
            guard=_guard(settings, api, directory),
            api=api,
            http=http,
            upstream=Upstream(http, api, directory),
            metrics=metrics,
            clock=lambda: datetime.now(UTC),
        )
        application = Application(services)
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(directory.run(), name="directory"),
                tasks.create_task(_work(directory, application), name="feedback"),
            ]
            serving = tasks.create_task(_listen(application, settings.port, stop), name="HTTP")
            await serving
            for task in background:
                task.cancel()


async def _listen(application: Application, port: int, stop: asyncio.Event) -> None:
    """Answer requests until `stop` is set, and to their end."""
    config = uvicorn.Config(
        application,
        host="0.0.0.0",
        port=port,
        lifespan="off",
        http="httptools",
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_ENDING_SECONDS,
    )
    server = _Server(config)
    answering = asyncio.create_task(server.serve())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((answering, stopping), return_when=asyncio.FIRST_COMPLETED)
    if stopping.done():
        log.info("stopping: answers in flight go on to their end")
    application.end()
    server.should_exit = True
    stopping.cancel()
    await answering


async def _work(directory: WatchedDirectory, application: Application) -> None:
    """Work on feedback as soon as adapters and jobs are known."""
    await _until_done(directory.ready)
    await application.worker.run()


async def _until_done(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            return await work()
        except ApiError as error:
            log.warning("the cluster can't be read yet: %s", error)
            await asyncio.sleep(_AGAIN_SECONDS)


def _guard(settings: Settings, api: Api, directory: Directory) -> Guard:
    if not settings.keys_required:
        log.warning("API keys are off: whoever reaches the gateway may use every adapter")
        return OpenGuard()
    template = settings.adapter_template
    made_in = read_template(template).namespace if template is not None else None
    ring = KeyRing(api, lambda: key_places(settings, directory, made_in), time.monotonic)
    return KeyGuard(ring, Rates(settings.requests_per_minute, time.monotonic), lambda: datetime.now(UTC))


@asynccontextmanager
async def _metrics_endpoint(registry: CollectorRegistry, port: int) -> AsyncIterator[None]:
    """`/metrics`, for Prometheus alone."""
    application = web.Application()
    application.router.add_get("/metrics", make_aiohttp_handler(registry))
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


def quieten() -> None:
    """Keep out of the log what libraries tell in detail at any level: parameters of statements are private texts."""
    for telling in ("aiohttp.access", "aiosqlite", "sqlalchemy", "alembic"):
        logging.getLogger(telling).setLevel(max(logging.WARNING, logging.getLogger().level))


def main() -> int:
    """Run the gateway; the exit status."""
    try:
        settings = Settings.from_environment(os.environ)
        logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        quieten()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_signal(settings))
    except SettingsError as error:
        print(f"claas-gateway: {error}", file=sys.stderr)  # noqa: T201  (whoever starts it reads this)
        return 2
    except ExceptionGroup as errors:
        log.error("ended: %s", "; ".join(told(error) for error in errors.exceptions))
        return 1
    return 0


async def _until_signal(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await serve(settings, stop)


if __name__ == "__main__":
    sys.exit(main())
