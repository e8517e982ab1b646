"""The API key that a request presents."""

from __future__ import annotations

from collections.abc import Iterable


def presented_key(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The key in the header `Authorization: Bearer`, else in `X-API-Key`; None if neither is there. Names of headers
    are in lower case, as ASGI has them."""
    other = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer" and key.strip():
                return key.strip().decode("latin-1")
        elif name == b"x-api-key" and value.strip():
            other = value.strip().decode("latin-1")
    return other


def cookie(headers: Iterable[tuple[bytes, bytes]], wanted: str) -> str | None:
    """The value of a cookie; None if it was not sent."""
    for name, value in headers:
        if name == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                key, separator, text = pair.strip().partition("=")
                if separator and key == wanted:
                    return text
    return None
