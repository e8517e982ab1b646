"""Requests to vLLM servers, counted by server."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import msgspec

from claas_gateway.directory.interface import Directory
from claas_gateway.directory.models import Server, ServerGroup
from claas_gateway.errors import NotNow
from claas_gateway.upstream.choice import choose
from claas_gateway.upstream.credentials import KeptCredentials, ServerCredentials
from claas_gateway.upstream.outside import TIMEOUT, NoAnswer, check, proxy_headers
from claas_kube.api import Api
from claas_kube.errors import ApiError

TOKEN_HEADER = "X-Claas-Token"
STATUS_SECONDS = 5.0
ASLEEP_SECONDS = 0.8
"""How long a pod is not asked again whether it sleeps."""
_LEARNT_SECONDS = 60.0
"""How long a pod counts as one without the companion: it may be started again with it."""


@dataclass(slots=True)
class _Learnt:
    records: bool
    since: float


class _Status(msgspec.Struct):
    records: bool = False


class Upstream:
    """The vLLM pods."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        api: Api,
        directory: Directory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`http`: made by `connections.new_session`."""
        self._http = http
        self._directory = directory
        self._clock = clock
        self._credentials = KeptCredentials(api, clock)
        self._in_flight: Counter[str] = Counter()
        self._learnt: dict[str, _Learnt] = {}
        self._asking: dict[str, tuple[float, asyncio.Task[bool]]] = {}

    async def credentials(self, group: ServerGroup) -> ServerCredentials:
        """The credentials of a Deployment's servers; raises NotNow if they can't be read."""
        try:
            return await self._credentials.of(group)
        except ApiError:
            raise NotNow("The credentials of the model's servers can't be read now", retry_after_seconds=5) from None

    def choose(self, group: ServerGroup, tried: Collection[str] = ()) -> Server | None:
        """The pod that should take a request; None if none is ready that was not tried."""
        return choose(self._directory.servers(group), self._in_flight, tried)

    def forget_credentials(self, group: ServerGroup) -> None:
        """A server refused them: read them again."""
        self._credentials.forget(group)

    async def is_asleep(self, group: ServerGroup, server: Server) -> bool:
        """Whether a pod that a step may put to sleep sleeps; a pod that can't be asked counts as asleep."""
        if not any(each.may_sleep for each in self._directory.servers(group) if each.uid == server.uid):
            return False
        asking = self._asking.get(server.uid)
        if asking is None or (asking[1].done() and self._clock() - asking[0] >= ASLEEP_SECONDS):
            asking = self._clock(), asyncio.create_task(self._ask_asleep(group, server))
            self._asking[server.uid] = asking
            if len(self._asking) > 4096:
                self._asking.pop(next(iter(self._asking)))
        return await asyncio.shield(asking[1])

    async def _ask_asleep(self, group: ServerGroup, server: Server) -> bool:
        try:
            credentials = await self.credentials(group)
            async with (
                asyncio.timeout(STATUS_SECONDS),
                self.ask(server, credentials, "GET", "/is_sleeping", control=True) as response,
            ):
                said = await response.read()
                return response.status != 200 or b"true" in said
        except (NoAnswer, NotNow, TimeoutError, aiohttp.ClientError):
            return True

    @asynccontextmanager
    async def ask(
        self,
        server: Server,
        credentials: ServerCredentials,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        control: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; the answer's body is read by the caller. `control`: with the control token. Raises
        NoAnswer if no answer begins, and for a server outside the cluster what `outside.check` raises; what goes
        wrong while the body is read is aiohttp's ClientError."""
        sent = dict(headers or ())
        if server.outside:
            sent |= proxy_headers(credentials)
        if credentials.api_key is not None:
            sent["Authorization"] = f"Bearer {credentials.api_key}"
        if control and credentials.control_token is not None:
            sent[TOKEN_HEADER] = credentials.control_token
        self._in_flight[server.uid] += 1
        try:
            try:
                response = await self._http.request(
                    method,
                    server.url + path,
                    data=body,
                    headers=sent,
                    allow_redirects=False,
                    ssl=True if credentials.tls is None else credentials.tls,
                    server_hostname=credentials.server_name,
                    timeout=TIMEOUT if server.outside else self._http.timeout,
                )
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise NoAnswer(f"{server.pod}: {type(error).__name__}") from None
            try:
                if server.outside:
                    check(server.pod, response.status, response.content_type)
                yield response
            finally:
                # A connection whose answer was read to its end is kept already; any other must not be.
                response.close()
        finally:
            self._in_flight[server.uid] -= 1
            if not self._in_flight[server.uid]:
                del self._in_flight[server.uid]

    async def records(self, server: Server, credentials: ServerCredentials) -> bool:
        """Whether a pod records inside: its companion takes this control token and says so, as older ones do not."""
        if credentials.control_token is None:
            return False
        learnt = self._learnt.get(server.uid)
        if learnt is not None and (learnt.records or self._clock() - learnt.since < _LEARNT_SECONDS):
            return learnt.records
        if server.outside:
            # The companion is part of the app. Answers show whether it records: to ask would start a container.
            return True
        try:
            async with (
                asyncio.timeout(STATUS_SECONDS),
                self.ask(server, credentials, "GET", "/claas/status", control=True) as response,
            ):
                body = await response.read()
                records = response.status == 200 and msgspec.json.decode(body, type=_Status).records
        except (TimeoutError, aiohttp.ClientError, msgspec.DecodeError):
            return False
        self.learn(server, records=records)
        return records

    def learn(self, server: Server, *, records: bool) -> None:
        """An answer showed whether a pod records inside."""
        self._learnt[server.uid] = _Learnt(records, self._clock())
        if len(self._learnt) > 4096:
            self._learnt.pop(next(iter(self._learnt)))
