"""Clients that take little processor time: streams that run side by side, and short requests one after another."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field

from bench.front.paced_server import MODEL

_MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Tell me about the weather in the mountains. " * 4},
]


def _request(tokens: int, *, stream: bool) -> bytes:
    asked = {"model": MODEL, "messages": _MESSAGES, "max_tokens": tokens, "stream": stream, "temperature": 1.0}
    body = json.dumps(asked).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )


@dataclass(slots=True)
class Streams:
    """Streams that run until they are stopped; each one that ends is followed by another."""

    port: int
    count: int
    tokens: int
    chunks: int = 0
    """Events that have come."""
    answers: int = 0
    failed: int = 0
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        """Begin, spread over the length of an answer."""
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(self.count)]

    async def stop(self) -> None:
        """End all at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _run(self, number: int) -> None:
        tokens = self.tokens * (1 + number) // self.count or 1
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(_request(tokens, stream=True))
                last = b""
                while not last.endswith(b"0\r\n\r\n"):
                    data = await reader.read(65536)
                    if not data:
                        self.failed += 1
                        break
                    self.chunks += data.count(b'data: {"id"')
                    last = (last + data)[-5:]
                self.answers += 1
            finally:
                writer.close()
            tokens = self.tokens


class ShortRequests:
    """Answers of one token over a connection that is kept; each takes so many seconds."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.seconds: list[float] = []
        self._sent = _request(1, stream=False)

    async def open(self) -> None:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def ask(self) -> None:
        """One request."""
        began = time.perf_counter()
        self._writer.write(self._sent)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        await self._reader.readexactly(length)
        self.seconds.append(time.perf_counter() - began)
        assert head.startswith(b"HTTP/1.1 200"), head

    def close(self) -> None:
        """Disconnect."""
        self._writer.close()
