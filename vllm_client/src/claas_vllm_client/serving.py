"""Pausing and resuming a server: several calls, each checked, idempotent."""

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
"""Without a connection. A process that is busy or held up still takes connections."""
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
    """Put the server to sleep, and return how many seconds that took.

    With WAIT, running requests are drained by `/pause` first and the engine sleeps when it is empty: a
    `/sleep?mode=wait` that is given up would stay queued in the engine and put it to sleep after the resume.
    Requests are ended only with ABORT, which is never chosen here.

    Raises `DrainTimedOut` when running requests did not end in time; serving is then resumed. When a call fails
    that may have paused the server, it is woken before the error is raised; `StillPaused` when that fails
    within `resume_timeout_seconds`. Callers that are cancelled must resume.
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
    """Wake the server at once, check that it is awake, and return how many seconds that took.

    A refused token is tried again where the client renews it. Raises `StillPaused` when the server is not awake in
    time, `ServerGone` when it has ended, and `Refused`.
    """
    started = time.monotonic()
    await _wake_until_awake(client, started + timeout_seconds)
    return time.monotonic() - started


async def ensure_awake(client: VllmClient, *, timeout_seconds: float = 60.0) -> bool:
    """Wake the server if it is asleep or paused. True when it had to be woken.

    A server without sleep routes can't have been put to sleep: False. Raises as `resume_serving`.
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
        pass  # The loop below asks again, until the deadline.
    await _wake_until_awake(client, deadline)
    return True


async def _wake_until_awake(client: VllmClient, deadline: float) -> None:
    """Call `/wake_up` until `/is_sleeping` is false: a wake fails while another process holds the memory."""
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
    """End a pause without sleep, and check that it ended; by a full wake-up if /resume does not do it."""
    try:
        await client.resume()
        paused = await client.is_paused()
    except (Unreachable, RequestFailed):
        paused = True
    if paused:
        await ensure_awake(client, timeout_seconds=timeout_seconds)
