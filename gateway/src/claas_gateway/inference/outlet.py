"""The answer on its way to the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import msgspec

from claas_gateway.errors import GatewayError
from claas_gateway.inference.request import Malformed

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Coroutine[Any, Any, Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
KEEP_ALIVE = b": keep-alive\n\n"
_KINDS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    409: "ConflictError",
    413: "RequestTooLargeError",
    422: "UnprocessableEntityError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}
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
        """Whether the client is slow to take what was sent."""

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

    async def comment(self) -> None:
        """Send an SSE comment, which clients ignore and which keeps proxies from cutting the connection."""
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

    async def fail(self, error: GatewayError) -> None:
        """Tell of an error, in the form that fits what was sent before."""
        if self.finished:
            return
        if self.status:
            await self.finish(error_event(error))
        else:
            await self.whole(error.status, [JSON, *error_headers(error)], error_body(error))


def error_headers(error: GatewayError) -> Headers:
    """Headers that go with an error."""
    if error.retry_after_seconds is None:
        return []
    return [(b"retry-after", str(error.retry_after_seconds).encode())]


def error_body(error: GatewayError) -> bytes:
    """An error as OpenAI's clients read it, and as CLaaS's do."""
    detail = error.errors if isinstance(error, Malformed) else error.detail
    return _encode({"error": _described(error), "detail": detail})


def error_event(error: GatewayError) -> bytes:
    """An error inside a stream, as vLLM tells one."""
    return b"data: " + _encode({"error": _described(error)}) + b"\n\ndata: [DONE]\n\n"


def _described(error: GatewayError) -> dict[str, str | int | None]:
    kind = _KINDS.get(error.status, "InternalServerError")
    return {"message": error.detail, "type": kind, "param": None, "code": error.status}
