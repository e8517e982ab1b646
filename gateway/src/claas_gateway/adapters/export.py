"""Passes an adapter's export on from a companion, piece by piece."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from urllib.parse import quote

import aiohttp
from fastapi.responses import StreamingResponse

from claas_gateway.directory.models import Adapter, Server
from claas_gateway.errors import NotFound, NotNow, NotProvided
from claas_gateway.upstream.credentials import ServerCredentials
from claas_gateway.upstream.pods import PodTries
from claas_gateway.upstream.servers import Upstream

_PIECE_BYTES = 1 << 18
_PASSED_ON = ("content-disposition", "x-claas-version")
_RETRY_SECONDS = 5


async def export(upstream: Upstream, adapter: Adapter, cold_start_seconds: float) -> StreamingResponse:
    """The zip of the version in service. Raises NotProvided without the companion, NotFound if no version is served
    yet, and NotNow if no pod answers; a vLLM outside the cluster has `cold_start_seconds` to start."""
    credentials = await upstream.credentials(adapter.servers)
    if credentials.control_token is None:
        raise NotProvided(
            "exports need the companion in vLLM, and its control token: set spec.serving.controlTokenSecretRef"
        )
    path = f"/claas/adapters/{quote(adapter.served_name, safe='')}/export"
    found: list[StreamingResponse] = []

    async def attempt(server: Server, credentials: ServerCredentials) -> None:
        async with AsyncExitStack() as opened:
            answer = await opened.enter_async_context(upstream.ask(server, credentials, "GET", path, control=True))
            if answer.status == 200 and answer.headers.get("Content-Type", "").startswith("application/zip"):
                headers = {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
                pieces = _pieces(answer, opened.pop_all())
                found.append(StreamingResponse(pieces, media_type="application/zip", headers=headers))
                return
            if answer.status in (401, 403):
                raise NotNow("a vLLM server refuses the control token", retry_after_seconds=_RETRY_SECONDS)
        if not await upstream.records(server, credentials):
            raise NotProvided(
                "exports need the companion in vLLM: mount it, or copy the version's folder from the volume"
            )
        raise NotFound(f"LoRA not found: no version of {adapter.lora_id} is in service")

    tries = PodTries(upstream, adapter.servers, cold_start_seconds if adapter.servers.outside else 0.0)
    await tries.run(attempt, lambda: True)
    return found[0]


async def _pieces(answer: aiohttp.ClientResponse, opened: AsyncExitStack) -> AsyncIterator[bytes]:
    """What comes, as it comes; an export that breaks off breaks off for the client too."""
    async with opened:
        async for piece in answer.content.iter_chunked(_PIECE_BYTES):
            yield piece
