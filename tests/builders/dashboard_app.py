"""The dashboard behind the edge, as an ASGI application of its own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import cast

import aiohttp
from fastapi import FastAPI

from claas_gateway.access.callers import EVERYTHING, Caller
from claas_gateway.access.edge import Edge
from claas_gateway.access.guard import Guard, Headers
from claas_gateway.access.handlers import handle_errors
from claas_gateway.access.sign_in import router as sign_in
from claas_gateway.dashboard.routes import router
from claas_gateway.directory.interface import Directory
from claas_gateway.metrics import GatewayMetrics
from claas_gateway.services import Services
from claas_gateway.store.interface import Store
from claas_gateway.upstream.servers import Upstream
from claas_kube.api import Api
from tests.builders.gateway import gateway_settings


class ChosenCaller:
    """A guard that admits everybody as the caller that the test chose."""

    def __init__(self, caller: Caller = EVERYTHING) -> None:
        self.caller = caller

    async def admit(self, headers: Headers) -> Caller:
        """The chosen one."""
        return self.caller

    async def admit_browser(self, headers: Headers) -> Caller:
        """The chosen one."""
        return self.caller

    async def sign_in(self, key: str) -> str | None:
        """There is nothing to sign in to."""
        return None


def dashboard_app(
    store: Store, directory: Directory, guard: Guard, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Edge:
    """The dashboard and its form to sign in; they need neither the API server nor vLLM."""
    services = Services(
        settings=gateway_settings(),
        store=store,
        directory=directory,
        guard=guard,
        api=cast(Api, None),
        http=cast(aiohttp.ClientSession, None),
        upstream=cast(Upstream, None),
        metrics=GatewayMetrics(),
        clock=clock,
    )
    app = FastAPI()
    handle_errors(app)
    app.include_router(router(services))
    app.include_router(sign_in(guard))
    return Edge(app, guard, services.settings.largest_body_bytes)
