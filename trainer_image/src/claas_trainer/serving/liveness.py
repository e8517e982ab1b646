"""Liveness of vLLM servers, polled often, for steps that use memory of the server's process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from claas_vllm_client import AnswerTimedOut, Tls, Unreachable, VllmClient, VllmError

WATCH_SECONDS = 0.5
"""Seconds between two requests."""
_TIMEOUT_SECONDS = 1.0
"""With the interval above, the end of a server is noticed within 1.5 s, even if packets to it are dropped."""


async def gone(urls: Iterable[str], tls: Tls | None) -> list[str]:
    """The servers that have certainly ended."""
    asked = list(urls)
    living = await asyncio.gather(*(lives(url, tls) for url in asked))
    return [url for url, there in zip(asked, living, strict=True) if not there]


async def lives(url: str, tls: Tls | None) -> bool:
    """Whether the server's process exists. A server that accepts the connection but does not answer in time is only
    busy: its memory exists. A server that reports a dead engine counts as ended."""
    async with VllmClient(url, timeout_seconds=_TIMEOUT_SECONDS, keep_alive=False, tls=tls) as client:
        return await alive(client)


async def alive(client: VllmClient) -> bool:
    """Like `lives`, with a client of that server."""
    try:
        return await client.health()
    except AnswerTimedOut:
        return True
    except Unreachable:
        return False
    except VllmError:
        return True
