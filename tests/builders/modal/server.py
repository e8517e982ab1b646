"""A scripted vLLM server behind a front like Modal's, which asks for the proxy token and starts containers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.typedefs import Handler

from tests.simulation.openai_server import OpenAIServer

PROXY_KEY = "wk-of-the-test"
PROXY_SECRET = "ws-of-the-test"


@dataclass
class ModalServer(OpenAIServer):
    """The server. While it is cold, the front answers 503, or holds requests where it `holds` them."""

    cold: int = 0
    """How many requests come before a container is there."""
    holds: bool = False
    started: asyncio.Event = field(default_factory=asyncio.Event)
    """When requests that are held go on."""
    secret: str = PROXY_SECRET
    refuses: int = 0
    """The status by which the front answers everything itself."""
    came: list[str] = field(default_factory=list)
    """The paths of all requests, also of those that the front answered."""

    def extend(self, application: web.Application) -> None:
        application.middlewares.append(self._front)
        self.more(application)

    def more(self, application: web.Application) -> None:
        """Add routes; for servers that can more."""

    @property
    def _front(self):  # type: ignore[no-untyped-def]
        @web.middleware
        async def front(request: web.Request, handler: Handler) -> web.StreamResponse:
            self.came.append(request.path)
            sent = request.headers.get("Modal-Key"), request.headers.get("Modal-Secret")
            if sent != (PROXY_KEY, self.secret):
                return web.Response(status=401, text="modal-http: invalid credentials for proxy authorization")
            if self.refuses:
                headers = {"Location": "http://elsewhere.invalid/"} if self.refuses < 400 else {}
                return web.Response(status=self.refuses, text="modal-http: not here: workspace-x", headers=headers)
            if self.holds:
                await self.started.wait()
            elif self.cold:
                self.cold -= 1
                return web.Response(status=503, text="modal-http: no container yet")
            return await handler(request)

        return front
