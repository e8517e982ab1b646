"""Watches over a request while it is answered: clients may leave, servers may sleep, proxies may lose patience."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass

from claas_gateway.inference.outlet import Outlet, Receive
from claas_gateway.metrics import GatewayMetrics
from claas_gateway.upstream.pods import PodTries


@dataclass(frozen=True, slots=True)
class Pace:
    """How often requests are looked at."""

    tick_seconds: float = 1.0
    silent_seconds: float = 5.0
    """Silence after which a stream gets a comment."""
    hold_seconds: float = 55.0
    """How long a request waits for a server that is paused or not ready."""


class ClientGone(Exception):  # noqa: N818  (what happened)
    """The client closed its connection."""


async def supervised(
    work: Coroutine[None, None, None],
    *,
    receive: Receive,
    outlet: Outlet,
    tries: PodTries,
    comment: Callable[[], Awaitable[None]] | None,
    pace: Pace,
    metrics: GatewayMetrics,
) -> None:
    """Run `work` to its end. It is cancelled when the client leaves, which raises ClientGone, and when it has waited
    for `tries.hold_seconds` for a server that can't answer yet, without a byte of an answer, which raises NotNow.

    `comment` sends a keep-alive comment; None: the answer is no stream.
    """
    loop = asyncio.get_running_loop()
    answering = loop.create_task(work)
    gone = loop.create_task(receive())
    both = (answering, gone)
    held, stuck, ticked = 0.0, False, loop.time()
    try:
        while True:
            await asyncio.wait(both, timeout=pace.tick_seconds, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
                return
            if gone.done():
                raise ClientGone
            now = loop.time()
            passed, ticked = now - ticked, now
            silent = now - outlet.last >= pace.silent_seconds
            if not outlet.begun:
                was, stuck = stuck, await tries.is_stuck()
                metrics.held.inc(stuck - was)
                held += passed if stuck else 0.0
                if held >= tries.hold_seconds:
                    raise tries.given_up()
            elif stuck:
                stuck = False
                metrics.held.dec()
            if silent and comment is not None and not (outlet.sending or outlet.finished or answering.done()):
                await comment()
    finally:
        if stuck:
            metrics.held.dec()
        gone.cancel()
        if not answering.done():
            answering.cancel()
            await asyncio.wait((answering,))
