"""Request bodies, read up to a bound."""

from __future__ import annotations

from starlette.types import Receive, Scope

from claas_gateway.errors import TooLarge

MOST_ITEMS = 256
"""Items in one request for feedback."""


async def read_body(scope: Scope, receive: Receive, largest: int) -> bytes:
    """The body, with or without Content-Length. Raises TooLarge beyond `largest` bytes, without reading further, and
    ConnectionResetError if the client is gone."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > largest:
            raise _too_large(largest)
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        part = message.get("body", b"")
        size += len(part)
        if size > largest:
            raise _too_large(largest)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts) if len(parts) > 1 else parts[0]


def _too_large(largest: int) -> TooLarge:
    return TooLarge(f"the body has more than {largest} bytes; send less in one request")
