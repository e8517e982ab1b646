"""The proxy that one writes first: Starlette and httpx, which record nothing.

python bench/front/plain_proxy.py PORT UPSTREAM_PORT
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

_CLIENT = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None), trust_env=False)


async def _pass_on(request: Request) -> StreamingResponse:
    url = f"http://127.0.0.1:{sys.argv[2]}{request.url.path}"
    headers = {"content-type": "application/json"}
    asked = _CLIENT.build_request("POST", url, content=await request.body(), headers=headers)
    answer = await _CLIENT.send(asked, stream=True)

    async def body() -> AsyncIterator[bytes]:
        try:
            async for chunk in answer.aiter_raw():
                yield chunk
        finally:
            await answer.aclose()

    kept = {name: answer.headers[name] for name in ("content-type", "content-length") if name in answer.headers}
    return StreamingResponse(body(), answer.status_code, kept)


if __name__ == "__main__":
    application = Starlette(routes=[Route("/v1/chat/completions", _pass_on, methods=["POST"])])
    uvicorn.run(
        application, host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False,
        log_level="warning",
    )  # fmt: skip
