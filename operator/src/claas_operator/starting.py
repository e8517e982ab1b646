"""Work before the operator's loop runs, retried while the API server is not ready for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from claas_kube.errors import ApiError, Unavailable

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0
REFUSED_SECONDS = 60.0
"""Seconds for which refusals are attributed to a fresh install: CRDs and Roles take effect a moment after their
creation."""


async def until_done(
    what: str,
    work: Callable[[], Awaitable[None]],
    stop: asyncio.Event,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Do `work`, and retry with back-off until the API server permits it; False if asked to stop meanwhile.

    While the server can't answer (HTTP 429 or 5xx, or no connection), it is retried without limit. Raises ApiError
    for a refusal that lasts longer than REFUSED_SECONDS.
    """
    pause = FIRST_PAUSE_SECONDS
    refused_since: float | None = None
    while not stop.is_set():
        try:
            await work()
        except Unavailable as error:
            refused_since = None
            wait = max(pause, error.retry_after_seconds)
            log.warning("%s: %s; again in %.1f s", what, error, wait)
        except ApiError as error:
            refused_since = clock() if refused_since is None else refused_since
            if clock() - refused_since >= REFUSED_SECONDS:
                raise
            wait = pause
            log.warning("%s: %s; again in %.1f s", what, error, wait)
        else:
            return True
        pause = min(LONGEST_PAUSE_SECONDS, pause * 2)
        try:
            await asyncio.wait_for(stop.wait(), wait)
        except TimeoutError:
            continue
    return False
