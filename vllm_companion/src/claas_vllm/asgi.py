"""ASGI messages: their types, reading a request, and answering one."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from claas_vllm.errors import ControlError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

_LARGEST_CONTROL_BODY_BYTES = 64 * 1024


def parse_object(body: bytes) -> dict[str, Any] | None:
    """A JSON object, or None for anything else."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def is_json(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the content type is JSON."""
    return _is_kind(headers, b"application/json")


def is_event_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the content type is a stream of server-sent events."""
    return _is_kind(headers, b"text/event-stream")


def _is_kind(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> bool:
    kinds = [value for name, value in headers if name.lower() == b"content-type"]
    return any(kind.split(b";")[0].strip().lower() == wanted for kind in kinds)


def with_length(headers: Iterable[tuple[bytes, bytes]], length: int) -> Headers:
    """The headers with another content length, in bytes."""
    dropped = (b"content-length", b"transfer-encoding")
    kept = [(name, value) for name, value in headers if name.lower() not in dropped]
    return [*kept, (b"content-length", str(length).encode())]


def without_own_headers(scope: Scope) -> Scope:
    """The request without the companion's headers: neither handlers nor logs of vLLM see them."""
    own = (b"x-claas-token", b"x-claas-record")
    return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name.lower() not in own]}


def saying_version(send: Send, target: str) -> Send:
    """A `send` that adds the header `X-Claas-Version`, the version that answers."""

    async def say(message: Message) -> None:
        # Not for requests that vLLM's own authentication refused.
        if message["type"] == "http.response.start" and message["status"] != 401:
            message = {**message, "headers": [*message.get("headers", []), (b"x-claas-version", target.encode())]}
        await send(message)

    return say


async def read_messages(receive: Receive) -> list[Message]:
    """Reads a request's messages up to the end of its body or the disconnect."""
    messages = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages


async def read_body(receive: Receive) -> bytes:
    """The body of a control request. Raises ControlError (413) if it is too large."""
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _LARGEST_CONTROL_BODY_BYTES:
            raise ControlError(413, "BadRequestError", f"the body exceeds {_LARGEST_CONTROL_BODY_BYTES} bytes")
        if not message.get("more_body", False):
            return body


def replay(messages: list[Message], then: Receive) -> Receive:
    """A `receive` that returns messages already read, followed by new ones."""
    waiting = iter(messages)

    async def receive() -> Message:
        message = next(waiting, None)
        return message if message is not None else await then()

    return receive


async def never() -> Message:
    """A `receive` for a caller that never disconnects."""
    await asyncio.Event().wait()
    return {"type": "http.disconnect"}


async def answer(send: Send, status: int, document: Mapping[str, Any]) -> None:
    """Answer with a JSON document."""
    body = json.dumps(document).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def refuse(scope: Scope, send: Send, status: int, kind: str, message: str) -> None:
    """An error in OpenAI's shape; a websocket is closed before it is accepted."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    error = {"message": message, "type": kind, "param": None, "code": status}
    await answer(send, status, {"error": error})
