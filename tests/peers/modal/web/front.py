"""The proxies before Servers: each on a port of its own, with Modal's token for proxies and 503 while cold."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic

import aiohttp
from aiohttp import web

from tests.peers.modal.containers.container import Container
from tests.peers.modal.containers.pool import Pool
from tests.peers.modal.state.apps import Function

KEY, SECRET, SESSION = "Modal-Key", "Modal-Secret", "Modal-Session-ID"
HOPS = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-authorization", "host"}


@dataclass
class Settings:
    tokens: Mapping[str, str]
    """Proxy tokens: each key with its secret."""


class Front:
    """One Server's proxy."""

    def __init__(self, function: Callable[[], Function | None], pool: Pool, settings: Settings) -> None:
        """`function` gives what is deployed under the Server's name now."""
        self._function = function
        self._pool = pool
        self._settings = settings
        self._turns = itertools.count()
        self._client: aiohttp.ClientSession | None = None

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self.answer)
        app.on_startup.append(self._open)
        app.on_cleanup.append(self._close)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        function = self._function()
        if function is None:
            return web.Response(status=404, text="modal-http: invalid function call")
        if not function.definition.http_config.unauthenticated:
            key = request.headers.get(KEY, "")
            if self._settings.tokens.get(key) is None:
                return web.Response(status=401, text="modal-http: missing credentials for proxy authorization")
            if self._settings.tokens[key] != request.headers.get(SECRET):
                return web.Response(status=401, text="modal-http: invalid credentials for proxy authorization")
        usable = self._pool.usable(function)
        if not usable:
            self._pool.want(function)
            return web.Response(status=503, text="modal-http: no container is ready", headers={"Retry-After": "1"})
        container = self._choose(usable, request)
        self._scale_up(function, usable)
        container.requests += 1
        try:
            return await self._forward(request, container, function.definition.http_config.port)
        except (aiohttp.ClientConnectionError, ConnectionResetError):
            return web.Response(status=502, text="modal-http: the container closed the connection")
        finally:
            container.requests -= 1
            container.served = monotonic()

    def _choose(self, usable: list[Container], request: web.Request) -> Container:
        """By turns; a session that is named stays with its container while the same ones are there."""
        session = request.headers.get(SESSION)
        turn = next(self._turns) if session is None else hash(session)
        return usable[turn % len(usable)]

    def _scale_up(self, function: Function, usable: list[Container]) -> None:
        target = function.definition.autoscaler_settings.target_concurrency_float
        under_way = sum(container.requests for container in usable) + 1
        if target and under_way > target * len(usable):
            self._pool.want(function, len(usable) + 1)

    async def _forward(self, request: web.Request, container: Container, port: int) -> web.StreamResponse:
        assert self._client is not None
        hidden = HOPS | {KEY.lower(), SECRET.lower()}
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in hidden]
        url = f"http://{container.host}:{port}{request.rel_url}"
        body = await request.read()
        async with self._client.request(
            request.method, url, headers=headers, data=body or None, allow_redirects=False
        ) as got:
            answer = web.StreamResponse(status=got.status, reason=got.reason)
            for name, value in got.headers.items():
                if name.lower() not in HOPS | {"content-length"}:
                    answer.headers.add(name, value)
            if "Content-Length" in got.headers and request.method != "HEAD":
                answer.content_length = int(got.headers["Content-Length"])
            await answer.prepare(request)
            try:
                async for piece in got.content.iter_any():
                    await answer.write(piece)
            except aiohttp.ClientError:
                if request.transport is not None:
                    request.transport.abort()
                return answer
            await answer.write_eof()
            return answer

    async def _open(self, app: web.Application) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        self._client = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)

    async def _close(self, app: web.Application) -> None:
        if self._client is not None:
            await self._client.close()
