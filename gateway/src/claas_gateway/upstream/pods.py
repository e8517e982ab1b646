"""A request's way over the servers: another is tried while nothing of an answer has reached the client, and it waits
while none is ready. A server outside the cluster is asked again until its container has started."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

import aiohttp

from claas_gateway.directory.models import Server, ServerGroup
from claas_gateway.errors import NotNow
from claas_gateway.upstream.credentials import ServerCredentials
from claas_gateway.upstream.outside import RETRY_SECONDS, NoAnswer, TokenRefused
from claas_gateway.upstream.servers import Upstream

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.25
"""How long to wait before the pods are looked at again. For a server outside the cluster it doubles each time."""
LONGEST_PAUSE_SECONDS = 5.0
ELSEWHERE = frozenset({502, 503, 504})
"""Statuses for which another pod is asked, if there is one."""
_MOST_UNLOADED = 6
"""How often a server outside the cluster may say that it lacks the adapter: a container that has just started loads
it within seconds."""

Attempt = Callable[[Server, ServerCredentials], Awaitable[None]]


class PodTries:
    """The servers that one request tries."""

    def __init__(self, upstream: Upstream, group: ServerGroup, hold_seconds: float) -> None:
        self._upstream = upstream
        self._group = group
        self.hold_seconds = hold_seconds
        """How long the request waits for a server that is paused, not ready, or starting."""
        self._waiting_since: float | None = None
        self._pause_seconds = AGAIN_SECONDS
        self._unloaded = 0
        self._tried: set[str] = set()
        self._asked_anew = False
        self.server: Server | None = None
        """The server that is asked; None while none is ready."""

    async def run(self, attempt: Attempt, may_repeat: Callable[[], bool]) -> None:
        """Let a server answer. `attempt` raises NoAnswer or aiohttp's ClientError if it did not, which is raised from
        here only when `may_repeat` forbids to try again. Raises NotNow when there was none to answer for
        `hold_seconds`."""
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            self.server = server = self._upstream.choose(self._group, self._tried)
            if server is None:
                self._waiting_since = began if self._waiting_since is None else self._waiting_since
                if began - self._waiting_since >= self.hold_seconds:
                    raise self.given_up()
                self._tried.clear()
                await asyncio.sleep(self._pause())
                continue
            try:
                await attempt(server, await self._upstream.credentials(self._group))
            except (NoAnswer, aiohttp.ClientError) as error:
                if not may_repeat():
                    raise
                log.info("%s did not answer: %s", server.pod, error if isinstance(error, NoAnswer) else type(error))
                if isinstance(error, TokenRefused):
                    self._read_credentials_anew()
                    continue
                self._tried.add(server.uid)
                self._waiting_since = began if self._waiting_since is None else self._waiting_since
            else:
                return

    def given_up(self) -> NotNow:
        """What a client is told whose request has waited for `hold_seconds`."""
        if self._group.outside:
            said = "The model's servers on Modal do not answer yet, and may be starting; try again"
        else:
            said = "The model's servers are paused, not ready or do not answer; try again"
        return NotNow(said, retry_after_seconds=RETRY_SECONDS)

    def _pause(self) -> float:
        if not self._group.outside:
            return AGAIN_SECONDS
        pause = self._pause_seconds
        self._pause_seconds = min(LONGEST_PAUSE_SECONDS, 2 * pause)
        return pause * random.uniform(0.75, 1.0)

    def _read_credentials_anew(self) -> None:
        """For one more try. Raises NotNow the second time."""
        if self._asked_anew:
            raise NotNow(
                "Modal refuses the proxy token for the model's servers: spec.serving.modalApp.proxyTokenSecretRef"
                " names its Secret",
                retry_after_seconds=RETRY_SECONDS,
            ) from None
        self._asked_anew = True
        self._upstream.forget_credentials(self._group)

    def refused(self, server: Server, status: int, *, adapter: bool) -> None:
        """A pod refused a request. Raises NoAnswer if it should be asked again, or another pod: an adapter may not be
        loaded yet in a pod that has just started, and a key may have been rotated."""
        if status == 401 and not self._asked_anew:
            self._asked_anew = True
            self._upstream.forget_credentials(self._group)
            raise NoAnswer(f"{server.pod}: HTTP {status}")
        if server.outside and status == 404 and adapter and self._unloaded < _MOST_UNLOADED:
            self._unloaded += 1
            raise NoAnswer(f"{server.pod}: HTTP {status}")
        elsewhere = status in ELSEWHERE or (status == 404 and adapter)
        if elsewhere and self._upstream.choose(self._group, {*self._tried, server.uid}) is not None:
            raise NoAnswer(f"{server.pod}: HTTP {status}")

    async def is_stuck(self) -> bool:
        """Whether the request waits for a server that is paused or not ready."""
        server = self.server
        return server is None or await self._upstream.is_asleep(self._group, server)
