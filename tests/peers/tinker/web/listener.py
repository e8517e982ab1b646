"""An ASGI app on a port of this machine, which can vanish like a machine that lost its network, and come back."""

import asyncio
import socket
import threading
import time

import uvicorn
from starlette.types import ASGIApp

START_TIMEOUT_S = 10.0


class Listener:
    """Serves in a thread of its own."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._app = app
        self._host = host
        self.port = port
        self._server: uvicorn.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Accept connections, on the same port as before if there was one."""
        self._join()
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((self._host, self.port))
        listening.listen(512)
        self.port = listening.getsockname()[1]
        config = uvicorn.Config(self._app, log_level="error", lifespan="off", timeout_keep_alive=60)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._serve, args=(self._server, listening), name="tinker-peer", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError(f"the peer did not start on {self._host}:{self.port}")
            time.sleep(0.01)

    def cut(self) -> None:
        """Break all connections without an answer and refuse new ones. May be called from any thread."""
        server, loop = self._server, self._loop
        if server is not None and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(_cut, server)

    def stop(self) -> None:
        """Be gone for good; the thread ends by itself."""
        self.cut()

    def _serve(self, server: uvicorn.Server, listening: socket.socket) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            await server.serve(sockets=[listening])

        asyncio.run(serve())

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join(START_TIMEOUT_S)
            self._thread = None


def _cut(server: uvicorn.Server) -> None:
    for listening in server.servers:
        listening.close()
    for connection in list(server.server_state.connections):
        transport = connection.transport
        if transport is not None:
            transport.abort()
    server.should_exit = True
    server.force_exit = True
