"""A request's way over the pods: another is tried while nothing of an answer has reached the client, and it waits
while none is ready."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import aiohttp

from claas_gateway.directory.models import Server, ServerGroup
from claas_gateway.errors import NotNow
from claas_gateway.upstream.credentials import ServerCredentials
from claas_gateway.upstream.servers import NoAnswer, Upstream

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.25
"""How long to wait before the pods are looked at again."""
ELSEWHERE = frozenset({502, 503, 504})
"""Statuses for which another pod is asked, if there is one."""

RETRY_SECONDS = 5
"""What a client is told to wait for when the gateway gives up."""

Attempt = Callable[[Server, ServerCredentials], Awaitable[None]]


class PodTries:
    """The pods that one request tries."""

    def __init__(self, upstream: Upstream, group: ServerGroup, hold_seconds: float) -> None:
        self._upstream = upstream
        self._group = group
        self._hold_seconds = hold_seconds
        self._failing_since: float | None = None
        self._tried: set[str] = set()
        self._asked_anew = False
        self.server: Server | None = None
        """The pod that is asked; None while none is ready."""

    async def run(self, attempt: Attempt, may_repeat: Callable[[], bool]) -> None:
        """Let a pod answer. `attempt` raises NoAnswer or aiohttp's ClientError if it did not, which is raised from
        here only when `may_repeat` forbids to try again. Raises NotNow when pods have failed for `hold_seconds`."""
        clock = asyncio.get_running_loop().time
        while True:
            self.server = server = self._upstream.choose(self._group, self._tried)
            if server is None:
                self._tried.clear()
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            began = clock()
            try:
                await attempt(server, await self._upstream.credentials(self._group))
            except (NoAnswer, aiohttp.ClientError) as error:
                if not may_repeat():
                    raise
                log.info("%s did not answer: %s", server.pod, error if isinstance(error, NoAnswer) else type(error))
                self._tried.add(server.uid)
                self._failing_since = began if self._failing_since is None else self._failing_since
                if clock() - self._failing_since >= self._hold_seconds:
                    raise NotNow(
                        "The model's servers do not answer; try again", retry_after_seconds=RETRY_SECONDS
                    ) from None
            else:
                return

    def refused(self, server: Server, status: int, *, adapter: bool) -> None:
        """A pod refused a request. Raises NoAnswer if it should be asked again, or another pod: an adapter may not be
        loaded yet in a pod that has just started, and a key may have been rotated."""
        if status == 401 and not self._asked_anew:
            self._asked_anew = True
            self._upstream.forget_credentials(self._group)
            raise NoAnswer(f"{server.pod}: HTTP {status}")
        elsewhere = status in ELSEWHERE or (status == 404 and adapter)
        if elsewhere and self._upstream.choose(self._group, {*self._tried, server.uid}) is not None:
            raise NoAnswer(f"{server.pod}: HTTP {status}")

    async def is_stuck(self) -> bool:
        """Whether the request waits for a server that is paused or not ready."""
        server = self.server
        return server is None or await self._upstream.is_asleep(self._group, server)
