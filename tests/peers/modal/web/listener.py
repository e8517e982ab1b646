"""A port before a unix socket, which can vanish like a machine that lost its network, and come back."""

import asyncio
import contextlib
import socket
from pathlib import Path

PIECE = 1 << 16


class Port:
    """Forwards connections. Used from one event loop alone."""

    def __init__(self, host: str, port: int, behind: Path) -> None:
        self.host = host
        self.port = port
        self._behind = behind
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Accept connections, on the same port as before if there was one."""
        if self._server is None:
            listening = bound(self.host, self.port)
            self.port = listening.getsockname()[1]
            self._server = await asyncio.start_server(self._forward, sock=listening)

    def cut(self) -> None:
        """Break all connections without an answer and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._connections):
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner = await asyncio.open_unix_connection(str(self._behind))
        both = {writer, inner}
        self._connections |= both
        pipes = [asyncio.ensure_future(_pipe(reader, inner)), asyncio.ensure_future(_pipe(inner_reader, writer))]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pipe in pipes:
                pipe.cancel()
            self._connections -= both
            for one in both:
                one.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the port, any free one for 0."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    return listening
