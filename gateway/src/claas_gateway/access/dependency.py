"""The caller of a route, for FastAPI."""

from __future__ import annotations

from typing import cast

from fastapi import Request

from claas_gateway.access.callers import Caller

CALLER = "claas.caller"
"""Where the edge leaves the caller in ASGI's scope."""


async def caller_of(request: Request) -> Caller:
    """Who makes the request, as the edge admitted them. Routes that are open to everybody have no caller."""
    return cast(Caller, request.scope[CALLER])
