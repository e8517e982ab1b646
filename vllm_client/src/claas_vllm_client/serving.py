"""Pauses and resumes a server. Each operation is idempotent and checks every call."""

import asyncio
import time

from claas_vllm_client.client import VllmClient
from claas_vllm_client.errors import (
    AnswerTimedOut,
    DrainTimedOut,
    NotConnected,
    Refused,
    RequestFailed,
    RouteMissing,
    ServerGone,
    StillPaused,
    Unreachable,
    VllmError,
)
from claas_vllm_client.wire import PauseMode

_FIRST_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 2.0
_GONE_SECONDS = 10.0
"""Seconds without a connection after which a server has ended. A busy process still accepts connections."""
_WITHOUT_EFFECT = (NotConnected, Refused, RouteMissing)


async def pause_serving(
    client: VllmClient,
    *,
    mode: PauseMode = PauseMode.KEEP,
    level: int = 1,
    drain_timeout_seconds: float = 60.0,
    sleep_timeout_seconds: float = 60.0,
    resume_timeout_seconds: float = 30.0,
) -> float:
    """Put the server to sleep; returns the seconds that took.

    With WAIT, running requests are drained by `/pause` first, and the engine sleeps when it is empty: an abandoned
    `/sleep?mode=wait` would stay queued in the engine and put it to sleep after the resume. Only ABORT aborts
    requests, and it is never chosen here.

    Raises `DrainTimedOut` if running requests did not end in time; serving is resumed then. After any other failed
    call that may have paused the server, the server is woken before the error is raised, or `StillPaused` if it does
    not wake within `resume_timeout_seconds`. A cancelled caller must resume serving itself.
    """
    started = time.monotonic()
    if mode is PauseMode.WAIT:
        await _drain(client, drain_timeout_seconds, resume_timeout_seconds)
    # After a drain nothing runs, and "keep" freezes what arrived since.
    sleep_mode = PauseMode.KEEP if mode is PauseMode.WAIT else mode
    try:
        await client.sleep(mode=sleep_mode, level=level, timeout_seconds=sleep_timeout_seconds)
    except VllmError as error:
        if mode is PauseMode.WAIT or not isinstance(error, _WITHOUT_EFFECT):
            await ensure_awake(client, timeout_seconds=resume_timeout_seconds)
        raise
    return time.monotonic() - started


async def resume_serving(client: VllmClient, *, timeout_seconds: float = 60.0) -> float:
    """Wake the server and check that it is awake; returns the seconds that took.

    A refused token is retried if the client can renew it. Raises `StillPaused` if the server is not awake in time,
    `ServerGone` if it has ended, and `Refused`.
    """
    started = time.monotonic()
    await _wake_until_awake(client, started + timeout_seconds)
    return time.monotonic() - started


async def ensure_awake(client: VllmClient, *, timeout_seconds: float = 60.0) -> bool:
    """Wake the server if it is asleep or paused. True if it had to be woken; False also for a server without sleep
    routes, which can't sleep. Raises the errors of `resume_serving`.
    """
    deadline = time.monotonic() + timeout_seconds
    try:
        if not await client.is_sleeping():
            return False
    except RouteMissing:
        return False
    except Refused:
        if not client.renews_token:
            raise
    except (Unreachable, RequestFailed):
        pass  # The loop below retries until the deadline.
    await _wake_until_awake(client, deadline)
    return True


async def _wake_until_awake(client: VllmClient, deadline: float) -> None:
    """Call `/wake_up` until `/is_sleeping` is false. A wake fails while another process holds the memory."""
    delay = _FIRST_RETRY_SECONDS
    last: VllmError | None = None
    connected_at = time.monotonic()
    while True:
        remaining = deadline - time.monotonic()
        try:
            await client.wake_up(timeout_seconds=max(1.0, remaining))
            if not await client.is_sleeping():
                return
            last = None
        except RouteMissing:
            raise
        except Refused as error:
            if not client.renews_token:
                raise
            last = error
        except (Unreachable, RequestFailed) as error:
            last = error
        if not isinstance(last, NotConnected):
            connected_at = time.monotonic()
        elif time.monotonic() - connected_at > _GONE_SECONDS:
            raise ServerGone(client.base_url, f"has ended: no connection for {_GONE_SECONDS:g} s") from last
        if time.monotonic() + delay >= deadline:
            raise StillPaused(
                client.base_url,
                f"still asleep or paused ({last.message if last else 'it says so'}); check that no other process"
                " holds the GPU's memory, then POST /wake_up, or restart the pod",
            ) from last
        await asyncio.sleep(delay)
        delay = min(2 * delay, _LONGEST_RETRY_SECONDS)


async def _drain(client: VllmClient, timeout_seconds: float, resume_timeout_seconds: float) -> None:
    try:
        await client.pause(mode=PauseMode.WAIT, timeout_seconds=timeout_seconds)
    except _WITHOUT_EFFECT:
        raise
    except AnswerTimedOut as error:
        await _resume(client, resume_timeout_seconds)
        raise DrainTimedOut(
            client.base_url,
            f"running requests did not end within {timeout_seconds:g} s; serving was resumed and none was ended."
            " Give a longer drain timeout, or pause with mode keep",
        ) from error
    except VllmError:
        await _resume(client, resume_timeout_seconds)
        raise


async def _resume(client: VllmClient, timeout_seconds: float) -> None:
    """End a pause without sleep, and check that; falls back to a full wake-up if /resume is not enough."""
    try:
        await client.resume()
        paused = await client.is_paused()
    except (Unreachable, RequestFailed):
        paused = True
    if paused:
        await ensure_awake(client, timeout_seconds=timeout_seconds)
