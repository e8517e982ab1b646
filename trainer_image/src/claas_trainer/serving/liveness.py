"""Whether a vLLM server lives, asked often: for steps that compute with memory which goes when its process goes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from claas_vllm_client import (
    AnswerTimedOut,
    Tls,
    Unreachable,
    VllmClient,
    VllmError,
)

WATCH_SECONDS = 0.5
"""From one question to the next."""
_TIMEOUT_SECONDS = 1.0
"""With the interval above, a server that is gone is noticed within 1.5 s, even where packets to it are dropped."""


async def gone(urls: Iterable[str], tls: Tls | None) -> list[str]:
    """Those servers that surely live no more."""
    asked = list(urls)
    living = await asyncio.gather(*(lives(url, tls) for url in asked))
    return [url for url, there in zip(asked, living, strict=True) if not there]


async def lives(url: str, tls: Tls | None) -> bool:
    """Whether the server's process is there. One that takes a connection and does not answer in time is busy, or held
    up: its memory is there. One that says that its engine is dead is not."""
    async with VllmClient(url, timeout_seconds=_TIMEOUT_SECONDS, keep_alive=False, tls=tls) as client:
        return await alive(client)


async def alive(client: VllmClient) -> bool:
    """As `lives`, by a client of that server."""
    try:
        return await client.health()
    except AnswerTimedOut:
        return True
    except Unreachable:
        return False
    except VllmError:
        return True
