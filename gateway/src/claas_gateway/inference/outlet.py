"""The answer on its way to the client."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import msgspec
from pydantic import JsonValue

from claas_gateway.access.refusals import openai_body, refusal_headers
from claas_gateway.errors import GatewayError
from claas_gateway.inference.request import Malformed

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Coroutine[Any, Any, Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
_DONE = b"\n\ndata: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
_encode = msgspec.json.Encoder().encode


class Outlet:
    """Sends one answer, whole events at a time, so that a comment never falls into the middle of one."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        """The status that was sent; 0: none yet."""
        self.begun = False
        """Whether bytes of an answer were sent; comments do not count."""
        self.finished = False
        self.sending = False
        """Whether bytes are waiting for a client that is slow to take them."""
        self.last = time.monotonic()
        """When something was sent last, or the request began."""

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers."""
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send whole events."""
        self.begun = True
        self.sending = True
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self.sending = False
        self.last = time.monotonic()

    async def comment(self) -> None:
        """Send an SSE comment, which clients ignore and which keeps proxies from cutting the connection."""
        self.last = time.monotonic()
        await self._send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})

    async def finish(self, data: bytes = b"") -> None:
        """Send the last bytes."""
        self.finished = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Send an answer at once."""
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, [*headers, length])
        self.begun = True
        await self.finish(body)

    async def refuse(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Pass on a server's refusal; as an event, if comments were sent meanwhile."""
        if self.status:
            await self.finish(b"data: " + _one_line(body) + _DONE)
        else:
            await self.whole(status, headers, body)

    async def fail(self, error: GatewayError) -> None:
        """Tell of an error, in the form that fits what was sent before."""
        if self.finished:
            return
        if self.status:
            await self.finish(b"data: " + _encode({"error": _described(error)["error"]}) + _DONE)
        else:
            headers = [(name.lower().encode(), value.encode()) for name, value in refusal_headers(error).items()]
            await self.whole(error.status, [JSON, *headers], _encode(_described(error)))

    async def method_not_allowed(self, allowed: bytes) -> None:
        """The path has another method."""
        body = _encode({"detail": "Method Not Allowed"})
        await self.whole(405, [JSON, (b"allow", allowed)], body)


def _one_line(body: bytes) -> bytes:
    try:
        return msgspec.json.format(body, indent=-1)
    except msgspec.DecodeError:
        return _encode({"error": {"message": body.decode(errors="replace")}})


def _described(error: GatewayError) -> dict[str, JsonValue]:
    body = openai_body(error)
    return {**body, "detail": list[JsonValue](error.errors)} if isinstance(error, Malformed) else body
